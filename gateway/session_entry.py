"""Session rules, third file: `start` and `attach`, until the connection controls a session. Pure."""

from __future__ import annotations

import hashlib
import re
from collections import deque

from gateway import protocol as wire
from gateway.auth import TokenRefused
from gateway.flow import Flow
from gateway.limits import ControlMerger
from gateway.session_core import MAX_TOLD_APPLIED, Cause, Session, Stage
from gateway.session_follow import FollowRules
from gateway.steps import CreateSession, Failure, FailureKind, Forget, TakeControl, Taken
from scheduler import messages as link
from scheduler.messages import (
    REPLAY_CHUNKS,
    ErrorCode,
    ModelInfo,
    SessionId,
    SessionRecord,
    SessionState,
)
from scheduler.store.values import QueuedCopy

SESSION_ID = re.compile(r"s_[0-9a-f]{16}")
RETRY_AFTER_MS = 2_000
"""Suggested when Redis or the engines are not there."""


class EntryRules(FollowRules):
    """How a connection comes to control a session."""

    def _admit(self, message: wire.ClientMessage) -> bool:
        """May whoever sent this do what it asks for? If not, it has been told."""
        entry = message if isinstance(message, wire.Start | wire.Attach | wire.Watch) else None
        token = entry.token if entry is not None else None
        try:
            if token is not None:
                self._identity = self._door.identify(token)
            if self._identity is None:
                raise TokenRefused("a token is needed, in the subprotocol list or in the first message")
            if entry is not None and self.session_id is None and self._door.has_expired(self._identity):
                raise TokenRefused("the token has expired: bring a new one in the field token")
        except TokenRefused as exc:
            self._error(ErrorCode.UNAUTHORISED, str(exc), id=message.id)
            self._leave()
            self._close(wire.CloseCode.NOT_AUTHORISED, str(exc))
            return False
        if isinstance(message, wire.Start | wire.Attach) and not self._identity.may_control():
            text = f"this token may not {message.type} sessions: it needs the scope control"
            self._error(ErrorCode.NOT_ALLOWED, text, id=message.id)
            return False
        return True

    def _is_within_starts(self, id: str | None) -> bool:
        """May the subject start one more session now? If not, it has been told."""
        assert self._identity is not None
        retry_after_ms = self._door.count_start(self._identity)
        if retry_after_ms is None:
            return True
        text = "this subject starts sessions too often"
        self._error(ErrorCode.RATE, text, id=id, retry_after_ms=retry_after_ms)
        return False

    def _receive_start(self, message: wire.Start) -> None:
        if self._session is not None:
            text = "this connection has a session: stop it before the next start"
            self._error(ErrorCode.BAD_STATE, text, id=message.id)
            return
        codec = self._catalog().pick_codec(message.accept)
        if codec is None:
            text = f"accept names no codec that is served here: {', '.join(self._catalog().codecs)}"
            self._error(ErrorCode.UNSUPPORTED, text, id=message.id)
            return
        model = self._find_model(message.model, message.id)
        if model is None or not self._is_within_starts(message.id):
            return
        assert self._identity is not None
        drawn = self._draw()
        self._start, self._drawn, self._missed_event = message, drawn, False
        self._move(Cause.START)
        self._out.append(
            CreateSession(
                session=drawn.session,
                model=model,
                prompt=link.PromptInput(text=message.prompt, id=message.id),
                seed=drawn.seed if message.seed is None else message.seed,
                lead_ms=message.lead_ms,
                codec=codec,
                resume_hash=hash_resume(drawn.resume),
                subject=self._identity.subject,
                max_sessions=self._door.quota(self._identity),
            )
        )

    def _find_model(self, name: str | None, id: str | None) -> str | None:
        """The model of a start, or None after an error was sent."""
        catalog = self._catalog()
        model = catalog.pick(name)
        if model in catalog.models:
            return model
        if model is None or model in catalog.expected or not catalog.names():
            text = "no engine is ready yet; try again in a moment"
            self._error(ErrorCode.UNAVAILABLE, text, id=id, retry_after_ms=RETRY_AFTER_MS)
            return None
        text = f"model {model!r} is not served here; served: {', '.join(catalog.names()) or 'none'}"
        self._error(ErrorCode.UNSUPPORTED, text, id=id)
        return None

    def _receive_attach(self, message: wire.Attach) -> None:
        if self._session is not None:
            text = "this connection has a session: stop it, or attach on another connection"
            self._error(ErrorCode.BAD_STATE, text, id=message.id)
            return
        if not SESSION_ID.fullmatch(message.session):
            self._refuse_attach(message, "there is no such session")
            return
        self._attach, self._missed_event = message, False
        self._move(Cause.ATTACH)
        resume_hash = hash_resume(message.resume)
        session = SessionId(message.session)
        self._out.append(TakeControl(session=session, resume_hash=resume_hash, next_seq=message.next_seq))

    def _refuse_attach(self, message: wire.Attach, text: str) -> None:
        self._error(ErrorCode.NO_SUCH_SESSION, text, id=message.id)
        self._leave()
        self._close(wire.CloseCode.NO_SUCH_SESSION, text)

    def _receive_created(self, call: CreateSession, record: SessionRecord, now_ms: float) -> None:
        if self._stage is not Stage.STARTING:  # the client left meanwhile and knows no resume token
            self._out.append(Forget(session=call.session, controller_epoch=1, close="abandoned"))
            return
        start, drawn = self._start, self._drawn
        assert start is not None and drawn is not None
        s = self._enter(record, resume=drawn.resume, next_seq=0, id=start.id)
        s.start_id = start.id
        s.copy = QueuedCopy(
            session=call.session,
            model=call.model,
            prompt=call.prompt,
            seed=call.seed,
            lead_ms=call.lead_ms,
            codec=call.codec,
            resume_hash=call.resume_hash,
            subject=call.subject,
            created_ms=record.created_ms,
            inputs=[],
        )
        self._begin_work(s, now_ms)

    def _receive_taken(self, call: TakeControl, taken: Taken, now_ms: float) -> None:
        attach, record = self._attach, taken.record
        epoch = record.controller_epoch
        if self._stage is not Stage.ATTACHING or attach is None:
            self._out.append(Forget(session=call.session, controller_epoch=epoch, close=None))
            return
        if record.model not in self._catalog().models:
            text = "the session's model is not known here yet; try again"
            self._out.append(Forget(session=call.session, controller_epoch=epoch, close=None))
            self._fail_pending(
                ErrorCode.UNAVAILABLE, text, id=attach.id, now_ms=now_ms, retry_after_ms=RETRY_AFTER_MS
            )
            return
        s = self._enter(
            record,
            resume=attach.resume,
            next_seq=attach.next_seq,
            id=attach.id,
        )
        s.pause_ids.extend(taken.pause_ids)
        s.earlier_ids = taken.input_ids
        self._begin_work(s, now_ms)

    def _enter(
        self,
        record: SessionRecord,
        *,
        resume: str,
        next_seq: int,
        id: str | None,
    ) -> Session:
        """Control the session from here on. `_begin_work` follows."""
        info = self._catalog().models[record.model]
        next_frame = record.next_frame if next_seq == record.next_seq else None
        flow = Flow(
            session=record.id,
            controller_epoch=record.controller_epoch,
            next_seq=next_seq,
            next_frame=next_frame,
            fps=info.fps,
            kept_seq=record.next_seq - REPLAY_CHUNKS,
        )
        self._move(Cause.GRANTED)
        self._had_session = True
        attach, self._attach, self._start, self._drawn = self._attach, None, None, None
        self._session = s = Session(
            id=record.id,
            info=info,
            flow=flow,
            controller_epoch=record.controller_epoch,
            controls=ControlMerger(),
            attach=attach,
            is_paused=record.paused,
            told_applied=deque(maxlen=MAX_TOLD_APPLIED),
        )
        self._send(session_message(record, info, resume))
        self._follow_record(s, record)
        if attach is None or flow.is_waiting():
            self._accept(id)
            s.attach = None  # else the owner says whether next_seq fits
        if attach is not None and flow.is_waiting():
            self._tell_state(s, SessionState.QUEUED, None, record.reason)
        return s

    def _begin_work(self, s: Session, now_ms: float) -> None:
        """All that is known of the session is in its place."""
        if self._missed_event:
            self._load(s)
        self._release_backlog(now_ms)

    def _fail_pending(
        self, code: ErrorCode, text: str, *, id: str | None, now_ms: float, retry_after_ms: int | None = None
    ) -> None:
        """Start or attach failed; the connection may try again."""
        self._error(code, text, id=id, retry_after_ms=retry_after_ms)
        self._move(Cause.REFUSED)
        self._start = self._attach = self._drawn = None
        self._release_backlog(now_ms)

    # --- failures --------------------------------------------------------------------------------------

    def _receive_create_failure(self, call: CreateSession, failure: Failure, now_ms: float) -> None:
        if failure.kind is FailureKind.UNAVAILABLE:  # it may have been written all the same
            self._out.append(Forget(session=call.session, controller_epoch=1, close="abandoned"))
        if self._stage is not Stage.STARTING:
            return
        id = self._start.id if self._start is not None else None
        if failure.kind is FailureKind.QUEUE_FULL:
            retry_after_ms = failure.retry_after_ms
            self._error(ErrorCode.CAPACITY, failure.message, id=id, retry_after_ms=retry_after_ms)
            self._leave()
            self._close(wire.CloseCode.NO_CAPACITY, "no capacity")
            return
        self._fail_call(failure, id, now_ms)

    def _receive_take_failure(self, call: TakeControl, failure: Failure, now_ms: float) -> None:
        if failure.kind is FailureKind.UNAVAILABLE:  # it may have been written all the same
            self._out.append(Forget(session=call.session, controller_epoch=None, close=None))
        attach = self._attach
        if self._stage is not Stage.ATTACHING or attach is None:
            return
        match failure.kind:
            case FailureKind.NO_SUCH_SESSION:
                self._refuse_attach(attach, "there is no such session, or the resume token is wrong")
            case FailureKind.CLOSED:
                self._refuse_attach(attach, f"the session was closed: {failure.message}")
            case _:
                self._fail_call(failure, attach.id, now_ms)

    def _fail_call(self, failure: Failure, id: str | None, now_ms: float) -> None:
        code = ERROR_OF.get(failure.kind, ErrorCode.INTERNAL)
        retry_after_ms = failure.retry_after_ms
        self._fail_pending(code, failure.message, id=id, now_ms=now_ms, retry_after_ms=retry_after_ms)


ERROR_OF = {
    FailureKind.UNAVAILABLE: ErrorCode.UNAVAILABLE,
    FailureKind.LOG_FULL: ErrorCode.UNAVAILABLE,
    FailureKind.BEYOND: ErrorCode.BAD_STATE,
    FailureKind.QUEUE_FULL: ErrorCode.CAPACITY,
    FailureKind.QUOTA: ErrorCode.NOT_ALLOWED,
    FailureKind.NOT_ALLOWED: ErrorCode.NOT_ALLOWED,
}
"""Codes for failures that are told as they are; the others are `internal`."""


def hash_resume(resume: str) -> str:
    """What the cluster stores of a resume token."""
    return hashlib.sha256(resume.encode()).hexdigest()


def session_message(record: SessionRecord, info: ModelInfo, resume: str) -> wire.Session:
    """The first answer to `start`, `attach` and `watch`."""
    return wire.Session(
        session=record.id,
        resume=resume,
        model=info.name,
        width=info.width,
        height=info.height,
        fps=info.fps,
        chunk_frames=info.chunk_frames,
        codec=record.codec,
        lead_ms=record.lead_ms,
        controls=info.controls,
    )
