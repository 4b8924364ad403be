"""What a client's acks tell of its player: how long it played and how long it stalled. Pure.

A player that held more than the time since its last ack can't have stalled in between, so that acks which the
network delays count for nothing; else it played as far as its playhead moved.
"""

from __future__ import annotations

from collections import deque

MAX_CHUNKS = 64
"""Newest relayed chunks whose end is known; an ack of an older one tells nothing."""
MAX_SILENCE_MS = 5_000.0
"""After so long without an ack nothing is known of the time between."""


class PlayMeter:
    """One session at one connection. Times are milliseconds on one monotonic clock."""

    def __init__(self) -> None:
        self._ends: deque[tuple[int, float]] = deque(maxlen=MAX_CHUNKS)
        self._acked: tuple[float, float, float] | None = None
        """(time, playhead, media that the player held) of the newest ack."""

    def receive_chunk(self, seq: int, end_ms: float) -> None:
        """Chunk `seq` was relayed completely; its media time ends there."""
        self._ends.append((seq, end_ms))

    def rest(self) -> None:
        """The session is not active: the time until the next ack does not count."""
        self._acked = None

    def receive_ack(self, seq: int, buffer_ms: float, now_ms: float) -> tuple[float, float]:
        """(ms played, ms stalled) since the ack before."""
        end_ms = self._end_of(seq)
        if end_ms is None:
            return 0.0, 0.0
        held_ms = max(0.0, buffer_ms)
        before, self._acked = self._acked, (now_ms, end_ms - held_ms, held_ms)
        if before is None or now_ms - before[0] > MAX_SILENCE_MS:
            return 0.0, 0.0
        passed_ms = max(0.0, now_ms - before[0])
        if passed_ms <= before[2]:
            return passed_ms, 0.0
        played_ms = min(passed_ms, max(0.0, end_ms - held_ms - before[1]))
        return played_ms, passed_ms - played_ms

    def _end_of(self, seq: int) -> float | None:
        for known, end_ms in reversed(self._ends):  # it is one of the newest
            if known == seq:
                return end_ms
        return None
