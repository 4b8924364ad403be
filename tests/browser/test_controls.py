"""What the studio page's smaller controls do."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from playwright.async_api import Browser, Request, Route

from tests.browser.driver import ask, tab, until
from tests.browser.stream_server import WEB, StreamServer, say
from tests.browser.test_page import GREEN_ON_BLACK, RED_ON_BLUE, begin

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]


def prompts_of(server: StreamServer) -> list[str]:
    """The prompts that steered the only session."""
    return [message["text"] for message in server.only.messages if message["type"] == "prompt"]


async def test_a_scene_starts_and_then_steers(browser: Browser, server: StreamServer) -> None:
    """A chip of Scenes is a whole prompt: the first click starts with it, the next one steers to it."""
    async with tab(browser, server.url) as (page, complaints):
        await page.click("#chips button >> text=Green star")
        await until(page, "turboserve.framesDrawn >= 1")
        star = await page.get_attribute("#chips button >> text=Green star", "data-prompt")
        assert server.only.messages[0]["prompt"] == star == await page.input_value("#prompt")
        await page.click("#chips button >> text=Red ball")
        await until(page, "turboserve.rev === 1")
        assert prompts_of(server) == [RED_ON_BLUE] == [await page.text_content("#caption")]
        assert complaints == []


async def test_full_screen_by_button_and_key(browser: Browser, server: StreamServer) -> None:
    """The picture and what lies on it fill the screen; F leads there and back, but not while typing."""
    async with tab(browser, server.url) as (page, complaints):
        await page.click("#fullscreen")
        await until(page, "document.fullscreenElement === document.getElementById('theatre')")
        await until(page, "document.activeElement === document.body")  # nothing else has the focus there
        await page.keyboard.press("f")
        await until(page, "document.fullscreenElement === null")
        await page.focus("#prompt")
        await page.keyboard.press("f")
        assert await page.input_value("#prompt") == "f"
        assert await page.evaluate("document.fullscreenElement === null")
        assert complaints == []


async def test_the_theme_is_the_systems_until_chosen(browser: Browser, server: StreamServer) -> None:
    """It follows the system; the button turns it round, and that choice outlives a reload."""
    theme = "document.documentElement.dataset.theme"
    paper = "getComputedStyle(document.body).backgroundColor"
    async with tab(browser, server.url) as (page, _):
        await page.emulate_media(color_scheme="light")
        await until(page, f"{theme} === 'light'")
        light = await page.evaluate(paper)
        await page.emulate_media(color_scheme="dark")
        await until(page, f"{theme} === 'dark'")
        dark = await page.evaluate(paper)
        assert light != dark
        await page.click("#theme")
        assert await page.evaluate(f"[{theme}, {paper}]") == ["light", light]
        await page.reload()
        assert await page.evaluate(f"[{theme}, {paper}]") == ["light", light]
        await page.click("#theme")
        assert await page.evaluate(f"[{theme}, {paper}]") == ["dark", dark]


FPS = "parseInt(document.getElementById('stat-fps').textContent)"
FIGURES = """() => Object.fromEntries(
    ["gen", "fps", "ttfc", "buffer", "ratio", "video", "codec", "bytes", "engine"].map(
        (name) => [name, document.getElementById(`stat-${name}`).textContent]))"""


async def test_the_drawer_has_figures_and_a_line(browser: Browser, server: StreamServer) -> None:
    """Each figure is the session's; the line has a point per latency; without a session all are gone."""
    async with tab(browser, server.url) as (page, _):
        await page.click("#drawer summary")
        assert set((await page.evaluate(FIGURES)).values()) == {"–"}
        await begin(page)
        assert server.only.socket is not None
        for latency_ms in (120.0, 250.0, 333.4):
            await say(server.only.socket, type="stats", latency_ms=latency_ms)
        await until(page, "document.getElementById('stat-gen').textContent === '333 ms'")
        await until(page, f"{FPS} > 0 && {FPS} <= 22")  # 16, once the starved have caught up
        figures = await page.evaluate(FIGURES)
        assert (figures["video"], figures["codec"], figures["engine"]) == ("96×96", "H.264", "e_test")
        assert "–" not in figures.values()
        line, limit = [await page.get_attribute(f"#spark-{name}", "d") or "" for name in ("line", "limit")]
        assert (line[0], line.count("L"), limit[0]) == ("M", 2, "M")
        heights = [float(point.split()[1]) for point in line[1:].split("L")]
        assert heights == sorted(heights, reverse=True), "a slower chunk is drawn higher"
        await page.click("#stop")
        await until(page, "document.getElementById('stat-gen').textContent === '–'")
        assert await page.get_attribute("#spark-line", "d") == ""


