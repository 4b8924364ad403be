"""Where the playhead of a real-time viewer is, so that acks are true without a screen. Pure.

Times are milliseconds; `now_ms` is any monotonic clock.
"""

from __future__ import annotations

__all__ = ["Playhead"]


class Playhead:
    """Plays at rate 1 from the first delivery, holds where the video ends, goes on when more arrives."""

    def __init__(self) -> None:
        self.stalls = 0
        self.stalled_ms = 0.0
        self.played_ms = 0.0
        self._media_ms: float | None = None  # playhead at _at_ms; None before the first delivery
        self._at_ms = 0.0
        self._end_ms = 0.0
        self._is_paused = False
        self._is_dry = False

    def delivered(self, pts_ms: float, end_ms: float, now_ms: float) -> None:
        """Media [pts_ms, end_ms) has arrived. A jump in media time is followed when it is reached."""
        self._advance(now_ms)
        if self._media_ms is None:
            self._media_ms = pts_ms
        elif self._media_ms >= self._end_ms:
            self._media_ms = max(self._media_ms, pts_ms)
        self._end_ms = max(self._end_ms, end_ms)
        self._at_ms = now_ms
        self._is_dry = False

    def pause(self, now_ms: float) -> None:
        self._advance(now_ms)
        self._is_paused = True

    def resume(self, now_ms: float) -> None:
        self._advance(now_ms)
        self._is_paused = False

    def buffer_ms(self, now_ms: float) -> float:
        """Media delivered and not yet played."""
        self._advance(now_ms)
        return 0.0 if self._media_ms is None else max(0.0, self._end_ms - self._media_ms)

    def _advance(self, now_ms: float) -> None:
        elapsed_ms = max(0.0, now_ms - self._at_ms)
        self._at_ms = now_ms
        if self._media_ms is None or self._is_paused:
            return
        played_ms = min(elapsed_ms, max(0.0, self._end_ms - self._media_ms))
        self._media_ms += played_ms
        self.played_ms += played_ms
        self.stalled_ms += elapsed_ms - played_ms
        if elapsed_ms > played_ms and not self._is_dry:
            self._is_dry = True
            self.stalls += 1
