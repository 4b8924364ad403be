"""The studio in windows of every shape: the whole picture in its own shape, and nothing that sticks out."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import Browser, Page

from tests.browser.driver import tab, until
from tests.browser.scripted_cluster import ScriptedSource, served, url
from tests.browser.stream_server import StreamServer
from tests.browser.test_page import begin
from tests.browser.test_spoken import FIRST, ONE

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

SIZES = [
    (320, 568), (360, 740), (641, 800), (720, 450), (844, 390), (899, 700), (900, 700), (1024, 768),
    (1100, 800), (1181, 700), (1366, 650), (1920, 540), (2560, 1440),
]  # fmt: skip
"""Phones either way up, tablets, a laptop whose browser leaves little height, and at 200 % zoom."""
SHAPES = {"square": (480, 480), "wide": (832, 480), "tall": (480, 832)}

MEASURE = """([width, height]) => {
    const screen = document.getElementById("screen");
    Object.assign(screen, { width, height });
    document.documentElement.style.setProperty("--aspect", width / height);
    const boxOf = (name) => document.querySelector(name).getBoundingClientRect();
    const [picture, theatre, show] = ["#screen", "#theatre", ".show"].map(boxOf);
    const buttons = [...document.querySelectorAll(".transport > :not([hidden])")];
    return {
        isWhole: picture.top >= theatre.top && picture.bottom <= theatre.bottom
            && picture.left >= theatre.left && picture.right <= theatre.right,
        shape: picture.width / picture.height,
        share: Math.max(picture.width / theatre.width, picture.height / theatre.height),
        outside: buttons.filter((node) => node.getBoundingClientRect().right > show.right + 0.5).length,
        sideways: document.documentElement.scrollWidth - innerWidth,
    };
}"""


@pytest.mark.parametrize("shape", SHAPES)
async def test_the_whole_picture_is_seen_in_its_shape(
    browser: Browser, server: StreamServer, shape: str
) -> None:
    """However low or narrow the window is, also while it is recorded, when the row of buttons is widest."""
    width, height = SHAPES[shape]
    async with tab(browser, server.url) as (page, _):
        await begin(page, frames=1)
        await page.click("#record")
        for size in SIZES:
            await page.set_viewport_size({"width": size[0], "height": size[1]})
            found = await page.evaluate(MEASURE, [width, height])
            assert (size, found["isWhole"], found["outside"], found["sideways"]) == (size, True, 0, 0)
            assert (size, found["shape"]) == (size, pytest.approx(width / height, rel=0.01))
            assert found["share"] > 0.75, "it is much smaller than it could be"
        await page.set_viewport_size({"width": 1366, "height": 650})
        await page.click("#fullscreen")
        await until(page, "document.fullscreenElement !== null")
        found = await page.evaluate(MEASURE, [width, height])
        assert (found["isWhole"], found["shape"]) == (True, pytest.approx(width / height, rel=0.01))
        assert found["share"] > 0.9


PAINTED = """(names) => names.filter((name) => {
    const { backgroundColor, boxShadow } = getComputedStyle(document.querySelector(name));
    const canvas = getComputedStyle(document.body).backgroundColor;
    const isClear = (colour) => /, 0\\)$|\\/ 0\\)$/.test(colour) || colour === canvas;
    return isClear(backgroundColor) && boxShadow === "none";
})"""
"""Which of these have neither a colour nor a rim of their own."""


async def force_colours(page: Page) -> None:
    await page.emulate_media(forced_colors="active")


async def test_what_is_told_by_colour_is_there_in_forced_colours(browser: Browser) -> None:
    """Sessions, slots, the load and the legend are painted areas, which a high-contrast theme takes away."""
    source = ScriptedSource()
    source.engine(ONE)
    source.session(FIRST, ONE)
    async with served(source) as port, tab(browser, url(port)) as (page, _):
        await force_colours(page)
        await until(page, "document.querySelector('.chip') !== null")
        names = [".chip i", ".key.active", ".key.idle", ".key.queued", ".lane-slots i", ".lane-load"]
        assert await page.evaluate(PAINTED, names) == []


async def test_the_studio_s_marks_are_there_in_forced_colours(browser: Browser, server: StreamServer) -> None:
    """The dot of the status, and what happened along the video."""
    async with tab(browser, server.url) as (page, _):
        await force_colours(page)
        await begin(page, frames=1)
        await page.click("#pause")
        await until(page, "document.querySelector('.tick') !== null")
        assert await page.evaluate(PAINTED, [".status .dot", ".tick"]) == []
        current: dict[str, Any] = await page.evaluate(
            "Object.fromEntries([...document.querySelectorAll('nav a')].map((a) => [a.textContent,"
            " getComputedStyle(a).borderBottomStyle]))"
        )
        assert current["Studio"] != current["Cluster"]
