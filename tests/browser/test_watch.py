"""Who watches somebody else's session: recording it, leaving it, and a video of one's own afterwards."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser

from tests.browser.driver import ask, stats, tab, until
from tests.browser.stream_server import StreamServer, say, say_state
from tests.browser.test_page import GREEN_ON_BLACK, begin

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]


async def test_a_viewer_that_stops_keeps_its_recording(browser: Browser, server: StreamServer) -> None:
    """It is saved; the page offers to watch again, which is what its address says, too."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        link = f"{server.url}/#watch={server.only.id}&token=view.er"
        async with tab(browser, link) as (other, complaints):
            await until(other, "turboserve.framesDrawn >= 1")
            await other.click("#record")
            await until(other, "/^Save 0:0[1-9]$/.test(document.getElementById('record-label').textContent)")
            async with other.expect_download() as download:
                await other.click("#stop")
            assert (await (await download.value).path()).stat().st_size > 1_000
            assert (await stats(other))["state"] == "ended"
            assert await other.text_content("#veil-title") == "Not watching any more"
            assert (await other.text_content("#veil-text") or "").startswith("You stopped watching.")
            assert not await other.is_visible("#form") and other.url == link
            await other.click("#veil-action >> text=Watch again")
            await until(other, "document.getElementById('status').textContent === 'Watching'")
            assert (await stats(other))["session"] == server.only.id
            assert complaints == []
        assert not any(message["type"] == "stop" for message in server.only.messages)


async def test_a_video_of_ones_own_after_watching(browser: Browser, server: StreamServer) -> None:
    """Studio leads out of the link, and what starts there has the person's own token, not the link's."""
    async with (
        tab(browser, server.url) as (page, _),
        tab(browser, f"{server.url}/#token=my.own") as (other, _),
    ):
        await begin(page)
        shown = server.only.id
        await other.evaluate(f"location.hash = '#watch={shown}&token=view.er'")
        await until(other, "document.getElementById('status').textContent === 'Watching'")
        await other.click("#stop")
        await until(other, "turboserve.state === 'ended'")
        async with other.expect_navigation():
            await other.click("nav a >> text=Studio")
        await until(other, "window.turboserve?.state === 'ready'")
        assert other.url == f"{server.url}/"
        await begin(other, GREEN_ON_BLACK)
        own = server.sessions[(await stats(other))["session"]]
        assert own.id != shown and own.socket is not None and own.socket.request is not None
        offered = own.socket.request.headers["Sec-WebSocket-Protocol"]
        assert "turboserve.token.my.own" in offered and "view.er" not in offered


async def test_a_viewer_is_not_told_of_a_start_that_was_none(browser: Browser, server: StreamServer) -> None:
    """Each prompt of who steers is a new revision; a viewer hears of no prompts, and none is a reset."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        async with tab(browser, f"{server.url}/#watch={server.only.id}") as (other, _):
            await until(other, "turboserve.framesDrawn >= 1")
            await ask(page, GREEN_ON_BLACK)
            await until(other, "turboserve.rev === 1")
            assert (await stats(other))["marks"] == []
            assert await other.text_content("#steering") == ""


async def test_a_viewer_is_told_that_who_steers_is_away(browser: Browser, server: StreamServer) -> None:
    """Nothing comes, and there is nothing to catch up with; it goes on by itself."""
    idle = {"type": "state", "state": "idle", "engine": "e_test", "reason": "disconnected"}
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        async with tab(browser, f"{server.url}/#watch={server.only.id}") as (other, _):
            await until(other, "turboserve.framesDrawn >= 1")
            (viewer,) = server.only.viewers
            await say(viewer, **idle)
            await until(other, "turboserve.state === 'paused'")
            await until(other, "document.getElementById('badge').textContent === 'Who steers it is away'")
            drawn = (await stats(other))["framesDrawn"]
            await say_state(viewer, server.only)
            await until(other, f"turboserve.framesDrawn >= {drawn + 20}")
            await until(other, "turboserve.state === 'generating'")


async def test_who_comes_amid_a_pause_is_told(browser: Browser, server: StreamServer) -> None:
    """Instead of a black picture; when it goes on the video is there."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        await page.click("#pause")
        await server.until(lambda: server.only.paused)
        async with tab(browser, f"{server.url}/#watch={server.only.id}") as (other, _):
            await other.wait_for_selector("#veil-title >> text=It is paused")
            assert await other.text_content("#veil-text") == "The video comes as soon as it goes on."
            await page.click("#pause")
            await server.until(lambda: not server.only.paused)
            (viewer,) = server.only.viewers
            await say_state(viewer, server.only)
            await until(other, "turboserve.framesDrawn >= 1")
            await other.wait_for_selector("#veil", state="hidden")
