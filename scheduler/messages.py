"""Domain words and every message that crosses a process boundary inside a cluster.

Groups, each closed by a union and a decode table:

    input log        gateway -> engine, through Redis      `Input`
    commands         scheduler -> engine, through Redis    `EngineCommand`
    events           anybody -> anybody, through Redis     `Event`
    link             gateway <-> engine, WebSocket         `LinkRequest`, `LinkReply`

The wire between a client and a gateway is public and lives in `gateway/protocol.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Annotated, ClassVar, Literal, TypeVar, get_args

import orjson

# Re-exported: this is the one module of ours that gateway and engine share.
from scheduler.domain import CODECS as CODECS
from scheduler.domain import MAX_BATCH as MAX_BATCH
from scheduler.domain import DesiredEngine as DesiredEngine
from scheduler.domain import EngineCosts as EngineCosts
from scheduler.domain import EngineId as EngineId
from scheduler.domain import EngineRecord as EngineRecord
from scheduler.domain import EngineState as EngineState
from scheduler.domain import GatewayId as GatewayId
from scheduler.domain import InFlight as InFlight
from scheduler.domain import ModelInfo as ModelInfo
from scheduler.domain import Phase as Phase
from scheduler.domain import Residence as Residence
from scheduler.domain import SessionId as SessionId
from scheduler.domain import SessionRecord as SessionRecord
from scheduler.domain import SessionState as SessionState
from scheduler.domain import Usage as Usage
from scheduler.schema import Chars as Chars
from scheduler.schema import DecodeError as DecodeError
from scheduler.schema import Items as Items
from scheduler.schema import Message as Message
from scheduler.schema import Range as Range
from scheduler.schema import decode as decode
from scheduler.schema import decode_fields as decode_fields
from scheduler.schema import encode as encode

MAX_PROMPT_CHARS = 2_000
MAX_MESSAGE_ID_CHARS = 64
MAX_REMEMBERED_IDS = 256
"""Message ids of a session whose answers are kept."""
REPLAY_CHUNKS = 16
"""Encoded chunks that an engine keeps per session for resume."""
MAX_LINK_HEADER_BYTES = 64 * 1024
MAX_LINK_MESSAGE_BYTES = 16 * 1024 * 1024

MessageId = Annotated[str, Chars(MAX_MESSAGE_ID_CHARS)]


class ErrorCode(Enum):
    """Codes of `error` in the public protocol."""

    BAD_MESSAGE = "bad_message"
    UNKNOWN_TYPE = "unknown_type"
    TOO_LARGE = "too_large"
    BAD_STATE = "bad_state"
    NOT_ALLOWED = "not_allowed"
    UNAUTHORISED = "unauthorised"
    NO_SUCH_SESSION = "no_such_session"
    UNSUPPORTED = "unsupported"
    CAPACITY = "capacity"
    UNAVAILABLE = "unavailable"
    RATE = "rate"
    INTERNAL = "internal"


class Rung(StrEnum):
    """At which bitrate a session's video is encoded, best first: same codec, size and frames."""

    FULL = "full"
    LOW = "low"


# --- input log: gateway -> engine -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptInput:
    """Steer: the first entry of every log is the prompt of `start` (rev 0)."""

    type: ClassVar[str] = "prompt"
    text: Annotated[str, Chars(MAX_PROMPT_CHARS)]
    transition: Literal["cut", "blend"] = "cut"
    blend_chunks: Annotated[int, Range(1, 16)] = 2
    id: MessageId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlInput:
    """State of keys and axes, not events; no `rev`."""

    type: ClassVar[str] = "control"
    keys: Annotated[tuple[Annotated[str, Chars(32)], ...], Items(16)] = ()
    axes: Annotated[dict[Annotated[str, Chars(32)], Annotated[float, Range(-1, 1)]], Items(16)] | None = None
    id: MessageId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetInput:
    """Forget the past, keep the prompt; a new seed if one is given."""

    type: ClassVar[str] = "reset"
    seed: Annotated[int, Range(0, 2**63 - 1)] | None = None
    id: MessageId | None = None


Input = PromptInput | ControlInput | ResetInput
INPUTS: Mapping[str, type[Input]] = {c.type: c for c in get_args(Input)}


