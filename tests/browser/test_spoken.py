"""What a screen reader says by itself: what has happened, not each tick of a figure."""

from __future__ import annotations

from dataclasses import replace

import pytest
from playwright.async_api import Browser

from scheduler.domain import EngineId, SessionId
from tests.browser.driver import tab, until
from tests.browser.scripted_cluster import ScriptedSource, served, url
from tests.browser.stream_server import StreamServer
from tests.browser.test_background import until_states
from tests.browser.test_cluster_page import until_in
from tests.browser.test_page import begin

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

ONE = EngineId("e_00000001")
FIRST, SECOND = SessionId("s_0000000000000001"), SessionId("s_0000000000000002")

LISTEN = """() => {
    const LIVE = "[role=status], [role=alert], [role=log], [role=timer],"
        + " [aria-live]:not([aria-live=off]), output:not([aria-live=off])";
    window.spoken = [];
    const hear = (records) => {
        for (const { target } of records) {
            const region = (target.closest === undefined ? target.parentElement : target)?.closest(LIVE);
            if (region) spoken.push([region.id, region.textContent]);
        }
    };
    const what = { subtree: true, childList: true, characterData: true };
    new MutationObserver(hear).observe(document.body, what);
}"""
"""Collects (region, its text) of all that changes in a live region from now on."""
LENGTH = "document.getElementById('length').textContent"


async def test_the_studio_does_not_count_aloud(browser: Browser, server: StreamServer) -> None:
    """Neither the length nor how much is recorded; the button has the same name all along."""
    async with tab(browser, server.url) as (page, _):
        await begin(page, frames=1)
        await page.click("#record")
        await until(page, "document.getElementById('badge').textContent === 'Recording'")
        await until(page, "document.getElementById('steering').textContent.startsWith('First picture')")
        await page.evaluate(LISTEN)
        await until(page, f"{LENGTH} >= '0:04'")
        await until(page, "document.getElementById('record-label').textContent !== 'Save 0:00'")
        assert await page.get_by_role("button", name="Save", exact=True).count() == 1
        said = {region for region, _ in await page.evaluate("spoken")}
        assert said <= {"status"}  # where nothing else runs: nothing; a starved page says that it catches up


async def test_the_cluster_does_not_count_aloud(browser: Browser) -> None:
    """Its counts change with each state; what is said is how the connection is."""
    source = ScriptedSource()
    source.engine(ONE)
    source.session(FIRST, ONE)
    async with served(source) as port, tab(browser, url(port)) as (page, _):
        await until_in(page, FIRST, ONE)
        assert await page.get_by_role("status").filter(has_text="Live").count() == 1
        await page.evaluate(LISTEN)
        source.session(SECOND, ONE)
        await until(page, "document.getElementById('counts').textContent.startsWith('2 sessions, 2 active')")
        source.session(SECOND, ONE, active=False)
        await until(page, "document.getElementById('counts').textContent.startsWith('2 sessions, 1 active')")
        assert await page.evaluate("spoken") == []


async def test_a_session_that_is_read_keeps_its_name(browser: Browser) -> None:
    """Who is at it with the keyboard would hear each chunk of it; what it does now is said."""
    source = ScriptedSource()
    source.engine(ONE)
    source.session(FIRST, ONE)
    async with served(source) as port, tab(browser, url(port)) as (page, _):
        await until_in(page, FIRST, ONE)
        await page.focus(".chip")
        name = await page.get_attribute(".chip", "title")
        source.sessions[FIRST] = replace(source.sessions[FIRST], next_seq=7, slack_ms=900)
        await until_states(page, 2)
        assert await page.get_attribute(".chip", "title") == name
        source.sessions[FIRST] = replace(source.sessions[FIRST], active=False)
        await until(page, f"document.querySelector('.chip').title.startsWith('{FIRST}: idle on {ONE}')")
        await page.evaluate("document.activeElement.blur()")
        source.sessions[FIRST] = replace(source.sessions[FIRST], next_seq=9)
        await until(page, "document.querySelector('.chip').title.includes('chunk 8')")
