"""The sessions of this engine, between the links, the compute thread and the ledger in Redis.

Everything here runs on the event loop and none of it waits, but for one thing: a session's emitter waits,
within a limit, until the inputs that a chunk shows are recorded, before that chunk leaves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, assert_never

from engine.compute_messages import (
    Adopt,
    CheckpointMade,
    Command,
    ComputeDied,
    ComputeEvent,
    Drop,
    Feed,
    InputsTaken,
    MigrationEvent,
    PartMade,
    Resided,
    SessionFailed,
    Wish,
)
from engine.credit import Player, acknowledged, full_since_ms, subscribed
from engine.emission import Emitter, RecentLatency
from engine.handover import Arrival, HostFacts, facts_of, player_of
from engine.hosted import Hosted, LogTail, Place
from engine.lifecycle import Life, LifeLimits, judge
from engine.link import Link
from engine.models.base import ModelSpec
from engine.recovery import Past, plan_opening
from engine.replay import Replay
from engine.residency import Admission, Residency
from engine.state_format import ExportedState
from engine.state_io import model_key
from engine.steering import Combine, LogEntry
from scheduler.messages import (
    Accepted,
    ChooseRungs,
    ControlInput,
    Credit,
    ErrorCode,
    LinkRequest,
    MessageId,
    Moved,
    Pause,
    Refused,
    ReleaseSession,
    Residence,
    Resume,
    SessionId,
    SessionState,
    StateChanged,
    Stop,
    Subscribe,
    Subscribed,
    Superseded,
    Unsubscribe,
    Unwatch,
    Watch,
)
from scheduler.store import AppliedRecord

__all__ = ["Compute", "Host", "Ledger"]

_log = logging.getLogger("turboserve.engine.host")


class Compute(Protocol):
    """The side of the compute loop that other threads use."""

    def submit(self, command: Command) -> None:
        """Hand over a command."""

    def wish(self, session: SessionId, epoch: int, wish: Wish) -> None:
        """Replace what is wanted of a session."""


class Ledger(Admission, Protocol):
    """What the host has written to Redis."""

    async def record_applied(self, hosted: Hosted, entries: Sequence[AppliedRecord]) -> None:
        """Record inputs before the chunk that shows them; returns after a bounded wait at the latest."""

    def ended(self, hosted: Hosted, reason: str, tell: Callable[[], None]) -> None:
        """The engine closed a session that it owns; `tell` when Redis knows it, or after a bounded wait."""

    def log_wanted(self) -> None:
        """The set of input logs to read changed."""

    def adopted(self, hosted: Hosted) -> None:
        """A session came with its state: what Redis holds besides is to be known here too."""


class Checkpoints(Protocol):
    """Where checkpoints go; nothing of it waits."""

    def offer(self, made: CheckpointMade) -> None:
        """A checkpoint that may be kept once the client has every chunk before it."""

    def acknowledge(self, session: SessionId, epoch: int, seq: int) -> None:
        """The client has every chunk before `seq`."""

    def forget(self, session: SessionId) -> None:
        """The session is not here any more."""


class Host:
    """Receives from links and from the compute thread; see the module."""

    def __init__(
        self,
        spec: ModelSpec,
        compute: Compute,
        ledger: Ledger,
        checkpoints: Checkpoints,
        *,
        limits: LifeLimits,
        clock: Callable[[], float],
        combine: Combine,
        fatal: Callable[[BaseException], None],
    ) -> None:
        """`combine` is the model's; `fatal` is called when the engine as a whole cannot go on."""
        self._spec, self._compute, self._ledger, self._checkpoints = spec, compute, ledger, checkpoints
        self._limits, self._clock, self._combine, self._fatal = limits, clock, combine, fatal
        self.sessions: dict[SessionId, Hosted] = {}
        self.migration_event: Callable[[MigrationEvent], None] = lambda _: None
        """Takes what the compute thread says to migrations."""
        self.park: Callable[[Link, Subscribe], bool] = lambda link, request: False
        """Keeps a subscription to a session that is on its way here."""
        self._looks_changed = asyncio.Event()
        self._residency = Residency(compute.submit, ledger)
        self._emitter = Emitter(
            spec,
            clock=clock,
            record=ledger.record_applied,
            refresh=self._refresh,
            first_made=ledger.changed,
            fatal=fatal,
        )

    @property
    def latency(self) -> RecentLatency:
        """Of chunks that were made here."""
        return self._emitter.latency

    def left_age_ms(self, hosted: Hosted) -> int | None:
        """For how long nobody has controlled the session; None while somebody does, or may come to."""
        is_expected = hosted.subscription == 0 and hosted.record.left_ms is None
        left_ms = None if is_expected else hosted.life.left_ms
        return None if left_ms is None else int(self._clock() - left_ms)

    def slack_ms(self, hosted: Hosted) -> int:
        """Media time that the session's player still holds."""
        return self._emitter.slack_ms(hosted)

    # --- opening and ending ----------------------------------------------------------------------------

    def open(self, past: Past) -> Hosted:
        """Own a session from now on.

        A session that had chunks already waits for its first subscriber to learn where it goes on.
        """
        now, record = self._clock(), past.record
        left_ms = now if record.active else now - self._limits.linger_ms
        media_ms = self._emitter.media_ms(record.next_frame)
        hosted = Hosted(
            record=record,
            controller_epoch=record.controller_epoch,
            player=Player(lead_ms=record.lead_ms, chunk_ms=self._emitter.media_ms(self._spec.chunk_frames)),
            life=Life(paused_ms=now if record.paused else None, left_ms=left_ms),
            replay=Replay(next_seq=record.next_seq, start_ms=media_ms),
            log=LogTail(position="0-0"),
            next_frame=record.next_frame,
            rev=record.rev,
            residence=record.residence,
            active_since_ms=now,
        )
        hosted.has_past = record.next_seq > 0 or past.checkpoint is not None
        if not hosted.has_past:
            hosted.goes_on = Place(seq=0, frame=0)
        self.sessions[record.id] = hosted
        self.load(hosted, past)
        self._emitter.start(hosted)
        self._refresh(hosted)
        return hosted

    def adopt(self, arrival: Arrival) -> None:
        """Own a session that came with its state."""
        now, facts, state = self._clock(), arrival.facts, arrival.state
        record = replace(
            arrival.record, epoch=state.epoch, next_seq=facts.next_seq, next_frame=facts.next_frame
        )
        chunk_ms = self._emitter.media_ms(self._spec.chunk_frames)
        hosted = Hosted(
            record=record,
            controller_epoch=facts.controller_epoch,
            player=player_of(facts, lead_ms=record.lead_ms, chunk_ms=chunk_ms, now_ms=now),
            life=facts.life(now),
            replay=arrival.replay,
            log=LogTail(position=state.last_applied),
            next_frame=facts.next_frame,
            rev=facts.rev,
            goes_on=Place(facts.next_seq, facts.next_frame),
            at_compute=True,
            residence=Residence.RESIDENT if arrival.away is None else Residence.OFFLOADED,
            active=facts.active,
            reason=facts.reason,
            active_since_ms=now - facts.active_age_ms,
            handed_ms=now,
        )
        if record.id in self.sessions:
            self.lose(record.id)  # a former ownership
        self.sessions[record.id] = hosted
        id, away, codec = arrival.migration_id, arrival.away, record.codec
        self._compute.submit(Adopt(migration_id=id, state=state, away=away, codec=codec))
        self._ledger.adopted(hosted)
        self._ledger.log_wanted()
        self._ledger.changed()
        self._emitter.start(hosted)
        self._refresh(hosted)

    def facts(self, hosted: Hosted) -> HostFacts:
        """What a new owner must know of a session that rests. From here on requests are held."""
        if hosted.held is None:
            hosted.held = []
        return facts_of(hosted, self._clock())

    def unhold(self, hosted: Hosted) -> None:
        """The session stays: do what was held."""
        held, hosted.held, hosted.moving = hosted.held or [], None, False
        for link, request in held:
            self.receive_request(link, request)
        self._refresh(hosted)

    def load(self, hosted: Hosted, past: Past) -> None:
        """The past of a session whose state the compute thread does not have."""
        hosted.loading = False
        hosted.kept.refill(past)
        if hosted.at_compute or self.sessions.get(hosted.id) is not hosted:
            return
        log = hosted.kept.inputs  # with what has come while the past was read
        opening = hosted.opening = plan_opening(past, self._combine, self._wanted(log))
        hosted.log.num_pending = len(opening.recorded) + len(opening.pending)
        if read := log or past.log:
            hosted.log.position = read[-1].entry
        self._ledger.log_wanted()
        self._refresh(hosted)

    def feed(self, hosted: Hosted, entries: Sequence[LogEntry]) -> None:
        """New inputs of a session's log, in order."""
        wanted = self._wanted(entries)
        hosted.kept.inputs.extend(entries)
        if not hosted.at_compute and hosted.opening is None:
            return  # the log is read again when the session is loaded
        hosted.log.num_pending += len(wanted)
        if hosted.opening is not None:
            hosted.opening.pending.extend(wanted)
        elif wanted:
            self._compute.submit(Feed(session=hosted.id, epoch=hosted.epoch, entries=wanted))

    def _wanted(self, entries: Sequence[LogEntry]) -> tuple[LogEntry, ...]:
        if self._spec.action_dim == 0:  # the model takes no control input: it changes nothing, it is not kept
            return tuple(item for item in entries if not isinstance(item.message, ControlInput))
        return tuple(entries)

    def admit(self, session: SessionId, epoch: int) -> None:
        """Redis granted the session a slot."""
        hosted = self.sessions.get(session)
        if hosted is not None and hosted.epoch == epoch:
            self._residency.admit(hosted)
            self._refresh(hosted)

    def can_use(self, checkpoint: ExportedState) -> bool:
        """Is it of the model that this engine has?"""
        if checkpoint.header.model == model_key(self._spec) and checkpoint.header.scalars is not None:
            return True
        _log.error("a checkpoint of %s is of another model: %s", checkpoint.header.session, checkpoint.header)
        return False

    def fail(self, error: BaseException) -> None:
        """Something that serves all sessions failed: the engine can't go on."""
        self._fatal(error)

    def suspend(self, session: SessionId, epoch: int) -> None:
        """Others need the session's slot: it leaves, unless somebody uses it."""
        hosted = self.sessions.get(session)
        if hosted is not None and hosted.epoch == epoch:
            hosted.life = replace(hosted.life, suspended_ms=self._clock())
            hosted.published = None  # also says that it stays, if it does
            self._ledger.changed()
            self._refresh(hosted)

    def release(self, command: ReleaseSession) -> None:
        """Another engine owns the session: drop it and say where it is."""
        hosted = self.sessions.get(command.session)
        if hosted is not None and hosted.epoch < command.epoch:
            moved = Moved(
                session=command.session,
                epoch=command.epoch,
                engine=command.engine,
                next_seq=hosted.replay.next_seq,
            )
            hosted.announce(moved)
            self._remove(hosted)

    def lose(self, session: SessionId) -> None:
        """The session is not owned here any more, and nobody knows where it is."""
        hosted = self.sessions.get(session)
        if hosted is not None:
            _log.warning("%s is no longer owned at epoch %d: dropped", session, hosted.epoch)
            next_seq = hosted.replay.next_seq
            hosted.announce(Moved(session=session, epoch=hosted.epoch, engine=None, next_seq=next_seq))
            self._remove(hosted)

    def close(self, session: SessionId, reason: str) -> None:
        """The session's record is closed: drop it and say why."""
        hosted = self.sessions.get(session)
        if hosted is not None:
            hosted.farewell(reason)()
            self._remove(hosted)

    def _end(self, hosted: Hosted, reason: str) -> None:
        """Close a session by this engine's own decision. Whoever hears of it finds its record closed."""
        tell = hosted.farewell(reason)
        self._remove(hosted)
        self._ledger.ended(hosted, reason, tell)

    def _remove(self, hosted: Hosted) -> None:
        del self.sessions[hosted.id]
        if hosted.emitter is not None:
            hosted.emitter.cancel()
        hosted.link = None
        self._checkpoints.forget(hosted.id)
        self._compute.submit(Drop(session=hosted.id, epoch=hosted.epoch))
        self._ledger.log_wanted()

    # --- links -----------------------------------------------------------------------------------------

    def receive_request(self, link: Link, request: LinkRequest) -> None:
        """Act on a gateway's request; one of an older controller is ignored."""
        hosted = self.sessions.get(request.session)
        if hosted is None and isinstance(request, ChooseRungs):
            return  # the gateway says it again to the next owner
        if hosted is None and isinstance(request, Subscribe) and self.park(link, request):
            return
        if hosted is None:
            self._refuse(link, request, 0, ErrorCode.NO_SUCH_SESSION, "the session is not on this engine")
            return
        if isinstance(request, Subscribe):
            self._subscribe(hosted, link, request)
            return
        if isinstance(request, Watch | Unwatch | ChooseRungs):
            hosted.receive_viewing(link, request)
            self._refresh(hosted)
            return
        if link is not hosted.link or request.controller_epoch != hosted.controller_epoch:
            return
        if hosted.held is not None and isinstance(request, Pause | Resume | Stop):
            hosted.held.append((link, request))
        else:
            self._obey(hosted, request)

    def _obey(self, hosted: Hosted, request: Unsubscribe | Credit | Pause | Resume | Stop) -> None:
        """Act on a request of the session's controller."""
        match request:
            case Unsubscribe():
                self._leave(hosted)
            case Credit(seq=seq, buffer_ms=buffer_ms):
                self._acknowledge(hosted, seq, buffer_ms)
            case Pause(id=id):
                self._pause(hosted, id)
            case Resume(id=id):
                self._resume(hosted, id)
            case Stop(id=id):
                self._accept(hosted, id)
                self._end(hosted, "stopped")
            case _:
                assert_never(request)

    def receive_link_lost(self, link: Link) -> None:
        """Its sessions have no subscriber until a gateway subscribes again."""
        for hosted in list(self.sessions.values()):
            hosted.watchers.discard(link)
            hosted.chosen.pop(link, None)
            if hosted.link is link:
                self._leave(hosted)

    def _subscribe(self, hosted: Hosted, link: Link, request: Subscribe) -> None:
        if request.epoch != hosted.epoch:
            self._refuse(link, request, hosted.epoch, ErrorCode.BAD_STATE, "the epoch is not this owner's")
            return
        if request.controller_epoch < hosted.controller_epoch:
            link.send(Superseded(session=hosted.id, controller_epoch=hosted.controller_epoch))
            return
        low, high = hosted.subscribable
        if not low <= request.next_seq <= high:
            why = f"next_seq must be between {low} and {high}"
            self._refuse(link, request, hosted.epoch, ErrorCode.BAD_STATE, why)
            return
        if hosted.link is not None and request.controller_epoch > hosted.controller_epoch:
            hosted.link.send(Superseded(session=hosted.id, controller_epoch=request.controller_epoch))
        hosted.controller_epoch, hosted.link = request.controller_epoch, link
        hosted.chosen.pop(link, None)
        hosted.subscription += 1
        hosted.life = replace(hosted.life, left_ms=None)
        if hosted.is_recovered:
            self._align(hosted, request)
        self._checkpoints.acknowledge(hosted.id, hosted.epoch, request.next_seq)
        self._send_replay(hosted, link, request.next_seq)
        self._refresh(hosted)

    def _align(self, hosted: Hosted, request: Subscribe) -> None:
        """Go on with the first chunk that the subscriber lacks, or the first that can still be made."""
        seq = max(request.next_seq, hosted.first_makeable)
        hosted.next_frame = self._frame_at(hosted, request, seq)
        hosted.goes_on = Place(seq=seq, frame=hosted.next_frame)
        media_ms = self._emitter.media_ms(hosted.next_frame)
        hosted.replay = Replay(next_seq=seq, start_ms=media_ms)
        hosted.player = replace(subscribed(hosted.player, seq=seq, media_ms=media_ms), emitted_seq=seq)

    def _frame_at(self, hosted: Hosted, request: Subscribe, seq: int) -> int:
        known, frame = hosted.record.next_seq, hosted.record.next_frame
        if request.next_frame is not None:
            known, frame = request.next_seq, request.next_frame
        return max(0, frame + (seq - known) * self._spec.chunk_frames)

    def _send_replay(self, hosted: Hosted, link: Link, next_seq: int) -> None:
        replay = hosted.replay
        hosted.start_seq = max(next_seq, replay.oldest_seq)
        # Beyond what is made here (an earlier owner sent more): the player's media ends there, not here.
        ahead_ms = max(0, hosted.start_seq - replay.next_seq) * hosted.player.chunk_ms
        media_ms = replay.start_of_ms(hosted.start_seq) + ahead_ms
        hosted.player = subscribed(hosted.player, seq=hosted.start_seq, media_ms=media_ms)
        verdict = judge(replace(hosted.life, full_ms=None), self._limits, self._clock())  # as it is with it
        link.send(
            Subscribed(
                session=hosted.id,
                epoch=hosted.epoch,
                start_seq=hosted.start_seq,
                state=SessionState.ACTIVE if verdict.active else SessionState.IDLE,
                reason=verdict.reason,
                controller_epoch=hosted.controller_epoch,
            )
        )
        for chunk in replay.since(hosted.start_seq):
            for applied in chunk.applied:
                link.send(applied)
            for number, part in enumerate(chunk.parts, 1):
                last = chunk.complete and number == len(chunk.parts)
                link.send_media(part, self._emitter.on_delivered(hosted, chunk) if last else None)

    def _leave(self, hosted: Hosted) -> None:
        hosted.link = None
        hosted.life = replace(hosted.life, left_ms=self._clock())
        self._refresh(hosted)

    def _acknowledge(self, hosted: Hosted, seq: int, buffer_ms: float) -> None:
        hosted.player = acknowledged(
            hosted.player,
            seq=seq,
            end_media_ms=hosted.replay.end_of_ms(seq),
            buffer_ms=buffer_ms,
            now_ms=self._clock(),
        )
        self._checkpoints.acknowledge(hosted.id, hosted.epoch, hosted.player.acked_seq)
        self._refresh(hosted)

    def _pause(self, hosted: Hosted, id: MessageId | None) -> None:
        if hosted.life.paused_ms is None:
            hosted.life = replace(hosted.life, paused_ms=self._clock())
        self._accept(hosted, id)
        self._refresh(hosted)

    def _resume(self, hosted: Hosted, id: MessageId | None) -> None:
        hosted.life = replace(hosted.life, paused_ms=None, full_ms=None)
        hosted.player = replace(hosted.player, still_ms=None)  # it may have stood because of the pause
        self._accept(hosted, id)
        self._refresh(hosted)

    def _accept(self, hosted: Hosted, id: MessageId | None) -> None:
        if id is not None:
            hosted.say(Accepted(session=hosted.id, id=id, controller_epoch=hosted.controller_epoch))

    def _refuse(self, link: Link, request: LinkRequest, epoch: int, code: ErrorCode, why: str) -> None:
        link.send(
            Refused(
                session=request.session,
                epoch=epoch,
                code=code,
                message=why,
                id=request.id if isinstance(request, Pause | Resume | Stop) else None,
                is_watch=isinstance(request, Watch | Unwatch),
                controller_epoch=getattr(request, "controller_epoch", None),
            )
        )

    # --- life --------------------------------------------------------------------------------------------

    def _refresh(self, hosted: Hosted) -> None:
        """Judge the session's life again and tell the compute thread and the client what follows."""
        if self.sessions.get(hosted.id) is not hosted:
            return
        now = self._clock()
        hosted.life = replace(hosted.life, full_ms=self._full_since(hosted, now))
        verdict = judge(hosted.life, self._limits, now)
        if verdict.active:
            hosted.life = replace(hosted.life, suspended_ms=None)
        hosted.next_look_ms = verdict.next_ms
        self._looks_changed.set()
        if verdict.close is not None:
            self._end(hosted, verdict.close)
            return
        if (verdict.active, verdict.reason) != (hosted.active, hosted.reason):
            self._change_state(hosted, active=verdict.active, reason=verdict.reason, now_ms=now)
        if not hosted.moving:
            self._residency.settle(hosted, verdict)
        if hosted.at_compute:
            since_ms, player = hosted.active_since_ms, hosted.player
            wish = Wish(running=hosted.active, since_ms=since_ms, player=player, rungs=hosted.rungs)
            self._compute.wish(hosted.id, hosted.epoch, wish)

    def _change_state(self, hosted: Hosted, *, active: bool, reason: str, now_ms: float) -> None:
        if active and not hosted.active:
            hosted.active_since_ms = now_ms
        hosted.active, hosted.reason = active, reason
        _log.info("%s is %s %s", hosted.id, hosted.state.value, reason)
        hosted.announce(
            StateChanged(session=hosted.id, epoch=hosted.epoch, state=hosted.state, reason=reason),
        )
        self._ledger.changed()

    def _full_since(self, hosted: Hosted, now_ms: float) -> float | None:
        """Since when its player takes no more chunks."""
        if hosted.link is None:
            return None
        seq, made_ms, before_ms = hosted.replay.next_seq, hosted.replay.end_ms, hosted.life.full_ms
        return full_since_ms(hosted.player, next_seq=seq, made_ms=made_ms, now_ms=now_ms, before_ms=before_ms)

    async def watch(self) -> None:
        """Judge each session again when its time comes. Runs until cancelled."""
        while True:
            looks = [h.next_look_ms for h in self.sessions.values() if h.next_look_ms is not None]
            wait_s = max(0.0, min(looks) - self._clock()) / 1000.0 if looks else None
            try:
                async with asyncio.timeout(wait_s):
                    await self._looks_changed.wait()
            except TimeoutError:
                pass
            self._looks_changed.clear()
            now = self._clock()
            for hosted in list(self.sessions.values()):
                if hosted.next_look_ms is not None and hosted.next_look_ms <= now:
                    self._refresh(hosted)

    # --- chunks ------------------------------------------------------------------------------------------

    def receive_event(self, event: ComputeEvent) -> None:
        """What the compute thread and the encoders report; late news of a dropped session is ignored."""
        if isinstance(event, ComputeDied):
            self._fatal(event.error)
            return
        if isinstance(event, MigrationEvent):
            self.migration_event(event)
            return
        hosted = self.sessions.get(event.session)
        if hosted is None or hosted.epoch != event.epoch:
            return
        match event:
            case PartMade():
                hosted.parts.put_nowait(event)
            case InputsTaken(count=count):
                was_full = hosted.log.is_full
                hosted.log.num_pending -= count
                if was_full and not hosted.log.is_full:
                    self._ledger.log_wanted()
            case SessionFailed():
                self._end(hosted, "internal")
            case Resided():
                self._residency.receive(hosted, event)
                self._refresh(hosted)
            case CheckpointMade():
                self._checkpoints.offer(event)
                self._checkpoints.acknowledge(hosted.id, hosted.epoch, hosted.player.acked_seq)
            case _:
                assert_never(event)

    async def drained(self) -> None:
        """Wait until every encoded part was emitted."""
        await asyncio.gather(*(hosted.parts.join() for hosted in list(self.sessions.values())))
