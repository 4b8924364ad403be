"""Engines of several ranks, as real torchrun jobs on gloo."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.models.shapes.model import TINY, ShapesModel
from engine.ranks import check_split
from scheduler.messages import Credit
from scheduler.store import Store
from tests.engine.link_client import LinkClient
from tests.engine.process import EngineProcess, config, ended, place, torchrun
from tests.engine.rank_program import CHUNKS
from tests.engine.test_process import S1
from tests.scheduler.conftest import lead

pytestmark = pytest.mark.faults
PROGRAM = Path(__file__).parent / "rank_program.py"
TOLERANCE = 1e-5
"""float32: GEMMs over other numbers of tokens may add in another order."""
Found = dict[str, Any]


@pytest.fixture(scope="session")
def run_ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[int, Found]]:
    """Run a program of `rank_program.py` on so many ranks; what each of them found. Each case runs once."""
    cases: dict[tuple[str, int], dict[int, Found]] = {}

    def run(name: str, ranks: int) -> dict[int, Found]:
        if (name, ranks) not in cases:
            folder = tmp_path_factory.mktemp(name)
            command = [*torchrun(ranks), str(PROGRAM), name, str(folder)]
            environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
            ended = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=110, check=False
            )
            assert ended.returncode == 0, ended.stderr[-3000:]
            cases[name, ranks] = {
                int(path.stem): torch.load(path, weights_only=True) for path in folder.glob("*.pt")
            }
        return cases[name, ranks]

    return run


def assert_equal_latents(found: Found, expected: Found) -> None:
    for session, latents in expected["latents"].items():
        assert len(latents) == CHUNKS
        torch.testing.assert_close(found["latents"][session], latents, rtol=0, atol=TOLERANCE)


def test_two_ranks_make_what_one_makes(run_ranks: Callable[..., dict[int, Found]]) -> None:
    """Every chunk of three sessions with a prompt change and a reset; each rank holds half of the heads."""
    (alone,), both = run_ranks("plain", 1).values(), run_ranks("plain", 2)
    assert (alone["heads"], [both[rank]["heads"] for rank in (0, 1)]) == (2, [1, 1])
    assert_equal_latents(both[0], alone)
    assert both[0]["applied"] == alone["applied"] and len(alone["applied"]) == 5


def test_both_ranks_run_the_same_plan(run_ranks: Callable[..., dict[int, Found]]) -> None:
    """Batch for batch, and their latents are equal to the bit."""
    both = run_ranks("plain", 2)
    assert both[0]["batches"] == both[1]["batches"]
    assert any(len(batch) > 1 for batch in both[0]["batches"])
    for session, latents in both[0]["latents"].items():
        assert torch.equal(latents, both[1]["latents"][session])


def test_sessions_leave_their_slots_and_come_back_on_both_ranks(
    run_ranks: Callable[..., dict[int, Found]],
) -> None:
    """Each rank's heads to its own host memory; no pass runs on one rank while the other still copies."""
    (alone,), both = run_ranks("plain", 1).values(), run_ranks("offload", 2)
    assert both[0]["resided"] == ["offloaded", "resident"] * 3
    assert both[0]["resided"] == both[1]["resided"] and both[0]["batches"] == both[1]["batches"]
    assert_equal_latents(both[0], alone)


def test_one_rank_out_of_memory_halves_the_batch_on_all(run_ranks: Callable[..., dict[int, Found]]) -> None:
    """In the middle of a pass; the other does not wait for it, and the chunks are what they should be."""
    (alone,), both = run_ranks("plain", 1).values(), run_ranks("memory", 2)
    for rank in (0, 1):
        assert both[rank]["regular"].count(False) >= 1
        assert_equal_latents(both[rank], alone)


def test_a_dead_rank_is_noticed_by_the_other(run_ranks: Callable[..., dict[int, Found]]) -> None:
    """It ends in the middle of a pass without a word."""
    found = run_ranks("death", 2)
    assert list(found) == [0] and "collective operation failed" in found[0]["lost"]


def test_a_model_must_be_divisible() -> None:
    """The sentence says what cannot be shared."""
    spec = ShapesModel.random(0, config=TINY).spec
    check_split(spec, 2)
    with pytest.raises(ValueError, match="2 heads, which 3 ranks"):
        check_split(spec, 3)


async def started(store: Store, settings: Any, log: Path) -> tuple[EngineProcess, LinkClient]:
    """An engine of two ranks that has sent a chunk."""
    engine = await EngineProcess.start(settings, log)
    try:
        link = await LinkClient.open((await engine.ready(store)).url)
        epoch = await place(store, engine.id, S1, term=await lead(store))
        await link.until_opened(store, S1)
        await link.subscribe(S1, epoch=epoch)
        await link.chunk()
    except BaseException:
        await engine.kill()
        raise
    return engine, link


async def test_an_engine_of_two_ranks_streams_and_ends_in_order(
    store: Store, redis_url: str, cluster: str, random_weights: Path, tmp_path: Path
) -> None:
    """Chunks decode; SIGTERM to both ranks, as `up` sends it, ends both with status 0."""
    settings = config(redis_url, cluster, random_weights, ranks=2)
    engine, link = await started(store, settings, tmp_path / "engine.log")
    try:
        for seq in range(3):
            await link.send(Credit(session=S1, controller_epoch=1, seq=seq, buffer_ms=0.0))
            await link.chunk()
        assert [link.decoded_frames(seq) for seq in range(3)] == [12] * 3
        await link.close()
        for pid in engine.ranks.values():
            os.kill(pid, signal.SIGTERM)
        assert await engine.exit_status() == 0, engine.log.read_text()
    finally:
        await engine.kill()


@pytest.mark.parametrize("rank", [0, 1])
async def test_a_killed_rank_ends_the_engine(
    rank: int, store: Store, redis_url: str, cluster: str, random_weights: Path, tmp_path: Path
) -> None:
    """At once, whichever it is, while sessions stream; recovery is the scheduler's."""
    settings = config(redis_url, cluster, random_weights, ranks=2)
    engine, _ = await started(store, settings, tmp_path / "engine.log")
    try:
        watched = [os.pidfd_open(pid) for pid in engine.ranks.values()]
        os.kill(engine.ranks[rank], signal.SIGKILL)
        assert await engine.exit_status() != 0
        for pidfd in watched:
            await ended(pidfd)
    finally:
        await engine.kill()


async def test_a_rank_that_hangs_ends_the_engine_within_the_timeout(
    store: Store, redis_url: str, cluster: str, random_weights: Path, tmp_path: Path
) -> None:
    """Stopped, not dead: its connections stay open, so only the timeout of collectives tells."""
    settings = config(redis_url, cluster, random_weights, ranks=2, collective_timeout_s=3.0)
    engine, _ = await started(store, settings, tmp_path / "engine.log")
    hanging = engine.ranks[1]
    first = os.pidfd_open(engine.ranks[0])
    try:
        os.kill(hanging, signal.SIGSTOP)
        await ended(first)
        assert "collective operation failed" in engine.log.read_text()
    finally:
        os.kill(hanging, signal.SIGKILL)
        await engine.kill()
