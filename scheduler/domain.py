"""Domain words: ids, states, and the records that the hashes in Redis hold. Pure.

Other folders take these names from `scheduler.messages`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, NewType

SessionId = NewType("SessionId", str)
"""`s_` + 16 hex digits."""
EngineId = NewType("EngineId", str)
"""`e_` + 8 hex digits; a restarted engine has a new one."""
GatewayId = NewType("GatewayId", str)
"""`g_` + 8 hex digits; a restarted gateway has a new one."""

CODECS = ("h264", "vp9", "av1", "mjpeg")
"""What video can be encoded in, by the names of the public protocol."""
MAX_BATCH = 16
"""Most sessions that share one pass on an engine."""


class Phase(Enum):
    """Where the session's record is in its life. Legal moves: `scheduler/states.py`."""

    QUEUED = "queued"
    PLACED = "placed"
    CLOSED = "closed"


class SessionState(Enum):
    """What a client is told in `state`."""

    QUEUED = "queued"
    ACTIVE = "active"
    IDLE = "idle"
    CLOSED = "closed"


class Residence(Enum):
    """Where the model state of a placed session is."""

    RESIDENT = "resident"
    """In a slot of its engine, or entitled to one: it counts in the engine's capacity."""
    LEAVING = "leaving"
    """Still in its slot; its engine is about to take it out."""
    OFFLOADED = "offloaded"
    """In host memory of its engine."""
    STORED = "stored"
    """Nowhere but in its checkpoint, if it has one."""


class EngineState(Enum):
    """Life of an engine; all but GONE count in the budget. Legal moves: `scheduler/states.py`."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What an engine publishes about the one model it serves; equal infos can exchange sessions."""

    name: str
    weights_hash: str
    state_version: int
    width: int
    height: int
    fps: int
    chunk_frames: int
    controls: bool
    """Does the model take `control` input?"""


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """A session's migration between its begin and its commit or abort."""

    migration_id: str
    source: EngineId
    target: EngineId
    deadline_ms: int
    """Redis time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """A session as Redis knows it (hash; field layout in `scheduler/keys.py`)."""

    id: SessionId
    model: str
    phase: Phase
    epoch: int
    """Grows by one at each change of owner; fences every write of an owner."""
    engine: EngineId | None
    """The owner while placed."""
    opened: bool
    """Has the owner announced that it generates?"""
    active: bool
    """Does the user want chunks now? False: paused, or disconnected for longer than linger_s."""
    paused: bool
    """Did the user pause? Kept while queued, so that the engine starts idle."""
    seed: int
    lead_ms: int
    codec: str
    resume_hash: str
    """SHA-256 hex digest of the resume token."""
    controller_epoch: int
    """Grows by one at each attach; the connection with the highest one controls the session."""
    gateway: GatewayId | None
    """Gateway of the controlling connection."""
    next_seq: int
    """First chunk not yet emitted, as last published by an owner (may lag by a chunk)."""
    next_frame: int
    """Pixel frames of all chunks before next_seq."""
    rev: int
    """Prompt revision of the newest chunk."""
    last_applied: str
    """Id of the newest applied entry of the input log; "0-0" before the first."""
    slack_ms: int
    created_ms: int
    active_ms: int
    """Redis time of the last active moment."""
    reason: str
    """Why the session was closed, or queued again; "" otherwise."""
    queue_order: int = 0
    """Place in the model's queue while queued, smaller first: returners below zero, new starts above."""
    left_ms: int | None = None
    """Redis time at which the controlling connection left; None while there is one."""
    residence: Residence = Residence.RESIDENT
    """Where its state is while placed, as last published by its owner, or ordered by the leader."""
    in_flight: InFlight | None = None
    """The migration under way; other moves are refused until it ends."""
    failed_moves: int = 0
    """Migrations in a row that were called off since its last change of owner."""
    move_to: EngineId | None = None
    """Engine to which an administrator ordered it."""
    move_until_ms: int = 0
    """Redis time until which that order holds."""
    moved_ms: int = 0
    """Redis time at which it last changed from one engine to another, or tried to; 0 before."""
    state_bytes: int = 0
    """What a migration sends, as last published; 0 when unknown."""
    subject: str = ""
    """Subject of the token that started it; "" without authentication."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a session has used, written once, in the step that closes it."""

    type: ClassVar[str] = "usage"
    session: SessionId
    subject: str
    """Of the token that started it; "" without authentication."""
    model: str
    reason: str
    """Why it was closed."""
    created_ms: int
    """Redis time, which is Unix time."""
    closed_ms: int
    active_ms: int
    """On an engine and wanting chunks."""
    resident_ms: int
    """In a slot of an engine, or entitled to it."""
    engine_ms: int
    """Compute time: its share of each pass, by the engine's measured costs, and its decodes."""
    media_bytes: int
    """Encoded video that was made."""
    chunks: int
    frames: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCosts:
    """What passes cost on an engine, as measured there: what chunks will take can be computed from it."""

    buckets: tuple[int, ...]
    """KV lengths in latent frames, rising; the last is the full window, where sessions spend their lives."""
    pass_ms: tuple[tuple[float, ...], ...]
    """Per bucket: milliseconds of a pass with 1, 2, ... rows."""
    decode_ms: float
    """Of one chunk; decodes do not coalesce."""
    chunk_passes: int
    """Of a chunk, the clean one included."""
    first_chunk_passes: int
    """Of the first chunk after start or reset."""
    move_ms: float = 8.0
    """Of a migration whatever its size; the default is a fast link's, until one was measured."""
    link_bytes_per_ms: float = 33_554_432.0
    """Of the slower direction of its link to other engines; likewise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecord:
    """An engine as Redis knows it."""

    id: EngineId
    state: EngineState
    url: str
    """WebSocket URL of its link."""
    model: ModelInfo | None
    """None while starting."""
    capacity: int
    """Sessions it takes at once."""
    sessions: int
    """Sessions placed on it."""
    load: float
    """Busy share of its compute thread over the last seconds, 0 to 1."""
    chunk_ms: float
    """Latency of its recent chunks, mean, milliseconds; 0 before the first."""
    started_ms: int
    heartbeat_ms: int
    """Redis time of its last heartbeat; `started_ms` before the first."""
    phase: str = ""
    """What its compute thread does, as last published."""
    deadline_ms: int | None = None
    """Redis time by which that phase must have ended; None without a limit."""
    drain_ordered: bool = False
    """Did an administrator order it to drain?"""
    model_name: str = ""
    """Model that it serves or is meant to serve; known before `model`."""
    costs: EngineCosts | None = None
    """None before it has published any."""
    transfer: str = ""
    """host:port where other engines meet it to move session state; "" if it can't."""
    worst_ms: float = 0.0
    """The largest latency of the chunks of the last seconds, milliseconds; 0 without any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredEngine:
    """One engine that the scheduler wants to exist: provisioners start what is missing and stop the rest."""

    id: EngineId
    model: str
