"""Live migration on the ranks above 0: each moves its share of a session to or from the same rank of the
other engine, over a pair of their own. DESIGN.md section 6.3, "k pairs, committed when all are verified".

Rank 0 decides, and the others follow what it tells their compute loops: MoveShare begins a migration,
Survey and Freeze say when to send, Thaw or Drop ends it at the source, Unreserve or AdoptShare at the target.
A source's rank reports to its rank 0 whether its share is verified. Until a session is adopted, all ranks
of both engines let go of what they hold whenever one of them fails.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import replace
from queue import Empty, SimpleQueue

import torch

from engine.compute_messages import (
    Command,
    ComputeEvent,
    Drop,
    Freeze,
    Frozen,
    MigrationEvent,
    MoveShare,
    Reserved,
    Surveyed,
    Thaw,
    Unreserve,
)
from engine.handover import Kind, Note, expect, receive_note, send_note
from engine.incoming import land, place_frames
from engine.kv_pool import SlabPool
from engine.models.base import CausalVideoModel
from engine.outgoing import (
    copy_prompt,
    exchange,
    gather_ahead,
    make_precopy,
    pieces,
    rest_of,
    step_limit_s,
)
from engine.pairs import DONE, Pair, PairLost, Pairs, Reports, Step, share_of
from engine.session_state import SessionState
from engine.state_format import ExportedState, StateFormatError, StateHeader, describe
from engine.state_io import model_key
from engine.work_scope import WorkScope
from scheduler.messages import EngineId, MigrateSession, ReceiveSession, SessionId

__all__ = ["Shares"]

_log = logging.getLogger("turboserve.engine.shares")


class _Share(ABC):
    """One share on its way, moved by a thread of its own. `hear` and `end` are for the compute thread."""

    def __init__(
        self,
        model: CausalVideoModel,
        pool: SlabPool,
        pairs: Pairs,
        order: MigrateSession | ReceiveSession,
        *,
        rank: int,
    ) -> None:
        self._model, self._pool, self._pairs = model, pool, pairs
        self.order, self._id = order, share_of(order.migration_id, rank)
        self._limit_s = order.limit_ms / 1000.0
        self._events: SimpleQueue[MigrationEvent | None] = SimpleQueue()
        self._scope, self._is_done = WorkScope(), False
        self._pair: Pair | None = None
        """The thread's, in steps, until its work is over."""
        threading.Thread(target=self._run, name=f"share {self._id}", daemon=True).start()

    def hear(self, event: MigrationEvent) -> None:
        """What this rank's compute loop says of the session."""
        self._events.put(event)

    def end(self, *, committed: bool) -> None:
        """The migration is over. From here on nothing is written to the session's place."""
        self._scope.end()
        pair, self._pair = self._pair, None
        if pair is not None and committed and self._is_done:
            is_source = isinstance(self.order, MigrateSession)
            self._pairs.keep(pair, self.order.engine if is_source else None)
        elif pair is not None:
            pair.close()
        self._events.put(None)

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            self._move()
            self._is_done = True
            word = DONE
        except Exception as exc:  # whatever it is, the session stays where it is
            is_expected = isinstance(exc, PairLost | StateFormatError)
            _log.warning("%s does not move: %s", self._id, exc, exc_info=None if is_expected else exc)
            self._lose()
            word = str(exc) or type(exc).__name__
        self._conclude(word)

    @abstractmethod
    def _move(self) -> None:
        """Until the share is verified. Raises PairLost, StateFormatError."""

    @abstractmethod
    def _conclude(self, word: str) -> None:
        """The step in work is DONE, or `word` says why not."""

    def _met(self, pair: Pair) -> Pair:
        """Raises PairLost: the migration is over."""
        try:
            with self._scope.step():
                self._pair = pair
        except PairLost:
            pair.close()
            raise
        return pair

    def _next(self) -> MigrationEvent:
        """Raises PairLost: the migration is over, or rank 0 says nothing."""
        try:
            event = self._events.get(timeout=self._limit_s)
        except Empty:
            raise PairLost("rank 0 has not said how it goes on") from None
        if event is None:
            raise PairLost("the migration is off")
        return event

    def _lose(self) -> None:
        pair = None
        with suppress(PairLost), self._scope.step():  # else `end` has it
            pair, self._pair = self._pair, None
        if pair is not None:
            pair.close()


