"""State of one client connection: its stage, the session it controls, and what is said to the client. Pure.

The first of the five files of the session rules (see `gateway/session.py`): the tables and the helpers
that the others use. `_move` is the only place that writes the stage.

    FRESH       no session                         RUNNING     controls a session
    STARTING    create_session is under way        STOPPING    `stop` is under way
    ATTACHING   take_control is under way          OVER        the connection is closed or closing
"""

from __future__ import annotations

import abc
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from gateway import protocol as wire
from gateway.auth import ANYONE, Identity
from gateway.catalog import Catalog
from gateway.flow import Flow
from gateway.limits import ControlMerger, MessageBucket
from gateway.steps import Ask, Close, EndSession, Forget, LoadSession, Output, Send, SetPaused, Unfollow
from scheduler import messages as link
from scheduler.messages import (
    MAX_REMEMBERED_IDS,
    EngineId,
    ErrorCode,
    ModelInfo,
    SessionId,
    SessionState,
)
from scheduler.store.values import QueuedCopy

logger = logging.getLogger("gateway.session")

MAX_HELD_INPUTS = 64
"""Inputs of a session that wait for Redis; more are refused."""
MAX_TOLD_APPLIED = 256
MAX_MERGED_CONTROLS = 256
"""Entries of the log of which is known what is merged into them."""
LOST_AFTER_MS = 10_000
"""For so long a session may have no record: when Redis comes back empty, its owner writes it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What chance decides about a new session."""

    session: SessionId
    resume: str
    seed: int


class Door(Protocol):
    """What the gateway knows about who may do what."""

    def identify(self, token: str) -> Identity:
        """What a token says. Raises TokenRefused."""

    def has_expired(self, identity: Identity) -> bool:
        """Is its token too old by now?"""

    def count_start(self, identity: Identity) -> int | None:
        """None: a session may be started now. Else after how many ms to try again."""

    def quota(self, identity: Identity) -> int | None:
        """Sessions that the subject may have at once; None: any number."""


class OpenDoor:
    """A gateway without authentication: a token says nothing."""

    def identify(self, token: str) -> Identity:
        return ANYONE

    def has_expired(self, identity: Identity) -> bool:
        return False

    def count_start(self, identity: Identity) -> int | None:
        return None

    def quota(self, identity: Identity) -> int | None:
        return None


class Stage(Enum):
    FRESH = "fresh"
    STARTING = "starting"
    ATTACHING = "attaching"
    RUNNING = "running"
    STOPPING = "stopping"
    OVER = "over"


class Cause(Enum):
    START = "start"
    ATTACH = "attach"
    GRANTED = "granted"
    REFUSED = "refused"
    STOP = "stop"
    ENDED = "ended"
    LOST = "lost"
    """Nothing more can be said to the client: it left, or we close."""


TRANSITIONS: dict[Stage, dict[Cause, Stage]] = {
    Stage.FRESH: {Cause.START: Stage.STARTING, Cause.ATTACH: Stage.ATTACHING, Cause.LOST: Stage.OVER},
    Stage.STARTING: {Cause.GRANTED: Stage.RUNNING, Cause.REFUSED: Stage.FRESH, Cause.LOST: Stage.OVER},
    Stage.ATTACHING: {Cause.GRANTED: Stage.RUNNING, Cause.REFUSED: Stage.FRESH, Cause.LOST: Stage.OVER},
    Stage.RUNNING: {
        Cause.STOP: Stage.STOPPING,
        Cause.ENDED: Stage.FRESH,
        Cause.REFUSED: Stage.FRESH,
        Cause.LOST: Stage.OVER,
    },
    Stage.STOPPING: {Cause.ENDED: Stage.FRESH, Cause.LOST: Stage.OVER},
    Stage.OVER: {Cause.LOST: Stage.OVER},
}


