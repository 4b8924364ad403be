"""A real engine process under torchrun, with a real Redis and a link client."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from scheduler.messages import (
    Applied,
    Closed,
    Credit,
    EngineState,
    Phase,
    PromptInput,
    SessionId,
    SessionRecord,
    Stop,
    Subscribed,
)
from scheduler.store import Store
from tests.engine.edges import until
from tests.engine.link_client import LinkClient
from tests.engine.process import EngineProcess, config, ended, place
from tests.scheduler.conftest import RedisServer, lead

pytestmark = pytest.mark.faults
S1 = SessionId("s_0000000000000001")


@dataclass
class Served:
    """An engine that serves, and a link to it."""

    store: Store
    engine: EngineProcess
    link: LinkClient
    term: int

    async def place(self, session: SessionId = S1) -> int:
        return await place(self.store, self.engine.id, session, term=self.term)

    async def record(self, session: SessionId = S1) -> SessionRecord:
        found = await self.store.get_session(session)
        assert found is not None
        return found


@pytest.fixture
async def served(
    store: Store, redis_url: str, cluster: str, random_weights: Path, tmp_path: Path
) -> AsyncIterator[Served]:
    """An engine with random weights that is ready."""
    engine = await EngineProcess.start(config(redis_url, cluster, random_weights), tmp_path / "engine.log")
    try:
        record = await engine.ready(store)
        link = await LinkClient.open(record.url)
        yield Served(store=store, engine=engine, link=link, term=await lead(store))
        await link.close()
    finally:
        await engine.kill()


async def test_a_placed_session_streams_chunks_that_decode(served: Served) -> None:
    """Subscribing from 0 gives Subscribed, the start prompt's Applied, then contiguous decodable chunks."""
    epoch = await served.place()
    await served.link.until_opened(served.store, S1)
    await served.link.subscribe(S1, epoch=epoch)
    chunks = []
    for seq in range(4):
        chunks.append(await served.link.chunk())
        await served.link.send(Credit(session=S1, controller_epoch=1, seq=seq, buffer_ms=0.0))
    assert isinstance(served.link.order[0], Subscribed)
    assert isinstance(served.link.order[1], Applied) and served.link.order[1].rev == 0
    assert [chunk.seq for chunk in chunks] == [0, 1, 2, 3]
    assert [chunk.pts_ms for chunk in chunks] == [0.0, 750.0, 1500.0, 2250.0]
    assert [served.link.decoded_frames(seq) for seq in range(4)] == [12] * 4


async def test_a_prompt_from_the_log_is_applied_and_recorded(served: Served) -> None:
    """A prompt appended by a gateway comes back as Applied before its chunk, and its record is in Redis."""
    epoch = await served.place()
    await served.link.until_opened(served.store, S1)
    await served.link.subscribe(S1, epoch=epoch)
    await served.link.chunk()
    await served.store.append_input(S1, PromptInput(text="a blue square", id="p1"), controller_epoch=1)
    await served.link.send(Credit(session=S1, controller_epoch=1, seq=0, buffer_ms=0.0))
    applied = await served.link.until(Applied)
    while applied.id != "p1":
        applied = await served.link.until(Applied)
        await served.link.send(Credit(session=S1, controller_epoch=1, seq=applied.seq - 1, buffer_ms=0.0))
    chunk = await served.link.chunk()
    history = await served.store.applied_history(S1)
    assert (applied.rev, chunk.seq, chunk.rev) == (1, applied.seq, 1)
    assert [(record.id, record.rev, record.seq) for record in history] == [
        (None, 0, 0),
        ("p1", 1, applied.seq),
    ]


async def test_stop_closes_the_session_record(served: Served) -> None:
    """Stop is answered by Closed, and the record becomes closed."""
    epoch = await served.place()
    await served.link.until_opened(served.store, S1)
    await served.link.subscribe(S1, epoch=epoch)
    await served.link.send(Stop(session=S1, controller_epoch=1))
    closed = await served.link.until(Closed)
    await served.link.until_event(served.store, "session_closed")
    record = await served.record()
    assert (closed.reason, record.phase, record.reason) == ("stopped", Phase.CLOSED, "stopped")


async def test_sigterm_to_the_rank_ends_everything_with_status_0(served: Served) -> None:
    """SIGTERM finishes in order: the engine's record is gone and torchrun exits 0."""
    epoch = await served.place()
    await served.link.until_opened(served.store, S1)
    await served.link.subscribe(S1, epoch=epoch)
    await served.link.chunk()
    os.kill(served.engine.rank, signal.SIGTERM)
    assert await served.engine.exit_status() == 0, served.engine.log.read_text()
    record = await served.store.get_engine(served.engine.id)
    assert record is None or record.state is EngineState.GONE


async def test_a_killed_agent_leaves_no_orphan_rank(served: Served) -> None:
    """kill -9 of torchrun takes the rank with it."""
    watched = os.pidfd_open(served.engine.rank)
    served.engine.agent.send_signal(signal.SIGKILL)
    await served.engine.agent.wait()
    await ended(watched)


async def test_sigterm_ends_an_engine_that_waits_for_redis(
    own_redis: RedisServer, cluster: str, random_weights: Path, tmp_path: Path
) -> None:
    """Redis dies before the engine has registered: SIGTERM still ends it with status 0."""
    log = tmp_path / "engine.log"
    own_redis.kill()
    engine = await EngineProcess.start(config(own_redis.url, cluster, random_weights), log)
    try:
        await until(lambda: "waiting for Redis" in log.read_text())
        os.kill(engine.rank, signal.SIGTERM)
        assert await engine.exit_status() == 0, log.read_text()
    finally:
        await engine.kill()
