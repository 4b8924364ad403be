"""The processes of one cluster on one machine: started in order, kept alive, stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from engine.config import EngineConfig
from gateway.config import GatewayConfig
from launch import engine_logs
from launch.config import UpConfig
from launch.console import Console
from launch.cores import usable_cores
from launch.engine_job import EngineEnd
from launch.fleet import Fleet
from launch.fork_server import ForkServer
from launch.gpus import GpuShares
from launch.http_get import get
from launch.provisioner import Provisioner
from launch.roles import engine_command, engine_environment, role_command, role_environment
from launch.run_file import RunFile
from launch.store import connect
from launch.supervisor import ProcessSpec, Service, StartError
from scheduler.config import SchedulerConfig
from scheduler.messages import DesiredEngine, EngineId
from scheduler.store import Store, StoreError, StoreUnavailable

__all__ = ["Cluster", "Plan"]

_START_TIMEOUT_S: Final = 30.0
"""Limit for redis, scheduler and gateway each."""
_PROBE_INTERVAL_S: Final = 0.03
_STARTS_PER_CORE: Final = 2
"""Half of a start is waiting. Of 8 engines on two cores the last was ready after 15.5 s like this, after
25.4 s with one for each core, and after 19.6 s, as all others were, without turns."""
_MAX_START_FAILURES: Final = 2
"""So many engines in a row that end before they are ready, with none ready yet: give up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that is decided before the first process starts."""

    config: UpConfig
    directory: Path
    redis_command: list[str] | None
    """None: a Redis is running already."""
    redis_folder: Path | None
    """Where the one that we run keeps its data."""
    gpus: tuple[str, ...]
    gateway: GatewayConfig
    scheduler: SchedulerConfig
    engine: EngineConfig
    """A pattern: each engine has its own id."""


class Cluster:
    """`run` brings it up and keeps it up; after its end or cancellation, `stop` takes it down."""

    def __init__(self, plan: Plan, *, run_file: RunFile, console: Console, url: str) -> None:
        self._plan = plan
        self._run_file = run_file
        self._console = console
        self._url = url
        self._services: dict[str, Service] = {}
        self._keepers: list[asyncio.Task[Any]] = []
        self._store: Store | None = None
        self._fleet: Fleet | None = None
        self._fork_server = ForkServer(
            engine_environment(plan.engine, threads=plan.engine.threads), self._log("fork-server")
        )
        self._gpus = GpuShares(plan.gpus)

    async def run(self) -> None:
        """Start everything, say where it is, and keep it running until cancelled. Raises StartError."""
        try:
            await self._bring_up()
        except StoreError as exc:  # from its first answer on it can go away, or refuse
            raise StartError(str(exc)) from exc
        done, _ = await asyncio.wait(self._keepers, return_when=asyncio.FIRST_COMPLETED)
        for task in done:  # keepers never return: this one raised
            task.result()

    async def stop(self) -> None:
        """End everything in order: those that use Redis before Redis itself."""
        for task in self._keepers:
            task.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        redis = self._services.pop("redis", None)
        timeout_s = self._plan.config.stop_timeout_s
        stops: list[Coroutine[Any, Any, None]] = [s.stop(timeout_s) for s in self._services.values()]
        if self._fleet is not None:
            stops.append(self._fleet.stop())
        await self._end(*stops)
        if self._store is not None:
            await self._end(self._store.close())
        await self._end(self._fork_server.stop())
        if redis is not None:
            await self._end(redis.stop(timeout_s))

    async def _end(self, *work: Coroutine[Any, Any, None]) -> None:
        for failed in await asyncio.gather(*work, return_exceptions=True):
            if failed is not None:  # no reason to leave the rest behind
                self._console.step(f"an error while stopping: {failed!r}")

    def kill(self) -> None:
        """End everything at once, asking nobody."""
        for service in self._services.values():
            service.kill()
        if self._fleet is not None:
            self._fleet.kill()
        self._fork_server.kill()

    async def _bring_up(self) -> None:
        try:
            self._fork_server.begin()  # what it imports takes longest
        except OSError as exc:
            raise StartError(f"the fork server can't be started: {exc.strerror}") from exc
        if self._plan.redis_command is not None:
            await self._start_redis(self._plan.redis_command)
        config = self._plan.scheduler
        self._store = store = await connect(config.redis, cluster=config.cluster)
        if self._plan.redis_command is not None:
            await store.mark_new()
        term, _ = await store.read_desired()
        scheduler = self._service("scheduler-0", role_command("scheduler"), "scheduler", self._plan.scheduler)
        gateway = self._service("gateway-0", role_command("gateway"), "gateway", self._plan.gateway)
        scheduler.start()
        gateway.start()
        self._console.step("scheduler and gateway started")
        fleet = self._fleet = self._make_fleet(store, term)
        await scheduler.wait_ready(lambda: _engines_wanted(store, term), timeout_s=_START_TIMEOUT_S)
        self._keep(scheduler.keep(), "scheduler")
        await gateway.wait_ready(self._gateway_answers, timeout_s=_START_TIMEOUT_S)
        self._keep(gateway.keep(), "gateway")
        self._console.step(f"gateway answers, waiting for {self._plan.config.engines} engines")
        await self._wait_first_engine(fleet)
        self._console.headline(f"TurboServe is ready: {self._url}")

    def _keep(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        self._keepers.append(asyncio.create_task(work, name=name))

    def _service(self, name: str, command: list[str], role: str, config: object) -> Service:
        environment = dict(os.environ) if role == "redis" else role_environment(role, config)
        folder = self._plan.redis_folder if role == "redis" else None
        spec = ProcessSpec(
            name=name, command=command, log=self._log(name), folder=folder, environment=environment
        )
        service = Service(spec, run_file=self._run_file, report=self._console.step)
        self._services[name] = service
        return service

    def _log(self, name: str) -> Path:
        return self._plan.directory / "logs" / f"{name}.log"

    async def _start_redis(self, command: list[str]) -> None:
        redis = self._service("redis", command, "redis", None)
        redis.start()
        await redis.wait_ready(self._redis_answers, timeout_s=_START_TIMEOUT_S)
        self._keep(redis.keep(), "redis")
        self._console.step("redis answers")

    async def _redis_answers(self) -> None:
        while True:
            with contextlib.suppress(StoreUnavailable):
                store = await Store.connect(self._plan.scheduler.redis, cluster=self._plan.scheduler.cluster)
                return await store.close()
            await asyncio.sleep(_PROBE_INTERVAL_S)

    async def _gateway_answers(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                status, _ = await get(f"{self._url}/healthz", timeout_s=5.0, check_certificate=False)
                if status == 200:
                    return
            await asyncio.sleep(_PROBE_INTERVAL_S)

    def _make_fleet(self, store: Store, term: int) -> Fleet:
        def on_exit(engine: EngineId, end: EngineEnd) -> None:
            provisioner.report_exit(engine, end.how, crashed=end.crashed)

        fleet = Fleet(
            self._engine_spec,
            run_file=self._run_file,
            report=self._console.step,
            on_exit=on_exit,
            stop_timeout_s=self._plan.config.stop_timeout_s,
            starts_at_once=max(1, int(_STARTS_PER_CORE * usable_cores() / self._plan.engine.threads)),
            start=self._fork_server.start,
            on_death=self._note_death,
        )
        # The folder is locked: the next `up` there goes on with what this one has claimed.
        name = f"{socket.gethostname()}:{self._plan.directory}"
        provisioner = Provisioner(store, fleet, name=name, newer_than=term)
        self._keep(provisioner.follow(), "provisioner")
        return fleet

    def _note_death(self, engine: EngineId) -> None:
        for gpu in self._gpus.note_death(engine, asyncio.get_running_loop().time()):
            self._console.step(f"engines keep dying young on GPU {gpu}: avoiding it for a while")

    def _engine_spec(self, wanted: DesiredEngine) -> ProcessSpec:
        config = replace(self._plan.engine, engine_id=wanted.id, model=wanted.model)
        here = self._fleet.owned() if self._fleet is not None else ()
        gpus: tuple[str, ...] = ()
        if self._plan.gpus:
            now_s = asyncio.get_running_loop().time()
            gpus = self._gpus.give(wanted.id, config.ranks, now_s, here=here)
        name, logs = f"engine-{wanted.id}", self._plan.directory / "logs"
        engine_logs.prune(logs, here)
        self._console.step(f"{name} starting")
        return ProcessSpec(
            name=name,
            command=engine_command(ranks=config.ranks, log_dir=engine_logs.torchrun_folder(logs, name)),
            log=self._log(name),
            environment=engine_environment(config, threads=config.threads, gpus=gpus),
        )

    async def _wait_first_engine(self, fleet: Fleet) -> None:
        def settled() -> bool:
            return fleet.num_ready > 0 or fleet.failures >= _MAX_START_FAILURES

        timeout_s = self._plan.config.ready_timeout_s
        try:
            async with asyncio.timeout(timeout_s), fleet.changed:
                await fleet.changed.wait_for(settled)
        except TimeoutError:
            raise StartError(
                f"no engine is ready after {timeout_s:g} s; see {self._log('engine-*')}"
            ) from None
        if fleet.num_ready == 0:
            raise StartError(f"{fleet.failures} engines in a row ended before they were ready, see above")


async def _engines_wanted(store: Store, earlier_term: int) -> None:
    """Return when a leader newer than `earlier_term` has said which engines it wants."""
    while True:
        with contextlib.suppress(StoreUnavailable):
            term, _ = await store.read_desired()
            if term > earlier_term:
                return
        await asyncio.sleep(_PROBE_INTERVAL_S)
