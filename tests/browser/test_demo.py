"""The demo as a person meets it: the page in a real Chromium, a real cluster, video by the real model."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any, Protocol

import av
import pytest
from playwright.async_api import Browser, Page

from tests.browser.driver import (
    NARROW,
    ask,
    empty_tab,
    listen,
    pixels,
    share,
    stats,
    tab,
    until,
    until_pixels,
)
from tests.cluster import FOREIGN_ORIGIN, FOREIGN_PORT

pytestmark = [
    pytest.mark.browser,
    pytest.mark.cluster,
    pytest.mark.timeout(240),
    pytest.mark.asyncio(loop_scope="module"),
]

RED, GREEN, BLUE = range(3)
RED_ON_BLUE = "a red ball bouncing on a blue background"
YELLOW_ON_GREEN = "a yellow ball bouncing on a green background"
LIMIT_S = 60


class Cluster(Protocol):
    """What the `cluster` fixture gives: a running cluster of real processes."""

    url: str

    def pids(self, prefix: str) -> dict[str, int]: ...


async def begin(page: Page, frames: int = 1) -> None:
    await ask(page, RED_ON_BLUE)
    await until(page, f"turboserve.framesDrawn >= {frames}", LIMIT_S)


async def test_prompt_streams_and_steers(browser: Browser, cluster: Cluster, tmp_path: Path) -> None:
    """60 frames in the prompt's colours, then a new prompt turns the running video into its own colours."""
    async with tab(browser, cluster.url) as (page, complaints):
        await begin(page, frames=60)
        samples = await pixels(page)
        await page.screenshot(path=tmp_path / "red-on-blue.png")
        assert share(samples, BLUE) > 0.5, "the background is not blue"
        assert share(samples, RED) > 0.01, "there is nothing red"
        assert (await stats(page))["state"] in ("generating", "stalled")

        session = (await stats(page))["session"]
        await ask(page, YELLOW_ON_GREEN)
        await until_pixels(page, lambda seen: share(seen, GREEN) > 0.4 and share(seen, BLUE) < 0.05, LIMIT_S)
        await page.screenshot(path=tmp_path / "yellow-on-green.png")
        after = await stats(page)
        assert (after["session"], after["gaps"]) == (session, 0)
        assert after["rev"] >= 1
        assert complaints == []


async def test_reload_resumes(browser: Browser, cluster: Cluster) -> None:
    """After a reload the same session goes on from where it was, in the same colours."""
    async with tab(browser, cluster.url) as (page, _):
        await begin(page, frames=20)
        before = await stats(page)
        await page.reload()
        await until(page, "window.turboserve !== undefined && turboserve.framesDrawn >= 20", LIMIT_S)
        after = await stats(page)
        assert (after["session"], after["gaps"]) == (before["session"], 0)
        assert after["seq"] >= before["seq"]
        assert share(await pixels(page), BLUE) > 0.5


async def test_pause_resume_reset_and_stop(browser: Browser, cluster: Cluster) -> None:
    """The four buttons do what they say, on a phone's width."""
    async with tab(browser, cluster.url, NARROW) as (page, _):
        await begin(page, frames=10)
        await page.click("#pause")
        await until(page, "turboserve.state === 'paused'")
        drawn = (await stats(page))["framesDrawn"]
        await page.click("#pause")
        await until(page, f"turboserve.framesDrawn >= {drawn + 10}", LIMIT_S)
        rev = (await stats(page))["rev"]
        await page.click("#reset")
        await until(page, f"turboserve.rev > {rev}", LIMIT_S)
        await page.click("#stop")
        await until(page, "turboserve.state === 'ended'")
        await page.reload()
        await until(page, "window.turboserve !== undefined && turboserve.state === 'ready'")


EMBEDDED = """<!doctype html>
<link rel="icon" href="data:,">
<canvas></canvas>
<script type="module">
  import { Stream } from "URL/turboserve.js";
  window.turboserve = new Stream({ canvas: document.querySelector("canvas"), url: "URL" });
  turboserve.start({ prompt: "PROMPT" });
</script>"""


