"""Engines of several ranks, as real torchrun jobs on gloo."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch

from engine.models.shapes.model import TINY, ShapesModel
from engine.ranks import Alone, check_split
from scheduler.messages import Credit, SessionId
from tests.engine.link_client import LinkClient
from tests.engine.process import EngineProcess, Engines, ended, place, torchrun
from tests.engine.rank_program import CHUNKS, PROGRAMS, SESSIONS, plain
from tests.scheduler.conftest import RedisServer

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]
on_engines = pytest.mark.asyncio(loop_scope="module")
PROGRAM = Path(__file__).parent / "rank_program.py"
TOLERANCE = 1e-5
"""float32: GEMMs over other numbers of tokens may add in another order."""
Found = dict[str, Any]
Ranks = dict[int, Found]


@pytest.fixture(scope="module")
def alone() -> Found:
    """What `plain` finds without other ranks."""
    return plain(Alone())


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ranks]:
    """What each of two ranks finds, by program of `rank_program.py`: one job for all of them."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [*torchrun(2), str(PROGRAM), str(folder), *PROGRAMS]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return {
        name: {int(path.stem): torch.load(path, weights_only=True) for path in (folder / name).glob("*.pt")}
        for name in PROGRAMS
    }


def assert_equal_latents(found: Found, expected: Found) -> None:
    for session, latents in expected["latents"].items():
        assert len(latents) == CHUNKS
        torch.testing.assert_close(found["latents"][session], latents, rtol=0, atol=TOLERANCE)


def test_two_ranks_make_what_one_makes(alone: Found, both: dict[str, Ranks]) -> None:
    """Every chunk of three sessions with a prompt change and a reset; each rank holds half of the heads."""
    first, second = both["plain"][0], both["plain"][1]
    assert (alone["heads"], first["heads"], second["heads"]) == (2, 1, 1)
    assert_equal_latents(first, alone)
    assert first["applied"] == alone["applied"] and len(alone["applied"]) == 5


def test_both_ranks_run_the_same_plan(both: dict[str, Ranks]) -> None:
    """Batch for batch, and their latents are equal to the bit."""
    first, second = both["plain"][0], both["plain"][1]
    assert first["batches"] == second["batches"]
    assert any(len(batch) > 1 for batch in first["batches"])
    for session, latents in first["latents"].items():
        assert torch.equal(latents, second["latents"][session])


def test_sessions_leave_their_slots_and_come_back_on_both_ranks(alone: Found, both: dict[str, Ranks]) -> None:
    """Each rank's heads to its own host memory; no pass runs on one rank while the other still copies."""
    first, second = both["offload"][0], both["offload"][1]
    for session in SESSIONS:  # a copy may last while another session leaves
        where = [residence for id, residence in first["resided"] if id == session]
        assert where == ["offloaded", "resident"]
    assert first["resided"] == second["resided"] and first["batches"] == second["batches"]
    assert_equal_latents(first, alone)


def test_one_rank_out_of_memory_halves_the_batch_on_all(alone: Found, both: dict[str, Ranks]) -> None:
    """In the middle of a pass; the other does not wait for it, and the chunks are what they should be."""
    for rank in (0, 1):
        assert both["memory"][rank]["regular"].count(False) >= 1
        assert_equal_latents(both["memory"][rank], alone)


def test_a_prompt_that_one_rank_can_not_encode_closes_its_session_alone(
    alone: Found, both: dict[str, Ranks]
) -> None:
    """On both ranks, so that they go on with the same plan; the others' chunks are what they should be."""
    first, second = both["prompt"][0], both["prompt"][1]
    assert first["failed"] == second["failed"] == [SESSIONS[0]]
    assert first["free"] == second["free"] == 2
    for session in SESSIONS[1:]:
        expected = {"latents": {session: alone["latents"][session]}}
        assert_equal_latents(first, expected)
        assert_equal_latents(second, expected)


def test_a_dead_rank_is_noticed_by_the_other(both: dict[str, Ranks]) -> None:
    """It ends in the middle of a pass without a word."""
    found = both["death"]
    assert list(found) == [0] and "collective operation failed" in found[0]["lost"]


def test_a_model_must_be_divisible() -> None:
    """The sentence says what cannot be shared."""
    spec = ShapesModel.random(0, config=TINY).spec
    check_split(spec, 2)
    with pytest.raises(ValueError, match="2 heads, which 3 ranks"):
        check_split(spec, 3)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engines(
    redis_server: RedisServer, random_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Engines]:
    async with Engines.open(redis_server, "ranks", random_weights, tmp_path_factory.mktemp("engines")) as it:
        yield it


async def started(engines: Engines, **settings: Any) -> tuple[EngineProcess, LinkClient, SessionId]:
    """An engine of two ranks that has sent a chunk of a session. It is killed with the other `engines`."""
    id = engines.next_id()
    config = replace(engines.settings(id), ranks=2, capacity=1, **settings)
    engine = await EngineProcess.start(engines.server, config, engines.logs / f"{id}.log")
    engines.alive.append(engine)
    link = await LinkClient.open((await engine.ready(engines.store)).url)
    session = SessionId(f"s_{id.removeprefix('e_'):0>16}")
    epoch = await place(engines.store, engine.id, session, term=engines.term)
    await link.until_opened(engines.store, session)
    await link.subscribe(session, epoch=epoch)
    await link.chunk()
    return engine, link, session


@on_engines
async def test_an_engine_of_two_ranks_streams_and_ends_in_order(engines: Engines) -> None:
    """Chunks decode; SIGTERM to both ranks, as `up` sends it, ends both with status 0."""
    engine, link, session = await started(engines)
    for seq in range(3):
        await link.send(Credit(session=session, controller_epoch=1, seq=seq, buffer_ms=0.0))
        await link.chunk()
    assert [link.decoded_frames(seq) for seq in range(3)] == [12] * 3
    await link.close()
    for pid in engine.ranks.values():
        os.kill(pid, signal.SIGTERM)
    assert await engine.exit_status() == 0, engine.log.read_text()


@on_engines
@pytest.mark.parametrize("rank", [0, 1])
async def test_a_killed_rank_ends_the_engine(rank: int, engines: Engines) -> None:
    """At once, whichever it is, while sessions stream; recovery is the scheduler's."""
    engine, link, _ = await started(engines)
    watched = [os.pidfd_open(pid) for pid in engine.ranks.values()]
    os.kill(engine.ranks[rank], signal.SIGKILL)
    assert await engine.exit_status() != 0
    for pidfd in watched:
        await ended(pidfd)
    await link.close()


@on_engines
async def test_a_rank_that_hangs_ends_the_engine_within_the_timeout(engines: Engines) -> None:
    """Stopped, not dead: its connections stay open, so only the timeout of collectives tells."""
    engine, link, _ = await started(engines, collective_timeout_s=5.0)
    hanging = engine.ranks[1]
    first = os.pidfd_open(engine.ranks[0])
    try:
        os.kill(hanging, signal.SIGSTOP)
        await ended(first)
        assert "collective operation failed" in engine.log.read_text()
    finally:
        os.kill(hanging, signal.SIGKILL)
    await link.close()
