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
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

__all__ = ["Child", "Watched", "adopt_orphans", "children_of", "die_with", "fork", "members_of", "name_of"]
__all__ += ["spawn"]

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_REQUESTS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""To end."""
_PARENT: Final = 4
_SESSION: Final = 6
_STDERR: Final = 2
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
    """A child of ours that nobody else collects. `exited` completes with its status (negative: killed by that
    signal).
    """

    def __init__(self, pid: int) -> None:
        self.pid: Final = pid
        loop = asyncio.get_running_loop()
        self.exited: Final[asyncio.Future[int]] = loop.create_future()
        self._descriptor = os.pidfd_open(pid)
        loop.add_reader(self._descriptor, self._collect)

    def _collect(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        _, status = os.waitpid(self.pid, 0)
        self.exited.set_result(os.waitstatus_to_exitcode(status))

    def send(self, number: signal.Signals) -> None:
        """Send a signal; no effect when the process has been collected."""
        if not self.exited.done():
            signal.pidfd_send_signal(self._descriptor, number)

    async def stop(self, timeout_s: float) -> int:
        """Ask the process to end; when it has not done so in time, end it. Returns the exit status."""
        self.send(signal.SIGTERM)
        await asyncio.wait((self.exited,), timeout=timeout_s)
        if not self.exited.done():
            self.send(signal.SIGKILL)
        return await asyncio.shield(self.exited)


def spawn(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    log: Path | None,
    stdin: int = subprocess.DEVNULL,
) -> Child:
    """Start a program in a session of its own, its output appended to `log`, or with None to our standard
    error, which may be what nobody can open by a name: a socket, as under systemd. Call from the main thread.

    Raises:
        OSError: the program or the log can't be opened.
    """
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(log.open("ab")) if log is not None else _STDERR
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C reaches only us; we stop the rest in order
            preexec_fn=partial(die_with, os.getpid()),
        )
    child = Child(process.pid)
    process.returncode = 0  # collecting it is not its business
    return child


def die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent`, its parent, dies.

    All that runs between fork and exec, and as little as possible: no other thread of ours exists there.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # died between fork and prctl
        os._exit(1)


def fork(work: Callable[[], int]) -> int:
    """Run `work` in a fork of this process, whose exit status is what it returns. Signals that ask for an end
    are not handled there. Returns the fork's pid.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    pid, mask = -1, signal.pthread_sigmask(signal.SIG_BLOCK, _REQUESTS)  # a handler of ours may raise
    try:
        pid = os.fork()
    finally:
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if pid:
        return pid
    status = 1
    try:
        for number in _REQUESTS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        status = work()
    except SystemExit as exc:
        status = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
        if isinstance(exc.code, str):
            sys.stderr.write(f"{exc.code}\n")
    except BaseException:  # nothing may return into the stack of the process that was forked
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent dies, and see the ends of all."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # were it ignored, the kernel would collect them
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def children_of(parent: int) -> list[int]:
    """Process ids of the direct children, smallest first; zombies included."""
    return _processes_where(_PARENT, parent)


def members_of(session: int) -> list[int]:
    """Process ids of a session, smallest first; zombies included. No other gets its id while it has any."""
    return _processes_where(_SESSION, session)


def _processes_where(field: int, value: int) -> list[int]:
    running = (int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())
    return sorted(pid for pid in running if _stat(pid, field) == value)


def _stat(pid: int, field: int) -> int | None:
    """A numeric field of `/proc/PID/stat`, counted from 1 as in proc(5)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:  # ended while we looked
        return None
    # The second field is the name in parentheses and may itself hold spaces and parentheses.
    return int(stat.rpartition(b")")[2].split()[field - 3])


def name_of(pid: int) -> str:
    """The name of a process, as `ps -o comm` and `top` show it; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except OSError:
        return ""
