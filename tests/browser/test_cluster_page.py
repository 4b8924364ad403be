"""The cluster page in a real Chromium on a scripted cluster, over the real feed and listener."""

from __future__ import annotations

import asyncio
import io
import re

import av
import numpy as np
import pytest
from playwright.async_api import Browser, Page

from scheduler.domain import EngineId, EngineState, SessionId
from scheduler.store.values import Decision
from tests.browser.driver import HIDEABLE, SCALE, empty_tab, tab, until
from tests.browser.scripted_cluster import ScriptedSource, served, url
from tests.cluster import free_port

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

PHONE = (360, 740)
ONE, TWO = EngineId("e_00000001"), EngineId("e_00000002")


LANES = """() => {
    const nodes = [...document.querySelectorAll(".lane:not([data-gone])")];
    const lanes = nodes.map((lane) => [lane.dataset.id, lane.getBoundingClientRect()]);
    const laneOf = (chip) => {
        const box = chip.getBoundingClientRect();
        const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
        const isIn = ([, { left, right, top, bottom }]) => left < x && x < right && top < y && y < bottom;
        return lanes.find(isIn)?.[0] ?? null;
    };
    const chips = [...document.querySelectorAll(".chip:not([data-gone])")];
    return Object.fromEntries(chips.map((chip) => [chip.dataset.id, laneOf(chip)]));
}"""
"""The lane whose box the middle of each session's chip is in."""


async def until_seen(page: Page, wanted: dict[str, str]) -> None:
    """Wait until these sessions rest in these lanes."""
    async with asyncio.timeout(20 * SCALE):
        while not wanted.items() <= (await page.evaluate(LANES)).items():  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.05)


async def until_in(page: Page, session: str, lane: str) -> None:
    await until_seen(page, {session: lane})


async def test_sessions_are_seen_in_their_lanes_and_moving(browser: Browser) -> None:
    """Queued, placed, idle, migrated, gone: each is where it should be and looks like it."""
    source = ScriptedSource()
    source.engine(ONE)
    source.engine(TWO)
    source.session("s_0000000000000001", ONE)
    source.session("s_0000000000000002", ONE, active=False)
    source.session("s_0000000000000003", None)
    source.said = [Decision(at_ms=1, text=f"placed s_0000000000000001 on {ONE}: <b>free</b>")]
    async with served(source) as port, tab(browser, url(port)) as (page, complaints):
        await until(page, "turboserve.cluster !== null")
        await until_in(page, "s_0000000000000001", ONE)
        await until_in(page, "s_0000000000000003", "queue")
        idle = ".chip[data-id=s_0000000000000002]"
        assert await page.get_attribute(idle, "data-state") == "idle"
        assert "<b>free</b>" in (await page.text_content("#decisions") or "")
        assert "2 engines" in (await page.text_content("#figure-budget .value") or "")
        source.session("s_0000000000000001", TWO)
        await until(page, "turboserve.moves === 1")
        await until_in(page, "s_0000000000000001", TWO)
        source.session("s_0000000000000003", ONE)
        await until_in(page, "s_0000000000000003", ONE)
        await until(page, "document.querySelector('.lane[data-queue]') === null")
        assert await page.evaluate("turboserve.moves") == 1  # to have waited is not to have moved
        del source.sessions[SessionId("s_0000000000000002")]
        await until(page, f"document.querySelector('{idle}') === null")
        source.said = [Decision(at_ms=2, text="migrating"), *source.said]
        await until(page, "document.querySelectorAll('#decisions li').length === 2")
        assert complaints == []


async def test_engines_come_and_go_and_lanes_keep_their_place(browser: Browser) -> None:
    """A new engine takes the cell of one that has gone; the others stay where they are."""
    source = ScriptedSource()
    for number in range(1, 7):
        source.engine(EngineId(f"e_0000000{number}"))
    async with served(source) as port, tab(browser, url(port)) as (page, _):
        await until(page, "document.querySelectorAll('.lane').length === 6")
        lanes = "[...document.querySelectorAll('.lane')]"
        places = f"Object.fromEntries({lanes}.map((lane) => [lane.dataset.id, lane.style.transform]))"
        before = await page.evaluate(places)
        del source.engines[TWO]
        await until(page, "document.querySelectorAll('.lane').length === 5")
        source.engine(EngineId("e_00000009"), EngineState.STARTING)
        await until(page, "document.querySelectorAll('.lane').length === 6")
        after = await page.evaluate(places)
        assert after.pop("e_00000009") == before.pop(TWO)
        assert after == before
        assert await page.text_content(".lane[data-id=e_00000009] .lane-state") == "starting"


