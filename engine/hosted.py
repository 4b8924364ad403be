"""A session as the I/O side of its engine knows it: its subscriber, player, life and newest chunks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from engine.compute_messages import PartMade
from engine.credit import Player
from engine.lifecycle import Life
from engine.link import Link
from engine.replay import Replay
from engine.steering import MAX_PENDING_INPUTS, LogEntry, Steering
from scheduler.messages import SessionId, SessionRecord, SessionState
from scheduler.store import AppliedRecord

__all__ = ["Hosted", "LogTail", "Opening"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A session that waits for its first subscriber to say from which chunk it goes on (recovery)."""

    steering: Steering
    """What earlier owners had applied."""


@dataclass(slots=True, kw_only=True)
class LogTail:
    """How far the input log was read."""

    position: str
    """Id of the newest entry read."""
    num_pending: int = 0
    """Inputs read that no chunk was made with yet."""

    @property
    def is_full(self) -> bool:
        """The log is not read on before some of them are applied."""
        return self.num_pending >= MAX_PENDING_INPUTS


@dataclass(slots=True, kw_only=True)
class Hosted:
    """One session here. It belongs to the event loop."""

    record: SessionRecord
    """As read at opening; what may change since has a field of its own."""
    controller_epoch: int
    player: Player
    life: Life
    replay: Replay
    log: LogTail
    next_frame: int
    rev: int
    opening: Opening | None = None
    """None: the compute thread has the session."""
    held: list[LogEntry] = field(default_factory=list)
    """Inputs that wait for the opening."""
    link: Link | None = None
    subscription: int = 0
    """Grows by one at each Subscribe, so that what was sent for an older one no longer counts."""
    start_seq: int = 0
    """First chunk that the subscriber wants."""
    active: bool = True
    reason: str = ""
    active_since_ms: float
    next_look_ms: float | None = None
    """When its life must be judged again."""
    handed_ms: float = 0.0
    """When its newest chunk was handed over completely."""
    unrecorded: list[AppliedRecord] = field(default_factory=list)
    """Applied inputs that Redis does not know of yet; grows only while Redis is out of reach, when no new
    inputs arrive, so it is bounded by the pending ones."""
    published: tuple[object, ...] = ()
    """What Redis was told last."""
    parts: asyncio.Queue[PartMade] = field(default_factory=asyncio.Queue)
    """Encoded, not emitted. Bounded by MAX_UNENCODED_CHUNKS: no chunk starts while two are here."""
    emitter: asyncio.Task[None] | None = None

    @property
    def id(self) -> SessionId:
        return self.record.id

    @property
    def epoch(self) -> int:
        return self.record.epoch

    @property
    def state(self) -> SessionState:
        return SessionState.ACTIVE if self.active else SessionState.IDLE