async def test_a_page_of_another_site_embeds_a_stream(browser: Browser, cluster: Cluster) -> None:
    """It imports the module from the gateway, plays, hands on a link and downloads, without a complaint."""
    html = EMBEDDED.replace("URL", cluster.url).replace("PROMPT", RED_ON_BLUE).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(html)}\r\n\r\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head.encode() + html)
        writer.close()

    async with empty_tab(browser) as page:
        complaints = listen(page)
        async with await asyncio.start_server(answer, "localhost", FOREIGN_PORT):
            await page.goto(FOREIGN_ORIGIN)
        await until(page, "window.turboserve?.player.framesDrawn >= 20", LIMIT_S)
        shared = await page.evaluate("turboserve.share()")
        assert (shared["session"][:2], shared["expiresInS"]) == ("s_", 86_400)
        assert await page.evaluate("turboserve.download().then((video) => video.size)") > 1_000
        await page.evaluate("turboserve.stop()")
        await until(page, "turboserve.phase === 'ended'")
        assert complaints == []


def kill(cluster: Cluster, prefix: str) -> None:
    """kill -9 one process whose name in run.json starts with `prefix`."""
    os.kill(min(cluster.pids(prefix).values()), signal.SIGKILL)


async def usage_of(page: Page, session: str) -> list[dict[str, Any]]:
    """Its usage records."""
    records: list[dict[str, Any]] = await page.evaluate(
        """async (id) => {
            const {usage} = await (await fetch("/v1/usage")).json();
            return usage.filter(({session}) => session === id);
        }""",
        session,
    )
    return records


@pytest.mark.faults
async def test_killed_gateway_and_engine_are_survived(
    browser: Browser, restored_cluster: Cluster, tmp_path: Path
) -> None:
    """kill -9 of the gateway, then of an engine: the page goes on with the same session, every chunk once;
    what it downloads at the end is the whole session, but for what the killed gateway had not yet written."""
    async with tab(browser, restored_cluster.url) as (page, _):
        await begin(page, frames=20)
        session = (await stats(page))["session"]
        for victim in ("gateway-", "engine-{engine}"):
            figures = await stats(page)
            kill(restored_cluster, victim.format(**figures))
            seq = figures["newestSeq"] + 4
            await until(page, f"turboserve.state === 'generating' && turboserve.seq >= {seq}", LIMIT_S)
        figures = await stats(page)
        assert (figures["session"], figures["gaps"]) == (session, 0)
        assert figures["chunks"] == figures["newestSeq"] + 1
        async with page.expect_download() as download:
            await page.click("#download")
        await (await download.value).save_as(tmp_path / "all.mp4")
        await page.click("#stop")
        await until(page, "turboserve.state === 'ended'")
        async with asyncio.timeout(LIMIT_S):  # the page hears of the end before Redis does
            while not (answer := await usage_of(page, session)):  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.05)
        (usage,) = answer
        assert usage["reason"] == "stopped" and usage["chunks"] > figures["newestSeq"]
        assert usage["engine_ms"] > 10 * usage["chunks"] and usage["media_bytes"] > 100 * usage["chunks"]
        assert usage["closed_ms"] - usage["created_ms"] >= usage["resident_ms"] >= usage["active_ms"] > 1_000
    with av.open(str(tmp_path / "all.mp4")) as file:
        times = [frame.time for frame in file.decode(video=0)]
        (stream,) = file.streams.video
        assert stream.average_rate is not None and stream.duration is not None
        assert times[0] == 0 and times == sorted(set(times))
        length_s = float(stream.duration * stream.time_base)
        assert length_s == pytest.approx(times[-1] + 1 / 16, abs=0.01)
        assert len(times) >= 16 * length_s - 12
        assert length_s >= (figures["newestSeq"] + 1) * 0.75 - 0.5
