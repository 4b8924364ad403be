"""What an engine's process owes to the torchrun agent that started it."""

from __future__ import annotations

import ctypes
import os
import signal

__all__ = ["EXIT_FAILED", "EXIT_FENCED", "EXIT_OK", "die_with", "take_name"]

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_FENCED = 3
"""This engine was declared gone; its sessions have other owners."""

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15


def die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent`, its parent at start, dies.

    A killed torchrun agent cannot stop its ranks: without this they would go on as orphans.

    Raises:
        OSError: the kernel refuses.
        SystemExit: the parent died before the kernel was asked.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        raise SystemExit("the process that started this engine is gone")


def take_name(name: str) -> None:
    """Be called so by `ps -o comm`, `top` and a launcher that looks for ranks; at most 15 bytes."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode(), 0, 0, 0)