class _OutgoingShare(_Share):
    """At the source: what is immutable goes ahead, the rest once the session rests."""

    order: MigrateSession
    rebuild = False
    """As in Freeze; known before the session rests."""
    _has: torch.Tensor | None = None
    """The embeddings whose K/V the target has."""
    _reports: Reports | None = None
    _step: Step = "met"
    """What rank 0 waits for next."""

    def _move(self) -> None:
        order = self.order
        self._reports = self._pairs.reports(limit_s=self._limit_s)
        self._precopy = make_precopy(self._model.spec)
        self._header = StateHeader(
            model=model_key(self._model.spec), session=order.session, epoch=order.epoch
        )
        pair = self._met(self._pairs.call(order.engine, order.address, self._id, limit_s=self._limit_s))
        expect("ready", receive_note(pair, self._id, limit_s=self._limit_s)[0])
        self._report("ahead")
        while not isinstance(event := self._next(), Frozen):
            assert isinstance(event, Surveyed), f"{type(event).__name__} at the source of a migration"
            if event.look is not None:
                self._send_ahead(pair, event)
            if event.is_last:
                self._report("verified")
        rest = rest_of(self._pool, self._precopy, event, has=self._has, rebuild=self.rebuild)
        # Only rank 0 decodes: elsewhere this is no state of the session.
        buffers = {name: data for name, data in rest.buffers.items() if name != "decoder"}
        rest = describe(rest.header, buffers, checked=False)
        note = Note(kind="final", migration_id=self._id, header=rest.header)
        note = replace(note, afresh=self._precopy.is_afresh, rebuild=self.rebuild)
        exchange(pair, note, rest.buffers, "verified", limit_s=step_limit_s(rest.num_bytes))

    def _send_ahead(self, pair: Pair, seen: Surveyed) -> None:
        """Until something newer is heard: it knows better what is worth sending."""
        assert seen.look is not None
        for piece in pieces(self._pool, self._precopy.wanted(seen.look)):
            if not self._events.empty():
                return
            self._send(pair, gather_ahead(self._pool, self._header, seen.look, piece))
            self._precopy.sent(seen.look, piece)
        if seen.embeds is not None and seen.embeds is not self._has and self._events.empty():
            prompt = self._pool.prompt_slot(seen.look.place[0])
            self._send(pair, copy_prompt(prompt, self._header))
            self._has = seen.embeds

    def _send(self, pair: Pair, part: ExportedState) -> None:
        note = Note(kind="frames", migration_id=self._id, header=part.header)
        exchange(pair, note, part.buffers, "ready", limit_s=step_limit_s(part.num_bytes))

    def _report(self, following: Step) -> None:
        """The step in work is done."""
        assert self._reports is not None
        self._reports.add(self._id, self._step, DONE)
        self._step = following

    def _conclude(self, word: str) -> None:
        if self._reports is None:
            return  # rank 0 waits in vain, and calls it off
        try:
            self._reports.add(self._id, self._step, word)
        except PairLost as exc:
            _log.warning("%s: %s", self._id, exc)
            return
        while not self._scope.is_over:
            self._events.get()
        self._reports.withdraw(self._id)


