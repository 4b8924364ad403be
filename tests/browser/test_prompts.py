"""What people type: as long as it may be, in any script, and at any moment."""

from __future__ import annotations

import asyncio

import pytest
from playwright.async_api import Browser

from tests.browser.driver import ask, tab, until
from tests.browser.stream_server import StreamServer
from tests.browser.test_page import GREEN_ON_BLACK, PASTE, RED_ON_BLUE, begin

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

STEERING = "document.getElementById('steering').textContent"
LONGEST = "🙂" * 2000


async def test_what_is_pasted_is_all_there_or_said_to_be_too_long(
    browser: Browser, server: StreamServer
) -> None:
    """As it is pasted, not only when it is sent; nothing is cut off. Emoji count once, as at the server."""
    async with tab(browser, server.url) as (page, _):
        field = page.locator("#prompt")
        await page.evaluate(PASTE, ["prompt", "x" * 10_000])
        sentence = "A prompt has at most 2000 characters; this one has 10000."
        assert (await page.evaluate(STEERING), len(await field.input_value())) == (sentence, 10_000)
        assert await field.get_attribute("aria-invalid") == "true"
        await field.press("Enter")
        assert (len(server.sessions), await page.evaluate("turboserve.state")) == (0, "ready")
        await page.evaluate(PASTE, ["prompt", LONGEST])
        assert (await page.evaluate(STEERING), await field.get_attribute("aria-invalid")) == ("", "false")
        await field.press("Enter")
        await until(page, "turboserve.framesDrawn >= 1")
        assert server.only.prompt == LONGEST


async def test_a_sentence_about_a_fault_is_whole_on_a_phone(browser: Browser, server: StreamServer) -> None:
    """What to do is at its end."""
    async with tab(browser, server.url, (320, 568)) as (page, _):
        await page.evaluate(PASTE, ["prompt", "x" * 10_000])
        look = "(({ scrollWidth, clientWidth }) => scrollWidth <= clientWidth)"
        assert await page.evaluate(f"{look}(document.getElementById('steering'))")


async def test_prompts_run_the_way_their_script_does(browser: Browser, server: StreamServer) -> None:
    """An Arabic prompt from right to left, wherever it stands."""
    async with tab(browser, server.url) as (page, _):
        await begin(page, "كرة حمراء red على خلفية blue!", frames=12)
        await until(page, "document.querySelector('.segment span') !== null")
        places = ["#prompt", "#caption", ".history .text", ".segment span"]
        directions = (
            "(names) => names.map((name) => getComputedStyle(document.querySelector(name)).direction)"
        )
        assert await page.evaluate(directions, places) == ["rtl"] * len(places)
        await ask(page, GREEN_ON_BLACK)
        assert await page.evaluate(directions, ["#prompt"]) == ["ltr"]


async def test_a_prompt_that_nobody_answered_before_a_reload_is_not_forgotten(
    browser: Browser, server: StreamServer
) -> None:
    """It is sent again with its id, applied once, and told as the prompt that it is."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        server.go_mute()
        await page.evaluate("document.getElementById('blend').value = 2")
        await ask(page, GREEN_ON_BLACK)
        await server.until(lambda: any(m["type"] == "prompt" for m in server.only.messages))
        await page.reload()
        await until(page, f"window.turboserve !== undefined && {STEERING}.startsWith('On screen')")
        await server.until(lambda: sum(m["type"] == "prompt" for m in server.only.messages) == 2)
        first, again = [m for m in server.only.messages if m["type"] == "prompt"]
        assert (first["text"], server.only.rev) == (GREEN_ON_BLACK, 1) and first == again
        assert await page.text_content("#caption") == GREEN_ON_BLACK
        assert await page.evaluate("turboserve.marks") == []
        assert [m["prompt"] for m in server.only.messages if m["type"] == "start"] == [RED_ON_BLUE]


async def test_a_prompt_into_a_connection_that_is_being_made_waits(
    browser: Browser, server: StreamServer
) -> None:
    """Who is quick with a second thought is heard, in the order of typing, also after a reload."""
    server.faults.hold_start = asyncio.Event()
    async with tab(browser, server.url) as (page, complaints):
        await ask(page, RED_ON_BLUE)
        await server.until(lambda: len(server.sessions) == 1)
        assert await page.evaluate("turboserve.state") == "connecting"
        await ask(page, GREEN_ON_BLACK)
        assert await page.locator("#history .text").all_text_contents() == [GREEN_ON_BLACK, RED_ON_BLUE]
        assert await page.evaluate(STEERING) == "Pending…"
        server.faults.hold_start.set()
        await until(page, "turboserve.rev === 1")
        server.faults.refuse_connections = True
        await page.reload()
        await until(page, "window.turboserve?.state === 'connecting'")
        await ask(page, RED_ON_BLUE)
        server.faults.refuse_connections = False
        await until(page, "turboserve.rev === 2")
        texts = [m["text"] for m in server.only.messages if m["type"] == "prompt"]
        assert (texts, server.out_of_place) == ([GREEN_ON_BLACK, RED_ON_BLUE], [])
        assert [text for text in complaints if "pageerror" in text] == []
