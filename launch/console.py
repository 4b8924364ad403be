"""Progress on the terminal: one line per step, with the seconds since the start."""

from __future__ import annotations

import time

__all__ = ["Console"]


class Console:
    """Writes to standard output; every line is flushed, so that a pipe sees it at once."""

    def __init__(self) -> None:
        self._start_s = time.monotonic()

    def step(self, text: str) -> None:
        """One thing happened."""
        print(f"{time.monotonic() - self._start_s:6.1f} s  {text}", flush=True)

    def headline(self, text: str) -> None:
        """The thing the person waits for."""
        print(f"\n  {text}\n", flush=True)
