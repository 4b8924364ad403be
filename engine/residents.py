"""The sessions of the compute thread: which are in a slot, which in host memory, and the ways in between.

    opened ──> SLOT ──offload──> LEAVING ──copied──> HOST ──restore, slot free──> RETURNING ──copied──> SLOT
                ^                   │                  │
                └──wanted again─────┘                  └──host memory short: the oldest are forgotten (stored)

An opening that finds no slot waits in line; so does a return. What a copy uses stays held until it ends, also
when its session was dropped meanwhile. Belongs to the compute thread.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeVar

import torch

from engine.compute_messages import (
    Absent,
    ComputeEvent,
    Frozen,
    MoveDone,
    Open,
    Reserved,
    Resided,
    SessionFailed,
    Surveyed,
)
from engine.device_check import check_device
from engine.encoder import Encoders, Lane, SessionEncoder
from engine.kv_pool import SlabPool
from engine.models.base import CausalVideoModel
from engine.offload import Copier, HostPool, HostSlab
from engine.precopy import Look
from engine.ranks import Verdict
from engine.session_state import SessionState, Stage
from engine.state_format import ExportedState, Part
from engine.state_io import export_state, load_scalars, load_slabs
from engine.steering import LogEntry
from engine.stepper import Stepper
from scheduler.messages import Residence, SessionId

__all__ = ["FAILURE_MESSAGE", "Resident", "Residents", "Where"]

_log = logging.getLogger("turboserve.engine.residents")
T = TypeVar("T")

FAILURE_MESSAGE = "this session's video could not be generated"


class Where(Enum):
    """Where a session's slabs are."""

    SLOT = "slot"
    LEAVING = "leaving"
    """In its slot, being copied to host memory."""
    HOST = "host"
    RETURNING = "returning"
    """Being copied into a slot."""


@dataclass(slots=True, kw_only=True, eq=False)
class Resident:
    """A session here."""

    state: SessionState
    """While not in a slot, only what is not in `away` counts: inputs, and where emission begins."""
    codec: str
    lane: Lane | None
    """Its encoder; None while it is not in a slot."""
    has_sent: bool = False
    """Has its encoder been given frames?"""
    where: Where = Where.SLOT
    wanted: bool = True
    """Should it be in a slot?"""
    slab: HostSlab | None = None
    away: ExportedState | None = None
    """Its state, in `slab`."""
    since: int = 0
    """Order in which sessions came to host memory."""
    sending: int | None = None
    """The newest chunk, while it is at the encoder."""
    fresh: bool = True
    """Has it run no pass since it came into its slot?"""
    freezing: bool = False
    """Is it to rest at its next boundary, until another engine has it or the migration is off?"""
    frozen: bool = False
    """Was it said that it rests?"""
    used_ms: float = 0.0
    """Its share of the compute time since it was last sent a chunk of."""

    @property
    def is_at_rest(self) -> bool:
        """At a chunk boundary, everything made is encoded: what its next encoder makes can't overtake it."""
        at_boundary = self.state.stage is Stage.BOUNDARY
        return at_boundary and self.sending is None

    @property
    def is_held(self) -> bool:
        """May it begin no chunk? One that makes chunks which its client has already goes on before."""
        state = self.state
        caught_up = not state.recorded and state.seq >= state.emit_from
        return self.freezing and state.stage is Stage.BOUNDARY and caught_up


@dataclass(frozen=True, slots=True, kw_only=True)
class _Move:
    resident: Resident
    copied: Future[None]