# --- commands: scheduler -> engine ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSession:
    """Own this session from `epoch` on: read its record and input log, announce, generate."""

    type: ClassVar[str] = "open"
    session: SessionId
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseSession:
    """The session has another owner since `epoch`: drop it and tell the gateway where it is."""

    type: ClassVar[str] = "release"
    session: SessionId
    epoch: int
    engine: EngineId | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseSession:
    """The session is closed: drop it and tell the gateway why."""

    type: ClassVar[str] = "close"
    session: SessionId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Expect no new sessions; keep generating until each is taken away."""

    type: ClassVar[str] = "drain"


@dataclass(frozen=True, slots=True, kw_only=True)
class StopEngine:
    """Nothing is left here: exit with status 0."""

    type: ClassVar[str] = "stop_engine"


@dataclass(frozen=True, slots=True, kw_only=True)
class SuspendSession:
    """Others need its slot: take the session out of it, unless somebody uses it again meanwhile."""

    type: ClassVar[str] = "suspend"
    session: SessionId
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivateSession:
    """There is a slot for the session: bring its state back."""

    type: ClassVar[str] = "activate"
    session: SessionId
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateSession:
    """Move the session with its state to another engine, which expects it, and commit that."""

    type: ClassVar[str] = "migrate"
    session: SessionId
    epoch: int
    migration_id: str
    engine: EngineId
    address: str
    """host:port where the target is met."""
    limit_ms: int
    """Without a commit it is called off after so long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiveSession:
    """A session's state is about to come from another engine. The session is not owned before the commit."""

    type: ClassVar[str] = "receive"
    session: SessionId
    epoch: int
    """Of the source."""
    migration_id: str
    engine: EngineId
    """The source."""
    takes_slot: bool
    """False: it goes to host memory, where it is now."""
    limit_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelMigration:
    """The migration is called off: its source goes on, its target drops what has come."""

    type: ClassVar[str] = "cancel_migration"
    session: SessionId
    epoch: int
    migration_id: str


EngineCommand = (
    OpenSession
    | ReleaseSession
    | CloseSession
    | Drain
    | StopEngine
    | SuspendSession
    | ActivateSession
    | MigrateSession
    | ReceiveSession
    | CancelMigration
)
ENGINE_COMMANDS: Mapping[str, type[EngineCommand]] = {c.type: c for c in get_args(EngineCommand)}


# --- events: one bounded stream that everybody reads -----------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionQueued:
    """A session waits for a place: new, or back from an engine that is lost or has no slot for it."""

    type: ClassVar[str] = "session_queued"
    session: SessionId
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPlaced:
    type: ClassVar[str] = "session_placed"
    session: SessionId
    engine: EngineId
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOpened:
    """The owner generates: gateways may subscribe."""

    type: ClassVar[str] = "session_opened"
    session: SessionId
    engine: EngineId
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionChanged:
    """The owner published active or idle."""

    type: ClassVar[str] = "session_changed"
    session: SessionId
    active: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionClosed:
    type: ClassVar[str] = "session_closed"
    session: SessionId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerChanged:
    """A new connection controls the session: the older one closes with 4409."""

    type: ClassVar[str] = "controller_changed"
    session: SessionId
    controller_epoch: int
    gateway: GatewayId


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLeft:  # its controlling connection is gone
    type: ClassVar[str] = "session_left"
    session: SessionId


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChanged:
    """An engine registered, became ready, drains or is gone."""

    type: ClassVar[str] = "engine_changed"
    engine: EngineId
    state: EngineState
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredChanged:
    """The desired engine set was rewritten: provisioners reconcile."""

    type: ClassVar[str] = "desired_changed"
    term: int


Event = (
    SessionQueued
    | SessionPlaced
    | SessionOpened
    | SessionChanged
    | SessionClosed
    | ControllerChanged
    | SessionLeft
    | EngineChanged
    | DesiredChanged
)
EVENTS: Mapping[str, type[Event]] = {c.type: c for c in get_args(Event)}


# --- link: gateway -> engine ------------------------------------------------------------------------------
# One WebSocket per (gateway, engine) carries all their sessions. Every request names the controller_epoch of
# the connection it speaks for; the engine ignores requests of an older one.


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscribe:
    """Send chunks from next_seq on. Answered by Subscribed or Refused, before any chunk part."""

    type: ClassVar[str] = "subscribe"
    session: SessionId
    epoch: int
    controller_epoch: int
    next_seq: int
    next_frame: int | None = None
    """Pixel frames of all chunks before next_seq, if the gateway knows: continues pts when state was lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsubscribe:
    """The client's connection is gone: linger begins."""

    type: ClassVar[str] = "unsubscribe"
    session: SessionId
    controller_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """The client's `ack`: newest completely received chunk and media time ahead of the playhead."""

    type: ClassVar[str] = "credit"
    session: SessionId
    controller_epoch: int
    seq: int
    buffer_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    type: ClassVar[str] = "pause"
    session: SessionId
    controller_epoch: int
    id: MessageId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    type: ClassVar[str] = "resume"
    session: SessionId
    controller_epoch: int
    id: MessageId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    type: ClassVar[str] = "stop"
    session: SessionId
    controller_epoch: int
    id: MessageId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Send what is made from now on to this gateway too, whoever controls the session: it has viewers.

    Answered by StateChanged or Refused. Viewers cost an engine one more copy on the link, none where the
    controller's connection is at the same gateway.
    """

    type: ClassVar[str] = "watch"
    session: SessionId
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unwatch:
    """The gateway's last viewer of the session is gone."""

    type: ClassVar[str] = "unwatch"
    session: SessionId


