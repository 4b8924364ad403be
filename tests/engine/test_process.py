"""A real engine process under torchrun, with a real Redis and a link client.

An engine that a test leaves alive serves the next one too.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from scheduler.messages import (
    Applied,
    ChooseRungs,
    Closed,
    Credit,
    EngineState,
    Phase,
    PromptInput,
    Rung,
    SessionId,
    Stop,
    Subscribed,
)
from scheduler.store import Store
from tests.engine.edges import until
from tests.engine.link_client import LinkClient
from tests.engine.process import EngineProcess, Engines, config, ended, place
from tests.patience import PATIENCE_S
from tests.scheduler.conftest import RedisServer

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]


@dataclass
class Served:
    """An engine that serves, a link to it, and the test's session."""

    store: Store
    engine: EngineProcess
    link: LinkClient
    term: int
    session: SessionId

    async def subscribe(self) -> None:
        """Place the session and follow it."""
        epoch = await place(self.store, self.engine.id, self.session, term=self.term)
        await self.link.until_opened(self.store, self.session)
        await self.link.subscribe(self.session, epoch=epoch)

    async def ack(self, seq: int) -> None:
        await self.link.send(Credit(session=self.session, controller_epoch=1, seq=seq, buffer_ms=0.0))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engines(
    redis_server: RedisServer, random_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Engines]:
    """Engines with random weights."""
    logs = tmp_path_factory.mktemp("process")
    async with Engines.open(redis_server, "process", random_weights, logs) as engines:
        yield engines


_numbers = itertools.count(1)


@pytest_asyncio.fixture(loop_scope="module")
async def served(engines: Engines) -> AsyncIterator[Served]:
    (engine,) = await engines.take(1)
    record = await engine.ready(engines.store)
    link = await LinkClient.open(record.url)
    session = SessionId(f"s_{next(_numbers):016x}")
    yield Served(store=engines.store, engine=engine, link=link, term=engines.term, session=session)
    await link.close()


async def test_a_placed_session_streams_chunks_that_decode(served: Served) -> None:
    """Subscribing from 0 gives Subscribed, the start prompt's Applied, then contiguous decodable chunks."""
    await served.subscribe()
    chunks = []
    for seq in range(4):
        chunks.append(await served.link.chunk())
        await served.ack(seq)
    assert isinstance(served.link.order[0], Subscribed)
    assert isinstance(served.link.order[1], Applied) and served.link.order[1].rev == 0
    assert [chunk.seq for chunk in chunks] == [0, 1, 2, 3]
    assert [chunk.pts_ms for chunk in chunks] == [0.0, 750.0, 1500.0, 2250.0]
    assert [served.link.decoded_frames(seq) for seq in range(4)] == [12] * 4


async def test_chunks_come_at_the_rungs_that_the_gateway_has_chosen(served: Served) -> None:
    """At the lower one alone, in far fewer bytes; then at both, each chunk twice. All of them decode."""
    await served.subscribe()
    full = len(served.link.payloads[(await served.link.chunk()).seq, 0])
    await served.link.send(ChooseRungs(session=served.session, rungs=(Rung.LOW,)))
    await served.ack(0)
    seq = 0
    while len(served.link.payloads[seq, 0]) > full / 2:
        seq = (await served.link.chunk()).seq
        await served.ack(seq)
    await served.link.send(ChooseRungs(session=served.session, rungs=(Rung.FULL, Rung.LOW)))
    while (chunk := await served.link.chunk()).rung is None:
        assert len(served.link.payloads[chunk.seq, 0]) <= full / 2
        await served.ack(chunk.seq)
    low = len(served.link.payloads[chunk.seq, 0])
    same = await served.link.chunk()
    assert (chunk.rung, same.rung, same.seq) == (Rung.LOW, Rung.FULL, chunk.seq)
    assert low < len(served.link.payloads[same.seq, 0])
    assert [served.link.decoded_frames(n) for n in range(same.seq + 1)] == [12] * (same.seq + 1)


async def test_a_prompt_from_the_log_is_applied_and_recorded(served: Served) -> None:
    """A prompt appended by a gateway comes back as Applied before its chunk, and its record is in Redis."""
    await served.subscribe()
    await served.link.chunk()
    await served.store.append_input(
        served.session, PromptInput(text="a blue square", id="p1"), controller_epoch=1
    )
    await served.ack(0)
    applied = await served.link.until(Applied)
    while applied.id != "p1":
        applied = await served.link.until(Applied)
        await served.ack(applied.seq - 1)
    chunk = await served.link.chunk()
    async with asyncio.timeout(PATIENCE_S):  # a chunk does not wait for long for a Redis that stands still
        while len(history := await served.store.applied_history(served.session)) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert (applied.rev, chunk.seq, chunk.rev) == (1, applied.seq, 1)
    assert [(record.id, record.rev, record.seq) for record in history] == [
        (None, 0, 0),
        ("p1", 1, applied.seq),
    ]


async def test_stop_closes_the_session_record(served: Served) -> None:
    """Stop is answered by Closed, and the record becomes closed."""
    await served.subscribe()
    await served.link.send(Stop(session=served.session, controller_epoch=1))
    closed = await served.link.until(Closed)
    await served.link.until_event(served.store, "session_closed", served.session)
    record = await served.store.get_session(served.session)
    assert record is not None
    assert (closed.reason, record.phase, record.reason) == ("stopped", Phase.CLOSED, "stopped")


async def test_sigterm_to_the_rank_ends_everything_with_status_0(served: Served) -> None:
    """SIGTERM finishes in order: the engine's record is gone and torchrun exits 0."""
    await served.subscribe()
    await served.link.chunk()
    os.kill(served.engine.rank, signal.SIGTERM)
    assert await served.engine.exit_status() == 0, served.engine.log.read_text()
    record = await served.store.get_engine(served.engine.id)
    assert record is None or record.state is EngineState.GONE


async def test_a_killed_agent_leaves_no_orphan_rank(served: Served) -> None:
    """kill -9 of torchrun takes the rank with it."""
    watched = os.pidfd_open(served.engine.rank)
    await served.engine.kill()
    await ended(watched)


async def test_sigterm_ends_an_engine_that_waits_for_redis(
    engines: Engines, own_redis: RedisServer, cluster: str, random_weights: Path, tmp_path: Path
) -> None:
    """Redis dies before the engine has registered: SIGTERM still ends it with status 0."""
    log = tmp_path / "engine.log"
    own_redis.kill()
    settings = config(own_redis.url, cluster, random_weights)
    engine = await EngineProcess.start(engines.server, settings, log)
    try:
        await until(lambda: "waiting for Redis" in log.read_text())
        os.kill(engine.rank, signal.SIGTERM)
        assert await engine.exit_status() == 0, log.read_text()
    finally:
        await engine.kill()
