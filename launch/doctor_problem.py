"""How a check of `turboserve doctor` says that something is not as it should be."""

from __future__ import annotations

__all__ = ["Advice", "Problem"]


class Problem(Exception):
    """A check failed. `str()` says what is wrong and how to put it right."""


class Advice(Exception):
    """It will run, but not well. `str()` says why, and what to do."""
