"""Which nodes or GPUs to avoid, because engines keep dying young on them. Pure."""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = ["Quarantine", "is_orderly", "is_young"]

_YOUNG_S: Final = 60.0
_WINDOW_S: Final = 600.0
_DEATHS: Final = 3
"""So many early deaths within the window, and the place is avoided for as long again."""
_ORDERLY: Final = frozenset(
    {
        "exited",  # the engine has said goodbye
        "exited with status 0",
        "Completed, exit code 0",
        "pod succeeded",
        "not wanted any more",
        "was not wanted any more before it had started",
    }
)


def is_young(ready_s: float | None, now_s: float) -> bool:
    """Does an engine die young if it dies now: before it was ready (None), or soon after?"""
    return ready_s is None or now_s - ready_s < _YOUNG_S


def is_orderly(reason: str) -> bool:
    """Does an engine that ended so say nothing about its place? `reason`: as its record has it."""
    return reason in _ORDERLY


class Quarantine:
    """Remembers early deaths by place. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._deaths: dict[str, deque[float]] = {}
        self._until_s: dict[str, float] = {}

    def note_death(self, place: str, now_s: float) -> bool:
        """An engine died young there. True: from now on the place is avoided."""
        deaths = self._deaths.setdefault(place, deque(maxlen=_DEATHS))
        deaths.append(now_s)
        if len(deaths) < _DEATHS or now_s - deaths[0] > _WINDOW_S:
            return False
        deaths.clear()
        self._until_s[place] = now_s + _WINDOW_S
        return True

    def avoided(self, now_s: float) -> tuple[str, ...]:
        """Places to avoid now, in order."""
        return tuple(sorted(place for place, until_s in self._until_s.items() if now_s < until_s))
