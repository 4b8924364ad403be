"""torchrun as it starts an engine, with two differences.

A rank is a fork of this agent, which has imported what an engine needs: for each rank torchrun alone would
import it again, which takes more of a core than all else that an engine does at its start. Where there are
GPUs a rank is a program of its own after all: torchrun itself asks for them, after which no fork could use
them, and it binds ranks to processors by a command.

The exit status says how the first rank that failed ended: its own, or 128 + the signal that killed it, or
that ended this agent. torchrun alone exits with 1 whatever it was.

    python -m launch.agent ARGUMENTS_OF_TORCHRUN
"""

from __future__ import annotations

import gc

gc.disable()  # see engine/__main__.py

import os  # noqa: E402
import runpy  # noqa: E402
import select  # noqa: E402
import signal  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
from collections.abc import Mapping, Sequence  # noqa: E402
from typing import Final  # noqa: E402

import torch  # noqa: E402
from setproctitle import setproctitle  # noqa: E402
from torch.distributed.elastic.multiprocessing.api import SignalException  # noqa: E402
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: E402
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler  # noqa: E402
from torch.distributed.run import main  # noqa: E402

import engine.engine  # noqa: E402
import engine.follower  # noqa: E402, F401 - with all that they import, what a rank needs
from launch.engine_job import SIGNALLED  # noqa: E402
from launch.processes import die_with, fork  # noqa: E402

_TOGETHER_S: Final = 5
"""Ranks that fail within so long may have failed of one cause. torchrun itself kills a rank that does not end
after 30 s, no sooner."""


def run(arguments: Sequence[str]) -> int:
    """Until every rank has ended."""
    gc.freeze()  # or a collection would copy what forks share
    gc.enable()
    try:
        main(arguments)
    except SignalException as exc:
        return SIGNALLED + exc.sigval
    except ChildFailedError as exc:
        sys.stderr.write(f"{exc}\n")
        status = _first_status(exc)
        return SIGNALLED - status if status < 0 else status
    return 0


def _first_status(error: ChildFailedError) -> int:
    """How the rank ended whose end was the cause of the others', negative: by that signal.

    torchrun looks ten times a second and notes whole seconds: of ranks that failed in one of them it can't
    tell which was first. None is killed because another failed; that one fails because another was killed is
    usual.
    """
    _, first = error.get_first_failure()
    together = (f for f in error.failures.values() if f.timestamp <= first.timestamp + _TOGETHER_S)
    is_killed = any(failure.exitcode == -signal.SIGKILL for failure in together)
    return -signal.SIGKILL if is_killed else first.exitcode


class _Rank:
    """A fork, with what torchrun uses of a `Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid: Final = pid
        self._descriptor = os.pidfd_open(pid)
        self._status: int | None = None

    def poll(self) -> int | None:
        """As of `Popen`."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def wait(self, timeout: float | None = None) -> int:
        """As of `Popen`."""
        ended = select.poll()
        ended.register(self._descriptor, select.POLLIN)
        ended.poll(None if timeout is None else timeout * 1000.0)
        if (status := self.poll()) is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return status


def _start_rank(
    _: SubprocessHandler, command: Sequence[str], environment: Mapping[str, str]
) -> _Rank | subprocess.Popen[bytes]:
    """In this agent's session. A fork does what `command` would: the interpreter, its option -u, -m and a
    module or a script, then arguments.
    """
    if torch.cuda.is_available():
        return subprocess.Popen(command, env=environment, process_group=0)
    agent = os.getpid()
    pid = fork(lambda: _become_rank(agent, command, environment))
    os.setpgid(pid, pid)  # by its group torchrun signals a rank
    return _Rank(pid)


def _become_rank(agent: int, command: Sequence[str], environment: Mapping[str, str]) -> int:
    die_with(agent)
    os.setpgid(0, 0)
    setproctitle(" ".join(command))
    os.environ.clear()
    os.environ.update(environment)
    program = command[2:]
    is_module = program[0] == "-m"
    sys.argv = list(program[1:] if is_module else program)
    gc.disable()
    if is_module:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
    return 0


SubprocessHandler._popen = _start_rank  # type: ignore[method-assign, assignment]

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
