"""When to start something again that keeps failing. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["Backoff"]

_FIRST_DELAY_S: Final = 0.25
_LONGEST_DELAY_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How often in a row something failed soon after its start."""

    failures: int = 0

    def record(self, *, healthy: bool) -> Backoff:
        """After an end: a healthy run forgives all earlier failures."""
        return Backoff(failures=0 if healthy else self.failures + 1)

    @property
    def delay_s(self) -> float:
        """Seconds to wait before the next start: none after a healthy run, then doubling up to a limit."""
        if self.failures == 0:
            return 0.0
        exponent = min(self.failures - 1, 16)
        return min(_FIRST_DELAY_S * 2.0**exponent, _LONGEST_DELAY_S)
