"""The leader lease as one scheduler sees it, judged by its own monotonic clock. Pure: time is an argument.

Redis ends a lease ttl after it *received* the last renewal. The holder counts from before it *sent* it, less
a margin for clocks that drift, and stops acting first. So two schedulers never act at once, whatever hangs.
"""

from __future__ import annotations

MARGIN = 0.1
"""Share of the ttl by which the holder stops early."""


class Lease:
    """Ask `is_held` before each action and `is_renew_due` between reads; tell it what Redis answered."""

    def __init__(self, ttl_ms: int) -> None:
        self.ttl_ms = ttl_ms
        self.term: int | None = None
        """Term while held, as far as known; None otherwise."""
        self.newest_term = 0
        """Highest term ever held here: floor of the next one."""
        self._until_s = 0.0
        self._renew_s = 0.0

    def grant(self, term: int, asked_s: float) -> None:
        """Redis gave or renewed the lease; asked_s is the clock before the request was sent."""
        self.term = term
        self.newest_term = max(self.newest_term, term)
        self._until_s = asked_s + self.ttl_ms / 1000 * (1 - MARGIN)
        self._renew_s = asked_s + self.ttl_ms / 3000

    def lose(self) -> None:
        """Redis says that it is another's, or refused a write for its term."""
        self.term = None

    def is_held(self, now_s: float) -> bool:
        """May this scheduler act?"""
        return self.term is not None and now_s < self._until_s

    def is_renew_due(self, now_s: float) -> bool:
        """A third of the ttl has passed since the last grant."""
        return now_s >= self._renew_s
