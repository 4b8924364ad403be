"""The rules of one client connection, without I/O.

In come client messages, answers of the store, events and link messages; out comes a list of
`gateway.steps.Output`, which `gateway/connection.py` carries out. Everything that decides what a client
is told lives in five files, each built on the one before; which chunk parts are relayed is decided in
`gateway/flow.py`:

    session_core.py     stages, the session, helpers
    session_follow.py   its owner: events and the link
    session_entry.py    start and attach
    session_watch.py    viewers
    session.py          all other client messages, rates, answers of the store

There is no clock: `now_ms` is an argument (monotonic), and the shell calls `receive_tick` at `deadline_ms()`.
While start, attach or stop is under way further messages wait (MAX_BACKLOG), so a client may send `start` and
`prompt`, or `stop` and `start`, in one go.
"""

from __future__ import annotations

from typing import assert_never

from gateway import protocol as wire
from gateway.limits import MESSAGE_BYTES, MESSAGES_PER_S, Verdict
from gateway.session_core import (
    LOST_AFTER_MS,
    MAX_HELD_INPUTS,
    Cause,
    Draw,
    Session,
    Stage,
)
from gateway.session_entry import ERROR_OF, RETRY_AFTER_MS, hash_resume
from gateway.session_follow import RELOAD_MS
from gateway.session_watch import WatchRules
from gateway.steps import (
    AppendInput,
    Call,
    CreateSession,
    EndSession,
    Failure,
    FailureKind,
    LoadSession,
    Output,
    SetPaused,
    TakeControl,
    Taken,
)
from scheduler import messages as link
from scheduler.messages import ErrorCode, Phase, SessionRecord
from scheduler.store.values import InputReceipt, QueuedCopy

__all__ = ["Draw", "SessionMachine", "Stage", "hash_resume"]

MAX_BACKLOG = 64
"""Client messages that wait for an answer to start, attach or stop."""
MAX_COPIED_INPUTS = 256
"""Inputs of a session without an owner yet that are kept, should Redis lose it."""
STOP_TIMEOUT_MS = 5_000
"""An engine that does not confirm a stop by then is bypassed."""


