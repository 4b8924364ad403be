"""What the compute thread is doing and until when, for the heartbeat; and how busy it was.

The compute thread stamps before every pass and every long operation and when it rests; the I/O
thread reads. Each stamp replaces one immutable value, so a reader sees a consistent one without a lock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["IDLE", "STARTING", "Progress", "Stamp"]

IDLE = "idle"
STARTING = "starting"
MIN_LIMIT_MS = 2_000.0
"""No operation is suspected earlier."""
_WINDOW_MS = 3_000.0
_LATE = 2.0
"""Whoever looks after so many times the time between heartbeats stood still, and the operation at hand with
it, most likely: the process was stopped, or the machine was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """The operation at hand."""

    phase: str
    since_ms: float
    limit_ms: float | None
    """It is suspicious when it takes longer; None: it may take for ever (nothing to do, or a start, which the
    leader limits)."""


class Progress:
    """One writer (the compute thread), any number of readers."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.stamp = Stamp(phase=STARTING, since_ms=clock(), limit_ms=None)
        self._busy_ms = 0.0
        self._looked = (self.stamp, clock())
        self._forgiven_ms = 0.0
        self._read = [(clock(), 0.0)]

    def enter(self, phase: str, *, limit_ms: float = MIN_LIMIT_MS) -> None:
        """An operation begins, and the one before ends."""
        now = self._leave()
        self.stamp = Stamp(phase=phase, since_ms=now, limit_ms=max(limit_ms, MIN_LIMIT_MS))

    def rest(self) -> None:
        """Nothing to do until somebody wakes the thread."""
        self.stamp = Stamp(phase=IDLE, since_ms=self._leave(), limit_ms=None)

    def _leave(self) -> float:
        now = self._clock()
        if self.stamp.phase not in (IDLE, STARTING):
            self._busy_ms += now - self.stamp.since_ms
        return now

    def left_ms(self, heartbeat_ms: float) -> float | None:
        """Milliseconds until the operation at hand is overdue, negative when it is; None: no limit. To be
        called by one thread every heartbeat_ms: when that could not, the operation gets the time back."""
        now, stamp = self._clock(), self.stamp
        (before, looked_ms), self._looked = self._looked, (stamp, now)
        if stamp is not before:
            self._forgiven_ms, looked_ms = 0.0, max(looked_ms, stamp.since_ms)
        if now - looked_ms > _LATE * heartbeat_ms:
            self._forgiven_ms += now - looked_ms
        limit_ms = stamp.limit_ms
        return None if limit_ms is None else stamp.since_ms + limit_ms + self._forgiven_ms - now

    def load(self) -> float:
        """Busy share over the last seconds, 0 to 1. To be called by one thread, at each heartbeat."""
        now, stamp = self._clock(), self.stamp
        running = 0.0 if stamp.phase in (IDLE, STARTING) else now - stamp.since_ms
        self._read.append((now, self._busy_ms + running))
        while len(self._read) > 2 and self._read[1][0] < now - _WINDOW_MS:
            self._read.pop(0)
        (then, before), (_, busy) = self._read[0], self._read[-1]
        return min(max((busy - before) / max(now - then, 1.0), 0.0), 1.0)
