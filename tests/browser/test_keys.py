"""Keys on the studio page: held over a lost connection, held for long, and what an input method took."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser, Page

from tests.browser.driver import ask, stats, tab, until
from tests.browser.stream_server import StreamServer
from tests.browser.test_page import RED_ON_BLUE, begin

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]


def held(server: StreamServer) -> list[list[str]]:
    """What the server was told, in order; the first when the session began."""
    return [message["keys"] for message in server.only.messages if message["type"] == "control"]


async def hold_left(page: Page, server: StreamServer) -> None:
    await page.focus("#pause")
    await page.keyboard.down("ArrowLeft")
    await server.until(lambda: held(server) == [[], ["ArrowLeft"]])


async def lose(page: Page, server: StreamServer) -> None:
    """The connection, until connections are taken again."""
    server.faults.refuse_connections = True
    server.abort_all()
    await until(page, "turboserve.state === 'lost'")


async def test_keys_let_go_without_a_connection_are_let_go(browser: Browser, server: StreamServer) -> None:
    """With the next one the server hears that nothing is held any more."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        await hold_left(page, server)
        await lose(page, server)
        await page.keyboard.up("ArrowLeft")
        server.faults.refuse_connections = False
        await server.until(lambda: len(held(server)) == 3)
        assert (held(server)[-1], server.attaches, server.out_of_place) == ([], 1, [])


async def test_keys_pressed_without_a_connection_are_told(browser: Browser, server: StreamServer) -> None:
    """They are held still when there is one again."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        await page.focus("#pause")
        await lose(page, server)
        await page.keyboard.down("ArrowUp")
        server.faults.refuse_connections = False
        await server.until(lambda: len(held(server)) == 2)
        assert held(server) == [[], ["ArrowUp"]]


async def test_keys_held_over_a_reload_are_let_go(browser: Browser, server: StreamServer) -> None:
    """The page that held them is gone, so nobody would ever say that they are released."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        await hold_left(page, server)
        await page.reload()
        await server.until(lambda: server.attaches == 1 and held(server)[-1] == [])


ENTER = """(keyCode) => document.getElementById("prompt").dispatchEvent(
    new KeyboardEvent("keydown", { key: "Enter", keyCode, bubbles: true, cancelable: true }))"""


async def test_enter_that_ends_a_conversion_sends_nothing(browser: Browser, server: StreamServer) -> None:
    """Safari says so by its key code alone: its word that somebody composes comes before the key."""
    async with tab(browser, server.url) as (page, _):
        await page.fill("#prompt", RED_ON_BLUE)
        await page.evaluate(ENTER, 229)
        assert (await stats(page))["state"] == "ready"
        await page.evaluate(ENTER, 13)
        assert (await stats(page))["state"] != "ready"


async def test_a_held_space_bar_pauses_once(browser: Browser, server: StreamServer) -> None:
    """What holding repeats is no key press; it does not scroll either."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        await page.evaluate("document.activeElement.blur()")
        for _ in range(4):
            await page.keyboard.down(" ")
        await until(page, "turboserve.state === 'paused'")
        await page.keyboard.up(" ")
        assert await page.evaluate("scrollY") == 0
        await page.keyboard.press(" ")
        await server.until(lambda: any(message["type"] == "resume" for message in server.only.messages))
        said = [message["type"] for message in server.only.messages]
        assert (said.count("pause"), said.count("resume")) == (1, 1)


async def test_a_held_f_goes_to_full_screen_once(browser: Browser, server: StreamServer) -> None:
    async with tab(browser, server.url) as (page, _):
        await page.evaluate("document.activeElement.blur()")
        await page.evaluate("window.exits = 0; document.exitFullscreen = async () => { exits += 1 }; null")
        await page.keyboard.down("f")
        await until(page, "document.fullscreenElement !== null")
        await page.keyboard.down("f")
        assert await page.evaluate("exits") == 0
        await page.keyboard.up("f")
        await page.keyboard.press("f")
        await page.keyboard.press("F")
        assert await page.evaluate("exits") == 2


NO_FULL_SCREEN = """
    delete Element.prototype.requestFullscreen;
    delete Document.prototype.exitFullscreen;
    delete Document.prototype.fullscreenElement;
    delete Document.prototype.fullscreenEnabled;
"""
"""As on an iPhone."""


async def test_without_full_screen_there_is_no_button_for_it(browser: Browser, server: StreamServer) -> None:
    """And its key does nothing, without an error."""
    async with tab(browser, server.url, init_script=NO_FULL_SCREEN) as (page, complaints):
        await ask(page, RED_ON_BLUE)
        await until(page, "turboserve.framesDrawn >= 1")
        assert not await page.is_visible("#fullscreen")
        await page.evaluate("document.activeElement.blur()")
        await page.keyboard.press("f")
        assert complaints == []
