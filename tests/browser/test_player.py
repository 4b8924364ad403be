"""When the player shows which picture: its clock is the test's, so that no machine is too slow for it."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser, Page

from tests.browser.stream_server import StreamServer
from tests.browser.test_stream import own_page

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

OPEN = """async () => {
    const { Player } = await import("/player.js");
    const canvas = Object.assign(document.createElement("canvas"), { width: 8, height: 8 });
    canvas.getContext("2d");
    const jpeg = await new Promise((done) => canvas.toBlob(done, "image/jpeg"));
    const units = new Array(12).fill(new Uint8Array(await jpeg.arrayBuffer()));
    const [make, decoded] = [window.createImageBitmap.bind(window), []];
    window.createImageBitmap = (blob) => {
        decoded.push(make(blob));
        return decoded.at(-1);
    };
    let nowMs = 0;
    performance.now = () => nowMs;
    window.requestAnimationFrame = () => 0; // it is looked at by `at` alone
    window.player = new Player(canvas, { complete() {}, drawn() {}, failed() {} });
    player.open({ type: "session", codec: "mjpeg", width: 8, height: 8, fps: 16, chunk_frames: 12 }, 0);
    window.receive = async (seq, rev = 0) => {
        player.part({ header: { seq, part: 0, parts: 1, key: true, rev, pts_ms: seq * 750 }, units });
        await Promise.all(decoded);
        await new Promise((done) => setTimeout(done));
    };
    window.at = (ms) => {
        nowMs = ms;
        player.tick(ms);
        return player.drawn.ptsMs;
    };
}"""
"""A player of 16 pictures a second, in chunks of 12. `receive(seq, rev)`: a chunk is there and decoded;
`at(ms)`: the picture that is shown then."""


async def shown(page: Page, *times_ms: float) -> list[float]:
    """The media time of the picture that is shown at each of these."""
    return [await page.evaluate(f"at({time_ms})") for time_ms in times_ms]


@pytest.mark.parametrize("late_ms", [0, 5_000], ids=["on time", "late"])
async def test_a_gap_is_not_waited_through(browser: Browser, server: StreamServer, late_ms: int) -> None:
    """As soon as the picture before has had its time the next one comes, and then each in its turn."""
    async with own_page(browser, server) as (page, _):
        await page.evaluate(OPEN)
        await page.evaluate("receive(0)")
        await page.evaluate("player.gap(1)")
        await page.evaluate("receive(2)")
        assert await shown(page, 0, 687.5, 749) == [0, 687.5, 687.5]
        begun_ms = 750 + late_ms
        assert await shown(page, begun_ms, begun_ms + 62.5, begun_ms + 125) == [1500, 1562.5, 1625]


async def test_a_pause_costs_no_picture(browser: Browser, server: StreamServer) -> None:
    """What the player held is shown when it goes on, from where it stood."""
    async with own_page(browser, server) as (page, _):
        await page.evaluate(OPEN)
        await page.evaluate("receive(0)")
        assert await shown(page, 0, 62.5) == [0, 62.5]
        await page.evaluate("player.setPaused(true)")
        assert await shown(page, 60_000) == [62.5]
        await page.evaluate("player.setPaused(false)")
        assert await shown(page, 60_062.5, 60_125, 60_187.5) == [125, 187.5, 250]
        assert await page.evaluate("player.framesSkipped") == 0


async def test_what_is_seen_late_to_have_run_dry_was_not_played(
    browser: Browser, server: StreamServer
) -> None:
    """A page in the background, or on a machine that stood still, looks up long after: the picture stood."""
    totals = "(({ playedMs, stalledMs }) => [playedMs, stalledMs])(player.clock.totals(performance.now()))"
    async with own_page(browser, server) as (page, _):
        await page.evaluate(OPEN)
        await page.evaluate("receive(0)")
        assert await shown(page, 0, 500) == [0, 500]
        assert await page.evaluate(totals) == [500, 0]
        assert await shown(page, 5_000) == [687.5]
        assert await page.evaluate(totals) == [750, 4_250]
        await page.evaluate("receive(1)")
        assert await shown(page, 5_100) == [812.5]  # a little more slowly now
        assert await page.evaluate(totals) == [850, 4_250]


async def test_a_new_prompt_cuts_what_is_queued(browser: Browser, server: StreamServer) -> None:
    """Three pictures are left of the old one; then the new one begins."""
    async with own_page(browser, server) as (page, _):
        await page.evaluate(OPEN)
        await page.evaluate("receive(0)")
        await page.evaluate("receive(1)")
        assert await shown(page, 0) == [0]
        await page.evaluate("receive(2, 1)")
        assert await shown(page, 62.5, 125, 187.5, 250, 312.5) == [62.5, 125, 187.5, 1500, 1562.5]
        assert await page.evaluate("player.framesSkipped") == 20
