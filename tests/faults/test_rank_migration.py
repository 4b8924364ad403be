"""Live migration between two engines of two ranks each: both shares or nothing.

As in `test_migration_steps.py`; each engine has room for one session, so that a place which is not given up
is noticed by the next migration.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from engine.config import EngineConfig
from scheduler.messages import EngineId, Phase, SessionId
from scheduler.store import Store
from tests.engine.conftest import random_weights  # noqa: F401 - a fixture
from tests.faults.test_migration_steps import SOURCE, TARGET, FaultyEngines, Script
from tests.scheduler.conftest import RedisServer, start_redis

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]


class PairedEngines(FaultyEngines):
    """Of two ranks each."""

    def settings(self, engine: EngineId) -> EngineConfig:
        return replace(super().settings(engine), ranks=2, capacity=1)


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    yield from start_redis()


@pytest.fixture(scope="module")
def latents_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the engines write the latents of each chunk, on each rank."""
    folder = tmp_path_factory.mktemp("latents")
    os.environ["LATENTS_FOLDER"] = str(folder)
    yield folder
    del os.environ["LATENTS_FOLDER"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engines(
    redis: RedisServer,
    latents_folder: Path,
    random_weights: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[PairedEngines]:
    store = await Store.connect(redis.url, cluster="ranks")
    engines = PairedEngines(store, redis.url, "ranks", random_weights, tmp_path_factory.mktemp("ranks"))
    yield engines
    await engines.kill()
    await store.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def term(engines: PairedEngines) -> int:
    """The test is the leader for as long as it takes."""
    term = await engines.store.acquire_lease("test", 3_600_000)
    assert term is not None
    return term


_numbers = itertools.count(1)


@pytest_asyncio.fixture(loop_scope="module")
async def script(engines: PairedEngines, redis: RedisServer, term: int) -> AsyncIterator[Script]:
    script = Script(engines, redis, SessionId(f"s_{next(_numbers):016x}"), term)
    yield script
    await script.end()


def latents(folder: Path, session: SessionId) -> dict[tuple[int, int], torch.Tensor]:
    """(rank, seq) → latents, whichever engine made them."""
    found = {}
    for path in (folder / session).glob("*.pt"):
        _, rank, seq = path.stem.rsplit("-", 2)
        found[int(rank), int(seq)] = torch.load(path, weights_only=True)
    return found


async def test_moved_there_and_back_changes_no_bit(
    script: Script, engines: PairedEngines, redis: RedisServer, term: int, latents_folder: Path
) -> None:
    """On either rank; the second time with the past out of the window."""
    stage = await script.start(SOURCE, "none", "none")
    await stage.begin()
    record = await stage.over()
    assert (record.engine, record.epoch, record.failed_moves) == (stage.target.id, 2, 0)
    await stage.goes_on(6)
    back = replace(stage, source=stage.target, target=stage.source)
    await back.begin(2, expect_epoch=2)
    record = await stage.over()
    assert (record.engine, record.epoch, record.failed_moves) == (stage.source.id, 3, 0)
    await stage.goes_on()
    made = stage.client.next_seq
    await script.end()
    alone = Script(engines, redis, SessionId(f"s_{next(_numbers):016x}"), term)
    undisturbed = await alone.start(SOURCE, "none", "none")
    await undisturbed.goes_on(made)
    await alone.end()
    moved, expected = (latents(latents_folder, s.session) for s in (stage, undisturbed))
    keys = [(rank, seq) for rank in range(2) for seq in range(made)]
    assert all(torch.equal(moved[key], expected[key]) for key in keys)


@pytest.mark.parametrize(("faulty", "step"), [(SOURCE, "send:final"), (TARGET, "send:verified")])
async def test_the_link_of_one_rank_cut(script: Script, faulty: str, step: str) -> None:
    """The share of rank 0 was verified for nothing: the session stays whole, and moves at the next try."""
    stage = await script.start(faulty, step, "cut", rank=1)
    await stage.begin()
    record = await stage.over()
    assert (record.engine, record.epoch, record.failed_moves) == (stage.source.id, 1, 1)
    await stage.goes_on()
    await stage.begin(2)
    assert ((await stage.over()).engine, (await stage.record()).epoch) == (stage.target.id, 2)
    await stage.goes_on()


async def test_a_rank_of_the_target_killed(script: Script) -> None:
    """With its share in place, but not verified: the source goes on."""
    stage = await script.start(TARGET, "send:verified", "kill", rank=1)
    await stage.begin()
    assert await stage.target.exit_status() != 0
    record = await stage.over()
    assert (record.engine, record.epoch, record.failed_moves) == (stage.source.id, 1, 1)
    await stage.goes_on()


async def test_a_rank_of_the_source_killed(script: Script) -> None:
    """Its engine goes with it, and nothing is committed: the target holds nothing, and rebuilds it."""
    stage = await script.start(SOURCE, "send:final", "kill", rank=1)
    await stage.begin()
    assert await stage.source.exit_status() != 0
    await stage.store.lose_engine(stage.source.id, term=stage.term, reason="killed")
    record = await stage.over()
    assert (record.phase, record.epoch) == (Phase.QUEUED, 2)
    await stage.store.place_session(stage.session, stage.target.id, expect_epoch=2, term=stage.term)
    await stage.goes_on()
    record = await stage.record()
    assert (record.engine, record.epoch) == (stage.target.id, 3)
