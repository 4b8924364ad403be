"""Work of a helper thread that another thread may end at any time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from engine.pairs import PairLost

__all__ = ["WorkScope"]


class WorkScope:
    """Once its work has ended, what it held belongs to others: a late thread must not touch it any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_over = False

    @property
    def is_over(self) -> bool:
        """May change at once, unless asked in a step."""
        return self._is_over

    @contextmanager
    def step(self) -> Iterator[None]:
        """The work does not end meanwhile. To be kept short: whoever ends it waits. Raises PairLost: it is
        over."""
        with self._lock:
            if self._is_over:
                raise PairLost("the migration is off")
            yield

    def end(self) -> None:
        """No step begins from here on; returns after the one under way."""
        with self._lock:
            self._is_over = True
