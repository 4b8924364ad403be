"""The cluster page in a real Chromium on a scripted cluster, over the real feed and listener."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from playwright.async_api import Browser, Page

from gateway.listener import Listener
from launch.simulate_serve import ClusterOnly
from scheduler.domain import EngineId, EngineRecord, EngineState, Phase, SessionId
from scheduler.sim.profile import find_profile
from scheduler.sim.record import new_engine
from scheduler.store.values import ClusterInfo, Decision, SessionOutline
from tests.browser.driver import tab, until

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

PHONE = (360, 740)
ONE, TWO = EngineId("e_00000001"), EngineId("e_00000002")


class ScriptedSource:
    """A cluster that is what a test says. Its clock runs with each look."""

    def __init__(self) -> None:
        self.clock_ms = 1_000_000
        self.engines: dict[EngineId, EngineRecord] = {}
        self.sessions: dict[SessionId, SessionOutline] = {}
        self.said: list[Decision] = []

    def engine(self, id: EngineId, state: EngineState = EngineState.READY) -> None:
        record = new_engine(id, find_profile("paper"), 0)
        self.engines[id] = replace(record, state=state, load=0.5, chunk_ms=300.0)

    def session(self, id: str, engine: EngineId | None, *, active: bool = True) -> None:
        phase = Phase.QUEUED if engine is None else Phase.PLACED
        self.sessions[SessionId(id)] = SessionOutline(
            id=SessionId(id), phase=phase, active=active, engine=engine, epoch=1, next_seq=0, slack_ms=0
        )

    async def now_ms(self) -> int:
        self.clock_ms += 500
        return self.clock_ms

    async def list_engines(self) -> list[EngineRecord]:
        counts = {id: sum(s.engine == id for s in self.sessions.values()) for id in self.engines}
        return [replace(record, sessions=counts[id]) for id, record in self.engines.items()]

    async def count_sessions(self) -> int:
        return len(self.sessions)

    async def read_outlines(self) -> AsyncIterator[list[SessionOutline]]:
        yield list(self.sessions.values())

    async def cluster_info(self) -> ClusterInfo:
        waiting = sum(s.phase is Phase.QUEUED for s in self.sessions.values())
        return ClusterInfo(
            policy="slack", budget=len(self.engines), queue=waiting, release_interval_ms=1, start_ms=1, term=1
        )

    async def decisions(self, count: int) -> list[Decision]:
        return self.said[:count]


@asynccontextmanager
async def served(source: ScriptedSource, port: int = 0) -> AsyncIterator[int]:
    """The page on this source; yields the port."""
    application = ClusterOnly(source)
    listener = Listener(application)
    bound = await listener.start("127.0.0.1", port)
    feed = asyncio.get_running_loop().create_task(application.feed.run())
    try:
        yield bound
    finally:
        application.feed.close()
        feed.cancel()
        await asyncio.gather(feed, return_exceptions=True)
        await listener.close()


def url(port: int) -> str:
    return f"http://127.0.0.1:{port}/cluster"


async def lane_of(page: Page, session: str) -> str | None:
    """The lane whose box the middle of a session's chip is in, once it rests."""
    where: str | None = await page.evaluate(
        """(id) => {
            const box = (node) => node.getBoundingClientRect();
            const node = document.querySelector(`.chip[data-id="${id}"]`);
            if (node === null) return null;
            const chip = box(node);
            const [x, y] = [chip.x + chip.width / 2, chip.y + chip.height / 2];
            const isIn = ({left, right, top, bottom}) => left < x && x < right && top < y && y < bottom;
            const lanes = [...document.querySelectorAll(".lane")];
            return lanes.find((lane) => isIn(box(lane)))?.dataset.id ?? null;
        }""",
        session,
    )
    return where


async def until_in(page: Page, session: str, lane: str) -> None:
    async with asyncio.timeout(20):
        while await lane_of(page, session) != lane:  # noqa: ASYNC110 - a transition that no event tells
            await asyncio.sleep(0.05)


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
    async with served(source) as port:
        context = await browser.new_context()
        page = await context.new_page()
        await page.goto(url(port))
        await until(page, "window.turboserve !== undefined && turboserve.feed === 'live'")
    try:
        await until(page, "turboserve.feed === 'lost'")
        assert "retrying" in (await page.text_content("#status") or "")
        assert await page.locator(".chip").count() == 1
        async with served(source, port):
            await until(page, "turboserve.feed === 'live'")
    finally:
        await context.close()


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
        assert "4 sessions, too many" in (await page.text_content("#status") or "")
        for id in ids[1:3]:
            del source.sessions[SessionId(id)]
        await until_in(page, ids[0], ONE)
        await until_in(page, ids[3], "queue")
        assert await page.locator(".lane-crowd").all_text_contents() == [""] * 3
        assert complaints == []


@pytest.mark.parametrize("size", [PHONE, (1600, 1000)], ids=["phone", "wide"])
async def test_64_engines_and_500_sessions_fit(browser: Browser, size: tuple[int, int]) -> None:
    """Every chip is inside the lane of its engine, and nothing sticks out sideways."""
    source = ScriptedSource()
    ids = [EngineId(f"e_{number:08x}") for number in range(64)]
    for id in ids:
        source.engine(id)
    for number in range(500):
        source.session(f"s_{number:016x}", ids[number * 7 % 64], active=number % 3 > 0)
    async with served(source) as port, tab(browser, url(port), size) as (page, complaints):
        await until(page, "document.querySelectorAll('.chip').length === 500")
        for number in (0, 250, 499):
            await until_in(page, f"s_{number:016x}", ids[number * 7 % 64])
        assert await page.locator(".lane").count() == 64
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert complaints == []
