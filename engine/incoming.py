"""The target of a migration: a place is held, a thread of its own writes the state into it and verifies it,
and the session is adopted once this engine owns it.

Before it has said `verified`, any failure ends it here. Afterwards only Redis knows whether the source has
committed: the copy is kept until it is owned, or the migration is called off.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any, Protocol

import torch

from engine.compute_messages import Command, Reserve, Reserved, Unreserve
from engine.handover import Arrival, Note, expect, receive_note, send_note
from engine.helper_thread import HelperThread
from engine.kv_pool import SlabPool
from engine.models.base import CausalVideoModel
from engine.offload import HostSlab
from engine.pairs import Pair, PairLost, Pairs
from engine.replay import ReplayChunk
from engine.replay_state import chunks_of, replay_of, restamped
from engine.session_state import SessionState
from engine.state_format import ExportedState, StateFormatError
from engine.state_io import (
    begin_rebuild,
    check_shapes,
    import_kv_frames,
    load_scalars,
    load_slabs,
    model_key,
)
from engine.work_scope import WorkScope
from scheduler.messages import ReceiveSession, SessionRecord
from scheduler.store import StoreUnavailable

__all__ = ["Incoming", "TargetSide", "land", "place_frames"]

_log = logging.getLogger("turboserve.engine.incoming")

STEP_LIMIT_S = 3.0


class TargetSide(Protocol):
    """What the target needs of its engine; all on the event loop."""

    def submit(self, command: Command) -> None:
        """To the compute thread."""

    async def record(self, command: ReceiveSession) -> SessionRecord | None:
        """The session as Redis knows it. Raises StoreUnavailable."""

    def adopt(self, arrival: Arrival) -> None:
        """The session is ours."""


class Incoming:
    """One session on its way here. Belongs to the event loop."""

    def __init__(
        self,
        model: CausalVideoModel,
        pool: SlabPool,
        pairs: Pairs,
        side: TargetSide,
        command: ReceiveSession,
        *,
        ranks: int = 1,
    ) -> None:
        self._model, self._pool, self._pairs, self._side = model, pool, pairs, side
        self.command, self._ranks = command, ranks
        self._helper = HelperThread(f"receive {command.session}")
        loop = asyncio.get_running_loop()
        self._reserved: asyncio.Future[Reserved] = loop.create_future()
        self._decision: asyncio.Future[bool] = loop.create_future()
        self._pair: Pair | None = None
        self._scope = WorkScope()
        """Of the thread that writes into the place; it may be late."""
        self._window: list[ReplayChunk] = []
        """What has come of the replay window."""

    @property
    def epoch(self) -> int:
        """That of this engine once the source has committed."""
        return self.command.epoch + 1

    # --- from the engine -----------------------------------------------------------------------------------

    def receive(self, event: Reserved) -> None:
        """The place that is held, if there is one."""
        if not self._reserved.done():
            self._reserved.set_result(event)

    @property
    def is_ours(self) -> bool:
        """Has Redis said that this engine owns the session?"""
        return self._decision.done() and self._decision.result()

    def decide(self, *, is_ours: bool) -> None:
        """Redis says so: this engine owns the session, or the migration is off. The first word counts."""
        if not self._decision.done():
            self._decision.set_result(is_ours)

    async def run(self) -> bool:
        """Until the session is adopted (True) or its copy dropped."""
        command, taking = self.command, asyncio.create_task(self._take_in())
        try:
            async with asyncio.timeout(command.limit_ms / 1000.0):
                either: set[asyncio.Future[Any]] = {taking, self._decision}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if not taking.done() and not self._decision.result():
                    raise PairLost("it was called off")  # or the place would be held until a limit is reached
                arrival = await taking
        except Exception as exc:  # whatever it is, the session stays where it is
            is_expected = isinstance(exc, PairLost | StateFormatError | TimeoutError | StoreUnavailable)
            why, fault = str(exc) or type(exc).__name__, None if is_expected else exc
            _log.warning("%s does not come from %s: %s", command.session, command.engine, why, exc_info=fault)
            self._drop()
            return False
        except asyncio.CancelledError:
            self._drop()
            raise
        finally:
            taking.cancel()
        told = asyncio.create_task(self._hear_commit())
        try:
            is_ours = await self._decision
            if is_ours:
                self._side.adopt(arrival)
                await self._reuse(told)
            else:
                self._drop()
            return is_ours
        finally:
            told.cancel()
            self._helper.close()

    # --- steps ---------------------------------------------------------------------------------------------

    async def _take_in(self) -> Arrival:
        command, limit_s = self.command, self.command.limit_ms / 1000.0
        self._side.submit(Reserve(migration_id=command.migration_id, in_slot=command.takes_slot))
        record = await self._side.record(command)

        def answer() -> Pair:
            return self._pairs.answer(command.migration_id, limit_s=STEP_LIMIT_S)

        pair = self._pair = await self._helper.call(answer, limit_s=3 * STEP_LIMIT_S)
        reserved = await self._reserved
        if record is None or (reserved.slot is None and reserved.slab is None):
            why = "there is no place for it" if record is not None else "Redis does not know it"
            note = Note(kind="cancelled", migration_id=command.migration_id, why=why)
            await self._say(note)
            raise PairLost(why)
        await self._say(Note(kind="ready", migration_id=command.migration_id, ranks=self._ranks))
        return await self._helper.call(lambda: self._receive(pair, record, reserved), limit_s=limit_s)

    async def _say(self, note: Note) -> None:
        pair = self._pair
        assert pair is not None
        await self._helper.call(lambda: send_note(pair, note, limit_s=STEP_LIMIT_S), limit_s=2 * STEP_LIMIT_S)

    @torch.inference_mode()
    def _receive(self, pair: Pair, record: SessionRecord, reserved: Reserved) -> Arrival:
        """On the helper thread: everything up to `verified`."""
        id, limit_s = self.command.migration_id, self.command.limit_ms / 1000.0
        while True:
            note, exported = receive_note(pair, id, limit_s=limit_s)
            if exported is None or exported.header.model != model_key(self._model.spec):
                raise StateFormatError("what came is not state of this engine's model")
            if note.kind != "frames":
                break
            self._take_replay(exported)
            with self._scope.step():
                if reserved.slot is not None:
                    place_frames(self._model, self._pool, exported, reserved.slot)
                elif exported.header.kv_ring or "prompt_kv" in exported.buffers:
                    raise StateFormatError("it is in a slot there, and a place in host memory is held here")
            send_note(pair, Note(kind="ready", migration_id=id), limit_s=STEP_LIMIT_S)
        arrival = self._arrival(expect("final", note), exported, record, reserved)
        try:
            send_note(pair, Note(kind="verified", migration_id=id), limit_s=STEP_LIMIT_S)
        except PairLost as exc:  # it may have arrived all the same: now it is for Redis to say
            _log.warning("%s: the source may not know that its state is verified: %s", record.id, exc)
        return arrival

    def _take_replay(self, exported: ExportedState) -> None:
        self._window += [restamped(chunk, self.epoch) for chunk in chunks_of(exported)]

    def _arrival(
        self, note: Note, exported: ExportedState, record: SessionRecord, reserved: Reserved
    ) -> Arrival:
        header, facts = exported.header, note.facts
        if facts is None or header.scalars is None or header.session != record.id:
            raise StateFormatError("the final part has no scalars or facts, or is another session's")
        self._take_replay(exported)
        replay = replay_of(self._window, next_seq=facts.next_seq, end_ms=facts.end_ms)
        buffers = {name: data for name, data in exported.buffers.items() if name != "replay"}
        infos = tuple(info for info in header.buffers if info.name != "replay")
        exported = ExportedState(header=replace(header, replay=(), buffers=infos), buffers=buffers)
        with self._scope.step():
            state, away = land(self._model, self._pool, note, exported, reserved, epoch=self.epoch)
        return Arrival(
            migration_id=note.migration_id,
            record=record,
            state=state,
            away=away,
            replay=replay,
            facts=facts,
        )

    async def _hear_commit(self) -> None:
        """The source says it first; if it can't any more, Redis will."""
        pair, id = self._pair, self.command.migration_id
        assert pair is not None
        limit_s = self.command.limit_ms / 1000.0
        try:
            note, _ = await self._helper.call(
                lambda: receive_note(pair, id, limit_s=limit_s), limit_s=2 * limit_s
            )
            expect("committed", note)
        except (PairLost, StateFormatError, TimeoutError) as exc:
            _log.info("%s: Redis will say whether it is ours: %s", self.command.session, exc)
            raise PairLost(str(exc)) from exc
        self.decide(is_ours=True)

    async def _reuse(self, told: asyncio.Task[None]) -> None:
        """Keep the pair for the next migration, if its last word has come."""
        assert self._pair is not None
        try:
            async with asyncio.timeout(STEP_LIMIT_S):
                await told
        except (PairLost, TimeoutError):
            self._pair.close()
        else:
            self._pairs.keep(self._pair, None)

    def _drop(self) -> None:
        self._scope.end()  # waits for as long as a piece takes to be copied
        self._side.submit(Unreserve(migration_id=self.command.migration_id))
        if self._pair is not None:
            self._pair.close()
        self._helper.close()


