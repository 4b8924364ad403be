"""The C library's heap: what is free in it goes back to the system."""

from __future__ import annotations

import ctypes

__all__ = ["release_free"]


def release_free() -> None:
    """Give free host memory back.

    The C library keeps what lies between blocks in use, so that a process grows by what its sessions leave in
    between. Takes some milliseconds. Does nothing where that library is not GNU's.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