class _IncomingShare(_Share):
    """At the target: into the place that is reserved on every rank."""

    order: ReceiveSession
    landed: tuple[SessionState, ExportedState | None] | None = None
    """As in Adopt, once the share is in place."""

    def _move(self) -> None:
        pair = self._met(self._pairs.answer(self._id, limit_s=self._limit_s))
        reserved = self._next()
        assert isinstance(reserved, Reserved), f"{type(reserved).__name__} at the target of a migration"
        if reserved.slot is None and reserved.slab is None:
            raise PairLost("there is no place for it")
        self._say(pair, "ready")
        while (came := self._receive(pair))[0].kind == "frames":
            with self._scope.step():
                if reserved.slot is not None:
                    place_frames(self._model, self._pool, came[1], reserved.slot)
            self._say(pair, "ready")
        note, state = came
        expect("final", note)
        if state.header.scalars is None or state.header.session != self.order.session:
            raise StateFormatError("the final part has no scalars, or is another session's")
        epoch = self.order.epoch + 1
        with self._scope.step():
            self.landed = land(self._model, self._pool, note, state, reserved, epoch=epoch, decodes=False)
            self._is_done = True  # whoever adopts it knows that the last word has arrived
        self._say(pair, "verified")

    def _receive(self, pair: Pair) -> tuple[Note, ExportedState]:
        note, state = receive_note(pair, self._id, limit_s=self._limit_s)
        if state is None or state.header.model != model_key(self._model.spec):
            raise StateFormatError("what came is not state of this engine's model")
        return note, state

    def _say(self, pair: Pair, kind: Kind) -> None:
        send_note(pair, Note(kind=kind, migration_id=self._id), limit_s=step_limit_s(0))

    def _conclude(self, word: str) -> None:
        """The source's rank says it."""


class Shares:
    """Those of one rank above 0. All but the threads that move them belongs to its compute thread."""

    def __init__(
        self, model: CausalVideoModel, pool: SlabPool, *, engine: EngineId, host: str, rank: int
    ) -> None:
        """`host` is the address at which other engines' ranks are met."""
        self._model, self._pool = model, pool
        self._engine, self._host, self._rank = engine, host, rank
        self._pairs: Pairs | None = None
        self._outgoing: dict[SessionId, _OutgoingShare] = {}
        self._incoming: dict[str, _IncomingShare] = {}

    def hear(self, command: Command) -> None:
        """See Movers."""
        match command:
            case MoveShare(order=order, meeting=meeting):
                self._begin(order, meeting)
            case Freeze(session=session, rebuild=rebuild):
                if (sending := self._outgoing.get(session)) is not None:
                    sending.rebuild = rebuild
            case Thaw(session=session, epoch=epoch) | Drop(session=session, epoch=epoch):
                sending = self._outgoing.get(session)
                if sending is not None and sending.order.epoch == epoch:
                    del self._outgoing[session]
                    sending.end(committed=isinstance(command, Drop))
            case Unreserve(migration_id=id):
                if (coming := self._incoming.pop(id, None)) is not None:
                    coming.end(committed=False)
            case _:
                pass

    def receive(self, event: ComputeEvent) -> None:
        """What the compute loop of this rank says."""
        share: _Share | None = None
        match event:
            case Surveyed(session=session) | Frozen(session=session):
                share = self._outgoing.get(session)
            case Reserved(migration_id=id):
                share = self._incoming.get(id)
            case _:
                return
        if share is not None:
            share.hear(event)

    def take(self, migration_id: str) -> tuple[SessionState, ExportedState | None]:
        """See Movers."""
        coming = self._incoming.pop(migration_id)
        assert coming.landed is not None, "a session was committed before all its shares were verified"
        coming.end(committed=True)
        return coming.landed

    def close(self) -> None:
        """End what is under way."""
        for share in (*self._outgoing.values(), *self._incoming.values()):
            share.end(committed=False)
        if self._pairs is not None:
            self._pairs.close()

    def _begin(self, order: MigrateSession | ReceiveSession, meeting: str) -> None:
        if self._pairs is None:
            device = self._model.device
            self._pairs = Pairs(self._engine, self._host, device, meeting=meeting)
        parts = (self._model, self._pool, self._pairs)
        if isinstance(order, MigrateSession):
            self._outgoing[order.session] = _OutgoingShare(*parts, order, rank=self._rank)
        else:
            self._incoming[order.migration_id] = _IncomingShare(*parts, order, rank=self._rank)