HIDDEN_STOPS = """[...document.querySelectorAll("[aria-hidden=true] *")].filter(
    (node) => node.tabIndex >= 0).length"""


async def test_a_stretch_of_the_timeline_is_used_again(browser: Browser, server: StreamServer) -> None:
    """A click on what an earlier prompt made steers back to it. The strip is hidden from screen readers, so
    the focus stays where it was, and no key leads into what is hidden."""
    async with tab(browser, server.url) as (page, _):
        await begin(page, frames=10)
        await ask(page, GREEN_ON_BLACK)
        await until(page, "turboserve.rev === 1 && document.querySelectorAll('.segment').length === 2")
        await page.focus("#pause")
        await page.click(".segment >> nth=0")
        await until(page, "turboserve.rev === 2")
        assert prompts_of(server) == [GREEN_ON_BLACK, RED_ON_BLUE]
        assert await page.input_value("#prompt") == RED_ON_BLUE
        assert await page.evaluate("document.activeElement.id") == "pause"
        assert await page.evaluate(HIDDEN_STOPS) == 0


async def test_a_link_says_for_how_long_it_opens(browser: Browser, server: StreamServer) -> None:
    """A day is asked for; what the dialog says is what the server granted."""
    asked: list[Any] = []

    async def grant(route: Route, request: Request) -> None:
        asked.append(request.post_data_json)
        await route.fulfill(json={"token": "view.er", "expires_in_s": 86_400 if len(asked) == 1 else 600})

    async with tab(browser, server.url) as (page, _):
        await page.route("**/v1/sessions/*/watch", grant)
        await begin(page, frames=1)
        for life in ("24 hours", "10 minutes"):
            await page.click("#share")
            await until(page, f"document.getElementById('share-text').textContent.includes('for {life}')")
            link = f"{server.url}/#watch={server.only.id}&token=view.er"
            assert await page.input_value("#share-link") == link
            await page.click("#share-close")
        assert asked == [{"resume": server.only.resume, "ttl_s": 86_400}] * 2


async def test_a_full_recording_is_saved_and_says_so(browser: Browser, server: StreamServer) -> None:
    """At the limit nothing more is kept: the file is saved at once, and "Recording" is not said any more."""
    small = (WEB / "mp4.js").read_text().replace("256 * 1024 * 1024", "1000")

    async def shrink(route: Route) -> None:
        await route.fulfill(body=small, content_type="text/javascript")

    async with tab(browser, server.url) as (page, _):
        await page.route("**/mp4.js", shrink)
        await page.reload()
        await until(page, "window.turboserve !== undefined")
        await begin(page, frames=1)
        async with page.expect_download():
            await page.click("#record")
        await until(page, "document.getElementById('badge').textContent.includes('was full')")
        assert await page.get_attribute("#record", "aria-pressed") == "false"
        assert await page.text_content("#record-label") == "Record"


async def test_who_leaves_amid_a_recording_is_asked_first(browser: Browser, server: StreamServer) -> None:
    """It is nowhere but in the page. Without one nobody is asked."""
    leave = "window.dispatchEvent(new Event('beforeunload', { cancelable: true }))"
    async with tab(browser, server.url) as (page, _):
        await begin(page, frames=1)
        assert await page.evaluate(leave)
        await page.click("#record")
        await until(page, "document.getElementById('badge').textContent === 'Recording'")
        assert not await page.evaluate(leave)


COPY_FORBIDDEN = """
    Object.defineProperty(navigator, "clipboard", { value: undefined });
    document.execCommand = () => false;
"""
"""As on an address that is not secure, in a browser that lets no page copy."""


async def test_a_link_that_was_not_copied_is_not_said_to_be(browser: Browser, server: StreamServer) -> None:
    """It is selected, to be copied by hand. As long as there is none there is nothing to copy."""
    is_asked, is_granted = asyncio.Event(), asyncio.Event()

    async def grant(route: Route) -> None:
        is_asked.set()
        await is_granted.wait()
        await route.fulfill(json={"token": "view.er", "expires_in_s": 600})

    async with tab(browser, server.url, init_script=COPY_FORBIDDEN) as (page, _):
        await page.route("**/v1/sessions/*/watch", grant)
        await begin(page, frames=1)
        await page.click("#share")
        await is_asked.wait()
        assert not await page.is_visible("#share-copy") and not await page.is_visible("#share-link")
        is_granted.set()
        await page.click("#share-copy")
        await until(page, "document.getElementById('share-text').textContent.includes('by hand')")
        assert await page.text_content("#share-copy") == "Copy"
        assert await page.evaluate("getSelection().toString()") == await page.input_value("#share-link")