# --- what every rank does with its own share; on helper threads ------------------------------------------


def place_frames(model: CausalVideoModel, pool: SlabPool, exported: ExportedState, slot: int) -> None:
    """What came ahead. Raises StateFormatError."""
    if exported.header.kv_ring:
        import_kv_frames(model, pool, exported, slot)
    else:
        load_slabs(pool, exported, slot)


def land(
    model: CausalVideoModel,
    pool: SlabPool,
    note: Note,
    exported: ExportedState,
    reserved: Reserved,
    *,
    epoch: int,
    decodes: bool = True,
) -> tuple[SessionState, ExportedState | None]:
    """The session in the place that is held, where what came ahead already is; as in Adopt.

    Args:
        exported: what came with `note`, without the replay window.
        decodes: does this rank make frames, so that it needs the decoder's state?
    """
    if reserved.slab is not None:
        state, away = _into_slab(model, pool, exported, reserved.slab, epoch=epoch)
    else:
        assert reserved.slot is not None
        state = _into_slot(model, pool, note, exported, reserved.slot, epoch=epoch, decodes=decodes)
        away = None
    state.emit_from, state.awaits_prompt = state.seq, state.steering.text is None
    return state, away


def _into_slab(
    model: CausalVideoModel, pool: SlabPool, exported: ExportedState, slab: HostSlab, *, epoch: int
) -> tuple[SessionState, ExportedState]:
    if exported.header.kv_ring or not {"kv", "prompt_kv"} <= exported.buffers.keys():
        raise StateFormatError("not all of its state came, and host memory takes nothing less")
    check_shapes(model.spec, pool, exported)
    away = slab.place(exported)
    for name, target in away.buffers.items():
        target.copy_(exported.buffers[name])
    state = load_scalars(away, model.device, slot=-1, epoch=epoch)
    state.history, state.embeds, state.blend = [], None, None  # `away` has them
    return state, away


def _into_slot(
    model: CausalVideoModel,
    pool: SlabPool,
    note: Note,
    exported: ExportedState,
    slot: int,
    *,
    epoch: int,
    decodes: bool,
) -> SessionState:
    buffers = {name: data for name, data in exported.buffers.items() if name != "kv"}
    besides = ExportedState(header=replace(exported.header, kv_ring=()), buffers=buffers)
    check_shapes(model.spec, pool, besides)
    if note.afresh or note.rebuild:
        pool.kv[slot].zero_()
    if "kv" in exported.buffers:
        import_kv_frames(model, pool, exported, slot)
    load_slabs(pool, besides, slot)
    state = load_scalars(besides, model.device, slot=slot, epoch=epoch)
    if note.rebuild:
        if state.embeds is not None:
            pool.prompt_slot(slot).copy_(model.prompt_kv(state.embeds)[0])
        begin_rebuild(model, pool, state, has_decoder="decoder" in buffers or not decodes)
    return state
