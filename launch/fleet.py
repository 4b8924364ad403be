"""The engines of this machine: exactly those that the scheduler wants, each one a torchrun job.

An engine id is used once. When its process ends while it is still wanted, the exit is reported, and it is the
scheduler that then wants another id: nothing here starts an engine by its own decision.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from typing import Final

from launch.backoff import Backoff
from launch.processes import Child, Watched, children_of, read_environment, spawn
from launch.run_file import RunFile
from launch.supervisor import ProcessSpec, Report, describe_exit, log_tail
from scheduler.messages import DesiredEngine, EngineId

__all__ = ["CONFIG_VARIABLE", "Fleet"]

CONFIG_VARIABLE: Final = "TURBOSERVE_ENGINE_CONFIG"
_RANK_POLL_S: Final = 0.05
"""torchrun tells nobody when it has started its ranks, so we look."""
_AGENTS_LAST_WORDS: Final = "failed (exitcode:"
"""From here on torchrun says at length that a rank failed, not why."""


class _Job:
    """One engine's torchrun agent and its ranks."""

    def __init__(self, wanted: DesiredEngine) -> None:
        self.id: Final = wanted.id
        self.task: asyncio.Task[None] | None = None
        self.agent: Child | None = None
        self.ranks: dict[int, Watched] = {}
        self.ready = False
        self.stopping = False

    def send(self, number: signal.Signals) -> None:
        """Signal the ranks, which then end the agent with them; before there are any, the agent."""
        running = [rank for rank in self.ranks.values() if not rank.ended.done()]
        for rank in running:
            rank.send(number)
        if self.agent is not None and (not running or number is signal.SIGKILL):
            self.agent.send(number)


class Fleet:
    """Starts, watches and stops engine processes to match the set given to `reconcile`."""

    def __init__(
        self,
        make_spec: Callable[[DesiredEngine], ProcessSpec],
        *,
        run_file: RunFile,
        report: Report,
        on_exit: Callable[[EngineId, str], None],
        stop_timeout_s: float,
    ) -> None:
        """`on_exit(id, reason)` is called when a process ended that nobody had asked to."""
        self._make_spec = make_spec
        self._run_file = run_file
        self._report = report
        self._on_exit = on_exit
        self._stop_timeout_s = stop_timeout_s
        self._jobs: dict[EngineId, _Job] = {}
        self._used: set[EngineId] = set()
        self._backoff = Backoff()
        self.changed: Final = asyncio.Condition()

    @property
    def num_ready(self) -> int:
        """Engines that take sessions now."""
        return sum(job.ready for job in self._jobs.values())

    @property
    def failures(self) -> int:
        """Engines in a row that ended before they were ready."""
        return self._backoff.failures

    def reconcile(self, desired: Sequence[DesiredEngine]) -> None:
        """Start what is wanted and was never started; stop what is not wanted any more."""
        wanted = {engine.id for engine in desired}
        for engine in desired:
            if engine.id not in self._used:
                self._used.add(engine.id)
                job = self._jobs[engine.id] = _Job(engine)
                job.task = asyncio.create_task(self._run(job, engine), name=f"engine {engine.id}")
        for job in list(self._jobs.values()):
            if job.id not in wanted and not job.stopping:
                job.stopping = True
                job.task = asyncio.create_task(self._stop(job, job.task), name=f"stop {job.id}")

    async def mark_ready(self, engine: EngineId) -> None:
        """The engine has registered and takes sessions."""
        job = self._jobs.get(engine)
        if job is None or job.ready:
            return
        job.ready = True
        self._report(f"engine-{engine} ready")
        self._backoff = self._backoff.record(healthy=True)
        async with self.changed:
            self.changed.notify_all()

    async def stop(self) -> None:
        """Stop all engines and wait for their ends."""
        self.reconcile([])
        tasks = [job.task for job in self._jobs.values() if job.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    def kill(self) -> None:
        """End everything without asking."""
        for job in self._jobs.values():
            job.send(signal.SIGKILL)

    async def _run(self, job: _Job, engine: DesiredEngine) -> None:
        await asyncio.sleep(self._backoff.delay_s)
        spec = self._make_spec(engine)
        try:
            job.agent = spawn(spec.command, environment=spec.environment, log=spec.log)
        except OSError as exc:
            await self._ended(job, spec, f"can't be started: {exc.strerror}")
            return
        looking = asyncio.create_task(self._find_ranks(job, job.agent, spec), name=f"ranks {job.id}")
        try:
            status = await asyncio.shield(job.agent.exited)
        finally:
            looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await looking
        await _end_ranks(job, spec)
        await self._ended(job, spec, describe_exit(status))

    async def _find_ranks(self, job: _Job, agent: Child, spec: ProcessSpec) -> None:
        """Keep the ranks in sight, and rank 0 in `run.json`, while the agent lives."""
        while not job.ranks:
            await asyncio.sleep(_RANK_POLL_S)
            for pid in children_of(agent.pid):
                self._meet_rank(job, pid, spec)

    def _meet_rank(self, job: _Job, pid: int, spec: ProcessSpec) -> None:
        rank = read_environment(pid).get("RANK")
        if rank is None or pid in job.ranks:  # between fork and exec a rank still looks like its agent
            return
        with contextlib.suppress(ProcessLookupError):
            watched = job.ranks[pid] = Watched(pid)
            if rank == "0":
                self._run_file.add(spec.name, pid)
                watched.ended.add_done_callback(lambda _: self._run_file.remove(spec.name, pid))

    async def _ended(self, job: _Job, spec: ProcessSpec, how: str) -> None:
        self._jobs.pop(job.id, None)
        if not job.stopping:
            self._backoff = self._backoff.record(healthy=job.ready)
            tail = "" if job.ready else log_tail(spec.log, before=_AGENTS_LAST_WORDS)
            self._report(f"{spec.name} {how}{tail}")
            self._on_exit(job.id, how)
        async with self.changed:
            self.changed.notify_all()

    async def _stop(self, job: _Job, running: asyncio.Task[None] | None) -> None:
        assert running is not None, "a job is made with its task"
        if job.agent is None:  # still waiting for its turn
            running.cancel()
            self._jobs.pop(job.id, None)
            return
        job.send(signal.SIGTERM)
        done, _ = await asyncio.wait((running,), timeout=self._stop_timeout_s)
        if not done:
            job.send(signal.SIGKILL)
            await running


async def _end_ranks(job: _Job, spec: ProcessSpec) -> None:
    """After the agent's end: whatever it left behind is ours now, and must not go on."""
    config = spec.environment[CONFIG_VARIABLE]
    for pid in children_of(os.getpid()):
        if pid not in job.ranks and read_environment(pid).get(CONFIG_VARIABLE) == config:
            with contextlib.suppress(ProcessLookupError):
                job.ranks[pid] = Watched(pid)
    for rank in job.ranks.values():
        rank.send(signal.SIGKILL)
        await rank.ended
        rank.close()
