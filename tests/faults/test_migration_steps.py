"""Whatever happens at whatever step of a migration: one owner, and the client gets every chunk once.

Two real engines, both `tests.engine.faulty_engine`; the test is the leader and the gateway. Engines that a
test leaves alive serve the next one too.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from scheduler.messages import (
    ChunkPart,
    Credit,
    EngineId,
    Input,
    Moved,
    Phase,
    PromptInput,
    Refused,
    SessionId,
    SessionRecord,
)
from scheduler.store import Store, StoreUnavailable
from tests.cluster import is_running, until
from tests.engine.conftest import random_weights  # noqa: F401 - a fixture
from tests.engine.link_client import LinkClient
from tests.engine.process import EngineProcess, Engines, place
from tests.scheduler.conftest import RedisServer, start_redis

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]
LIMIT_MS = 8_000
SOURCE, TARGET = "source", "target"


@dataclass
class Client:
    """Follows the session from owner to owner, as a gateway does."""

    store: Store
    session: SessionId
    next_seq: int = 0
    next_frame: int = 0
    link: LinkClient | None = None
    """Subscribed at the owner."""
    buffer_ms: float = 0.0
    """What the player still holds, as it says."""
    seen: list[tuple[int, EngineId, int]] = field(default_factory=list)
    """(seq, owner, epoch) of each complete chunk."""

    async def follow(self) -> None:
        """Take chunks until cancelled. A chunk is taken when it is complete and the next one."""
        while True:
            try:
                record = await self.store.get_session(self.session)
                if record is not None and record.engine is not None and record.opened:
                    engine = await self.store.get_engine(record.engine)
                    assert engine is not None
                    await self._watch(await LinkClient.open(engine.url), record)
            except (OSError, ConnectionClosed, InvalidHandshake, StoreUnavailable):
                pass
            await asyncio.sleep(0.05)  # the next owner is known to Redis soon

    async def acknowledge(self, link: LinkClient) -> None:
        """Say what was taken."""
        credit = Credit(
            session=self.session, controller_epoch=1, seq=self.next_seq - 1, buffer_ms=self.buffer_ms
        )
        await link.send(credit)

    async def _watch(self, link: LinkClient, record: SessionRecord) -> None:
        try:
            await link.subscribe(self.session, self.next_seq, epoch=record.epoch, next_frame=self.next_frame)
            self.link = link
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
                    await self.acknowledge(link)
        finally:
            await link.close()


class FaultyEngines(Engines):
    """Engines to which something happens where a test wants it."""

    async def start(self, engine: EngineId) -> EngineProcess:
        faults, log = str(self._faults(engine)), self.logs / f"{engine}.log"
        module = "tests.engine.faulty_engine"
        return await EngineProcess.start(self.settings(engine), log, module=module, FAULT_FILE=faults)

    def arm(
        self, engine: EngineId, step: str, fault: str, *, redis_pid: int | None = None, rank: int = 0
    ) -> None:
        """See `tests.engine.faulty_engine`."""
        order = {"step": step, "fault": fault, "redis_pid": redis_pid, "rank": rank}
        self._faults(engine).write_text(json.dumps(order))

    def has_struck(self, engine: EngineId) -> bool:
        """Has it happened?"""
        return not self._faults(engine).exists()

    def _faults(self, engine: EngineId) -> Path:
        return self.logs / f"{engine}.fault"


@dataclass
class Stage:
    """Two engines, a session on the first, its client."""

    store: Store
    redis: RedisServer
    source: EngineProcess
    target: EngineProcess
    session: SessionId
    term: int
    client: Client

    async def begin(self, number: int = 1, *, expect_epoch: int = 1, chunks: int = 2) -> None:
        """Have it moved once the client has so many chunks."""
        await until(lambda: self.client.next_seq >= chunks)
        await self.store.begin_migration(
            self.session,
            self.target.id,
            expect_epoch=expect_epoch,
            term=self.term,
            migration_id=f"m_{self.session}_{number}",
            limit_ms=LIMIT_MS,
        )

    async def record(self) -> SessionRecord:
        found = await self.store.get_session(self.session)
        assert found is not None
        return found

    async def over(self) -> SessionRecord:
        """The record once the migration is neither committed nor called off any more."""
        while (found := await self.record()).in_flight is not None:
            await self.store.call_off_migration(self.session, term=self.term)
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
    """Puts a session on the first of two engines, with a fault in one of them."""

    def __init__(self, engines: FaultyEngines, redis: RedisServer, session: SessionId, term: int) -> None:
        self._engines, self._redis, self._session, self._term = engines, redis, session, term
        self._following: asyncio.Task[None] | None = None
        self._client = Client(engines.store, session)

    async def start(
        self, faulty: str, step: str, fault: str, *, rank: int = 0, inputs: Sequence[Input] = ()
    ) -> Stage:
        """`inputs` follow the start prompt in the log."""
        engines, session = self._engines, self._session
        source, target = await engines.take(2)
        assert self._redis.process is not None
        armed = source if faulty == SOURCE else target
        engines.arm(armed.id, step, fault, redis_pid=self._redis.process.pid, rank=rank)
        await place(engines.store, source.id, session, inputs=inputs, term=self._term)
        self.follow()
        return Stage(engines.store, self._redis, source, target, session, self._term, self._client)

    def follow(self) -> None:
        """Begin to follow the session, or begin anew."""
        if self._following is not None:
            self._following.cancel()
        self._following = asyncio.create_task(self._client.follow())

    async def end(self) -> None:
        assert self._redis.process is not None
        self._redis.process.send_signal(signal.SIGCONT)
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
            await self._engines.store.close_session(self._session, "the test has ended")
        for engine in self._engines.alive:
            if engine.agent.returncode is not None:
                await self._engines.store.lose_engine(engine.id, term=self._term, reason="killed")


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """A server that these tests may stop."""
    yield from start_redis()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engines(
    redis: RedisServer,
    random_weights: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[FaultyEngines]:
    store = await Store.connect(redis.url, cluster="steps")
    engines = FaultyEngines(store, redis.url, "steps", random_weights, tmp_path_factory.mktemp("steps"))
    yield engines
    await engines.kill()
    await store.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def term(engines: FaultyEngines) -> int:
    """The test is the leader for as long as it takes."""
    term = await engines.store.acquire_lease("test", 3_600_000)
    assert term is not None
    return term


_numbers = itertools.count(1)


@pytest_asyncio.fixture(loop_scope="module")
async def script(engines: FaultyEngines, redis: RedisServer, term: int) -> AsyncIterator[Script]:
    script = Script(engines, redis, SessionId(f"s_{next(_numbers):016x}"), term)
    yield script
    await script.end()


@pytest.mark.parametrize("step", ["send:frames", "send:final", "commit", "committed", "send:committed"])
async def test_source_killed(script: Script, step: str) -> None:
    """Before the commit recovery places it anew; after it the target goes on with what it has."""
    stage = await script.start(SOURCE, step, "kill")
    await stage.begin()
    await stage.source.exit_status()
    await stage.store.lose_engine(stage.source.id, term=stage.term, reason="killed")
    record = await stage.over()
    is_committed = step in ("committed", "send:committed")
    if not is_committed:
        assert (record.phase, record.epoch) == (Phase.QUEUED, 2)
        await stage.store.place_session(stage.session, stage.target.id, expect_epoch=2, term=stage.term)
    await stage.goes_on()
    record = await stage.record()
    assert (record.engine, record.epoch) == (stage.target.id, 2 if is_committed else 3)


@pytest.mark.parametrize("step", ["send:ready", "send:verified"])
async def test_target_killed(script: Script, step: str) -> None:
    """The source goes on; the session's owner never changes."""
    stage = await script.start(TARGET, step, "kill")
    await stage.begin()
    await stage.target.exit_status()
    record = await stage.over()
    assert (record.engine, record.epoch, record.failed_moves) == (stage.source.id, 1, 1)
    await stage.goes_on()


