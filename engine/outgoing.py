"""The source of a migration: what is immutable goes ahead, then the session rests, the rest goes, and this
engine alone commits.

Until the commit any failure leaves the session here. Every step has a limit.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypedDict, TypeVar

import torch

from engine.compute_messages import Absent, Command, Freeze, Frozen, Survey, Surveyed
from engine.handover import HostFacts, Kind, Note, expect, receive_note, send_note
from engine.helper_thread import HelperThread
from engine.hosted import Hosted
from engine.kv_pool import SlabPool
from engine.migration_cost import FIRST_LINK, LinkCost, Sizes, is_rebuild_cheaper
from engine.models.base import CausalVideoModel, ModelSpec
from engine.pairs import Pair, PairLost, Pairs, Reports, Step
from engine.precopy import Look, Precopy, Ring
from engine.replay_state import add_replay
from engine.state_format import ExportedState, ModelKey, StateFormatError, StateHeader, describe
from engine.state_io import gather_kv_frames, model_key
from scheduler.messages import MigrateSession, Residence, SessionId

__all__ = ["CalledOff", "Outgoing", "SourceSide", "Timing"]
__all__ += ["copy_prompt", "exchange", "gather_ahead", "make_precopy", "pieces", "rest_of", "step_limit_s"]

_log = logging.getLogger("turboserve.engine.outgoing")

STEP_LIMIT_S = 3.0
"""Of one message with the other engine, besides what its bytes take."""
SLOWEST_BYTES_PER_S = 1e6
"""A link slower than this is given up."""
MAX_ROUNDS = 4
"""Looks at the slab before it is frozen with more than one chunk dirty."""
MAX_PIECE_BYTES = 32 * 2**20
"""K/V goes ahead in pieces of this size, so that copies of it stay small."""


_Answer = TypeVar("_Answer", Surveyed, Frozen)


class _Names(TypedDict):
    model: ModelKey
    session: SessionId
    epoch: int


class CalledOff(Exception):
    """The migration ends without a commit; the session goes on here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What a migration took; ms, bytes."""

    meet_ms: float
    precopy_ms: float
    precopy_bytes: int
    wait_ms: float
    """From the order to rest to the boundary."""
    verify_ms: float
    """From the boundary until the target had everything."""
    commit_ms: float
    final_bytes: int
    rebuild: bool

    @property
    def pause_ms(self) -> float:
        """Boundary to commit."""
        return self.verify_ms + self.commit_ms


class SourceSide(Protocol):
    """What the source needs of its engine; all on the event loop."""

    def submit(self, command: Command) -> None:
        """To the compute thread."""

    def rebuild_ms(self, chunks: int) -> float:
        """What the clean passes of so many chunks take."""

    async def settled(self, hosted: Hosted) -> HostFacts:
        """Wait until every part was emitted and recorded; the facts of a session that rests."""

    async def ping(self) -> None:
        """Raises StoreUnavailable."""

    async def commit(self, hosted: Hosted, migration_id: str, residence: Residence) -> int:
        """The new epoch; waits for Redis. Raises StaleEpoch, PlacementRefused."""


class Outgoing:
    """One migration. Belongs to the event loop."""

    def __init__(
        self,
        model: CausalVideoModel,
        pool: SlabPool,
        pairs: Pairs,
        side: SourceSide,
        hosted: Hosted,
        command: MigrateSession,
        *,
        ranks: int = 1,
        link: LinkCost = FIRST_LINK,
        clock: Callable[[], float],
    ) -> None:
        self._model, self._pool, self._pairs, self._side = model, pool, pairs, side
        self._hosted, self._command, self._clock = hosted, command, clock
        self._ranks = ranks
        self._helper = HelperThread(f"migrate {hosted.id}")
        self._pair: Pair | None = None
        self._reports: Reports | None = None
        """Of the other ranks, if there are any."""
        self._answer: asyncio.Future[Surveyed | Frozen | Absent] | None = None
        self._precopy, self.link = make_precopy(model.spec), link
        """Measured while it is used."""
        self._embeds: torch.Tensor | None = None
        """The embeddings whose K/V the target has."""
        self._replay_seq = 0
        """First chunk of the replay window that the target does not have."""
        self._sent_bytes = 0
        self._is_slow = False
        self._off: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_committing = False
        """Is it for Redis to say what becomes of it?"""

    @property
    def migration_id(self) -> str:
        return self._command.migration_id

    # --- from the engine -----------------------------------------------------------------------------------

    def receive(self, event: Surveyed | Frozen | Absent) -> None:
        """What the compute thread answers."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(event)

    def call_off(self) -> None:
        """Redis says that it is off. While this engine commits, it hears that as the answer."""
        if not self._off.done():
            self._off.set_result(None)

    async def run(self) -> tuple[int, Timing]:
        """Move the session; returns its new epoch. Afterwards `tell_committed`, or `close`.

        Raises:
            CalledOff: this engine goes on with it.
            StaleEpoch, PlacementRefused, StoreUnavailable: as well, or another owner is known to Redis.
        """
        began = self._clock()
        bringing = asyncio.create_task(self._bring())
        try:
            async with asyncio.timeout(self._command.limit_ms / 1000.0):
                either: set[asyncio.Future[Any]] = {bringing, self._off}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if not bringing.done():
                    raise CalledOff("it was called off")
                met, ahead, frozen, final_bytes = await bringing
            verified, self.is_committing = self._clock(), True
            residence = Residence.RESIDENT if frozen.look is not None else Residence.OFFLOADED
            epoch = await self._side.commit(self._hosted, self._command.migration_id, residence)
        except (PairLost, StateFormatError, TimeoutError) as exc:
            raise CalledOff(str(exc) or "a step took too long") from exc
        finally:
            bringing.cancel()
            await asyncio.gather(bringing, return_exceptions=True)
        return epoch, Timing(
            meet_ms=met - began,
            precopy_ms=ahead - met,
            precopy_bytes=self._sent_bytes,
            wait_ms=frozen.at_ms - ahead,
            verify_ms=verified - frozen.at_ms,
            commit_ms=self._clock() - verified,
            final_bytes=final_bytes,
            rebuild=self._is_slow,
        )

    async def tell_committed(self) -> None:
        """The target goes on at once; it would find out by itself."""
        pair, note = self._pair, self._note("committed")
        assert pair is not None
        try:
            await self._helper.call(
                lambda: send_note(pair, note, limit_s=STEP_LIMIT_S), limit_s=2 * STEP_LIMIT_S
            )
        except (PairLost, TimeoutError) as exc:
            _log.info("%s: the target was not told of the commit: %s", self._hosted.id, exc)
            self.close()
            return
        self._pairs.keep(pair, self._command.engine)
        self._helper.close()

    def close(self) -> None:
        """Of a migration that failed: its pair is of no use any more."""
        if self._pair is not None:
            self._pair.close()
        self._helper.close()

    # --- steps ---------------------------------------------------------------------------------------------

    async def _bring(self) -> tuple[float, float, Frozen, int]:
        """Everything up to `verified`: when they had met, when what goes ahead was there, and the rest."""
        await self._meet()
        met = self._clock()
        await self._go_ahead()
        await self._send_replay()
        await self._side.ping()
        await self._wait_ahead()
        ahead = self._clock()
        return met, ahead, *(await self._send_rest())

    async def _meet(self) -> None:
        command = self._command
        limit_s = min(command.limit_ms / 1000.0, STEP_LIMIT_S)

        def call() -> Pair:
            return self._pairs.call(command.engine, command.address, command.migration_id, limit_s=limit_s)

        self._pair = await self._helper.call(call, limit_s=2 * limit_s)
        there = await self._listen("ready")
        if there.ranks != self._ranks:
            raise CalledOff(f"{command.engine} has {there.ranks} ranks, this engine {self._ranks}")
        if self._ranks > 1:
            reports = partial(self._pairs.reports, limit_s=limit_s)
            self._reports = await self._helper.call(reports, limit_s=2 * limit_s)
            await self._wait("met")
        began = self._clock()
        await self._send(self._note("frames", StateHeader(**self._names())), {}, "ready")
        self.link = replace(self.link, alpha_ms=self._clock() - began)

    async def _go_ahead(self) -> None:
        """Send what is immutable, while chunks are made."""
        for _ in range(MAX_ROUNDS):
            seen = await self._ask(Surveyed, Survey(session=self._hosted.id, epoch=self._hosted.epoch))
            if seen.look is None:
                return  # nothing of it can go ahead
            frames = self._precopy.wanted(seen.look)
            if not frames:
                break
            if not await self._send_frames(seen.look, frames):
                return
        if seen.embeds is not None:
            await self._send_prompt(seen)

    async def _send_frames(self, look: Look, frames: tuple[int, ...]) -> bool:
        """False: the link is too slow for all of them."""
        frame_bytes = self._pool.kv[0, :, :, 0].nbytes
        for piece in pieces(self._pool, frames):
            exported = await self._helper.call(
                partial(gather_ahead, self._pool, StateHeader(**self._names()), look, piece),
                limit_s=step_limit_s(len(piece) * frame_bytes),
            )
            began = self._clock()
            await self._send(self._note("frames", exported.header), exported.buffers, "ready")
            self._sent_bytes += exported.num_bytes
            self.link = self.link.observed(exported.num_bytes, self._clock() - began)
            self._precopy.sent(look, piece)
            left = len(frames) * frame_bytes - self._sent_bytes
            if self._is_rebuild_cheaper(left, self._command.limit_ms):
                self._is_slow = True
                return False
        return True

    async def _send_prompt(self, seen: Surveyed) -> None:
        assert seen.look is not None
        view, header = self._pool.prompt_slot(seen.look.place[0]), StateHeader(**self._names())
        exported = await self._helper.call(
            partial(copy_prompt, view, header), limit_s=step_limit_s(view.nbytes)
        )
        # Taken beside passes: valid only if the prompt was the same before and after.
        again = await self._ask(Surveyed, Survey(session=self._hosted.id, epoch=self._hosted.epoch))
        if again.embeds is seen.embeds and again.look is not None and again.look.place == seen.look.place:
            await self._send(self._note("frames", exported.header), exported.buffers, "ready")
            self._sent_bytes += exported.num_bytes
            self._embeds = seen.embeds

    async def _send_replay(self) -> None:
        """Send what is encoded by now: each complete chunk stays as it is."""
        chunks = self._hosted.replay.complete_since(0)
        empty = ExportedState(header=StateHeader(**self._names()))
        exported = await self._helper.call(lambda: add_replay(empty, chunks), limit_s=STEP_LIMIT_S)
        await self._send(self._note("frames", exported.header), exported.buffers, "ready")
        self._replay_seq = chunks[-1].seq + 1 if chunks else 0
        self._sent_bytes += exported.num_bytes

    async def _send_rest(self) -> tuple[Frozen, int]:
        """Let the session rest, and send all that is not there."""
        rest = Freeze(session=self._hosted.id, epoch=self._hosted.epoch, rebuild=self._is_slow)
        frozen = await self._ask(Frozen, rest)
        facts = await self._side.settled(self._hosted)

        def send() -> int:
            exported = self._rest(frozen)
            note = self._note("final", exported.header)
            note = replace(note, facts=facts, afresh=self._precopy.is_afresh, rebuild=self._is_slow)
            self._exchange(note, exported.buffers, "verified", step_limit_s(exported.num_bytes))
            return exported.num_bytes

        limit_s = self._command.limit_ms / 1000.0
        num_bytes = await self._helper.call(send, limit_s=limit_s)
        await self._wait("verified")
        return frozen, num_bytes

    @torch.inference_mode()
    def _rest(self, frozen: Frozen) -> ExportedState:
        """On the helper thread: nothing writes to the session's state now."""
        rest = rest_of(self._pool, self._precopy, frozen, has=self._embeds, rebuild=self._is_slow)
        return add_replay(rest, self._hosted.replay.complete_since(self._replay_seq))

    async def _wait_ahead(self) -> None:
        """For the other ranks, so that no session rests because one of them was slower."""
        if self._ranks > 1:
            last = Survey(session=self._hosted.id, epoch=self._hosted.epoch, is_last=True)
            await self._ask(Surveyed, last)
            await self._wait("ahead")

    async def _wait(self, step: Step) -> None:
        """Until all other ranks have done it."""
        if self._reports is not None:
            limit_s = self._command.limit_ms / 1000.0
            wait = partial(self._reports.wait, self._command.migration_id, self._ranks, step, limit_s=limit_s)
            await self._helper.call(wait, limit_s=limit_s)

    # --- parts of the above --------------------------------------------------------------------------------

    def _is_rebuild_cheaper(self, left_bytes: int, limit_ms: float) -> bool:
        spec, kv = self._model.spec, self._pool.kv
        sizes = Sizes(
            slab=left_bytes,
            dirty=kv[0, :, :, : spec.chunk_latent_frames].nbytes,
            rest=self._pool.decoder[0].nbytes,
        )
        chunks = -(-spec.window_frames // spec.chunk_latent_frames)
        return is_rebuild_cheaper(
            sizes, self.link, rebuild_ms=self._side.rebuild_ms(chunks), limit_ms=limit_ms
        )

    async def _ask(self, kind: type[_Answer], command: Survey | Freeze) -> _Answer:
        self._answer = asyncio.get_running_loop().create_future()
        self._side.submit(command)
        answer = await self._answer
        if isinstance(answer, Absent):
            raise CalledOff("its state is not in this engine's memory")
        assert isinstance(answer, kind), f"{type(answer).__name__} where {kind.__name__} was asked for"
        return answer

    async def _send(self, note: Note, buffers: Mapping[str, torch.Tensor], answer: Kind) -> None:
        """Send a note and wait for the answer to it."""
        limit_s = step_limit_s(sum(tensor.nbytes for tensor in buffers.values()))
        await self._helper.call(lambda: self._exchange(note, buffers, answer, limit_s), limit_s=2 * limit_s)

    def _exchange(
        self, note: Note, buffers: Mapping[str, torch.Tensor], answer: Kind, limit_s: float
    ) -> None:
        """The same on the helper thread."""
        assert self._pair is not None
        exchange(self._pair, note, buffers, answer, limit_s=limit_s)

    async def _listen(self, kind: Kind) -> Note:
        pair, id = self._pair, self._command.migration_id
        assert pair is not None
        note, _ = await self._helper.call(
            lambda: receive_note(pair, id, limit_s=STEP_LIMIT_S), limit_s=2 * STEP_LIMIT_S
        )
        return expect(kind, note)

    def _note(self, kind: Kind, header: StateHeader | None = None) -> Note:
        return Note(kind=kind, migration_id=self._command.migration_id, header=header)

    def _names(self) -> _Names:
        hosted = self._hosted
        return {"model": model_key(self._model.spec), "session": hosted.id, "epoch": hosted.epoch}


# --- what every rank does with its own share; on helper threads ------------------------------------------


def make_precopy(spec: ModelSpec) -> Precopy:
    """Nothing was sent yet."""
    return Precopy(Ring(chunk=spec.chunk_latent_frames, window=spec.window_frames, sink=spec.sink_frames))


def step_limit_s(num_bytes: int) -> float:
    """Of a message with so many bytes of buffers."""
    return STEP_LIMIT_S + num_bytes / SLOWEST_BYTES_PER_S


def exchange(
    pair: Pair, note: Note, buffers: Mapping[str, torch.Tensor], answer: Kind, *, limit_s: float
) -> None:
    """Send a note and wait for the answer to it. Raises PairLost."""
    send_note(pair, note, buffers, limit_s=limit_s)
    got, _ = receive_note(pair, note.migration_id, limit_s=limit_s)
    expect(answer, got)


def pieces(pool: SlabPool, frames: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The ring frames in pieces of at most MAX_PIECE_BYTES, or of one frame."""
    count = max(1, MAX_PIECE_BYTES // pool.kv[0, :, :, 0].nbytes)
    yield from (frames[at : at + count] for at in range(0, len(frames), count))


@torch.inference_mode()
def gather_ahead(pool: SlabPool, header: StateHeader, look: Look, ring: tuple[int, ...]) -> ExportedState:
    """A copy of these ring frames."""
    frames = gather_kv_frames(pool, look.place[0], ring)
    return describe(replace(header, kv_ring=ring), {"kv": frames}, checked=False)


@torch.inference_mode()
def copy_prompt(view: torch.Tensor, header: StateHeader) -> ExportedState:
    """A copy of a slot's prompt K/V, valid if its embeddings are the same before and after."""
    return describe(header, {"prompt_kv": view.clone()}, checked=False)


@torch.inference_mode()
def rest_of(
    pool: SlabPool, precopy: Precopy, frozen: Frozen, *, has: torch.Tensor | None, rebuild: bool
) -> ExportedState:
    """What the target of a frozen session does not have; nothing writes to its state now.

    Args:
        has: the embeddings whose K/V the target has.
    """
    exported, look = frozen.exported, frozen.look
    buffers, header = dict(exported.buffers), exported.header
    if look is not None and rebuild:
        buffers.pop("prompt_kv")
    elif look is not None:
        ring = precopy.dirty(look)
        if frozen.embeds is not None and frozen.embeds is has and not precopy.is_afresh:
            buffers.pop("prompt_kv")
        if ring:
            buffers["kv"] = gather_kv_frames(pool, look.place[0], ring)
        header = replace(header, kv_ring=ring)
    return describe(header, buffers, checked=False)
