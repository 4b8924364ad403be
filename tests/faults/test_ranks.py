"""A cluster whose engine has two ranks."""

from __future__ import annotations

import os
import signal

import pytest

from launch.processes import children_of
from tests.cluster import Cluster, is_running, parent_of, running_cluster, until
from tests.engine.process import rank_of
from tests.patience import PATIENT
from tests.viewer import watching

pytestmark = [pytest.mark.cluster, pytest.mark.faults, pytest.mark.timeout(240)]


def ranks_of(cluster: Cluster) -> dict[int, int]:
    """Rank → pid of the only engine."""
    ((_, first),) = cluster.pids("engine-").items()
    return {rank_of(pid): pid for pid in children_of(parent_of(first))}


async def test_an_engine_of_two_ranks_serves_and_is_replaced_when_one_dies() -> None:
    """`up --ranks 2`: one session watches on while rank 1 is killed and another engine takes over."""
    with running_cluster("--ranks", "2", "--capacity", "1", *PATIENT, engines=1) as cluster:
        before = ranks_of(cluster)
        assert sorted(before) == [0, 1]
        async with watching(cluster.url) as viewer:
            first = (await viewer.take(3))[0]
            os.kill(before[1], signal.SIGKILL)
            await viewer.take_until_engine(other_than=first.engine)
            await viewer.take(2)
        await until(lambda: not any(is_running(pid) for pid in before.values()))
        await until(lambda: len(cluster.pids("engine-")) == 1)  # of a moment ago it may be both
        after = ranks_of(cluster)
        assert sorted(after) == [0, 1]
        assert cluster.stop() == 0
        assert not any(is_running(pid) for pid in after.values())