@pytest.mark.parametrize(
    ("faulty", "step"),
    [(SOURCE, "send:frames"), (SOURCE, "send:final"), (TARGET, "send:ready"), (TARGET, "send:verified")],
)
async def test_link_cut(script: Script, faulty: str, step: str) -> None:
    """The source goes on, and the next migration, over a fresh group, succeeds."""
    stage = await script.start(faulty, step, "cut")
    await stage.begin()
    record = await stage.over()
    assert (record.engine, record.epoch) == (stage.source.id, 1)
    await stage.goes_on()
    await stage.begin(2)
    assert ((await stage.over()).engine, (await stage.record()).epoch) == (stage.target.id, 2)
    await stage.goes_on()


@pytest.mark.parametrize(
    ("faulty", "step"),
    [(SOURCE, "send:frames"), (SOURCE, "commit"), (TARGET, "send:verified"), (SOURCE, "committed")],
)
async def test_redis_gone(script: Script, faulty: str, step: str) -> None:
    """It stops for 3 s: afterwards there is one owner, and inputs sent then are applied."""
    stage = await script.start(faulty, step, "stop-redis")
    await stage.begin()
    redis = stage.redis.process
    assert redis is not None
    await until(lambda: "T" in Path(f"/proc/{redis.pid}/stat").read_text().rpartition(")")[2].split()[0])
    await asyncio.sleep(3)  # the outage
    redis.send_signal(signal.SIGCONT)
    record = await stage.over()
    assert (record.engine, record.epoch) in ((stage.source.id, 1), (stage.target.id, 2))
    assert step != "committed" or record.engine == stage.target.id
    await stage.store.append_input(
        stage.session, PromptInput(text="a blue square", id="p"), controller_epoch=1
    )
    while not (applied := [a.rev for a in await stage.store.applied_history(stage.session) if a.id == "p"]):
        await stage.goes_on(1)
    assert applied == [1]
    await stage.goes_on(2)


async def test_an_owner_that_was_stopped_writes_nothing(script: Script) -> None:
    """SIGSTOP, re-placement, SIGCONT: the old owner is refused and drops the session."""
    stage = await script.start(SOURCE, "none", "none")
    await until(lambda: stage.client.next_seq >= 2)
    rank = stage.source.rank
    os.kill(rank, signal.SIGSTOP)
    await stage.store.lose_engine(stage.source.id, term=stage.term, reason="silent")
    await stage.store.place_session(stage.session, stage.target.id, expect_epoch=2, term=stage.term)
    # Its link hangs with it, so the client is told by the record.
    script.follow()
    await stage.goes_on()
    os.kill(rank, signal.SIGCONT)
    assert await stage.source.exit_status() != 0  # fenced
    assert not is_running(rank)
    await stage.goes_on()
    record = await stage.record()
    assert (record.engine, record.epoch) == (stage.target.id, 3)
    assert {epoch for _, _, epoch in stage.client.seen} == {1, 3}
