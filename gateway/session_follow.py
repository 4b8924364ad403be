"""Session rules, second file: the session's owner and its link. Events and link messages come in here.
Pure."""

from __future__ import annotations

from typing import assert_never

from gateway import protocol as wire
from gateway.flow import PartVerdict
from gateway.session_core import Cause, Session, SessionCore, Stage
from gateway.steps import Follow, Forget, Output, SendChunk, Unfollow
from scheduler import messages as link
from scheduler.messages import EngineId, ErrorCode, Phase, Rung, SessionRecord, SessionState

ETA_EVERY_MS = 2_000
"""So often a session that keeps its place in the queue is told another wait, at most."""
ETA_CHANGE_MS = 1_000
ETA_CHANGE = 0.2
"""What makes it another: more than both, the second as a share of what was told."""
RELOAD_MS = 500
"""After an engine refused a subscription that the record says it serves."""
MAX_DENIED = 3
"""So often owners may refuse to go on where a client is."""


class FollowRules(SessionCore):
    """Which engine is followed, and what comes from it."""

    # --- from the events stream ------------------------------------------------------------------------

    def receive_event(self, event: link.Event, now_ms: float) -> list[Output]:
        """An event about `session_id`; others are ignored."""
        if getattr(event, "session", None) != self.session_id:
            return self._take()
        s = self._session
        if s is None:  # the answer to start or attach is not here yet: read the record when it is
            self._missed_event = True
            return self._take()
        match event:
            case link.SessionPlaced(epoch=epoch, engine=engine):
                self._receive_owner(s, engine, epoch, opened=False)
            case link.SessionOpened(epoch=epoch, engine=engine):
                self._receive_owner(s, engine, epoch, opened=True)
            case link.SessionQueued(reason=reason):
                if reason:  # it names no epoch, so it may be old: the record tells
                    s.queue_reason = reason
                    self._load(s)
            case link.SessionClosed(reason=reason):
                self._end(reason, now_ms)
            case link.ControllerChanged(controller_epoch=epoch):
                if epoch > s.controller_epoch:
                    self._lose_control()
            case _:
                pass
        return self._take()

    def receive_events_lost(self) -> list[Output]:
        """Events were missed: read the record again."""
        if self._session is not None:
            self._load(self._session)
        else:
            self._missed_event = True
        return self._take()

    def receive_taken_over(self, controller_epoch: int) -> list[Output]:
        """Another connection of this gateway controls the session now."""
        if self._session is not None and controller_epoch > self._session.controller_epoch:
            self._lose_control()
        return self._take()

    def receive_position(self, position: int | None, eta_ms: int, now_ms: float) -> list[Output]:
        """Where the session stands in the queue; None: it does not wait any more."""
        s = self._session
        if s is not None and self.is_queued() and position is not None:
            queued = wire.Queued(position=position, eta_ms=eta_ms)
            if is_queue_news(s.told_queued, queued, now_ms - s.told_queued_ms):
                s.told_queued, s.told_queued_ms = queued, now_ms
                self._send(queued)
        return self._take()

    def _follow_record(self, s: Session, record: SessionRecord) -> None:
        placed = record.phase is Phase.PLACED
        if not placed and record.reason:
            s.queue_reason = record.reason
        self._receive_owner(
            s, record.engine if placed else None, record.epoch, opened=placed and record.opened
        )

    def _receive_owner(self, s: Session, engine: EngineId | None, epoch: int, *, opened: bool) -> None:
        was_followed = not s.flow.is_waiting()
        is_followed = s.flow.receive_owner(engine, epoch, opened=opened)
        if was_followed and (s.flow.is_waiting() or is_followed):
            self._out.append(Unfollow())
            self._keep_pause_wish(s)
            if s.queue_reason is not None:
                self._tell_state(s, SessionState.QUEUED, None, s.queue_reason)
        if is_followed and engine is not None:
            s.told_queued = s.queue_reason = None
            self._out.append(Follow(engine=engine))

    # --- from the link ---------------------------------------------------------------------------------

    def receive_link_up(self, engine: EngineId) -> list[Output]:
        """The followed link to `engine` can be used."""
        s = self._session
        if s is not None and s.flow.engine == engine and (subscribe := s.flow.receive_link_up()) is not None:
            self._ask(subscribe)
        return self._take()

    def receive_link_down(self, engine: EngineId) -> list[Output]:
        """The followed link broke; the shell connects again."""
        s = self._session
        if s is not None and s.flow.engine == engine:
            s.flow.receive_link_down()
            self._keep_pause_wish(s)
            self._end_if_stopping(s)
        return self._take()

    def receive_chunk(
        self, part: link.ChunkPart, payload: bytes | memoryview, rung: Rung = Rung.FULL
    ) -> list[Output]:
        """A chunk part of this session, whose client should get it at `rung`."""
        s = self._session
        if s is None or self._stage is not Stage.RUNNING:
            return self._take()
        match s.flow.receive_part(part, rung):
            case PartVerdict.RELAY:
                header = chunk_header(part, s.flow.engine or EngineId(""))
                self._out.append(SendChunk(header=header, payload=payload))
            case PartVerdict.RESUBSCRIBE:
                self._ask(s.flow.resubscribe())
            case PartVerdict.SKIP:
                self._send(s.flow.skip_to(part))
                return self.receive_chunk(part, payload, rung)
            case PartVerdict.DROP:
                if s.flow.is_made_again(part):
                    self._credit(s, part.seq, 0.0)  # else it would wait for the client, who waits for it
        return self._take()

    def _credit(self, s: Session, seq: int, buffer_ms: float) -> None:
        epoch = s.controller_epoch
        self._ask(link.Credit(session=s.id, controller_epoch=epoch, seq=seq, buffer_ms=buffer_ms))

    def receive_link(self, reply: link.LinkReply, now_ms: float) -> list[Output]:
        """Any other link message about this session."""
        s = self._session
        if s is None or reply.session != s.id or _is_to_another(s, reply):
            pass
        elif isinstance(reply, link.Stats):  # comes with each chunk
            if reply.epoch == s.flow.epoch:
                self._send_stats(reply)
        else:
            self._handle_reply(s, reply, now_ms)
        return self._take()

    def _send_stats(self, stats: link.Stats) -> None:
        self._send(
            wire.Stats(
                seq=stats.seq,
                latency_ms=stats.latency_ms,
                gen_ms=stats.gen_ms,
                slack_ms=stats.slack_ms,
                batch=stats.batch,
            )
        )

    def _handle_reply(self, s: Session, reply: link.LinkReply, now_ms: float) -> None:  # noqa: C901 - one arm per kind
        match reply:
            case link.ChunkPart() | link.Stats():
                pass  # comes with its payload, to receive_chunk; is handled before
            case link.Subscribed():
                self._receive_subscribed(s, reply)
            case link.Refused():
                self._receive_refused(s, reply, now_ms)
            case link.Accepted(id=id):
                if id == self._stop_id:
                    self._stop_id = None
                if id in s.asked_pause_ids:
                    s.asked_pause_ids.remove(id)
                self._accept(id)
            case link.Superseded(controller_epoch=epoch):
                if epoch > s.controller_epoch:
                    self._lose_control()
            case link.Moved():
                self._receive_moved(s, reply)
            case _ if reply.epoch != s.flow.epoch:
                pass  # an older owner
            case link.Applied(rev=rev, seq=seq, id=id):
                self._tell_applied(s, rev, seq, id)
            case link.StateChanged(state=state, reason=reason):
                self._tell_state(s, state, s.flow.engine, reason)
            case link.Closed(reason=reason):
                self._end(reason, now_ms)
            case _:
                assert_never(reply)

    def _receive_subscribed(self, s: Session, reply: link.Subscribed) -> None:
        is_ours, gap = s.flow.receive_subscribed(reply)
        if not is_ours:
            return
        s.has_flowed, s.num_denied = True, 0
        if s.attach is not None:
            self._accept(s.attach.id)
            s.attach = None
        self._tell_state(s, reply.state, s.flow.engine, reply.reason)
        if gap is not None:
            self._send(gap)
        if s.pause_wish is not None:
            kind = link.Pause if s.pause_wish else link.Resume
            self._ask(kind(session=s.id, controller_epoch=s.controller_epoch))
            s.asked_pause, s.pause_wish = s.pause_wish, None
            while s.asked_pause_ids:
                self._accept(s.asked_pause_ids.popleft())

    def _receive_refused(self, s: Session, reply: link.Refused, now_ms: float) -> None:
        if reply.is_watch:
            return
        if reply.id is not None and reply.code is ErrorCode.NO_SUCH_SESSION:
            self._end_if_stopping(s)  # it has just moved: the next owner is told about a pause
        elif reply.id is not None:
            self._error(reply.code, reply.message, id=reply.id)
        elif s.flow.is_flowing() or s.flow.is_waiting():
            return
        elif reply.code is not ErrorCode.BAD_STATE or reply.epoch != s.flow.epoch:
            self._stop_following(s)
            s.reload_ms = now_ms + RELOAD_MS
        elif s.has_flowed:
            self._receive_denied(s, now_ms)
        else:
            self._refuse_next_seq(s, reply.message, now_ms)

    def _receive_denied(self, s: Session, now_ms: float) -> None:
        """A new owner can't go on where the client is: when it took over, the record was too far behind. It
        is asked for what it can (`Flow.receive_record`)."""
        s.num_denied += 1
        self._stop_following(s)
        if s.num_denied < MAX_DENIED or self._stage is Stage.STOPPING:
            s.reload_ms = now_ms + RELOAD_MS
            return
        self._out.append(Forget(session=s.id, controller_epoch=s.controller_epoch, close="lost"))
        self._end("lost", now_ms)

    def _refuse_next_seq(self, s: Session, text: str, now_ms: float) -> None:
        """An attach named a chunk that will not be made soon; another may be tried."""
        id = s.attach.id if s.attach is not None else None
        s.attach = None
        self._error(ErrorCode.BAD_STATE, text, id=id)
        if self._stage is Stage.STOPPING:
            return  # its end is on its way to the store
        for id in self._unanswered_ids():
            self._error(ErrorCode.BAD_STATE, "the session was let go of before this was taken", id=id)
        self._drop_session(s)
        self._move(Cause.REFUSED)
        self._release_backlog(now_ms)

    def _receive_moved(self, s: Session, reply: link.Moved) -> None:
        self._end_if_stopping(s)
        if reply.epoch < s.flow.epoch or s.flow.is_waiting():
            return
        if reply.epoch > s.flow.epoch:
            self._receive_owner(s, reply.engine, reply.epoch, opened=False)
        else:
            self._stop_following(s)
        self._load(s)

    def _end_if_stopping(self, s: Session) -> None:
        """The engine that was asked to stop the session does not have it: Redis is asked."""
        if s.stop_ms is not None:
            s.stop_ms = None
            self._end_in_store(s)

    def _stop_following(self, s: Session) -> None:
        s.flow.receive_refused()
        self._keep_pause_wish(s)
        self._out.append(Unfollow())

    @staticmethod
    def _keep_pause_wish(s: Session) -> None:
        """What was asked last may not have arrived: it is asked again after the next subscription."""
        s.pause_wish = s.asked_pause if s.pause_wish is None else s.pause_wish


def _is_to_another(s: Session, reply: link.LinkReply) -> bool:
    """Does it answer another connection to the session, here too? Engines of before don't say."""
    if not isinstance(reply, link.Subscribed | link.Refused | link.Accepted):
        return False
    return reply.controller_epoch not in (None, s.controller_epoch)


def is_queue_news(told: wire.Queued | None, queued: wire.Queued, passed_ms: float) -> bool:
    """Is it worth a message, so long after what was `told`?"""
    if told is None or told.position != queued.position:
        return True
    change_ms = abs(queued.eta_ms - told.eta_ms)
    return passed_ms >= ETA_EVERY_MS and change_ms > max(ETA_CHANGE_MS, ETA_CHANGE * told.eta_ms)


def chunk_header(part: link.ChunkPart, engine: EngineId) -> wire.ChunkHeader:
    """A part as clients see it."""
    return wire.ChunkHeader(
        session=part.session,
        seq=part.seq,
        part=part.part,
        parts=part.parts,
        key=part.key,
        frames=part.frames,
        sizes=part.sizes,
        pts_ms=part.pts_ms,
        duration_ms=part.duration_ms,
        codec=part.codec,
        rev=part.rev,
        engine=engine,
        gen_ms=part.gen_ms,
    )
