"""Progress on the terminal: one line per step, with the seconds since the start."""

from __future__ import annotations

import os
import sys
import time

__all__ = ["Console"]


class Console:
    """Writes to standard output; every line is flushed, so that a pipe sees it at once."""

    def __init__(self) -> None:
        self._start_s = time.monotonic()

    def step(self, text: str) -> None:
        """One thing happened."""
        _print(f"{time.monotonic() - self._start_s:6.1f} s  {text}")

    def headline(self, text: str) -> None:
        """The thing the person waits for."""
        _print(f"\n  {text}\n")


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # nobody reads any more, which is no reason to end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
