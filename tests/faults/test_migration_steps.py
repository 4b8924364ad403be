"""Whatever happens at whatever step of a migration: one owner, and the client gets every chunk once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from scheduler.messages import Phase, PromptInput
from tests.cluster import is_running, until
from tests.faults.stage import SOURCE, TARGET, FaultyEngines, Script
from tests.scheduler.conftest import RedisServer

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engines(
    redis: RedisServer, random_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[FaultyEngines]:
    logs = tmp_path_factory.mktemp("steps")
    async with FaultyEngines.open(redis, "steps", random_weights, logs) as engines:
        yield engines


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
    stage = await script.start()
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