async def test_a_lost_feed_is_said_and_comes_back(browser: Browser) -> None:
    """While the gateway is away the page says so and keeps what it knew."""
    source = ScriptedSource()
    source.engine(ONE)
    source.session("s_0000000000000001", ONE)
    async with empty_tab(browser) as page:
        async with served(source, free_port()) as port:  # nobody gets it in between
            await page.goto(url(port))
            await until(page, "window.turboserve !== undefined && turboserve.feed === 'live'")
        await until(page, "turboserve.feed === 'lost'")
        assert "retrying" in (await page.text_content("#status") or "")
        assert await page.locator(".chip").count() == 1
        async with served(source, port):
            await until(page, "turboserve.feed === 'live'")


async def test_a_simulation_refuses_to_be_changed(browser: Browser) -> None:
    """Choosing a session and an engine asks for the move, and shows the sentence of the refusal."""
    source = ScriptedSource()
    source.engine(ONE)
    source.engine(TWO)
    source.session("s_0000000000000001", ONE)
    async with served(source) as port, tab(browser, url(port)) as (page, _):
        await until(page, "turboserve.cluster !== null")
        await until_in(page, "s_0000000000000001", ONE)
        await page.click(".chip")
        assert "choose the engine" in (await page.text_content("#hint") or "")
        await page.click(f".lane[data-id={TWO}]")
        await until(page, "document.getElementById('hint').textContent.startsWith('Not moved')")
        assert "only be watched" in (await page.text_content("#hint") or "")


FOCUSED = """(({ className, dataset }) => [className, dataset.id])(document.activeElement)"""


async def test_the_keyboard_alone_moves_a_session(browser: Browser) -> None:
    """One stop for Tab, arrows from session to session, Enter chooses it and the engine, Escape neither."""
    source = ScriptedSource()
    source.engine(ONE)
    source.engine(TWO)
    first, second, third = (f"s_{number:016x}" for number in (1, 2, 3))
    source.session(first, ONE)
    source.session(second, ONE)
    source.session(third, TWO)
    async with served(source) as port, tab(browser, url(port)) as (page, complaints):

        async def press(key: str) -> list[str]:
            await page.keyboard.press(key)
            focused: list[str] = await page.evaluate(FOCUSED)
            return focused

        await until_in(page, third, TWO)
        await page.focus("#theme")
        assert await press("Tab") == ["chip", first]
        assert await page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        assert await page.locator(".chip[tabindex='0']").count() == 1
        keys = ("ArrowRight", "ArrowDown", "ArrowUp", "End", "Home", "ArrowLeft")
        assert [(await press(key))[1] for key in keys] == [second, third, first, third, first, first]
        assert await press("Enter") == ["lane", TWO]
        assert await page.get_by_role("button", name=re.compile(f"^{first}: active on {ONE}")).count() == 1
        assert await page.get_by_role("button", name=re.compile(f"^Move to {TWO}")).count() == 1
        assert await page.get_by_role("status").filter(has_text="choose the engine").count() == 1
        assert await press("Escape") == ["chip", first]
        assert await page.get_by_role("button", name=re.compile("^Move to")).count() == 0
        await press("Enter")
        assert await press("Space") == ["chip", first]
        await until(page, "document.getElementById('hint').textContent.startsWith('Not moved')")
        assert await page.get_by_role("status").filter(has_text="only be watched").count() == 1
        assert [text for text in complaints if "Failed to load resource" not in text] == []


async def test_the_focus_outlives_its_session(browser: Browser) -> None:
    """Who looked at a session that ends is at the next one."""
    source = ScriptedSource()
    source.engine(ONE)
    source.session("s_0000000000000001", ONE)
    source.session("s_0000000000000002", ONE)
    async with served(source) as port, tab(browser, url(port)) as (page, _):
        await until_in(page, "s_0000000000000002", ONE)
        await page.focus(".chip[data-id=s_0000000000000001]")
        del source.sessions[SessionId("s_0000000000000001")]
        await until(page, "document.querySelectorAll('.chip').length === 1")
        assert await page.evaluate(FOCUSED) == ["chip", "s_0000000000000002"]


