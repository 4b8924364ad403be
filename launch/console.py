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
    except OSError:  # nobody reads any more, the terminal is gone, the disk is full: no reason to end
        _drop_unwritten()


def _drop_unwritten() -> None:
    """Forget what is buffered: Python would try to write it again, also at its end. Later lines may pass."""
    descriptor = sys.stdout.fileno()
    kept, nowhere = os.dup(descriptor), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, descriptor)
        sys.stdout.flush()
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)
        os.close(nowhere)
