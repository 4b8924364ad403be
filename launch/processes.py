"""Child processes that die with us, and what `/proc` knows about others (Linux).

`turboserve up` must leave nothing behind, however it ends: every child gets a death signal from the kernel
when the thread that started it is gone (so start them from the main thread only), and processes orphaned
below us are handed to us instead of to init.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

__all__ = ["Child", "Watched", "adopt_orphans", "children_of", "read_environment", "spawn"]

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_libc = ctypes.CDLL(None, use_errno=True)


class Watched:
    """Any process, child of ours or not, held by a descriptor: its pid can't come to mean another one.

    Raises:
        ProcessLookupError: there is no such process.
    """

    def __init__(self, pid: int) -> None:
        self.pid: Final = pid
        self._descriptor = os.pidfd_open(pid)
        loop = asyncio.get_running_loop()
        self.ended: Final[asyncio.Future[None]] = loop.create_future()
        loop.add_reader(self._descriptor, self._has_ended)

    def _has_ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        self.ended.set_result(None)

    def send(self, number: signal.Signals) -> None:
        """Send a signal; no effect when the process has ended."""
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, number)

    def close(self) -> None:
        """Collect the ended process if we have become its parent."""
        assert self.ended.done(), "wait for the end first"
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self._descriptor, os.WEXITED)
        os.close(self._descriptor)


class Child:
    """A process that we started. `exited` completes with its status (negative: killed by that signal)."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid: Final = process.pid
        loop = asyncio.get_running_loop()
        self.exited: Final[asyncio.Future[int]] = loop.create_future()
        self._descriptor = os.pidfd_open(process.pid)
        loop.add_reader(self._descriptor, self._collect)

    def _collect(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        self.exited.set_result(self._process.wait())

    def send(self, number: signal.Signals) -> None:
        """Send a signal; no effect when the process has been collected."""
        self._process.send_signal(number)

    async def stop(self, timeout_s: float) -> int:
        """Ask the process to end; when it has not done so in time, end it. Returns the exit status."""
        self.send(signal.SIGTERM)
        await asyncio.wait((self.exited,), timeout=timeout_s)
        if not self.exited.done():
            self.send(signal.SIGKILL)
        return await asyncio.shield(self.exited)


def spawn(command: Sequence[str], *, environment: Mapping[str, str], log: Path) -> Child:
    """Start a program in a session of its own, its output appended to `log`. Call from the main thread.

    Raises:
        OSError: the program or the log can't be opened.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C reaches only us; we stop the rest in order
            preexec_fn=_death_signal(os.getpid()),
        )
    return Child(process)


def _death_signal(parent: int) -> Callable[[], None]:
    """What the child runs before exec: as little as possible, since no other thread of ours exists there."""

    def arm() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # died between fork and prctl
            os._exit(1)

    return arm


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent dies."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def children_of(parent: int) -> list[int]:
    """Process ids of the direct children, smallest first; zombies included."""
    running = (int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())
    return sorted(pid for pid in running if _parent_of(pid) == parent)


def _parent_of(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:  # ended while we looked
        return None
    # The second field is the name in parentheses and may itself hold spaces and parentheses.
    return int(stat.rpartition(b")")[2].split()[1])


def read_environment(pid: int) -> dict[str, str]:
    """The environment that a process of ours was started with; empty when it is gone."""
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (item.partition(b"=") for item in content.split(b"\0") if item)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