async def test_a_session_of_a_lost_engine_keeps_its_chip(browser: Browser) -> None:
    """Until somebody notices it stays where it was; then it is seen moving to its new engine."""
    source = ScriptedSource()
    source.engine(ONE)
    source.engine(TWO)
    source.session("s_0000000000000001", ONE)
    async with served(source) as port, tab(browser, url(port)) as (page, _):
        await until_in(page, "s_0000000000000001", ONE)
        await page.evaluate("document.querySelector('.chip').dataset.mine = ''")
        del source.engines[ONE]
        await until(page, "document.querySelectorAll('.lane').length === 1")
        assert await page.locator(".chip[data-mine]:not([data-gone])").count() == 1
        source.session("s_0000000000000001", TWO)
        await until(page, "turboserve.moves === 1")
        await until_in(page, "s_0000000000000001", TWO)
        assert await page.locator(".chip[data-mine]").count() == 1


FOLLOW = """async () => {
    const { follow } = await import("/feed.js");
    const text = new TextEncoder().encode("event: cluster\\ndata: {}\\n\\n");
    window.opened = window.cancelled = 0;
    window.fetch = async () => {
        window.opened += 1;
        return new Response(new ReadableStream({
            start: (to) => to.enqueue(text),
            cancel: () => { window.cancelled += 1 },
        }));
    };
    follow("/", null, { event: () => { throw new Error("my own fault") }, lost: () => {} });
}"""


async def test_a_handler_that_fails_holds_no_stream(browser: Browser) -> None:
    """The stream that it was following is given back before the next one is asked for."""
    source = ScriptedSource()
    source.engine(ONE)
    async with served(source) as port, tab(browser, url(port)) as (page, _):
        await until(page, "turboserve.feed === 'live'")
        await page.evaluate(FOLLOW)
        await until(page, "opened >= 2 && cancelled >= opened - 1")


async def test_a_phone_is_told_why_a_session_was_not_moved(browser: Browser) -> None:
    """There is room for the sentence, too."""
    source = ScriptedSource()
    source.engine(ONE)
    source.session("s_0000000000000001", ONE)
    async with served(source) as port, tab(browser, url(port), PHONE) as (page, _):
        await until_in(page, "s_0000000000000001", ONE)
        await page.click(".chip")
        assert await page.is_visible("#hint")
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")


