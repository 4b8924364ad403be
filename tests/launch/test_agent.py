"""The agent's exit status: what tells a crash from a kill."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from launch import agent
from launch.engine_job import SIGNALLED, EngineJob
from launch.processes import adopt_orphans
from launch.roles import engine_command
from launch.supervisor import ProcessSpec
from tests.cluster import SCALE

NOW_S = 1_700_000_000


def failed(*ends: tuple[int, int]) -> ChildFailedError:
    """Ranks ended so: (status, seconds after the first)."""
    failures = {}
    for rank, (status, after_s) in enumerate(ends):
        failures[rank] = ProcessFailure(local_rank=rank, pid=1, exitcode=status, error_file="")
        failures[rank].timestamp = NOW_S + after_s
    return ChildFailedError("engine", failures)


@pytest.mark.parametrize(
    ("end", "status"),
    [
        pytest.param(failed((3, 0)), 3, id="a rank failed"),
        pytest.param(failed((-11, 0)), SIGNALLED + 11, id="a rank crashed"),
        pytest.param(failed((1, 1), (-11, 0)), SIGNALLED + 11, id="the first of two counts"),
        pytest.param(failed((1, 0), (-9, 0)), SIGNALLED + 9, id="a rank was killed, another failed of it"),
        pytest.param(failed((1, 0), (-15, 1)), 1, id="a rank failed, torchrun ended the other"),
        pytest.param(failed((1, 0), (-9, 30)), 1, id="and had to kill it"),
        pytest.param(SignalException("", signal.SIGTERM), SIGNALLED + 15, id="the agent was told to end"),
    ],
)
def test_status(monkeypatch: pytest.MonkeyPatch, end: Exception, status: int) -> None:
    """torchrun raises; the status says what happened."""

    def run(_: object) -> None:
        raise end

    monkeypatch.setattr(agent, "main", run)
    assert agent.run([]) == status


RANK = """
import os, sys
fifo = sys.argv[1]
if os.environ["RANK"] == "1":
    held = open(fifo, "w")
    os.kill(os.getpid(), 9)
open(fifo).read()  # until the other one is gone
os._exit(1)  # as a rank does whose exchange with another fails
"""


async def test_of_two_ranks_the_one_that_was_killed_counts(tmp_path: Path) -> None:
    """Real torchrun: the other rank ends at once because of it, by what looks like a fault of its own."""
    adopt_orphans()
    script, fifo = tmp_path / "rank.py", tmp_path / "fifo"
    script.write_text(RANK)
    os.mkfifo(fifo)
    torchrun = engine_command(ranks=2)[:-2]
    job = EngineJob(
        ProcessSpec(
            name="engine",
            command=[*torchrun, str(script), str(fifo)],
            log=tmp_path / "log",
            environment=os.environ,
        )
    )
    async with asyncio.timeout(60 * SCALE):
        end = await job.run()
    assert (end.how, end.crashed) == ("was killed by SIGKILL", False)