class Residents:
    """See the module."""

    def __init__(
        self,
        model: CausalVideoModel,
        pool: SlabPool,
        stepper: Stepper,
        *,
        host: HostPool,
        copier: Copier,
        encoders: Encoders,
        make_encoder: Callable[[str], SessionEncoder],
        clock: Callable[[], float],
        emit: Callable[[ComputeEvent], None],
        post: Callable[[MoveDone], None],
        agree: Callable[[Verdict], Verdict],
    ) -> None:
        """`post` hands a MoveDone to the compute thread's inbox; it is called on the copier's thread. `agree`
        turns this rank's verdict into that of all."""
        self._model, self._pool, self._stepper = model, pool, stepper
        self._host, self._copier = host, copier
        self._encoders, self._make_encoder = encoders, make_encoder
        self._clock, self._emit, self._post, self._agree = clock, emit, post, agree
        self._reserved: dict[str, int | HostSlab] = {}
        """Migration → slot or slab of a session that is on its way here."""
        self._table: dict[SessionId, Resident] = {}
        self._line: dict[SessionId, Open] = {}
        """Openings that wait for a slot, oldest first."""
        self._moves: dict[int, _Move] = {}
        self._serial = itertools.count()

    # --- questions ---------------------------------------------------------------------------------------

    def find(self, session: SessionId, epoch: int) -> Resident | None:
        """A session of this ownership, wherever its slabs are."""
        resident = self._table.get(session)
        return resident if resident is not None and resident.state.epoch == epoch else None

    def in_slots(self) -> list[Resident]:
        """Sessions whose passes may run, in a fixed order."""
        order = sorted(self._table)
        return [self._table[id] for id in order if self._table[id].where is Where.SLOT]

    def all(self) -> Iterable[Resident]:
        """Every session here, those in the line left out."""
        return list(self._table.values())

    def __getitem__(self, session: SessionId) -> Resident:
        return self._table[session]

    @property
    def num_moves(self) -> int:
        """Copies under way."""
        return len(self._moves)

    # --- commands ----------------------------------------------------------------------------------------

    def open(self, command: Open) -> None:
        """Take in a session; without a free slot it waits."""
        if self._pool.num_free:
            self._enter(command)
        else:
            _log.info("session %s waits for a slot", command.session)
            self._line[command.session] = command

    def feed(self, session: SessionId, epoch: int, entries: tuple[LogEntry, ...]) -> None:
        """New inputs, in log order."""
        waiting, resident = self._line.get(session), self.find(session, epoch)
        if resident is not None:
            resident.state.pending.extend(entries)
            resident.state.awaits_prompt = False
        elif waiting is not None and waiting.epoch == epoch:
            self._line[session] = replace(waiting, pending=(*waiting.pending, *entries))

    def drop(self, session: SessionId, epoch: int) -> None:
        """Forget a session of this ownership."""
        waiting = self._line.get(session)
        if waiting is not None and waiting.epoch == epoch:
            del self._line[session]
        elif self.find(session, epoch) is not None:
            self.forget(session)

    def want(self, session: SessionId, epoch: int, *, in_slot: bool) -> None:
        """Say whether a session should be in a slot; `settle` acts on it."""
        resident = self.find(session, epoch)
        if resident is not None:
            if in_slot and not resident.wanted and resident.where is Where.SLOT:
                self._tell(resident.state, Residence.RESIDENT)  # its copy had not begun
            resident.wanted = in_slot
        elif not in_slot and session in self._line and self._line[session].epoch == epoch:
            command = self._line.pop(session)  # its state never came
            self._emit(
                Resided(
                    session=session,
                    epoch=epoch,
                    residence=Residence.STORED,
                    seq=command.seq,
                    frame=command.frame,
                )
            )
        # Else it was forgotten meanwhile, and that has been said.

    def note_encoded(self, session: SessionId, epoch: int, seq: int) -> None:
        """A chunk has left the encoder."""
        resident = self.find(session, epoch)
        if resident is not None and resident.sending == seq:
            resident.sending = None

    def forget(self, session: SessionId) -> None:
        """Let go of a session and of everything it holds that no copy uses."""
        resident = self._table.pop(session)
        if resident.lane is not None:
            self._encoders.close_lane(resident.lane)
            resident.lane = None
        if resident.where is Where.SLOT:
            self._stepper.close(resident.state)
        elif resident.where is Where.HOST and resident.slab is not None:
            self._host.free(resident.slab)

    def finish_move(self, number: int) -> None:
        """A copy ended."""
        move = self._moves.pop(number)
        resident, state = move.resident, move.resident.state
        error = move.copied.exception()  # waits where another process told that it has ended
        has_failed = self._agree(Verdict.FAILED if error is not None else Verdict.DONE) is not Verdict.DONE
        assert resident.slab is not None
        slab, is_here = resident.slab, self._table.get(state.session) is resident
        if error is not None:
            _log.error("session %s: copying its state failed", state.session, exc_info=error)
        if has_failed or not is_here:
            self._pool.free(state.slot)
            self._host.free(slab)
            if is_here:
                self._table.pop(state.session)
                self._tell(state, Residence.STORED)
        elif resident.where is Where.LEAVING and not resident.wanted:
            self._pool.free(state.slot)
            resident.where, resident.since = Where.HOST, next(self._serial)
            state.history, state.embeds, state.blend = [], None, None  # `away` has them
            self._tell(state, Residence.OFFLOADED)
        else:
            self._host.free(slab)
            resident.where, resident.slab, resident.away = Where.SLOT, None, None
            resident.fresh = True
            encoder = self._make_encoder(resident.codec)
            resident.lane, resident.has_sent = self._encoders.open_lane(encoder), False
            self._tell(state, Residence.RESIDENT)

    def settle(self) -> None:
        """Begin the copies and openings that are due and possible now."""
        for resident in self.all():
            if resident.freezing:
                self._freeze_if_at_rest(resident)
            elif resident.where is Where.SLOT and not resident.wanted and resident.is_at_rest:
                self._leave(resident)
            elif resident.where is Where.HOST and resident.wanted and self._pool.num_free:
                self._return(resident)
        while self._line and self._pool.num_free:
            self._enter(self._line.pop(next(iter(self._line))))

    # --- migration ---------------------------------------------------------------------------------------

    def survey(self, session: SessionId, epoch: int, *, is_last: bool = False) -> None:
        """Say where a session stands, or that it is not here."""
        resident = self.find(session, epoch)
        if resident is None:
            self._emit(Absent(session=session, epoch=epoch))
            return
        look, embeds = self._look(resident), resident.state.embeds
        self._emit(Surveyed(session=session, epoch=epoch, look=look, embeds=embeds, is_last=is_last))

    def freeze(self, session: SessionId, epoch: int, *, on: bool) -> None:
        """Hold a session at its next boundary, or let it go on."""
        resident = self.find(session, epoch)
        if resident is not None:
            resident.freezing, resident.frozen = on, False
        elif on:
            self._emit(Absent(session=session, epoch=epoch))

    def reserve(self, migration_id: str, *, in_slot: bool) -> None:
        """Hold a free slot, or host memory, and say which."""
        if in_slot:
            slot, slab = self._pool.allocate() if self._pool.num_free else None, None
        else:
            slot, slab = None, self._host.allocate() or self._take_oldest()
        place = slab if slot is None else slot
        if place is not None:
            self._reserved[migration_id] = place
        self._emit(Reserved(migration_id=migration_id, slot=slot, slab=slab))

    def unreserve(self, migration_id: str) -> None:
        """Give the place up again."""
        place = self._reserved.pop(migration_id, None)
        if isinstance(place, HostSlab):
            self._host.free(place)
        elif place is not None:
            self._pool.free(place)

    def adopt(self, migration_id: str, state: SessionState, away: ExportedState | None, codec: str) -> None:
        """A session whose state was written into the reserved place by another thread."""
        place = self._reserved.pop(migration_id)
        in_slot = not isinstance(place, HostSlab)
        self._table[state.session] = Resident(
            state=state,
            codec=codec,
            lane=self._encoders.open_lane(self._make_encoder(codec)) if in_slot else None,
            where=Where.SLOT if in_slot else Where.HOST,
            wanted=in_slot,
            slab=place if isinstance(place, HostSlab) else None,
            away=away,
            since=next(self._serial),
        )

    def _look(self, resident: Resident) -> Look | None:
        state = resident.state
        if resident.where is not Where.SLOT or state.stage is Stage.REBUILD:
            return None
        return Look(place=(state.slot, state.resets), index=state.index)

    def _freeze_if_at_rest(self, resident: Resident) -> None:
        in_slot = resident.where is Where.SLOT and resident.is_at_rest and resident.is_held
        if resident.frozen or not (in_slot or resident.where is Where.HOST):
            return
        state, exported = resident.state, resident.away
        resident.frozen = True
        if in_slot:
            parts = {Part.LATENTS, Part.PROMPT_KV, Part.DECODER}
            exported = self._attempt(
                lambda: export_state(self._model, self._pool, state, parts, checked=False)
            )
        if exported is None:
            self._emit(Absent(session=state.session, epoch=state.epoch))
            return
        self._emit(
            Frozen(
                session=state.session,
                epoch=state.epoch,
                look=self._look(resident),
                embeds=state.embeds,
                exported=exported,
                at_ms=self._clock(),
            )
        )

    # --- parts of the above ------------------------------------------------------------------------------

    def _enter(self, command: Open) -> None:
        state: SessionState | None = None
        error: Exception | None = None
        try:
            encoder = self._make_encoder(command.codec)
            state = self._stepper.open(command)
        except Exception as exc:
            check_device(self._model.device, exc)
            error = exc
        verdict = self._agree(Verdict.DONE if state is not None else Verdict.FAILED)
        if state is None or verdict is not Verdict.DONE:
            if state is not None:
                self._stepper.close(state)
            _log.error("session %s cannot be opened", command.session, exc_info=error)
            self._emit(SessionFailed(session=command.session, epoch=command.epoch, message=FAILURE_MESSAGE))
            return
        lane = self._encoders.open_lane(encoder)
        self._table[command.session] = Resident(state=state, codec=command.codec, lane=lane)

    def _leave(self, resident: Resident) -> None:
        state = resident.state
        slab, exported = self._host.allocate() or self._take_oldest(), None
        if slab is not None:
            exported = self._attempt(lambda: export_state(self._model, self._pool, state, checked=False))
        if slab is None or exported is None:
            if slab is not None:
                self._host.free(slab)
            self.forget(state.session)
            self._tell(state, Residence.STORED)
            return
        if resident.lane is not None:
            self._encoders.close_lane(resident.lane)
        resident.where, resident.slab, resident.lane = Where.LEAVING, slab, None
        buffers, away = exported.buffers, slab.place(exported)
        resident.away = away

        def copy() -> None:
            for name, target in away.buffers.items():
                target.copy_(buffers[name], non_blocking=True)

        self._begin_move(resident, copy)

    def _take_oldest(self) -> HostSlab | None:
        """The slab of the session that is in host memory for longest, whose state is forgotten."""
        candidates = [r for r in self.all() if r.where is Where.HOST and not r.wanted and not r.freezing]
        if not candidates:
            return None
        oldest = min(candidates, key=lambda resident: resident.since)
        self.forget(oldest.state.session)
        self._tell(oldest.state, Residence.STORED)
        return self._host.allocate()

    def _return(self, resident: Resident) -> None:
        away, before = resident.away, resident.state
        assert away is not None
        slot = self._pool.allocate()
        state = self._attempt(lambda: load_scalars(away, self._model.device, slot=slot, epoch=before.epoch))
        if state is None:
            self._pool.free(slot)
            self.forget(before.session)
            self._tell(before, Residence.STORED)
            return
        state.pending, state.recorded = before.pending, before.recorded
        state.emit_from, state.awaits_prompt = before.emit_from, before.awaits_prompt
        resident.state, resident.where = state, Where.RETURNING
        self._begin_move(resident, lambda: load_slabs(self._pool, away, slot))

    def _attempt(self, action: Callable[[], T]) -> T | None:
        """What it gives; None where a rank has no memory for it, which is no reason to end the engine."""
        result, verdict = None, Verdict.DONE
        try:
            result = action()
        except (MemoryError, torch.OutOfMemoryError) as exc:
            _log.error("no memory to move a session's state: %s", exc)
            verdict = Verdict.NO_MEMORY
        return result if self._agree(verdict) is Verdict.DONE else None

    def _begin_move(self, resident: Resident, copy: Callable[[], None]) -> None:
        number = next(self._serial)
        copied = self._copier.submit(copy, lambda: self._post(MoveDone(number=number)))
        self._moves[number] = _Move(resident=resident, copied=copied)

    def _tell(self, state: SessionState, residence: Residence) -> None:
        # While it is in host memory too, `state` knows these numbers.
        self._emit(
            Resided(
                session=state.session,
                epoch=state.epoch,
                residence=residence,
                seq=max(state.seq, state.emit_from),
                frame=state.frame,
            )
        )