@dataclass(slots=True, kw_only=True)
class Session:
    """The session that a connection controls; thrown away as a whole when it no longer does."""

    id: SessionId
    info: ModelInfo
    flow: Flow
    controller_epoch: int
    controls: ControlMerger
    writes: int = 0
    """Inputs that were handed to the store."""
    held_inputs: int = 0
    """Of them, those that it has not answered."""
    held_ids: list[str] = field(default_factory=list)
    """Message ids of those inputs."""
    pause_call: SetPaused | None = None
    next_pause: SetPaused | None = None
    pause_wish: bool | None = None
    """Wished while no engine listened: told to the engine that subscribes us next."""
    told_state: wire.State | None = None
    told_queued: wire.Queued | None = None
    told_queued_ms: float = 0.0
    told_applied: deque[wire.Applied]
    merged_ids: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Control in the log → controls that are merged into it, itself the last: it answers for all of them."""
    repeated_ids: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Entry of the log → controls of earlier connections that are merged in it, so far as repeated."""
    earlier_ids: frozenset[str] = frozenset()
    """Message ids of inputs that earlier connections sent: the log knows their answers."""
    copy: QueuedCopy | None = None
    """Of a session that this connection has started: Redis may lose it before an engine has it."""
    start_id: str | None = None
    """Message id of the `start` that made it, on this connection."""
    asked_pause: bool | None = None
    """What an engine was asked last, True to pause. The next owner is asked again: it may be lost."""
    asked_pause_ids: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_REMEMBERED_IDS))
    """Message ids of what was asked and not answered."""
    pause_ids: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_REMEMBERED_IDS))
    """Ids of the session's pauses and resumes: a repeat has no second effect."""
    is_paused: bool = False
    """By the newest pause or resume, of this connection or in the record that an attach found."""
    queue_reason: str | None = None
    is_loading: bool = False
    has_news: bool = False
    """Did news come meanwhile? The record that is being read may be older."""
    reload_ms: float | None = None
    missing_since_ms: float | None = None
    """Redis has no record of it: its owner may not have written it again yet."""
    stop_ms: float | None = None
    attach: wire.Attach | None = None
    """Until the first subscription after an attach is answered."""
    has_flowed: bool = False
    """Has an engine served it on this connection?"""
    num_denied: int = 0
    """Owners have served it no chunk since the last that did: so often one has refused."""

    def was_sent(self, id: str) -> bool:
        """Is it the id of a control before, or of any input of an earlier connection?"""
        return id in self.earlier_ids or any(id in ids for ids in self.merged_ids.values())

    def merge(self, ids: tuple[str, ...]) -> None:
        """The last of these controls answers for all of them."""
        self.merged_ids[ids[-1]] = ids
        if len(self.merged_ids) > MAX_MERGED_CONTROLS:
            del self.merged_ids[next(iter(self.merged_ids))]

    def merge_repeat(self, id: str | None, entry: str) -> None:
        """A repeated control of an earlier connection waits in this entry, whose answer names one of them."""
        others = self.repeated_ids.get(entry, ())
        if id is None or id in others or id not in self.earlier_ids:
            return
        self.repeated_ids[entry] = ids = (*others, id)
        if len(self.repeated_ids) > MAX_MERGED_CONTROLS:
            del self.repeated_ids[next(iter(self.repeated_ids))]
        for each in ids:
            self.merge((*(other for other in ids if other != each), each))


