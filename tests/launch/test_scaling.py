"""The closed loop on real engines: an engine starts for a step of load and is given back after it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from tests.cluster import Cluster, running_cluster
from tests.patience import PATIENT
from tests.viewer import Viewer, watching

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

SLOTS = 6


def num_engines(cluster: Cluster) -> int:
    """In any state."""
    return len(cluster.listed("engines"))


async def watch_scale_in(cluster: Cluster, viewer: Viewer) -> None:
    """Watch until one engine is left, and a chunk is of it: those that the other one made may come late."""
    while await asyncio.to_thread(num_engines, cluster) > 1:
        await viewer.take(1)
    (left,) = await asyncio.to_thread(cluster.listed, "engines")
    await viewer.take_until_engine(left["id"])


async def test_an_engine_is_started_for_a_step_of_load_and_given_back(paced: tuple[str, ...]) -> None:
    """One viewer more than an engine has slots for: all get their chunks, on two engines. When all but one of
    each engine have left, these come together on one by live migration, and each chunk is the next one."""
    slots = ("--max-engines", "2", "--capacity", str(SLOTS))
    with running_cluster(*paced, *PATIENT, *slots, engines=1) as cluster:
        step = [AsyncExitStack() for _ in range(SLOTS + 1)]

        async def enter(number: int) -> Viewer:
            watched = watching(cluster.url, f"viewer {number}", seed=number, mode="viewer")
            viewer = await step[number].enter_async_context(watched)
            await viewer.take(1)
            return viewer

        try:
            viewers = await asyncio.gather(*map(enter, range(SLOTS + 1)))
            stay = {viewer.taken[0].engine: number for number, viewer in enumerate(viewers)}
            assert len(stay) == 2
            leavers = [stack for number, stack in enumerate(step) if number not in stay.values()]
            await asyncio.gather(*(stack.aclose() for stack in leavers))
            await asyncio.gather(*(watch_scale_in(cluster, viewers[n]) for n in stay.values()))
        finally:
            await asyncio.gather(*(stack.aclose() for stack in step))
        log = (cluster.dir / "logs" / "scheduler-0.log").read_text()
    assert any("migrating" in line and "which goes" in line for line in log.splitlines())
