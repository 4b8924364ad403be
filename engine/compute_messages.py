"""What the I/O side and the compute thread tell each other.

`Command` and `Wish` go to the compute thread, `ComputeEvent` comes back. All are immutable.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.credit import Player
from engine.encoder import EncodedPart
from engine.steering import AppliedInput, LogEntry, Steering
from scheduler.messages import SessionId

__all__ = [
    "Command",
    "ComputeDied",
    "ComputeEvent",
    "Drop",
    "Feed",
    "InputsTaken",
    "Open",
    "PartMade",
    "SessionFailed",
    "Wish",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Take in a session with fresh model state; its chunks start at `seq`."""

    session: SessionId
    epoch: int
    steering: Steering
    """What earlier owners had applied."""
    pending: tuple[LogEntry, ...]
    """Inputs for its first chunk; with a fresh `steering`, the first is the start prompt."""
    seq: int
    frame: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """New inputs, in log order."""

    session: SessionId
    epoch: int
    entries: tuple[LogEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """Forget a session and free its slot."""

    session: SessionId
    epoch: int


Command = Open | Feed | Drop


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is wanted of a session now; a newer one replaces it."""

    running: bool
    since_ms: float
    """Since when `running` is so."""
    player: Player


@dataclass(frozen=True, slots=True, kw_only=True)
class PartMade:
    """A part of a chunk is encoded."""

    session: SessionId
    epoch: int
    seq: int
    frame: int
    """Pixel frames of the session before this part."""
    chunk_frame: int
    """Pixel frames of the session before its chunk."""
    chunk_frames: int
    rev: int
    applied: tuple[AppliedInput, ...]
    """Inputs that this chunk is the first to show."""
    encoded: EncodedPart
    due_ms: float
    gen_ms: float
    """From the chunk's first pass to this part."""
    batch: float
    """Mean rows of the chunk's passes so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputsTaken:
    """So many of a session's pending inputs were applied."""

    session: SessionId
    epoch: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFailed:
    """This session cannot go on; it is already dropped here."""

    session: SessionId
    epoch: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeDied:
    """The loop itself ended by an error: the engine must exit."""

    error: BaseException


ComputeEvent = PartMade | InputsTaken | SessionFailed | ComputeDied
