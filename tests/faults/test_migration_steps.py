"""Whatever happens at whatever step of a migration: one owner, and the client gets every chunk once.

Two real engines, one of them `tests.engine.faulty_engine`; the test is the leader and the gateway.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from scheduler.messages import (
    ChunkPart,
    Credit,
    EngineId,
    Moved,
    Phase,
    PromptInput,
    Refused,
    SessionRecord,
)
from scheduler.store import Store, StoreUnavailable
from tests.cluster import is_running, until
from tests.engine.conftest import random_weights  # noqa: F401 - a fixture
from tests.engine.link_client import LinkClient
from tests.engine.process import EngineProcess, config, place
from tests.scheduler.conftest import (
    E1,
    E2,
    S1,
    RedisServer,
    cluster,  # noqa: F401 - a fixture
    lead,
    own_redis,  # noqa: F401 - a fixture
)

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]
LIMIT_MS = 8_000


@dataclass
class Client:
    """Follows the session from owner to owner, as a gateway does."""

    store: Store
    next_seq: int = 0
    next_frame: int = 0
    seen: list[tuple[int, EngineId, int]] = field(default_factory=list)
    """(seq, owner, epoch) of each complete chunk."""

    async def follow(self) -> None:
        """Take chunks until cancelled. A chunk is taken when it is complete and the next one."""
        while True:
            try:
                record = await self.store.get_session(S1)
                if record is not None and record.engine is not None and record.opened:
                    engine = await self.store.get_engine(record.engine)
                    assert engine is not None
                    await self._watch(await LinkClient.open(engine.url), record)
            except (OSError, ConnectionClosed, InvalidHandshake, StoreUnavailable):
                pass
            await asyncio.sleep(0.05)  # the next owner is known to Redis soon

    async def _watch(self, link: LinkClient, record: SessionRecord) -> None:
        try:
            await link.subscribe(S1, self.next_seq, epoch=record.epoch, next_frame=self.next_frame)
            while True:
                message = await link.receive()
                if isinstance(message, Moved | Refused):
                    return
                if not isinstance(message, ChunkPart) or message.seq < self.next_seq:
                    continue
                assert (message.seq, message.epoch) == (self.next_seq, record.epoch)
                if message.part + 1 == message.parts:
                    assert link.decoded_frames(message.seq) == 12
                    assert record.engine is not None
                    self.seen.append((message.seq, record.engine, message.epoch))
                    self.next_seq, self.next_frame = message.seq + 1, self.next_frame + 12
                    credit = Credit(session=S1, controller_epoch=1, seq=message.seq, buffer_ms=0)
                    await link.send(credit)
        finally:
            await link.close()


@dataclass
class Stage:
    """Two engines, a session on the first, its client."""

    store: Store
    redis: RedisServer
    engines: dict[EngineId, EngineProcess]
    term: int
    client: Client

    async def begin(self) -> None:
        await until(lambda: self.client.next_seq >= 2)
        await self.store.begin_migration(
            S1, E2, expect_epoch=1, term=self.term, migration_id="m_1", limit_ms=LIMIT_MS
        )

    async def record(self) -> SessionRecord:
        found = await self.store.get_session(S1)
        assert found is not None
        return found

    async def over(self) -> SessionRecord:
        """The record once the migration is neither committed nor called off any more."""
        while (found := await self.record()).in_flight is not None:
            await self.store.call_off_migration(S1, term=self.term)
            await asyncio.sleep(0.1)  # as a leader's tick
        return found

    async def goes_on(self, chunks: int = 2) -> None:
        """Return when the client got so many more, then check all that it got."""
        goal = self.client.next_seq + chunks
        await until(lambda: self.client.next_seq >= goal)
        seqs, epochs = [s for s, _, _ in self.client.seen], [e for _, _, e in self.client.seen]
        assert seqs == list(range(len(seqs)))
        assert epochs == sorted(epochs)
        assert len({(owner, epoch) for _, owner, epoch in self.client.seen}) == len(set(epochs))


class Script:
    """Starts a stage with a fault."""

    def __init__(self, store: Store, redis: RedisServer, name: str, weights: Path, logs: Path) -> None:
        self._args = (redis.url, name, weights)
        self._store, self._redis, self._logs = store, redis, logs
        self._engines: dict[EngineId, EngineProcess] = {}
        self._following: asyncio.Task[None] | None = None

    async def start(self, faulty: EngineId, step: str, fault: str) -> Stage:
        assert self._redis.process is not None
        for engine in (E1, E2):
            variables = {"FAULT_STEP": step, "FAULT": fault, "REDIS_PID": str(self._redis.process.pid)}
            is_faulty = engine == faulty
            self._engines[engine] = await EngineProcess.start(
                config(*self._args, engine=engine),
                self._logs / f"{engine}.log",
                module="tests.engine.faulty_engine" if is_faulty else "engine",
                **(variables if is_faulty else {}),
            )
        for process in self._engines.values():
            await process.ready(self._store)
        term = await lead(self._store)
        client = Client(self._store)
        await place(self._store, E1, S1, term=term)
        self._following = asyncio.create_task(client.follow())
        return Stage(self._store, self._redis, self._engines, term, client)

    async def end(self) -> None:
        assert self._redis.process is not None
        self._redis.process.send_signal(signal.SIGCONT)
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        for process in self._engines.values():
            await process.kill()


@pytest.fixture
async def script(
    own_redis: RedisServer,  # noqa: F811
    cluster: str,  # noqa: F811
    random_weights: Path,  # noqa: F811
    tmp_path: Path,
) -> AsyncIterator[Script]:
    store = await Store.connect(own_redis.url, cluster=cluster)
    script = Script(store, own_redis, cluster, random_weights, tmp_path)
    yield script
    await script.end()
    await store.close()


@pytest.mark.parametrize("step", ["send:frames", "send:final", "commit", "committed", "send:committed"])
async def test_source_killed(script: Script, step: str) -> None:
    """Before the commit recovery places it anew; after it the target goes on with what it has."""
    stage = await script.start(E1, step, "kill")
    await stage.begin()
    await stage.engines[E1].exit_status()
    await stage.store.lose_engine(E1, term=stage.term, reason="killed")
    record = await stage.over()
    is_committed = step in ("committed", "send:committed")
    if not is_committed:
        assert (record.phase, record.epoch) == (Phase.QUEUED, 2)
        await stage.store.place_session(S1, E2, expect_epoch=2, term=stage.term)
    await stage.goes_on()
    assert ((await stage.record()).engine, (await stage.record()).epoch) == (E2, 2 if is_committed else 3)


@pytest.mark.parametrize("step", ["send:ready", "send:verified"])
async def test_target_killed(script: Script, step: str) -> None:
    """The source goes on; the session's owner never changes."""
    stage = await script.start(E2, step, "kill")
    await stage.begin()
    await stage.engines[E2].exit_status()
    record = await stage.over()
    assert (record.engine, record.epoch, record.failed_moves) == (E1, 1, 1)
    await stage.goes_on()


