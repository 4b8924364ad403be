"""Processes that must always run: started, watched, and started again when they die."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from launch.backoff import Backoff
from launch.processes import Child, spawn
from launch.run_file import RunFile

__all__ = ["ProcessSpec", "Service", "StartError", "describe_exit", "log_tail"]

HEALTHY_AFTER_S: Final = 10.0
"""A process that ran this long counts as healthy: it is started again at once."""
_TAIL_LINES: Final = 12
_TAIL_BYTES: Final = 8 * 1024

Report = Callable[[str], None]
"""Shows one line of progress to the person who started the cluster."""


class StartError(Exception):
    """The cluster can't start. `str()` is a sentence, perhaps followed by the end of a log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """How to start one process."""

    name: str
    """As `run.json` calls it."""
    command: Sequence[str]
    log: Path
    folder: Path | None = None
    """Made before each start, should it be gone."""
    environment: Mapping[str, str] = field(repr=False)
    """The whole environment; it may hold secrets."""


class Service:
    """One process under one name: `start`, `wait_ready`, then `keep` until `stop`."""

    def __init__(self, spec: ProcessSpec, *, run_file: RunFile, report: Report) -> None:
        self._spec = spec
        self._run_file = run_file
        self._report = report
        self._child: Child | None = None
        self._log_start = 0

    def start(self) -> Child:
        """Start the process. Raises StartError when the program can't be run."""
        spec = self._spec
        try:
            if spec.folder is not None:
                spec.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._log_start = spec.log.stat().st_size if spec.log.exists() else 0
            self._child = spawn(spec.command, environment=spec.environment, log=spec.log)
        except OSError as exc:
            raise StartError(f"{spec.name} can't be started: {spec.command[0]}: {exc.strerror}") from exc
        self._run_file.add(spec.name, self._child.pid)
        return self._child

    async def wait_ready(self, probe: Callable[[], Awaitable[None]], *, timeout_s: float) -> None:
        """Wait until `probe` returns. Raises StartError when the process ends before, or time runs out."""
        assert self._child is not None, "start comes first"
        ready = asyncio.ensure_future(probe())
        try:
            await asyncio.wait(
                (ready, self._child.exited), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if self._child.exited.done():
                self._run_file.remove(self._spec.name, self._child.pid)
                raise self._failure(describe_exit(self._child.exited.result()))
            if not ready.done():
                raise self._failure(f"is not ready after {timeout_s:g} s")
            ready.result()
        finally:
            ready.cancel()

    def _failure(self, what: str) -> StartError:
        return StartError(f"{self._spec.name} {what}{log_tail(self._spec.log, self._log_start)}")

    async def keep(self) -> NoReturn:
        """Start the process again whenever it ends, with growing pauses while it keeps failing, or can't be
        started: what is in the way, as a disk that is full, may pass."""
        loop = asyncio.get_running_loop()
        backoff = Backoff()
        child, started = self._child or self.start(), loop.time()
        while True:
            status = await asyncio.shield(child.exited)
            self._run_file.remove(self._spec.name, child.pid)
            backoff = backoff.record(healthy=loop.time() - started >= HEALTHY_AFTER_S)
            self._report(f"{self._spec.name} {describe_exit(status)}: starting it again ({self._spec.log})")
            await asyncio.sleep(backoff.delay_s)
            while (again := self._try_start()) is None:
                backoff = backoff.record(healthy=False)
                await asyncio.sleep(backoff.delay_s)
            child, started = again, loop.time()

    def _try_start(self) -> Child | None:
        try:
            return self.start()
        except StartError as exc:
            self._report(f"{exc}: trying again")
            return None

    async def stop(self, timeout_s: float) -> None:
        """End the process. The task of `keep` must have been cancelled before."""
        if self._child is not None:
            await self._child.stop(timeout_s)
            self._run_file.remove(self._spec.name, self._child.pid)

    def kill(self) -> None:
        """End the process without asking it."""
        if self._child is not None:
            self._child.send(signal.SIGKILL)


def describe_exit(status: int) -> str:
    """A process status in words."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def log_tail(log: Path, start: int = 0, *, before: str | None = None) -> str:
    """The last lines written after byte `start`, to be put behind a sentence; "" if there are none.

    With `before`, the lines up to the first one that contains it.
    """
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(start, size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    if before is not None:
        lines = list(itertools.takewhile(lambda line: before not in line, lines))
    if not lines:
        return ""
    tail = "\n".join(f"    {line}" for line in lines[-_TAIL_LINES:])
    return f"; the end of {log}:\n{tail}"