class SessionCore(abc.ABC):
    """What all session rules share."""

    def __init__(
        self,
        *,
        catalog: Callable[[], Catalog],
        draw: Callable[[], Draw],
        door: Door | None = None,
        identity: Identity | None = ANYONE,
    ) -> None:
        """`identity` is what the token in the handshake said; None: a message must bring one."""
        self._catalog = catalog
        self._draw = draw
        self._door = door or OpenDoor()
        self._identity = identity
        self._stage = Stage.FRESH
        self._session: Session | None = None
        self._start: wire.Start | None = None
        self._drawn: Draw | None = None
        self._attach: wire.Attach | None = None
        self._stop_id: str | None = None
        self._missed_event = False
        self._had_session = False
        self._backlog: deque[wire.ClientMessage] = deque()
        self._bucket = MessageBucket()
        self._bad_messages = 0
        self._loads = 0
        """Records that are being read; while Redis is away they wait."""
        self._out: list[Output] = []

    @abc.abstractmethod
    def _release_backlog(self, now_ms: float) -> None:
        """Handle the messages that waited, as far as the stage allows."""

    # --- predicates and deadlines ----------------------------------------------------------------------

    @property
    def stage(self) -> Stage:
        return self._stage

    def is_identified(self) -> bool:
        """Is it known who this is? Where there is no authentication, always."""
        return self._identity is not None

    @property
    def session_id(self) -> SessionId | None:
        """Whose events and link messages this connection wants: also while start or attach is under way."""
        if self._session is not None:
            return self._session.id
        if self._stage is Stage.STARTING and self._drawn is not None:
            return self._drawn.session
        if self._stage is Stage.ATTACHING and self._attach is not None:
            return SessionId(self._attach.session)
        return None

    @property
    def model(self) -> str | None:
        """Of the controlled session."""
        return self._session.info.name if self._session is not None else None

    @property
    def controller_epoch(self) -> int:
        """0 while no session is controlled."""
        return self._session.controller_epoch if self._session is not None else 0

    def next_seq(self) -> int | None:
        """First chunk that the client was not sent completely; None without a session."""
        return self._session.flow.next_seq if self._session is not None else None

    def told_state(self) -> SessionState | None:
        """What the client believes; None without a session."""
        s = self._session
        if s is None:
            return None
        return s.told_state.state if s.told_state is not None else SessionState.QUEUED

    def is_queued(self) -> bool:
        """Does the client want to hear its position in the queue?"""
        return self._stage is Stage.RUNNING and self._session is not None and self._session.flow.is_waiting()

    def deadline_ms(self) -> float | None:
        """When `receive_tick` is due at the latest; None: not before something else happens."""
        s = self._session
        if s is None:
            return None
        due = [s.stop_ms, s.reload_ms, s.controls.due_ms() if s.held_inputs == 0 else None]
        return min((ms for ms in due if ms is not None), default=None)

    # --- what the client hears -------------------------------------------------------------------------

    def _tell_state(self, s: Session, state: SessionState, engine: EngineId | None, reason: str) -> None:
        message = wire.State(state=state, engine=engine, reason=reason)
        if message != s.told_state:
            s.told_state = message
            self._send(message)

    def _tell_applied(self, s: Session, rev: int, seq: int, id: str | None) -> None:
        for each in s.merged_ids.get(id, (id,)) if id is not None else (None,):
            message = wire.Applied(rev=rev, seq=seq, id=each)
            if message not in s.told_applied:
                s.told_applied.append(message)
                self._send(message)

    def _accept(self, id: str | None) -> None:
        if id is not None:
            self._send(wire.Accepted(id=id))

    def _error(
        self, code: ErrorCode, text: str, *, id: str | None = None, retry_after_ms: int | None = None
    ) -> None:
        self._send(wire.Error(code=code, message=text, id=id, retry_after_ms=retry_after_ms))

    def _send(self, message: wire.ServerMessage) -> None:
        if self._stage is not Stage.OVER:
            self._out.append(Send(message=message))

    def _ask(self, request: link.LinkRequest) -> None:
        self._out.append(Ask(request=request))

    # --- what the store and the engine hear ------------------------------------------------------------

    def _load(self, s: Session) -> None:
        s.has_news = s.is_loading
        if not s.is_loading:
            s.is_loading = True
            self._loads += 1
            self._out.append(LoadSession(session=s.id, copy=self._copy(s)))

    @staticmethod
    def _copy(s: Session) -> QueuedCopy | None:
        """None once an engine has had it: the engine knows more."""
        return s.copy if s.flow.epoch == 0 else None

    def _end_in_store(self, s: Session) -> None:
        self._out.append(EndSession(session=s.id, controller_epoch=s.controller_epoch, reason="stopped"))

    # --- ends ------------------------------------------------------------------------------------------

    def _end(self, reason: str, now_ms: float) -> None:
        """The session is closed in the cluster; the connection may start again."""
        if self._stage not in (Stage.RUNNING, Stage.STOPPING):
            return
        if self._session is not None and self._session.attach is not None:
            self._accept(self._session.attach.id)
        self._accept(self._stop_id)
        for id in self._unanswered_ids():
            self._error(ErrorCode.BAD_STATE, "the session ended before this was taken", id=id)
        self._send(wire.Closed(reason=reason))
        if not (self._session is None or self._session.flow.is_waiting()):
            self._out.append(Unfollow())
        self._session, self._stop_id = None, None
        self._move(Cause.ENDED)
        if reason == "idle":
            self._close(wire.CloseCode.IDLE, "the session was idle for too long")
            return
        self._release_backlog(now_ms)

    def _unanswered_ids(self) -> tuple[str, ...]:
        """Messages whose answers are still to come: with the end of the session nobody would give them."""
        s = self._session
        if s is None:
            return ()
        calls = [call for call in (s.pause_call, s.next_pause) if call is not None]
        pauses = (*s.asked_pause_ids, *(id for call in calls for id in call.answers))
        return (*s.held_ids, *s.controls.ids, *pauses)

    def _lose_control(self) -> None:
        """A newer connection controls the session: nothing here may touch it any more."""
        self._session = None
        self._out.append(Unfollow())
        self._close(wire.CloseCode.TAKEN_OVER, "another connection attached to this session")

    def _leave(self) -> None:
        """The client can't be reached any more: the session lingers (or ends, if a stop was under way)."""
        if self._session is not None:
            self._drop_session(self._session)
        self._backlog.clear()
        self._move(Cause.LOST)

    def _drop_session(self, s: Session) -> None:
        if not s.flow.is_waiting():
            self._ask(link.Unsubscribe(session=s.id, controller_epoch=s.controller_epoch))
            self._out.append(Unfollow())
        close = "stopped" if self._stage is Stage.STOPPING else None
        self._out.append(Forget(session=s.id, controller_epoch=s.controller_epoch, close=close))
        self._session = None

    def _close(self, code: wire.CloseCode, reason: str) -> None:
        self._move(Cause.LOST)
        self._out.append(Close(code=code, reason=reason))

    def _move(self, cause: Cause) -> None:
        """The only place that writes `_stage`. Raises KeyError for an illegal move and changes nothing."""
        stage = TRANSITIONS[self._stage][cause]
        if stage is not self._stage:
            logger.debug("connection: %s -> %s", self._stage.value, stage.value)
        self._stage = stage

    def _take(self) -> list[Output]:
        out, self._out = self._out, []
        return out
