"""A tab in the background: its timers come late and nothing is drawn. Neither costs it anything."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser, Page

from scheduler.domain import EngineId
from tests.browser.driver import HIDEABLE, pixels, share, stats, tab, until
from tests.browser.scripted_cluster import ScriptedSource, served, url
from tests.browser.stream_server import StreamServer
from tests.browser.test_cluster_page import until_in
from tests.browser.test_page import begin
from tests.browser.test_stream import own_page

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

ONE, TWO = EngineId("e_00000001"), EngineId("e_00000002")
FIRST, SECOND = "s_0000000000000001", "s_0000000000000002"


async def until_states(page: Page, count: int) -> None:
    """Wait until the cluster page has heard of so many more states."""
    heard = await page.evaluate("turboserve.cluster.t_ms")
    await until(page, f"turboserve.cluster.t_ms >= {heard + 500 * count}")


async def test_a_cluster_that_nobody_sees_is_not_drawn(browser: Browser) -> None:
    """Nothing piles up while the page is hidden; when it is seen again it shows what has come of all."""
    source = ScriptedSource()
    source.engine(ONE)
    source.engine(TWO)
    source.session(FIRST, ONE)
    async with served(source) as port, tab(browser, url(port), init_script=HIDEABLE) as (page, complaints):
        await until_in(page, FIRST, ONE)
        await page.evaluate("setHidden(true)")
        source.session(FIRST, TWO)
        source.session(SECOND, ONE)
        await until_states(page, 4)
        assert await page.evaluate("framesWaiting()") == 0
        assert await page.locator(".chip").count() == 1
        await page.evaluate("setHidden(false)")
        await until_in(page, FIRST, TWO)
        await until_in(page, SECOND, ONE)
        await until(page, "document.querySelector('.chip[data-fresh]') === null")
        assert await page.text_content("#counts") == "2 sessions, 2 active, slack policy"
        assert complaints == []


async def test_a_session_that_comes_asks_for_one_frame(browser: Browser) -> None:
    """However many states are drawn before that frame."""
    source = ScriptedSource()
    source.engine(ONE)
    async with served(source) as port, tab(browser, url(port)) as (page, _):
        await until(page, "document.querySelector('.lane') !== null")
        await page.evaluate("window.asked = 0; window.requestAnimationFrame = () => { asked += 1 }; null")
        source.session(FIRST, ONE)
        await until(page, "document.querySelector('.chip') !== null")
        await until_states(page, 4)
        assert await page.evaluate("asked") == 1


LINE = """async (steps) => {
    const { Connection } = await import("/connection.js");
    let [nowMs, look, isAnswered, losses] = [0, null, true, 0];
    performance.now = () => nowMs;
    window.setInterval = (action) => { look = action; return 0 };
    const session = JSON.stringify({ type: "session", session: "s_0000000000000001", resume: "r" });
    const granted = new Promise((done) => {
        const openSocket = async () => {
            const socket = { readyState: WebSocket.OPEN, close() {}, send(text) {
                const { type, t } = JSON.parse(text);
                const pong = { data: JSON.stringify({ type: "pong", t }) };
                if (type === "ping" && isAnswered) socket.onmessage(pong);
            } };
            queueMicrotask(() => queueMicrotask(() => {
                socket.onopen();
                socket.onmessage({ data: session });
                done();
            }));
            return socket;
        };
        const lost = () => { losses += 1 };
        const handlers = { message() {}, media() {}, lost, waiting() {}, ended() {}, nextSeq: () => 0 };
        new Connection(openSocket, handlers).start(() => ({ type: "start", id: "1", prompt: "x" }));
    });
    await granted;
    return steps.map(([afterMs, answered]) => {
        [nowMs, isAnswered] = [nowMs + afterMs, answered];
        look();
        return losses;
    });
}"""
"""Looks at a connection (how much later, is the ping that it sends answered?) -> how often it was lost by
then."""
ON_TIME, THROTTLED, ASLEEP = 5_000, 60_000, 3_600_000


@pytest.mark.parametrize(
    ("steps", "losses"),
    [
        pytest.param([(THROTTLED, True)] * 4, [0] * 4, id="hidden for long"),
        pytest.param([(THROTTLED, True), *[(THROTTLED, False)] * 2], [0, 0, 1], id="dead while hidden"),
        pytest.param([(ON_TIME, False), *[(THROTTLED, False)] * 2], [0, 0, 1], id="dead, then hidden"),
        pytest.param([(ON_TIME, False)] * 3, [0, 0, 1], id="dead in front"),
        pytest.param([(ASLEEP, True), (ON_TIME, True)], [0, 0], id="asleep"),
        pytest.param([(ASLEEP, False), *[(ON_TIME, False)] * 3], [0, 0, 0, 1], id="dead after a sleep"),
    ],
)  # fmt: skip
async def test_only_a_question_that_had_its_time_tells_of_a_dead_line(
    browser: Browser, server: StreamServer, steps: list[tuple[int, bool]], losses: list[int]
) -> None:
    """A look that comes late asks, and cuts nothing: the connection may be fine. The next one judges."""
    async with own_page(browser, server) as (page, _):
        assert await page.evaluate(LINE, steps) == losses


FEED = """async () => {
    const { follow } = await import("/feed.js");
    const text = new TextEncoder().encode("event: cluster\\ndata: {}\\n\\n");
    const looks = [];
    let nowMs = performance.now();
    performance.now = () => nowMs;
    window.setInterval = (look) => { looks.push(look); return 0 };
    Object.assign(window, { heard: 0, given: 0, lost: [] });
    window.fetch = async (path, { signal }) => new Response(new ReadableStream({
        start: (to) => {
            to.enqueue(text);
            signal.addEventListener("abort", () => { given += 1; to.error(signal.reason) });
        },
    }));
    window.look = (afterMs) => { nowMs += afterMs; looks.at(-1)(); return given };
    follow("/", null, { event: () => { heard += 1 }, lost: (sentence) => lost.push(sentence) });
}"""
"""A feed that says one thing and then nothing any more. `look(afterMs)`: how often it was given up so far."""


async def test_a_feed_that_dies_without_a_word_is_replaced(browser: Browser) -> None:
    """The server says something every 5 s. Late looks, as in a hidden tab, give it up one look later."""
    source = ScriptedSource()
    source.engine(ONE)
    async with served(source) as port, tab(browser, url(port)) as (page, complaints):
        await until(page, "turboserve.feed === 'live'")
        await page.evaluate(FEED)
        await until(page, "heard === 1")
        assert [await page.evaluate(f"look({ON_TIME})") for _ in range(3)] == [0, 0, 1]
        await until(page, "heard === 2")
        assert await page.evaluate("lost") == ["No connection, retrying…"]
        assert [await page.evaluate(f"look({THROTTLED})") for _ in range(2)] == [1, 2]
        await until(page, "heard === 3")
        assert complaints == []


async def test_a_paused_picture_is_there_when_it_is_looked_at(browser: Browser, server: StreamServer) -> None:
    """A tab that is restored in the background keeps the one picture it gets until somebody can see it."""
    async with tab(browser, server.url, init_script=HIDEABLE) as (page, _):
        await begin(page)
        await page.click("#pause")
        await until(page, "turboserve.state === 'paused'")
        await page.evaluate("sessionStorage.setItem('hidden', '')")
        await page.reload()
        await until(page, "window.turboserve?.state === 'paused' && turboserve.seq !== null")
        assert (await stats(page))["framesDrawn"] == 0
        await page.evaluate("setHidden(false)")
        figures = await stats(page)
        assert (figures["framesDrawn"], figures["framesSkipped"]) == (1, 0)
        assert share(await pixels(page), 2) > 0.5