class SessionMachine(WatchRules):
    """One client connection. Every `receive_*` returns what is to be done, in order."""

    # --- from the client -------------------------------------------------------------------------------

    def receive_message(self, message: wire.ClientMessage, now_ms: float) -> list[Output]:
        """A well-formed message."""
        if self._stage is not Stage.OVER and self._is_within_rate(message.id, now_ms):
            self._bad_messages = 0
            self._handle(message, now_ms)
        return self._take()

    def receive_long(self, num_bytes: int, now_ms: float) -> tuple[bool, list[Output]]:
        """A message of more than MESSAGE_BYTES came: (may it be read?, what is to be done before)."""
        cost = num_bytes // MESSAGE_BYTES
        may_be_read = self._stage is not Stage.OVER and self._is_within_rate(None, now_ms, cost)
        return may_be_read, self._take()

    def receive_bad(self, error: wire.MessageError, now_ms: float) -> list[Output]:
        """A message that breaks the schema. The third without a good one between closes 4400."""
        if self._stage is Stage.OVER or not self._is_within_rate(error.id, now_ms):
            return self._take()
        self._error(error.code, str(error), id=error.id)
        if error.code is not ErrorCode.TOO_LARGE:  # well-formed, only too long: not a broken client
            self._bad_messages += 1
        if self._bad_messages >= wire.MAX_BAD_MESSAGES:
            self._leave()
            self._close(wire.CloseCode.PROTOCOL, "too many bad messages")
        return self._take()

    def receive_disconnect(self) -> list[Output]:
        """The client is gone: the session, if any, lingers. Answers to calls are still to be delivered."""
        self._leave()
        return self._take()

    def receive_shutdown(self) -> list[Output]:
        """This gateway stops: the client shall attach elsewhere."""
        if self._stage is not Stage.OVER:
            self._leave()
            self._close(wire.CloseCode.RESTART, "the gateway restarts; attach again")
        return self._take()

    def receive_silence(self) -> list[Output]:
        """The client said nothing for too long after connecting, or has had no session for too long."""
        if self._stage is Stage.FRESH and not self.is_watching():
            self._close(wire.CloseCode.IDLE, "there was no session for too long")
        return self._take()

    def receive_tick(self, now_ms: float) -> list[Output]:
        """A deadline has come, or any other moment."""
        v = self._viewer
        if v is not None and v.reload_ms is not None and now_ms >= v.reload_ms:
            v.reload_ms = None
            self._reload(v)
        s = self._session
        if s is None:
            return self._take()
        if s.stop_ms is not None and now_ms >= s.stop_ms:
            s.stop_ms = None
            self._end_in_store(s)
        if s.reload_ms is not None and now_ms >= s.reload_ms:
            s.reload_ms = None
            self._load(s)
        self._append_controls(s, now_ms)
        return self._take()

    def _is_within_rate(self, id: str | None, now_ms: float, cost: int = 1) -> bool:
        match self._bucket.spend(now_ms, cost):
            case Verdict.PASS:
                return True
            case Verdict.TELL:
                text = f"more than {MESSAGES_PER_S} messages per second"
                self._error(ErrorCode.RATE, text, id=id, retry_after_ms=1000)
            case Verdict.CLOSE:
                self._leave()
                self._close(wire.CloseCode.RATE, "too many messages")
            case Verdict.DROP:
                pass
        return False

    def _handle(self, message: wire.ClientMessage, now_ms: float) -> None:  # noqa: C901 - one arm per kind
        if isinstance(message, wire.Ack) and self._stage is Stage.RUNNING and self._session is not None:
            self._receive_ack(self._session, message)  # as with nearly every message of all
            return
        if not self._admit(message):
            return
        if isinstance(message, wire.Ping):
            self._send(wire.Pong(t=message.t))
            self._accept(message.id)
        elif self._viewer is not None:
            self._handle_viewing(message, now_ms)
        elif isinstance(message, wire.Ack) and self._is_late_ack():
            self._accept(message.id)
        elif self._stage in (Stage.STARTING, Stage.ATTACHING, Stage.STOPPING):
            self._hold_back(message)
        elif isinstance(message, wire.Start) and self._repeats_start(message):
            pass
        elif isinstance(message, wire.Start):
            self._receive_start(message)
        elif isinstance(message, wire.Attach):
            self._receive_attach(message)
        elif isinstance(message, wire.Watch):
            self._receive_watch(message)
        elif self._session is None:
            text = f"there is no session on this connection: send start or attach before {message.type}"
            self._error(ErrorCode.BAD_STATE, text, id=message.id)
        else:
            self._handle_running(self._session, message, now_ms)

    def _handle_running(
        self,
        s: Session,
        message: wire.Prompt | wire.Control | wire.Ack | wire.Pause | wire.Resume | wire.Stop | wire.Reset,
        now_ms: float,
    ) -> None:
        match message:
            case wire.Prompt(text=text, transition=transition, blend_chunks=blend_chunks, id=id):
                prompt = link.PromptInput(text=text, transition=transition, blend_chunks=blend_chunks, id=id)
                self._append(s, prompt, _ids(id))
            case wire.Reset(seed=seed, id=id):
                self._append(s, link.ResetInput(seed=seed, id=id), _ids(id))
            case wire.Control():
                self._receive_control(s, message, now_ms)
            case wire.Ack():
                self._receive_ack(s, message)
            case wire.Pause(id=id):
                self._set_paused(s, True, id)
            case wire.Resume(id=id):
                self._set_paused(s, False, id)
            case wire.Stop(id=id):
                self._receive_stop(s, id, now_ms)
            case _:
                assert_never(message)

    def _is_late_ack(self) -> bool:
        """Acks that cross the end of their session are no mistake of the client."""
        return self._stage is Stage.STOPPING or (self._stage is Stage.FRESH and self._had_session)

    def _hold_back(self, message: wire.ClientMessage) -> None:
        if len(self._backlog) >= MAX_BACKLOG:
            text = f"more than {MAX_BACKLOG} messages wait for an answer to {self._stage.value}"
            self._error(ErrorCode.RATE, text, id=message.id, retry_after_ms=1000)
            return
        self._backlog.append(message)

    def _release_backlog(self, now_ms: float) -> None:
        while self._backlog and self._stage in (Stage.FRESH, Stage.RUNNING):
            self._handle(self._backlog.popleft(), now_ms)

    def _repeats_start(self, message: wire.Start) -> bool:
        """Is it the running session's `start` once more? The log knows its id and answers what it holds."""
        s = self._session
        if s is None or message.id is None or message.id != s.start_id:
            return False
        self._append(s, link.PromptInput(text=message.prompt, id=message.id), _ids(message.id))
        return True

    # --- steering --------------------------------------------------------------------------------------

    def _append(self, s: Session, message: link.Input, ids: tuple[str, ...]) -> None:
        if s.held_inputs >= MAX_HELD_INPUTS:
            for id in ids or (None,):
                self._refuse_input(id)
            return
        s.held_inputs += 1
        s.held_ids.extend(ids)
        s.writes += 1
        self._out.append(
            AppendInput(
                session=s.id,
                controller_epoch=s.controller_epoch,
                message=message,
                write=f"{s.controller_epoch}-{s.writes}",
                ids=ids,
                copy=self._copy(s),
            )
        )

    def _refuse_input(self, id: str | None) -> None:
        text = f"{MAX_HELD_INPUTS} inputs wait already; try again later"
        self._error(ErrorCode.UNAVAILABLE, text, id=id, retry_after_ms=RETRY_AFTER_MS)

    def _receive_control(self, s: Session, message: wire.Control, now_ms: float) -> None:
        if not s.info.controls:
            self._error(ErrorCode.UNSUPPORTED, f"model {s.info.name} takes no control input", id=message.id)
        elif message.id is not None and s.was_sent(message.id):
            control = link.ControlInput(keys=message.keys, axes=message.axes, id=message.id)
            self._append(s, control, _ids(message.id))  # not merged: the log knows its answers
        elif not s.controls.push(message):
            self._error(ErrorCode.RATE, "too many controls wait", id=message.id, retry_after_ms=1000)
        else:
            self._append_controls(s, now_ms)

    def _append_controls(self, s: Session, now_ms: float) -> None:
        """Controls wait, merged, while any other input waits for Redis."""
        if s.held_inputs == 0 and (merged := s.controls.pop(now_ms)) is not None:
            message, ids = merged
            if message.id is not None:
                s.merge(ids)
            self._append(s, message, ids)

    def _receive_ack(self, s: Session, message: wire.Ack) -> None:
        if message.seq >= s.flow.next_seq:
            text = f"ack names chunk {message.seq}, the newest complete one sent is {s.flow.next_seq - 1}"
            self._error(ErrorCode.BAD_STATE, text, id=message.id)
            return
        if s.flow.is_flowing():
            self._credit(s, message.seq, max(0.0, message.buffer_ms))
        self._accept(message.id)

    def _set_paused(self, s: Session, paused: bool, id: str | None) -> None:
        if id is not None and id in s.pause_ids:
            if paused == s.is_paused:  # no second effect; the first may have been lost with a gateway
                self._ask_paused(s, paused, None)
            self._accept(id)
            return
        waiting = len(s.next_pause.answers) if s.next_pause is not None else 0
        if id is not None and waiting >= MAX_HELD_INPUTS and not s.flow.is_flowing():
            self._refuse_input(id)
            return
        s.pause_ids.extend(_ids(id))
        s.is_paused = paused
        is_asked = self._ask_paused(s, paused, id)
        self._record_paused(s, paused, _ids(id), () if is_asked else _ids(id))

    def _ask_paused(self, s: Session, paused: bool, id: str | None) -> bool:
        """Tell the engine, which answers. False: none listens, the next one is told."""
        if not s.flow.is_flowing():
            s.pause_wish = paused
            return False
        kind = link.Pause if paused else link.Resume
        s.asked_pause = paused
        s.asked_pause_ids.extend(_ids(id))
        self._ask(kind(session=s.id, controller_epoch=s.controller_epoch, id=id))
        return True

    def _record_paused(
        self, s: Session, paused: bool, ids: tuple[str, ...], answers: tuple[str, ...]
    ) -> None:
        """One call at a time; what comes meanwhile is merged into the next."""
        if s.next_pause is not None:
            ids, answers = s.next_pause.ids + ids, s.next_pause.answers + answers
        call = SetPaused(
            session=s.id,
            controller_epoch=s.controller_epoch,
            paused=paused,
            ids=ids[-MAX_HELD_INPUTS:],
            answers=answers,
            copy=self._copy(s),
        )
        if s.pause_call is None:
            s.pause_call = call
            self._out.append(call)
        else:
            s.next_pause = call

    def _receive_stop(self, s: Session, id: str | None, now_ms: float) -> None:
        self._move(Cause.STOP)
        self._stop_id = id
        if s.flow.is_flowing():
            s.stop_ms = now_ms + STOP_TIMEOUT_MS
            self._ask(link.Stop(session=s.id, controller_epoch=s.controller_epoch, id=id))
            return
        self._end_in_store(s)

    # --- from the store --------------------------------------------------------------------------------

    def receive_result(self, call: Call, result: object, now_ms: float) -> list[Output]:
        """The answer to a call: its value, or a Failure."""
        self._loads -= isinstance(call, LoadSession)
        if isinstance(result, Failure):
            self._receive_failure(call, result, now_ms)
            return self._take()
        match call:
            case CreateSession():
                assert isinstance(result, SessionRecord)
                self._receive_created(call, result, now_ms)
            case TakeControl():
                assert isinstance(result, Taken)
                self._receive_taken(call, result, now_ms)
            case LoadSession(session=session) if self._viewer is not None and session == self._viewer.session:
                assert result is None or isinstance(result, SessionRecord)
                self._receive_watched(self._viewer, result, now_ms)
            case _ if self._session is None or not _is_of(self._session, call):
                pass  # the session ended meanwhile
            case AppendInput():
                assert isinstance(result, InputReceipt)
                self._receive_receipt(self._session, call, result, now_ms)
            case SetPaused():
                self._receive_paused(self._session, call)
            case EndSession():
                self._end("stopped", now_ms)
            case LoadSession():
                assert result is None or isinstance(result, SessionRecord)
                self._receive_record(self._session, result, now_ms)
            case _:
                assert_never(call)
        return self._take()

    def _receive_receipt(self, s: Session, call: AppendInput, receipt: InputReceipt, now_ms: float) -> None:
        self._unhold(s, call)
        if (copy := self._copy(s)) is not None and self._is_news(s, copy, call, receipt):
            copy.inputs.append((receipt.entry, call.message))
            del copy.inputs[:-MAX_COPIED_INPUTS]
        for id in call.ids:
            self._accept(id)
        if receipt.applied is not None:  # a repeat gets the stored answer, told before or not
            answer = wire.Applied(rev=receipt.applied.rev, seq=receipt.applied.seq, id=call.message.id)
            s.told_applied.append(answer)
            self._send(answer)
        elif receipt.repeat and isinstance(call.message, link.ControlInput):
            s.merge_repeat(call.message.id, receipt.entry)
        self._append_controls(s, now_ms)

    @staticmethod
    def _is_news(s: Session, copy: QueuedCopy, call: AppendInput, receipt: InputReceipt) -> bool:
        """Is it not in the copy yet? A repeat may be our own, because the first answer was lost."""
        if not receipt.repeat:
            return True
        known = any(entry == receipt.entry for entry, _ in copy.inputs)
        is_start = call.message.id is not None and call.message.id == s.start_id
        return not known and not is_start

    @staticmethod
    def _unhold(s: Session, call: AppendInput) -> None:
        s.held_inputs -= 1
        for id in call.ids:
            s.held_ids.remove(id)

    def _receive_paused(self, s: Session, call: SetPaused) -> None:
        if s.copy is not None:
            s.copy.paused = call.paused
        for id in call.answers:
            self._accept(id)
        self._next_pause(s)

    def _next_pause(self, s: Session) -> None:
        s.pause_call, s.next_pause = s.next_pause, None
        if s.pause_call is not None:
            self._out.append(s.pause_call)

    def _receive_record(self, s: Session, record: SessionRecord | None, now_ms: float) -> None:
        s.is_loading = False
        if s.has_news:
            self._load(s)
            return
        since_ms = now_ms if s.missing_since_ms is None else s.missing_since_ms
        s.missing_since_ms = since_ms if record is None else None
        if record is None and now_ms < since_ms + LOST_AFTER_MS:
            s.reload_ms = now_ms + RELOAD_MS
        elif record is None or record.phase is Phase.CLOSED:
            self._end(record.reason if record is not None else "lost", now_ms)
        elif record.controller_epoch > s.controller_epoch:
            self._lose_control()
        else:
            if s.num_denied:
                s.flow.receive_record(record.next_seq)
            self._follow_record(s, record)
            s.queue_reason = None

    def _receive_failure(self, call: Call, failure: Failure, now_ms: float) -> None:
        match call:
            case CreateSession():
                self._receive_create_failure(call, failure, now_ms)
                return
            case TakeControl():
                self._receive_take_failure(call, failure, now_ms)
                return
            case LoadSession() if self._viewer is not None:
                self._viewer.reload_ms = now_ms + RELOAD_MS
                return
        s = self._session
        if s is None or not _is_of(s, call):
            return
        if failure.kind is FailureKind.TAKEN_OVER:
            self._lose_control()
        elif failure.kind in (FailureKind.CLOSED, FailureKind.NO_SUCH_SESSION):
            self._end(failure.message if failure.kind is FailureKind.CLOSED else "lost", now_ms)
        else:
            self._report(s, call, failure, now_ms)

    def _report(self, s: Session, call: Call, failure: Failure, now_ms: float) -> None:
        match call:
            case EndSession():
                self._end("stopped", now_ms)
                return
            case LoadSession():
                s.is_loading = False
                s.reload_ms = now_ms + RELOAD_MS
                return
            case AppendInput(ids=ids):
                self._unhold(s, call)
            case SetPaused(answers=ids):
                self._next_pause(s)
            case _:
                return
        code = ERROR_OF.get(failure.kind, ErrorCode.INTERNAL)
        for id in ids or (None,):
            self._error(code, failure.message, id=id, retry_after_ms=failure.retry_after_ms)


def _is_of(s: Session, call: Call) -> bool:
    """Was it made while this connection controlled `s`, and not before, when an attach to it was refused?"""
    if isinstance(call, AppendInput | SetPaused | EndSession) and call.controller_epoch != s.controller_epoch:
        return False
    return call.session == s.id


def _ids(id: str | None) -> tuple[str, ...]:
    return () if id is None else (id,)
