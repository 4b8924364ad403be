"""A whole session of Wan in the browser: random weights of LongLive's structure, small; the rest is real.

The picture is noise, so its flow is what is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.async_api import Browser

from tests.browser.driver import ask, pixels, stats, tab, until
from tests.cluster import Cluster, running_cluster
from tests.cluster import until as until_there

pytestmark = [
    pytest.mark.browser,
    pytest.mark.cluster,
    pytest.mark.timeout(240),
    pytest.mark.asyncio(loop_scope="module"),
]
LIMIT_S = 60
FIRST_CHUNK, CHUNK = 9, 12


@pytest.fixture(scope="module")
def wan() -> Iterator[Cluster]:
    """Two engines that serve it."""
    with running_cluster("--model", "wan-tiny", engines=2) as running:
        yield running


def at(cluster: Cluster) -> tuple[str, int]:
    """Where its session is."""
    (session,) = cluster.listed("sessions")
    return session["engine"], session["epoch"]


async def test_a_session_of_wan_from_start_to_stop(browser: Browser, wan: Cluster) -> None:
    """A new prompt that has its window written again, a move to the other engine, pause and reset."""
    async with tab(browser, wan.url) as (page, complaints):
        await ask(page, "a red fox runs through snow")
        await until(page, f"turboserve.framesDrawn >= {FIRST_CHUNK + 5 * CHUNK}", LIMIT_S)
        await ask(page, "waves roll onto a beach at sunset")
        await until(page, "turboserve.rev >= 1 && turboserve.state === 'generating'", LIMIT_S)
        before = await stats(page)
        engine, epoch = at(wan)
        await until_there(lambda: len(wan.engines()) == 2)
        (other,) = set(wan.engines()) - {engine}
        assert wan.post("/v1/admin/migrate", {"session": before["session"], "engine": other}) == 202
        await until(page, f"turboserve.seq >= {before['seq'] + 5}", LIMIT_S)
        await until_there(lambda: at(wan) == (other, epoch + 1), LIMIT_S)
        await page.click("#pause")
        await until(page, "turboserve.state === 'paused'", LIMIT_S)
        await page.click("#pause")
        await page.click("#reset")
        await until(page, f"turboserve.rev > {before['rev']}", LIMIT_S)
        drawn = (await stats(page))["framesDrawn"]
        await until(page, f"turboserve.framesDrawn >= {drawn + 2 * CHUNK}", LIMIT_S)
        after = await stats(page)
        assert (after["session"], after["gaps"]) == (before["session"], 0)
        brightness = [sum(sample) / 3 for sample in await pixels(page)]
        assert max(brightness) - min(brightness) > 5, "one colour, not noise"
        await page.click("#stop")
        await until(page, "turboserve.state === 'ended'", LIMIT_S)
        assert complaints == []
