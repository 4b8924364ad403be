"""Session rules, fourth file: viewers, who watch a session and control nothing. Pure.

A viewer begins with the next chunk that is made, follows the session from engine to engine, and causes no
generation: engines send what they make to each gateway that has viewers once, and the gateway copies it. A
viewer that does not keep up misses whole chunks that have not begun, and is told so with `gap`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway import protocol as wire
from gateway.auth import ANYONE, Scope
from gateway.rungs import RungFilter
from gateway.session_core import LOST_AFTER_MS
from gateway.session_entry import RETRY_AFTER_MS, SESSION_ID, EntryRules, session_message
from gateway.session_follow import RELOAD_MS, chunk_header
from gateway.steps import Ask, Follow, LoadSession, Output, SendChunk, Unfollow
from scheduler import messages as link
from scheduler.messages import EngineId, ErrorCode, Phase, Rung, SessionId, SessionRecord, SessionState

MAX_VIEWER_QUEUE_BYTES = 4 * 1024 * 1024
"""A viewer for whom more waits gets no further chunk until less does."""
MAX_VIEWER_QUEUE_CHUNKS = 2
MAX_LOADS = 8
"""Who goes on watching one session after the other while no record can be read is told to wait."""


@dataclass(slots=True, kw_only=True)
class Viewer:
    """What one viewer watches."""

    session: SessionId
    id: str | None
    """Message id of its `watch`, until it is answered."""
    is_known: bool = False
    """Was the record read, and `session` sent?"""
    engine: EngineId | None = None
    """Who is followed."""
    epoch: int = -1
    next_seq: int | None = None
    """First chunk that was not relayed completely; None before the first."""
    part: int | None = None
    """Next part of that chunk; None: it has not begun."""
    chunk_bytes: int = 0
    filter: RungFilter = field(default_factory=RungFilter)
    told_state: wire.State | None = None
    reload_ms: float | None = None
    missing_since_ms: float | None = None
    """Redis has no record of the session: its owner may not have written it again yet."""


class WatchRules(EntryRules):
    """What a connection does whose client watches."""

    _viewer: Viewer | None = None

    def is_watching(self) -> bool:
        return self._viewer is not None

    @property
    def session_id(self) -> SessionId | None:
        return self._viewer.session if self._viewer is not None else super().session_id

    def deadline_ms(self) -> float | None:
        return self._viewer.reload_ms if self._viewer is not None else super().deadline_ms()

    # --- from the client -------------------------------------------------------------------------------

    def _receive_watch(self, message: wire.Watch) -> None:
        if self._session is not None or self._viewer is not None:
            text = "this connection has a session: watch on another one"
            self._error(ErrorCode.BAD_STATE, text, id=message.id)
        elif not SESSION_ID.fullmatch(message.session):
            self._refuse_watch("there is no such session", message.id)
        elif not self._may_ever_watch(message.session):
            text = "this token may not watch that session: it needs the scope view"
            self._error(ErrorCode.NOT_ALLOWED, text, id=message.id)
        elif self._loads >= MAX_LOADS:
            text = f"{MAX_LOADS} sessions are being looked for already; try again later"
            self._error(ErrorCode.UNAVAILABLE, text, id=message.id, retry_after_ms=RETRY_AFTER_MS)
        else:
            self._viewer = Viewer(session=SessionId(message.session), id=message.id)
            self._had_session = True
            self._reload(self._viewer)

    def _may_ever_watch(self, session: str) -> bool:
        """Whose session it is, its record tells: `_receive_watched` asks again."""
        identity = self._identity or ANYONE
        return identity.has(Scope.VIEW) and identity.session in (None, session)

    def _handle_viewing(self, message: wire.ClientMessage, now_ms: float) -> None:
        """Any message but `ping` while watching."""
        match message:
            case wire.Ack():
                self._accept(message.id)
            case wire.Stop():
                if self._viewer is not None and not self._viewer.is_known:
                    self._accept(self._viewer.id)
                self._leave_viewing()
                self._accept(message.id)
                self._send(wire.Closed(reason="stopped"))
            case _:
                text = f"this connection watches a session: {message.type} is for who controls it"
                self._error(ErrorCode.NOT_ALLOWED, text, id=message.id)

    def _refuse_watch(self, text: str, id: str | None) -> None:
        self._error(ErrorCode.NO_SUCH_SESSION, text, id=id)
        self._leave()
        self._close(wire.CloseCode.NO_SUCH_SESSION, text)

    def _leave(self) -> None:
        self._leave_viewing()
        super()._leave()

    def _leave_viewing(self) -> None:
        v, self._viewer = self._viewer, None
        if v is not None and v.engine is not None:
            self._out += (Ask(request=link.Unwatch(session=v.session)), Unfollow())

    # --- where it is -----------------------------------------------------------------------------------

    def receive_event(self, event: link.Event, now_ms: float) -> list[Output]:
        v = self._viewer
        if v is None or getattr(event, "session", None) != v.session:
            return super().receive_event(event, now_ms)
        match event:
            case link.SessionOpened(epoch=epoch, engine=engine) if v.is_known:
                self._watch_at(v, engine, epoch)
            case link.SessionPlaced() | link.SessionQueued() | link.SessionOpened():
                self._reload(v)
            case link.SessionClosed(reason=reason):
                self._end_viewing(v, reason)
            case _:
                pass
        return self._take()

    def receive_events_lost(self) -> list[Output]:
        if self._viewer is None:
            return super().receive_events_lost()
        self._reload(self._viewer)
        return self._take()

    def _reload(self, v: Viewer) -> None:
        self._loads += 1
        self._out.append(LoadSession(session=v.session))

    def _receive_watched(self, v: Viewer, record: SessionRecord | None, now_ms: float) -> None:
        """The record as Redis holds it now."""
        since_ms = now_ms if v.missing_since_ms is None else v.missing_since_ms
        v.missing_since_ms = since_ms if record is None else None
        if record is None and v.is_known and now_ms < since_ms + LOST_AFTER_MS:
            v.reload_ms = now_ms + RELOAD_MS
            return
        if record is None or record.phase is Phase.CLOSED:
            if v.is_known:
                self._end_viewing(v, record.reason if record is not None else "lost")
            else:
                text = "there is no such session" if record is None else f"it was closed: {record.reason}"
                self._refuse_watch(text, v.id)
            return
        if not v.is_known and not (self._identity or ANYONE).may_watch(record.id, record.subject):
            text = "this token may not watch that session: it is another subject's"
            self._error(ErrorCode.NOT_ALLOWED, text, id=v.id)
            self._viewer = None
            return
        info = self._catalog().models.get(record.model)
        if not v.is_known and info is None:
            text = "the session's model is not known here yet; try again"
            self._error(ErrorCode.UNAVAILABLE, text, id=v.id, retry_after_ms=RELOAD_MS)
            self._viewer = None
            return
        if not v.is_known and info is not None:
            v.is_known = True
            self._send(session_message(record, info, resume=""))
            self._accept(v.id)
        if record.phase is Phase.PLACED and record.opened and record.engine is not None:
            self._watch_at(v, record.engine, record.epoch)
        elif record.phase is Phase.QUEUED and record.epoch >= v.epoch:
            self._stop_watching_at(v)
            self._tell_viewer(v, SessionState.QUEUED, record.reason)

    def _watch_at(self, v: Viewer, engine: EngineId, epoch: int) -> None:
        if epoch < v.epoch or (epoch == v.epoch and v.engine is not None):
            return
        self._stop_watching_at(v)
        v.engine, v.epoch, v.part = engine, epoch, None
        self._out.append(Follow(engine=engine))

    def _stop_watching_at(self, v: Viewer) -> None:
        if v.engine is not None:
            v.engine = v.part = None
            self._out.append(Unfollow())

    def _end_viewing(self, v: Viewer, reason: str) -> None:
        self._stop_watching_at(v)
        self._viewer = None
        self._send(wire.Closed(reason=reason))

    def _tell_viewer(self, v: Viewer, state: SessionState, reason: str) -> None:
        message = wire.State(state=state, engine=v.engine, reason=reason)
        if message != v.told_state:
            v.told_state = message
            self._send(message)

    # --- from the link ---------------------------------------------------------------------------------

    def receive_link_up(self, engine: EngineId) -> list[Output]:
        v = self._viewer
        if v is None:
            return super().receive_link_up(engine)
        if v.engine == engine:
            v.part = None
            self._ask(link.Watch(session=v.session, epoch=v.epoch))
        return self._take()

    def receive_link_down(self, engine: EngineId) -> list[Output]:
        if self._viewer is None:
            return super().receive_link_down(engine)
        self._viewer.part = None  # followed again as soon as it is up
        return self._take()

    def receive_link(self, reply: link.LinkReply, now_ms: float) -> list[Output]:
        v = self._viewer
        if v is None:
            return super().receive_link(reply, now_ms)
        if reply.session != v.session or v.engine is None:
            return self._take()
        match reply:
            case link.StateChanged(epoch=v.epoch, state=state, reason=reason):
                self._tell_viewer(v, state, reason)
            case link.Subscribed(epoch=v.epoch, state=state, reason=reason):
                self._tell_viewer(v, state, reason)
            case link.Closed(epoch=v.epoch, reason=reason):
                self._end_viewing(v, reason)
            case link.Moved(epoch=epoch) if epoch < v.epoch:
                pass  # to where it is now
            case link.Moved() | link.Refused(is_watch=True):
                self._stop_watching_at(v)
                v.reload_ms = now_ms + RELOAD_MS  # unless an event is faster
            case _:
                pass  # for whoever controls it
        return self._take()

    def receive_viewed(
        self, part: link.ChunkPart, payload: bytes | memoryview, queued_bytes: int, rung: Rung = Rung.FULL
    ) -> list[Output]:
        """A chunk part while watching; so many bytes wait for the viewer, who should get it at `rung`."""
        v = self._viewer
        if v is None or v.engine is None or part.epoch != v.epoch or not v.filter.takes(part, rung):
            return self._take()
        if part.part == 0 and (v.next_seq is None or part.seq >= v.next_seq):
            behind = queued_bytes > min(MAX_VIEWER_QUEUE_BYTES, MAX_VIEWER_QUEUE_CHUNKS * v.chunk_bytes)
            if behind and v.chunk_bytes:
                v.part = None
                return self._take()
            if v.next_seq is not None and part.seq > v.next_seq:
                self._send(wire.Gap(from_seq=v.next_seq, to_seq=part.seq - 1))
            v.next_seq, v.part, v.chunk_bytes = part.seq, 0, 0
        if v.part is None or part.seq != v.next_seq or part.part != v.part:
            return self._take()
        v.part += 1
        v.chunk_bytes += len(payload)
        self._out.append(SendChunk(header=chunk_header(part, v.engine), payload=payload))
        if v.part >= part.parts:
            v.next_seq, v.part = part.seq + 1, None
        return self._take()
