"""The engines of this machine: exactly those that the scheduler wants.

An engine id is used once. When its process ends while it is still wanted, the exit is reported, and it is the
scheduler that then wants another id: nothing here starts an engine by its own decision.

Starting takes seconds of a core. Engines that are wanted at once take turns, so that the first ones are ready
when the last ones begin instead of all of them late.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Collection, Sequence
from typing import Final

from launch.backoff import Backoff
from launch.engine_job import EngineEnd, EngineJob, Start, start_program
from launch.quarantine import is_orderly, is_young
from launch.run_file import RunFile
from launch.supervisor import ProcessSpec, Report, log_tail
from scheduler.messages import DesiredEngine, EngineId

__all__ = ["Fleet"]

TURN_S: Final = 10.0
"""Engines that take longer wait for disks and GPUs rather than for a core."""
_AGENTS_LAST_WORDS: Final = "failed (exitcode:"
"""From here on torchrun says at length that a rank failed, not why."""


class _Turns:
    """At most so many at once, none for longer than TURN_S."""

    def __init__(self, at_once: int) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._ends: dict[EngineId, asyncio.TimerHandle] = {}

    async def begin(self, engine: EngineId) -> None:
        """Wait for a turn."""
        await self._free.acquire()
        self._ends[engine] = asyncio.get_running_loop().call_later(TURN_S, self.end, engine)

    def end(self, engine: EngineId) -> None:
        """The next one's begins. Nothing happens where none has begun, or it has ended."""
        if (timer := self._ends.pop(engine, None)) is not None:
            timer.cancel()
            self._free.release()


class _Place:
    """One wanted engine: waiting for its start, or running."""

    def __init__(self, wanted: DesiredEngine) -> None:
        self.id: Final = wanted.id
        self.task: asyncio.Task[None] | None = None
        self.job: EngineJob | None = None
        self.ready_s: float | None = None
        """When it got ready, by the loop's clock."""
        self.is_dead = False
        self.stopping = False


class Fleet:
    """Starts, watches and stops engine processes to match the set given to `reconcile`."""

    def __init__(
        self,
        make_spec: Callable[[DesiredEngine], ProcessSpec],
        *,
        run_file: RunFile,
        report: Report,
        on_exit: Callable[[EngineId, EngineEnd], None],
        stop_timeout_s: float,
        starts_at_once: int,
        start: Start = start_program,
        on_death: Callable[[EngineId], None] = lambda engine: None,
    ) -> None:
        """`on_exit(id, end)` is called when a process ended that nobody had asked to, or by its own fault.
        `on_death(id)`, once, when an engine failed before it was ready or soon after, be it that it ended or
        that it was given up; its process may still be there.
        """
        self._make_spec = make_spec
        self._run_file = run_file
        self._report = report
        self._on_exit = on_exit
        self._on_death = on_death
        self._stop_timeout_s = stop_timeout_s
        self._places: dict[EngineId, _Place] = {}
        self._used: set[EngineId] = set()
        self._backoff = Backoff()
        self._turns = _Turns(starts_at_once)
        self._start = start
        self.changed: Final = asyncio.Condition()

    @property
    def num_ready(self) -> int:
        """Engines that take sessions now."""
        return sum(place.ready_s is not None for place in self._places.values())

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
                place = self._places[engine.id] = _Place(engine)
                place.task = asyncio.create_task(self._run(place, engine), name=f"engine {engine.id}")
        self._used &= wanted | self._places.keys()
        for place in list(self._places.values()):
            if place.id not in wanted and not place.stopping:
                place.stopping = True
                place.task = asyncio.create_task(self._stop(place, place.task), name=f"stop {place.id}")

    def owned(self) -> Collection[EngineId]:
        """Engines that run here or are about to."""
        return self._places.keys()

    async def mark_ready(self, engine: EngineId) -> None:
        """The engine has registered and takes sessions."""
        place = self._places.get(engine)
        if place is None or place.ready_s is not None:
            return
        place.ready_s = asyncio.get_running_loop().time()
        self._turns.end(engine)
        self._report(f"engine-{engine} ready")
        self._backoff = self._backoff.record(healthy=True)
        async with self.changed:
            self.changed.notify_all()

    def mark_lost(self, engine: EngineId) -> None:
        """The engine is gone, as the scheduler says: of one that hangs while it starts nobody else does."""
        if (place := self._places.get(engine)) is not None:
            self._note_death(place)

    def _note_death(self, place: _Place) -> None:
        if not place.is_dead and is_young(place.ready_s, asyncio.get_running_loop().time()):
            self._on_death(place.id)
        place.is_dead = True

    async def stop(self) -> None:
        """Stop all engines and wait for their ends."""
        self.reconcile([])
        tasks = [place.task for place in self._places.values() if place.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    def kill(self) -> None:
        """End everything without asking."""
        for place in self._places.values():
            if place.job is not None:
                place.job.send(signal.SIGKILL)

    async def _run(self, place: _Place, engine: DesiredEngine) -> None:
        await asyncio.sleep(self._backoff.delay_s)
        await self._turns.begin(engine.id)
        spec = self._make_spec(engine)
        place.job = EngineJob(
            spec,
            start=self._start,
            on_start=lambda pid: self._run_file.add(spec.name, pid),
            on_end=lambda pid: self._run_file.remove(spec.name, pid),
        )
        try:
            end = await place.job.run()
        finally:
            self._turns.end(engine.id)
        self._places.pop(place.id, None)
        if not place.stopping:
            if not is_orderly(end.how):
                self._note_death(place)
            was_ready = place.ready_s is not None
            self._backoff = self._backoff.record(healthy=was_ready)
            tail = "" if was_ready else log_tail(spec.log, before=_AGENTS_LAST_WORDS)
            self._report(f"{spec.name} {end.how}{tail}")
            self._on_exit(place.id, end)
        elif end.crashed:  # it was given up as silent before its agent had seen its end
            self._on_exit(place.id, end)
        async with self.changed:
            self.changed.notify_all()

    async def _stop(self, place: _Place, running: asyncio.Task[None] | None) -> None:
        assert running is not None, "a place is made with its task"
        if place.job is None:  # still waiting for its turn
            running.cancel()
            self._places.pop(place.id, None)
            return
        place.job.send(signal.SIGTERM)
        done, _ = await asyncio.wait((running,), timeout=self._stop_timeout_s)
        if not done:
            place.job.send(signal.SIGKILL)
            await running
