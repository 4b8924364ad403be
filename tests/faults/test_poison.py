"""A session whose prompt crashes each engine that computes it is closed after the second; nobody else is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.plugin import PACED, plugged_in
from gateway.client import SessionEnded, connect
from tests.cluster import Cluster, running_cluster
from tests.patience import PATIENT
from tests.viewer import watching

pytestmark = [pytest.mark.cluster, pytest.mark.faults, pytest.mark.timeout(240)]

FRAGILE = Path(__file__).parents[1] / "fragile"


@pytest.fixture
def fragile_cluster() -> Iterator[Cluster]:
    """Two engines with places for two."""
    arguments = ("--model", "fragile", "--policy", "least_loaded", "--capacity", "2", *PATIENT)
    with plugged_in(PACED), plugged_in(FRAGILE), running_cluster(*arguments, engines=2) as running:
        yield running


async def test_a_prompt_that_crashes_engines_ends_its_session_only(fragile_cluster: Cluster) -> None:
    """The second engine gets the prompt with the session. Who was on it goes on from a checkpoint."""
    before = {*fragile_cluster.engines()}
    async with watching(fragile_cluster.url, "a red ball") as bystander:
        (beside,) = await bystander.take(1)
        async with connect(fragile_cluster.url) as client:
            session = await client.start("a blue ball", seed=2)
            chunks = aiter(session)
            first = await anext(chunks)
            await session.submit_prompt("poison")
            with pytest.raises(SessionEnded) as caught:
                while True:
                    await anext(chunks)
        assert "engine_crashed" in str(caught.value)
        assert {first.engine, beside.engine} == before
        await bystander.take_until_engine(other_than=beside.engine)
        await bystander.take(2)
    fragile_cluster.wait_ready(2)
    assert not before & {*fragile_cluster.engines()}
