"""An engine as a real torchrun job, started by a fork server as `turboserve up` starts it."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import pytest

from engine.config import EngineConfig
from launch.fork_server import ForkServer
from launch.processes import Child, adopt_orphans, name_of
from launch.roles import AGENT
from launch.supervisor import ProcessSpec
from scheduler.messages import EngineId, EngineRecord, EngineState, Input, PromptInput, SessionId
from scheduler.store import Store
from tests.cluster import SCALE
from tests.engine.link_client import SECRET
from tests.patience import wait_for_redis
from tests.scheduler.conftest import GATEWAY, RedisServer

RESUME_HASH = "ab" * 32


def torchrun(ranks: int) -> list[str]:
    """The command to which a program's name and arguments are added."""
    return [
        *(*AGENT, f"--nproc-per-node={ranks}", "--max-restarts=0"),
        *("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"),
    ]


def rank_of(pid: int) -> int:
    """Which rank of a running engine this process is."""
    return int(name_of(pid).removeprefix("engine ").partition("/")[0])


class EngineProcess:
    """The agent (torchrun) and, once ready, the pid of its rank."""

    def __init__(self, engine: EngineId, agent: Child, log: Path) -> None:
        self.id, self.agent, self.log = engine, agent, log

    @classmethod
    async def start(
        cls, server: ForkServer, config: EngineConfig, log: Path, *, module: str = "engine", **variables: str
    ) -> EngineProcess:
        spec = ProcessSpec(
            name=config.engine_id,
            command=[*torchrun(config.ranks), "-m", module],
            log=log,
            environment={**os.environ, "TURBOSERVE_ENGINE_CONFIG": json.dumps(asdict(config)), **variables},
        )
        return cls(EngineId(config.engine_id), await server.start(spec), log)

    @property
    def is_over(self) -> bool:
        """Has the agent ended?"""
        return self.agent.exited.done()

    @property
    def ranks(self) -> dict[int, int]:
        """Rank → pid: the agent's children."""
        children = Path(f"/proc/{self.agent.pid}/task/{self.agent.pid}/children").read_text().split()
        return {rank_of(int(pid)): int(pid) for pid in children}

    @property
    def rank(self) -> int:
        """Pid of the only rank."""
        (pid,) = self.ranks.values()
        return pid

    async def ready(self, store: Store) -> EngineRecord:
        """Wait until the engine is registered."""
        position = "0-0"
        while True:
            record = await store.get_engine(self.id)
            if record is not None and record.state is EngineState.READY:
                return record
            assert not self.is_over, self.log.read_text()
            events = await store.read_events(position, block_ms=500)
            position = events[-1][0] if events else position

    async def exit_status(self) -> int:
        async with asyncio.timeout(60 * SCALE):
            return await asyncio.shield(self.agent.exited)

    async def kill(self) -> None:
        """Kill the agent, and with it the rank."""
        self.agent.send(signal.SIGKILL)
        await self.exit_status()


def config(
    store_url: str, cluster: str, weights: Path, engine: str = "e_00000001", **more: object
) -> EngineConfig:
    """Settings of a test's engine."""
    return EngineConfig(
        engine_id=engine,
        redis=store_url,
        cluster=cluster,
        weights=str(weights),
        link_secret=SECRET,
        **more,  # type: ignore[arg-type]
    )


@dataclass
class Engines:
    """Live engines for the tests of a module, whatever happened to the ones before."""

    store: Store
    term: int
    """The test is the leader for as long as it takes."""
    redis: RedisServer
    cluster: str
    weights: Path
    logs: Path
    server: ForkServer
    alive: list[EngineProcess] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @classmethod
    @asynccontextmanager
    async def open(cls, redis: RedisServer, cluster: str, weights: Path, logs: Path) -> AsyncIterator[Self]:
        """None yet; those that are alive at the end are killed."""
        adopt_orphans()
        server = ForkServer(os.environ, logs / "fork-server.log")
        with pytest.MonkeyPatch.context() as patch:
            wait_for_redis(patch)
            store = await Store.connect(redis.url, cluster=cluster)
            term = await store.acquire_lease("test", 3_600_000)
        assert term is not None
        engines = cls(store, term, redis, cluster, weights, logs, server)
        try:
            yield engines
        finally:
            for engine in engines.alive:
                await engine.kill()
            await server.stop()
            await store.close()

    async def take(self, count: int) -> list[EngineProcess]:
        """So many engines that are ready: those of earlier tests that still run, and new ones."""
        self.alive = [engine for engine in self.alive if not engine.is_over]
        self.alive += [await self.start(self.next_id()) for _ in range(count - len(self.alive))]
        for engine in self.alive:
            await engine.ready(self.store)
        return self.alive

    def next_id(self) -> EngineId:
        """Of an engine that has not been yet."""
        return EngineId(f"e_{next(self._numbers):08x}")

    async def start(self, engine: EngineId) -> EngineProcess:
        """Start one, without waiting for it."""
        return await EngineProcess.start(self.server, self.settings(engine), self.logs / f"{engine}.log")

    def settings(self, engine: EngineId) -> EngineConfig:
        return config(self.redis.url, self.cluster, self.weights, engine=engine)


async def place(
    store: Store,
    engine: EngineId,
    session: SessionId,
    *,
    text: str = "a red ball",
    inputs: Sequence[Input] = (),
    term: int,
) -> int:
    """Create a session, with more inputs after its prompt, and place it; returns its epoch."""
    await store.create_session(
        session=session,
        model="shapes",
        prompt=PromptInput(text=text),
        seed=7,
        lead_ms=1500,
        codec="h264",
        resume_hash=RESUME_HASH,
        gateway=GATEWAY,
        queue_limit=64,
    )
    for item in inputs:
        await store.append_input(session, item, controller_epoch=1)
    return await store.place_session(session, engine, expect_epoch=0, term=term)


async def ended(pidfd: int) -> None:
    """Wait until the process of this pidfd has ended, whoever its parent is."""
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pidfd, gone.set)
    try:
        async with asyncio.timeout(30 * SCALE):
            await gone.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