async def test_a_crowd_is_shown_as_numbers(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more sessions than are listed each lane says how many it has; of few enough each is seen again."""
    monkeypatch.setattr("gateway.cluster_reader.MAX_LISTED", 3)
    monkeypatch.setattr("gateway.cluster_reader.LISTED_AGAIN", 2)
    source = ScriptedSource()
    source.engine(ONE)
    source.engine(TWO)
    ids = [f"s_{number:016x}" for number in range(4)]
    for id, engine in zip(ids, (ONE, ONE, TWO, None), strict=True):
        source.session(id, engine)
    async with served(source) as port, tab(browser, url(port)) as (page, complaints):
        for lane, count in ((ONE, 2), (TWO, 1), ("queue", 1)):
            crowd = f"document.querySelector('.lane[data-id={lane}] .lane-crowd')"
            await until(page, f"{crowd}?.textContent === '{count}'")
        assert await page.locator(".chip").count() == 0
        assert "4 sessions, too many" in (await page.text_content("#counts") or "")
        for id in ids[1:3]:
            del source.sessions[SessionId(id)]
        await until_in(page, ids[0], ONE)
        await until_in(page, ids[3], "queue")
        assert await page.locator(".lane-crowd").all_text_contents() == [""] * 3
        assert complaints == []


CHIPS = """() => {
    const brush = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const alpha = (colour) => {
        brush.clearRect(0, 0, 1, 1);
        brush.fillStyle = colour;
        brush.fillRect(0, 0, 1, 1);
        return brush.getImageData(0, 0, 1, 1).data[3] / 255;
    };
    return [...document.querySelectorAll(".chip")].map((chip) => {
        const { x, y } = chip.getBoundingClientRect();
        return [chip.dataset.id, [x, y], alpha(getComputedStyle(chip.firstElementChild).backgroundColor)];
    });
}"""
"""(session, place, how much of what is behind its fill hides) of each chip."""


@pytest.mark.parametrize("size", [PHONE, (1600, 1000)], ids=["phone", "wide"])
async def test_64_engines_and_500_sessions_fit(browser: Browser, size: tuple[int, int]) -> None:
    """Every chip has a place of its own inside the lane of its engine, and idle ones are pale; all can move
    at once, and nothing sticks out sideways."""
    source = ScriptedSource()
    engines = [EngineId(f"e_{number:08x}") for number in range(64)]
    sessions = [f"s_{number:016x}" for number in range(500)]
    for engine in engines:
        source.engine(engine)

    def place(shift: int) -> dict[str, str]:
        seats = {id: engines[(number * 7 + shift) % 64] for number, id in enumerate(sessions)}
        for number, (id, engine) in enumerate(seats.items()):
            source.session(id, engine, active=number % 3 > 0)
        return dict(seats)

    seats = place(0)
    async with served(source) as port, tab(browser, url(port), size) as (page, complaints):
        await page.emulate_media(reduced_motion="reduce")
        await until(page, "document.querySelectorAll('.chip').length === 500")
        await until_seen(page, seats)
        assert await page.locator(".lane").count() == 64
        chips = await page.evaluate(CHIPS)
        assert len({tuple(spot) for _, spot, _ in chips}) == 500
        for id, _, fill in chips:
            is_idle = sessions.index(id) % 3 == 0
            assert fill == pytest.approx(0.24 if is_idle else 1, abs=0.01)
        seats = place(13)
        await until(page, "turboserve.moves === 500")
        await until_seen(page, seats)
        assert len({tuple(spot) for _, spot, _ in await page.evaluate(CHIPS)}) == 500
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert complaints == []


FRAMES = """
    const asked = [];
    window.requestAnimationFrame = (step) => asked.push(step);
    window.drawFrame = (nowMs) => {
        asked.splice(0).forEach((step) => step(nowMs));
        const canvas = document.querySelector(".flights");
        if (canvas.hidden) return null;
        const { width, height } = canvas;
        const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
        let [x, y, all] = [0, 0, 0];
        for (let at = 0; at < width * height; at++) {
            const alpha = data[4 * at + 3];
            all += alpha;
            x += alpha * (at % width);
            y += alpha * Math.floor(at / width);
        }
        return all === 0 ? null : [x / all, y / all];
    };
"""
"""Frames come when they are asked for. `drawFrame(nowMs)`: the middle of all that is drawn over the lanes."""

SPOT = """() => {
    const boxOf = (name) => document.querySelector(name).getBoundingClientRect();
    const [lanes, chip] = [boxOf(".lanes"), boxOf(".chip")];
    return [chip.x - lanes.x + chip.width / 2, chip.y - lanes.y + chip.height / 2];
}"""
FILL = "getComputedStyle(document.querySelector('.chip i')).visibility"


async def test_a_session_is_seen_on_its_way(browser: Browser) -> None:
    """From where it was to where it is, nearer with each frame; there its element shows itself."""
    source = ScriptedSource()
    source.engine(ONE)
    source.engine(TWO)
    source.session("s_0000000000000001", ONE)
    async with served(source) as port, tab(browser, url(port), init_script=FRAMES) as (page, complaints):
        await until(page, "document.querySelector('.chip') !== null")
        frames = [await page.evaluate(f"drawFrame({now_ms})") for now_ms in (0, 300, 1_000, 1_100)]
        old = await page.evaluate(SPOT)
        assert frames[1] == pytest.approx(old, abs=1.5)  # it came there
        assert frames[2:] == [None, None]
        assert await page.evaluate(FILL) == "visible"
        source.session("s_0000000000000001", TWO)
        await until(page, "turboserve.moves === 1")
        new = await page.evaluate(SPOT)
        assert await page.evaluate(FILL) == "hidden"
        times = (5_000, 5_050, 5_150, 5_400, 6_200)
        spots = np.array([await page.evaluate(f"drawFrame({now_ms})") for now_ms in times])
        assert spots[0] == pytest.approx(old, abs=1.5)
        assert spots[-1] == pytest.approx(new, abs=1.5)
        left = np.hypot(*(spots - new).T)
        assert (np.diff(left) < 0).all()
        await page.evaluate("drawFrame(6_800)")  # grows small again
        assert await page.evaluate("drawFrame(8_000)") is None
        assert await page.evaluate(FILL) == "visible"
        assert await page.evaluate("turboserve.flying") == 0
        assert [text for text in complaints if "getImageData" not in text] == []  # that is this test


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_what_flies_looks_like_what_rests(browser: Browser, theme: str) -> None:
    """The canvas sets out with the very picture of the chip, whatever it does."""
    source = ScriptedSource()
    source.engine(ONE)
    source.engine(TWO)
    for number, is_active in enumerate((True, False)):
        source.session(f"s_{number:016x}", ONE, active=is_active)
    for number in (2, 3):
        source.session(f"s_{number:016x}", None)
    async with served(source) as port, tab(browser, url(port), init_script=FRAMES) as (page, _):
        await page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
        await until(page, "document.querySelectorAll('.chip').length === 4")
        for now_ms in (0, 1_000):
            await page.evaluate(f"drawFrame({now_ms})")
        boxes = [await chip.bounding_box() for chip in (await page.locator(".chip").all())[:3]]

        async def look() -> list[np.ndarray]:
            shot = await page.screenshot(caret="initial")
            with av.open(io.BytesIO(shot), "r") as png:
                image = next(png.decode(video=0)).to_ndarray(format="rgb24").astype(int)
            spots = [(round(box["x"]), round(box["y"]), round(box["width"])) for box in boxes if box]
            return [image[y : y + side, x : x + side] for x, y, side in spots]

        rests = await look()
        for number in range(3):
            source.session(f"s_{number:016x}", TWO)
        await until(page, "turboserve.moves === 2")
        await page.evaluate("drawFrame(5_000)")
        for rest, flies in zip(rests, await look(), strict=True):
            assert rest.std() > 0
            assert np.abs(rest - flies).mean() < 4


async def test_all_can_move_at_once_and_again_on_their_way(browser: Browser) -> None:
    """Each element is where it belongs before a frame is drawn, no lane grows for it; in the end all rest."""
    source = ScriptedSource()
    engines = [EngineId(f"e_{number:08x}") for number in range(16)]
    sessions = [f"s_{number:016x}" for number in range(128)]
    for engine in engines:
        source.engine(engine)

    def place(shift: int) -> dict[str, str]:
        seats = {id: engines[(number * 5 + shift) % 16] for number, id in enumerate(sessions)}
        for id, engine in seats.items():
            source.session(id, engine)
        return dict(seats)

    lanes = "[...document.querySelectorAll('.lane')].map(({ style }) => [style.transform, style.height])"
    seats = place(0)
    async with served(source) as port, tab(browser, url(port), init_script=FRAMES) as (page, complaints):
        await until(page, "turboserve.flying === 128")
        await page.evaluate("drawFrame(0)")
        await page.evaluate("drawFrame(1_000)")
        assert await page.evaluate("turboserve.flying") == 0
        before = await page.evaluate(lanes)
        for turn, shift in enumerate((3, 6), 1):
            seats = place(shift)
            await until(page, f"turboserve.moves === {128 * turn}")
            assert await page.evaluate(LANES) == seats
            assert await page.evaluate(lanes) == before
            assert await page.evaluate("turboserve.flying") == 128
            await page.evaluate(f"drawFrame({5_000 + 500 * turn})")
        for now_ms in (7_500, 8_500):
            await page.evaluate(f"drawFrame({now_ms})")
        assert await page.evaluate("turboserve.flying") == 0
        assert await page.locator(".chip[data-flying]").count() == 0
        assert not await page.is_visible(".flights")
        assert [text for text in complaints if "getImageData" not in text] == []


WHILE_AWAITED = """() => {
    const [set, waiting] = [window.setTimeout.bind(window), []];
    window.setTimeout = (done, ms, ...rest) => (ms === 1300 ? waiting.push(done) : set(done, ms, ...rest));
    window.passTime = () => waiting.splice(0).forEach((done) => done());
}"""
"""For how long a chip is marked as moved is said by `passTime()`."""


async def test_who_asks_for_less_motion_sees_who_has_moved(browser: Browser) -> None:
    """Nothing flies; the chip is at its place at once, larger and with a halo for a while."""
    source = ScriptedSource()
    source.engine(ONE)
    source.engine(TWO)
    source.session("s_0000000000000001", ONE)
    async with served(source) as port, tab(browser, url(port)) as (page, _):
        await page.emulate_media(reduced_motion="reduce")
        await until_in(page, "s_0000000000000001", ONE)
        await until(page, "turboserve.flying === 0")
        await page.evaluate("window.requestAnimationFrame = () => { throw new Error('a frame') }; null")
        await page.evaluate(WHILE_AWAITED)
        source.session("s_0000000000000001", TWO)
        await until(page, "document.querySelector('.chip[data-moving]') !== null")
        assert (await page.evaluate(LANES))["s_0000000000000001"] == TWO
        assert await page.evaluate("turboserve.flying") == 0
        assert await page.evaluate(FILL) == "visible"
        await page.evaluate("passTime()")
        await until(page, "document.querySelector('.chip[data-moving]') === null")


async def test_a_browser_that_cannot_draw_the_way_shows_the_place(browser: Browser) -> None:
    """No chip waits unseen for a picture that never comes."""
    source = ScriptedSource()
    source.engine(ONE)
    source.session("s_0000000000000001", ONE)
    without = "delete window.OffscreenCanvas"
    async with served(source) as port, tab(browser, url(port), init_script=without) as (page, complaints):
        await until_in(page, "s_0000000000000001", ONE)
        assert await page.evaluate(FILL) == "visible"
        assert complaints == []


async def test_a_page_that_is_left_lands_what_flies(browser: Browser) -> None:
    """No frame comes to it in the background: each chip shows itself where it is."""
    source = ScriptedSource()
    source.engine(ONE)
    async with served(source) as port, tab(browser, url(port), init_script=HIDEABLE) as (page, complaints):
        await until(page, "document.querySelector('.lane') !== null")
        await page.evaluate("window.requestAnimationFrame = () => {}; null")
        source.session("s_0000000000000001", ONE)
        await until(page, "turboserve.flying === 1")
        await page.evaluate("setHidden(true)")
        assert await page.evaluate("turboserve.flying") == 0
        assert await page.evaluate(FILL) == "visible"
        assert complaints == []


FIGURES = """() => [turboserve.cluster.t_ms, Object.fromEntries(
    ["budget", "load", "latency", "cost"].map((name) => [name,
        [...document.querySelectorAll(`#figure-${name} p`)].map(({ textContent }) => textContent)]))]"""
"""When, and what the figures say."""


async def test_the_figures_are_the_feeds(browser: Browser) -> None:
    """Mean load of the engines that run; the worst chunk of those that serve somebody, with its peak; the
    engine time of the budget, adding up."""
    source = ScriptedSource(step_ms=5_000)
    source.engine(ONE, load=0.25, worst_ms=180.0)
    source.engine(TWO, load=0.65, worst_ms=421.6)
    source.engine(EngineId("e_00000003"), EngineState.STARTING, load=0.0, worst_ms=9_000.0)
    source.engine(EngineId("e_00000004"), load=0.3, worst_ms=5_000.0)  # of sessions that have left
    source.session("s_0000000000000001", ONE)
    source.session("s_0000000000000002", TWO)
    began_ms = source.clock_ms + 5_000  # the first look
    async with served(source) as port, tab(browser, url(port)) as (page, complaints):
        await until(page, f"turboserve.cluster?.t_ms >= {began_ms + 20_000}")
        t_ms, figures = await page.evaluate(FIGURES)
        assert figures == {
            "budget": ["4 engines", "1 starting"],
            "load": ["40 %", "2 sessions"],
            "latency": ["422 ms", "peak 422 ms"],
            "cost": [f"{4 * (t_ms - began_ms) / 60_000:.1f} engine-min", "last 10 min"],
        }
        latency = page.locator("#figure-latency")
        assert await latency.locator("h2").text_content() == "Worst chunk"
        assert (await latency.get_attribute("title") or "").startswith("Longest chunk latency")
        source.engine(TWO, load=0.05, worst_ms=100.0)
        await until(page, "document.querySelector('#figure-load .value').textContent === '20 %'")
        _, figures = await page.evaluate(FIGURES)
        assert figures["latency"] == ["180 ms", "peak 422 ms"]
        assert complaints == []


async def test_a_gateway_with_auth_is_told_an_admin_token_here(browser: Browser) -> None:
    """Asked for where none, or one that may not, was brought; kept apart from the studio's; or by a link."""
    source = ScriptedSource()
    source.engine(ONE)
    tokens = {"admin": True, "user": False}
    async with served(source, tokens=tokens) as port, tab(browser, url(port)) as (page, _):
        why, field = page.locator("#token-why"), page.locator("#token")
        await why.filter(has_text="An access token with the scope admin is needed").wait_for()
        for wrong, sentence in (
            ("two words", "That is no access token"),
            ("user", "may not see the cluster"),
        ):
            await field.fill(wrong)
            await field.press("Enter")
            await why.filter(has_text=sentence).wait_for()
        await field.fill(" Bearer admin ")
        await page.locator("#token-form button").click()
        await until(page, "turboserve.feed === 'live'")
        assert await page.locator("#token-form").is_hidden()
        assert await page.evaluate("sessionStorage['turboserve.token']") is None
        await page.reload()
        await until(page, "window.turboserve?.feed === 'live'")
    async with served(source, tokens=tokens) as port, tab(browser, url(port) + "#token=admin") as (page, _):
        await until(page, "turboserve.feed === 'live'")
        assert page.url == url(port)
