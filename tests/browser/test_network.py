"""A network that is too slow, falls silent or is gone: what the studio page says, and that it goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Browser, Page

from tests.browser.driver import ask, stats, tab, until
from tests.browser.stream_server import StreamServer
from tests.browser.test_page import GREEN_ON_BLACK, RED_ON_BLUE, assert_each_frame_shown_once, begin

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

BYTES_PER_S = 1000
"""Less than the scripted video needs: a chunk of 0.75 s has some 2,000 bytes."""
SILENCE_S = 40
"""By then the page has noticed that its connection is dead: it asks every 5 s, and waits for 12 s."""
STATUS = "document.getElementById('status').textContent"


@asynccontextmanager
async def network(page: Page, *, offline: bool = False, bytes_per_s: int = -1) -> AsyncIterator[None]:
    """What the browser has of one: all that the page receives comes at this rate, or not at all."""
    devtools = await page.context.new_cdp_session(page)
    whole = {"offline": False, "latency": 0, "uploadThroughput": -1, "downloadThroughput": -1}
    await devtools.send("Network.enable")
    await devtools.send(
        "Network.emulateNetworkConditions", {**whole, "offline": offline, "downloadThroughput": bytes_per_s}
    )
    try:
        yield
    finally:
        await devtools.send("Network.emulateNetworkConditions", whole)


async def assert_nothing_was_left_out(page: Page) -> None:
    """Two more chunks, and all so far were received once and in order."""
    seq = (await stats(page))["newestSeq"]
    await until(page, f"turboserve.state === 'generating' && turboserve.seq >= {seq + 2}")
    figures = await stats(page)
    assert (figures["gaps"], figures["chunks"]) == (0, figures["newestSeq"] + 1)


async def test_a_network_that_is_too_slow_is_owned_up_to(browser: Browser, server: StreamServer) -> None:
    """The page says that it catches up, and plays on from there: no chunk lost or shown twice."""
    async with tab(browser, server.url) as (page, complaints):
        await begin(page, frames=1)
        async with network(page, bytes_per_s=BYTES_PER_S):
            await until(page, f"{STATUS} === 'Catching up…'")
            assert (await stats(page))["stalls"] >= 1
        await assert_nothing_was_left_out(page)
        assert (await stats(page))["stalledMs"] > 0
        assert (server.attaches, complaints) == (0, [])


async def test_a_connection_that_dies_without_a_word_is_replaced(
    browser: Browser, server: StreamServer
) -> None:
    """It stays open and nothing comes: first the picture stands, then the page gives it up and attaches."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        session = (await stats(page))["session"]
        server.faults.refuse_connections = True  # so that what the page says by then stays on show
        server.go_mute()
        await until(page, f"{STATUS} === 'Catching up…'")
        await until(page, "turboserve.state === 'lost'", SILENCE_S)
        assert await page.text_content("#status") == "Connection lost, retrying…"
        assert await page.text_content("#badge") == "Reconnecting…"
        server.faults.refuse_connections = False
        await assert_nothing_was_left_out(page)
        await assert_each_frame_shown_once(page)
        assert ((await stats(page))["session"], server.attaches) == (session, 1)


async def test_a_prompt_into_the_silence_is_not_lost(browser: Browser, server: StreamServer) -> None:
    """Nobody answers it on the dead connection; it is sent again on the next one, and done once."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        server.go_mute()
        await ask(page, GREEN_ON_BLACK)
        assert await page.text_content("#steering") == "Pending…"
        await until(page, "turboserve.rev === 1", SILENCE_S)
        await assert_nothing_was_left_out(page)
        ids = [message["id"] for message in server.only.messages if message["type"] == "prompt"]
        assert (len(ids), len(set(ids)), server.only.rev, server.attaches) == (2, 1, 1, 1)


async def test_a_browser_that_is_offline_goes_on_when_it_is_back(
    browser: Browser, server: StreamServer
) -> None:
    """It says so; back on the network the same session goes on without a gap."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        session = (await stats(page))["session"]
        async with network(page, offline=True):
            await until(page, "turboserve.state === 'lost'", SILENCE_S)
            assert await page.text_content("#status") == "Offline, retrying…"
            assert await page.text_content("#badge") == "Reconnecting…"
        await assert_nothing_was_left_out(page)
        await assert_each_frame_shown_once(page)
        assert ((await stats(page))["session"], len(server.sessions)) == (session, 1)


async def test_a_start_without_a_network_can_be_tried_again(browser: Browser, server: StreamServer) -> None:
    """After some attempts the page says why not; the same prompt starts once there is a network."""
    async with tab(browser, server.url) as (page, _):
        async with network(page, offline=True):
            await ask(page, RED_ON_BLUE)
            await until(page, "turboserve.state === 'failed'")
            assert "is offline" in (await page.text_content("#veil-text") or "")
            assert server.sessions == {}
        await page.click("#veil-action >> text=Try again")
        await until(page, "turboserve.state === 'generating'")
        assert server.only.messages[0]["prompt"] == RED_ON_BLUE