@pytest.mark.parametrize(
    ("faulty", "step"), [(E1, "send:frames"), (E1, "send:final"), (E2, "send:ready"), (E2, "send:verified")]
)
async def test_link_cut(script: Script, faulty: EngineId, step: str) -> None:
    """The source goes on, and the next migration, over a fresh group, succeeds."""
    stage = await script.start(faulty, step, "cut")
    await stage.begin()
    record = await stage.over()
    assert (record.engine, record.epoch) == (E1, 1)
    await stage.goes_on()
    await stage.store.begin_migration(
        S1, E2, expect_epoch=1, term=stage.term, migration_id="m_2", limit_ms=LIMIT_MS
    )
    assert ((await stage.over()).engine, (await stage.record()).epoch) == (E2, 2)
    await stage.goes_on()


@pytest.mark.parametrize(
    ("faulty", "step"), [(E1, "send:frames"), (E1, "commit"), (E2, "send:verified"), (E1, "committed")]
)
async def test_redis_gone(script: Script, faulty: EngineId, step: str) -> None:
    """It stops for 3 s: afterwards there is one owner, and inputs sent then are applied."""
    stage = await script.start(faulty, step, "stop-redis")
    await stage.begin()
    redis = stage.redis.process
    assert redis is not None
    await until(lambda: "T" in Path(f"/proc/{redis.pid}/stat").read_text().rpartition(")")[2].split()[0])
    await asyncio.sleep(3)  # the outage
    redis.send_signal(signal.SIGCONT)
    record = await stage.over()
    assert (record.engine, record.epoch) in ((E1, 1), (E2, 2))
    assert step != "committed" or record.engine == E2
    await stage.store.append_input(S1, PromptInput(text="a blue square", id="p"), controller_epoch=1)
    while not (applied := [a.rev for a in await stage.store.applied_history(S1) if a.id == "p"]):
        await stage.goes_on(1)
    assert applied == [1]
    await stage.goes_on(2)


async def test_an_owner_that_was_stopped_writes_nothing(script: Script) -> None:
    """SIGSTOP, re-placement, SIGCONT: the old owner is refused and drops the session."""
    stage = await script.start(E1, "none", "none")
    await until(lambda: stage.client.next_seq >= 2)
    rank = stage.engines[E1].rank
    os.kill(rank, signal.SIGSTOP)
    await stage.store.lose_engine(E1, term=stage.term, reason="silent")
    await stage.store.place_session(S1, E2, expect_epoch=2, term=stage.term)
    # Its link hangs with it, so the client is told by the record.
    assert script._following is not None
    script._following.cancel()
    script._following = asyncio.create_task(stage.client.follow())
    await stage.goes_on()
    os.kill(rank, signal.SIGCONT)
    assert await stage.engines[E1].exit_status() != 0  # fenced
    assert not is_running(rank)
    await stage.goes_on()
    record = await stage.record()
    assert (record.engine, record.epoch) == (E2, 3)
    assert {epoch for _, _, epoch in stage.client.seen} == {1, 3}
