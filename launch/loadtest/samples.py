"""What the processes of a load test say to each other: JSON lines over pipes. Pure.

Parent → worker: `assignment`, and `begin` once all workers are `ready`. Worker → parent: `ready`, samples.
Times are milliseconds since the load's start; the clock is the machine's monotonic one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, get_args

from launch.loadtest.load import Script
from scheduler.schema import decode, encode

__all__ = [
    "Assignment",
    "Begin",
    "ChunkSeen",
    "Edited",
    "Ended",
    "Fault",
    "FirstPart",
    "FromWorker",
    "GapSaid",
    "Lag",
    "Latency",
    "Outcome",
    "Ready",
    "Refused",
    "Sample",
    "Started",
    "ToWorker",
    "from_worker",
    "line",
    "to_worker",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The clients of a worker."""

    type: ClassVar[str] = "assignment"
    url: str
    token: str | None = None
    decode: bool
    scripts: tuple[Script, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """The load starts at this moment of the monotonic clock."""

    type: ClassVar[str] = "begin"
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    type: ClassVar[str] = "ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A session was accepted."""

    type: ClassVar[str] = "started"
    client: int
    at_ms: float
    session: str
    model: str
    chunk_ms: float
    """How long a chunk plays."""
    is_slow: bool = False
    """Does the client read more slowly than the video plays?"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The server refused a start, or an input of a running session."""

    type: ClassVar[str] = "refused"
    client: int
    at_ms: float
    what: str
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstPart:
    """The first part of a session's first chunk came."""

    type: ClassVar[str] = "first_part"
    client: int
    at_ms: float
    ttfc_ms: float
    """Since the start was accepted, without pauses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkSeen:
    """A chunk is complete."""

    type: ClassVar[str] = "chunk"
    client: int
    at_ms: float
    seq: int
    engine: str
    stalled_ms: float
    """For how long the player has stood still so far, in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """What the server says of a chunk."""

    type: ClassVar[str] = "latency"
    client: int
    at_ms: float
    seq: int
    latency_ms: float
    """From due to its last byte handed to the gateway link."""
    gen_ms: float
    batch: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited:
    """A prompt, sent to a video that was being watched ever since, has reached the picture."""

    type: ClassVar[str] = "edited"
    client: int
    at_ms: float
    chunk_ms: float
    """From sending it to holding the first chunk made with it."""
    picture_ms: float
    """To that chunk's first picture on the screen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A stream is not what the protocol promises."""

    type: ClassVar[str] = "fault"
    client: int
    at_ms: float
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GapSaid:
    """The server said that chunks will not come."""

    type: ClassVar[str] = "gap"
    client: int
    at_ms: float
    chunks: int
    """How many of which it had not said that before."""


class Outcome(Enum):
    """How a client's session ended."""

    DONE = "done"
    """By its own stop."""
    REFUSED = "refused"
    """It was never accepted."""
    LOST = "lost"
    """Otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A client has left."""

    type: ClassVar[str] = "ended"
    client: int
    at_ms: float
    outcome: Outcome
    reason: str = ""
    chunks: int = 0
    gaps: int = 0
    """Chunks that the server said will not come."""
    cuts: int = 0
    """Connections that were cut on purpose."""
    played_ms: float = 0.0
    stalled_ms: float = 0.0
    waited_ms: float | None = None
    """For a first part that never came: since the start was accepted up to the stop, without pauses."""
    prompts_ms: tuple[float, ...] = ()
    """For each prompt that did not reach the picture though the video was being watched: how long ago it was
    sent, at the stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lag:
    """A worker's own loop was so much late: what it measured then is too long by up to as much."""

    type: ClassVar[str] = "lag"
    at_ms: float
    lag_ms: float


ToWorker = Assignment | Begin
Sample = Started | Refused | FirstPart | ChunkSeen | Latency | Edited | Fault | GapSaid | Ended | Lag
FromWorker = Ready | Sample
_TO_WORKER: Mapping[str, type[ToWorker]] = {c.type: c for c in get_args(ToWorker)}
_FROM_WORKER: Mapping[str, type[FromWorker]] = {c.type: c for c in get_args(FromWorker)}


def line(message: ToWorker | FromWorker) -> bytes:
    """One line, with its newline."""
    return json.dumps(encode(message), separators=(",", ":")).encode() + b"\n"


def to_worker(data: bytes) -> ToWorker:
    """The inverse. Raises ValueError."""
    return decode(_TO_WORKER, json.loads(data))


def from_worker(data: bytes) -> FromWorker:
    """The inverse. Raises ValueError."""
    return decode(_FROM_WORKER, json.loads(data))
