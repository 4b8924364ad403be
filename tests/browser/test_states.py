"""What a session comes to by itself: no picture yet, none that can be decoded, closed while idle; its
length."""

from __future__ import annotations

import asyncio

import pytest
from playwright.async_api import Browser, Page

from tests.browser.driver import ask, stats, tab, until
from tests.browser.stream_server import FPS, StreamServer, say
from tests.browser.test_page import RED_ON_BLUE, begin

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]


async def test_the_first_pictures_are_announced(browser: Browser, server: StreamServer) -> None:
    """With a place and without a picture yet it says so, and can be paused, steered and stopped already."""
    server.faults.hold_chunks = asyncio.Event()
    async with tab(browser, server.url) as (page, complaints):
        await ask(page, RED_ON_BLUE)
        await until(page, "turboserve.state === 'preparing'")
        assert await page.text_content("#status") == "Starting"
        assert await page.text_content("#veil-title") == "Making the first pictures…"
        assert await page.is_visible("#spinner")
        assert [await page.is_enabled(f"#{name}") for name in ("pause", "stop", "send")] == [True] * 3
        assert await page.text_content("#send") == "Steer"
        server.faults.hold_chunks.set()
        await until(page, "turboserve.state === 'generating'")
        await page.wait_for_selector("#veil", state="hidden")
        assert complaints == []


@pytest.mark.parametrize("first", [0, 3], ids=["from the start", "amid the video"])
async def test_video_that_cannot_be_decoded_is_owned_up_to(
    browser: Browser, server: StreamServer, first: int
) -> None:
    """Not one picture more: it ends with what may help, instead of waiting for ever for the next one."""
    server.faults.damaged = range(first, 1000)
    async with tab(browser, server.url) as (page, complaints):
        await ask(page, RED_ON_BLUE)
        await until(page, "turboserve.state === 'failed'")
        assert await page.text_content("#status") == "Stopped by an error"
        assert "could not decode the video" in (await page.text_content("#veil-text") or "")
        server.faults.damaged = range(0)
        await page.click("#veil-action >> text=Try again")
        await until(page, "turboserve.state === 'generating'")
        assert [text for text in complaints if "pageerror" in text] == []


@pytest.mark.parametrize("reason", [None, "idle"], ids=["by its code", "in words"])
async def test_a_session_closed_while_idle_says_why(
    browser: Browser, server: StreamServer, reason: str | None
) -> None:
    """4408, with or without the message before it: nothing is tried again until somebody wants it."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        first = (await stats(page))["session"]
        await page.click("#pause")
        await until(page, "turboserve.state === 'paused'")
        if reason is not None:
            assert server.only.socket is not None
            await say(server.only.socket, type="closed", reason=reason)
        await server.close_all(4408)
        await until(page, "turboserve.state === 'ended'")
        assert await page.text_content("#status") == "Ended"
        assert "paused for a long time" in (await page.text_content("#veil-text") or "")
        await page.click("#veil-action >> text=Start again")
        await until(page, "turboserve.state === 'generating'")
        assert ((await stats(page))["session"] != first, server.attaches) == (True, 0)


LENGTH = "document.getElementById('length').textContent"
FRAME_MS = 1000 / FPS


async def until_length_is_shown(page: Page) -> float:
    """The length says where the picture ends; ms."""
    await until(page, f"{LENGTH} === `0:0${{Math.floor((turboserve.ptsMs + {FRAME_MS}) / 1000)}}`")
    end_ms: float = (await stats(page))["ptsMs"] + FRAME_MS
    return end_ms


async def test_the_length_is_what_was_shown(browser: Browser, server: StreamServer) -> None:
    """Video, not time: it stands in a pause, goes on after a reload, and begins anew with a session."""
    async with tab(browser, server.url) as (page, _):
        assert await page.text_content("#length") == "0:00"
        await ask(page, RED_ON_BLUE)
        await until(page, f"{LENGTH} >= '0:02'")
        await page.click("#pause")
        await until(page, "turboserve.state === 'paused'")
        paused_ms = await until_length_is_shown(page)
        assert paused_ms >= 2000
        await page.reload()
        await until(page, "window.turboserve !== undefined && turboserve.seq !== null")
        assert paused_ms - 750 < await until_length_is_shown(page) <= paused_ms  # where its chunk begins
        await page.click("#pause")
        paused_at = await page.text_content("#length")
        await until(page, f"{LENGTH} > '{paused_at}'")
        played_to = await page.text_content("#length") or ""
        await page.click("#stop")
        await until(page, "turboserve.state === 'ended'")
        assert (await page.text_content("#length") or "") >= played_to
        server.faults.hold_chunks = asyncio.Event()
        await page.click("#veil-action")
        await until(page, "turboserve.state === 'preparing'")
        assert await page.text_content("#length") == "0:00"