@dataclass(frozen=True, slots=True, kw_only=True)
class ChooseRungs:
    """What this gateway's clients of the session watch from its next chunk on; FULL until it says so, and
    again after each Subscribe and Watch. No answer: chunks come in what somebody, somewhere, has chosen.
    """

    type: ClassVar[str] = "choose_rungs"
    session: SessionId
    rungs: Annotated[tuple[Rung, ...], Items(len(Rung))]


LinkRequest = Subscribe | Unsubscribe | Credit | Pause | Resume | Stop | Watch | Unwatch | ChooseRungs
LINK_REQUESTS: Mapping[str, type[LinkRequest]] = {c.type: c for c in get_args(LinkRequest)}


# --- link: engine -> gateway ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscribed:
    """Chunks follow from start_seq, above the asked next_seq when older ones left the replay window."""

    type: ClassVar[str] = "subscribed"
    session: SessionId
    epoch: int
    start_seq: int
    state: SessionState
    reason: str = ""
    controller_epoch: int | None = None
    """Whose subscription it answers: a gateway may have several connections that ask for one session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The request can't be served: not the owner (any more), or next_seq is beyond what will be generated."""

    type: ClassVar[str] = "refused"
    session: SessionId
    epoch: int
    code: ErrorCode
    message: str
    id: MessageId | None = None
    is_watch: bool = False
    """Was it asked for viewers, so that it says nothing to who controls the session?"""
    controller_epoch: int | None = None
    """Whose request it answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkPart:
    """Header of a media message; the payload is the concatenated access units. See the public `chunk`."""

    type: ClassVar[str] = "chunk"
    session: SessionId
    epoch: int
    seq: int
    part: int
    parts: int
    key: bool
    frames: int
    sizes: tuple[int, ...]
    pts_ms: float
    duration_ms: float
    codec: str
    rev: int
    gen_ms: float | None = None
    rung: Rung | None = None
    """Set where the chunk comes in both, each part of it twice; None: it comes once, whatever was chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """An input is in the picture from chunk `seq` on; sent before that chunk's part 0."""

    type: ClassVar[str] = "applied"
    session: SessionId
    epoch: int
    rev: int
    seq: int
    id: MessageId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A pause, resume or stop that carried an id took effect. `controller_epoch`: whose it was."""

    type: ClassVar[str] = "accepted"
    session: SessionId
    id: MessageId
    controller_epoch: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChanged:
    type: ClassVar[str] = "state_changed"
    session: SessionId
    epoch: int
    state: SessionState
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """After each chunk: what a client may show."""

    type: ClassVar[str] = "stats"
    session: SessionId
    epoch: int
    seq: int
    latency_ms: float
    gen_ms: float
    slack_ms: float
    batch: float
    """Mean rows of this chunk's passes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Superseded:
    """A higher controller_epoch subscribed: the older connection closes with 4409."""

    type: ClassVar[str] = "superseded"
    session: SessionId
    controller_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """The last message about a session that has a new owner."""

    type: ClassVar[str] = "moved"
    session: SessionId
    epoch: int
    engine: EngineId | None
    next_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    type: ClassVar[str] = "closed"
    session: SessionId
    epoch: int
    reason: str


LinkReply = (
    Subscribed | Refused | ChunkPart | Applied | Accepted | StateChanged | Stats | Superseded | Moved | Closed
)
LINK_REPLIES: Mapping[str, type[LinkReply]] = {c.type: c for c in get_args(LinkReply)}


# --- bytes --------------------------------------------------------------------------------------------------

M = TypeVar("M")
Bytes = bytes | bytearray | memoryview


def encode_json(message: Message) -> bytes:
    """A message as compact JSON."""
    return orjson.dumps(encode(message))


def decode_json(table: Mapping[str, type[M]], data: Bytes | str) -> M:
    """The inverse. Raises DecodeError, also for what is not JSON in UTF-8."""
    try:
        parsed = orjson.loads(data)
    except ValueError:
        raise DecodeError("not valid JSON") from None
    return decode(table, parsed)


def frame_media(header: bytes, payload: bytes) -> bytes:
    """Binary framing of link and public media: 4-byte big-endian header length, header, payload."""
    return b"".join((struct.pack(">I", len(header)), header, payload))


def unframe_media(data: Bytes) -> tuple[bytes, memoryview]:
    """(header, payload) of a media message. Raises DecodeError when the lengths do not fit."""
    if len(data) < 4:
        raise DecodeError("a media message has at least 4 bytes")
    (length,) = struct.unpack_from(">I", data)
    if length > min(MAX_LINK_HEADER_BYTES, len(data) - 4):
        raise DecodeError("the header length exceeds the message")
    return bytes(data[4 : 4 + length]), memoryview(data)[4 + length :]
