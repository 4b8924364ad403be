"""What the session machine asks its shell to do. Pure.

`Output` is everything; `Call` are the outputs that talk to the store and are answered by
`SessionMachine.receive_result` with a value or a `Failure`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from gateway.protocol import ChunkHeader, CloseCode, ServerMessage
from scheduler.messages import EngineId, Input, LinkRequest, PromptInput, SessionId, SessionRecord
from scheduler.store.values import QueuedCopy

# --- to the client ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    message: ServerMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class SendChunk:
    header: ChunkHeader
    payload: bytes | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """Close the client's socket behind what was sent."""

    code: CloseCode
    reason: str


# --- to an engine ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Follow:
    """Use the link to this engine from now on, instead of any other. Answered by `receive_link_up`."""

    engine: EngineId


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfollow:
    """No link is needed any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Send a request over the followed link."""

    request: LinkRequest


# --- to the store ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateSession:
    """Not repeated when the store is unavailable."""

    session: SessionId
    model: str
    prompt: PromptInput
    seed: int
    lead_ms: int
    codec: str
    resume_hash: str
    subject: str = ""
    max_sessions: int | None = None
    """Sessions that the subject may have at once; None: any number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeControl:
    """Not repeated when the store is unavailable. Answered by `Taken`."""

    session: SessionId
    resume_hash: str
    next_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendInput:
    """Repeated, in order, until the store is back."""

    session: SessionId
    controller_epoch: int
    message: Input
    write: str
    """Names this call among all of the session: should its answer be lost, it is still appended once."""
    ids: tuple[str, ...]
    """Client messages that this entry answers, the last of them under its own id."""
    copy: QueuedCopy | None = None
    """Written first, should Redis have lost the session while it waits for its first owner; in the next two
    as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetPaused:
    """Repeated until the store is back."""

    session: SessionId
    controller_epoch: int
    paused: bool
    ids: tuple[str, ...] = ()
    """Client messages that it records: a repeat of one has no second effect, on a later connection either."""
    answers: tuple[str, ...] = ()
    """Those of them that this call answers; an engine answers the others."""
    copy: QueuedCopy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndSession:
    """Close a session that no link reaches. Repeated until the store is back."""

    session: SessionId
    controller_epoch: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSession:
    """Read the record. Repeated until the store is back."""

    session: SessionId
    copy: QueuedCopy | None = None


Call = CreateSession | TakeControl | AppendInput | SetPaused | EndSession | LoadSession


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget:
    """The connection no longer controls the session. Done in the background, no answer."""

    session: SessionId
    controller_epoch: int | None
    """None: the answer that names it was lost, if there was one."""
    close: str | None
    """Close it with this reason, because nobody can come back to it; None: it lingers."""


Output = Send | SendChunk | Close | Follow | Unfollow | Ask | Call | Forget


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """The connection controls the session."""

    record: SessionRecord
    pause_ids: tuple[str, ...] = ()
    """Ids of the pauses and resumes that earlier connections sent."""
    input_ids: frozenset[str] = frozenset()
    """Ids of the inputs that they sent."""


class FailureKind(Enum):
    """Why a call failed."""

    UNAVAILABLE = "unavailable"
    NO_SUCH_SESSION = "no_such_session"
    CLOSED = "closed"
    TAKEN_OVER = "taken_over"
    QUEUE_FULL = "queue_full"
    QUOTA = "quota"
    NOT_ALLOWED = "not_allowed"
    LOG_FULL = "log_full"
    BEYOND = "beyond"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The answer to a call that failed."""

    kind: FailureKind
    message: str
    """For CLOSED: the reason why the session was closed."""
    retry_after_ms: int | None = None
