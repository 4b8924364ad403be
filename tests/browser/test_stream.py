"""`turboserve.js` as somebody else's page uses it: a `Stream` without the studio around it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import Browser, Page, Request, Route

from tests.browser.driver import HIDEABLE, empty_tab, listen, until
from tests.browser.stream_server import StreamServer, say

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

RED_ON_BLUE = "a red ball bouncing on a blue background"
GREEN_ON_BLACK = "a green ball bouncing on a black background"
START = f"stream.start({{ prompt: '{RED_ON_BLUE}' }})"

MAKE = """async () => {
    const { Stream } = await import("/turboserve.js");
    window.stream = new Stream({ canvas: document.querySelector("canvas") });
}"""


@asynccontextmanager
async def own_page(
    browser: Browser, server: StreamServer, *, init_script: str = ""
) -> AsyncIterator[tuple[Page, list[str]]]:
    """A page with `window.stream`, and the list its errors and warnings go to."""
    async with empty_tab(browser) as page:
        await page.add_init_script(init_script)
        complaints = listen(page)
        await page.goto(f"{server.url}/example.html")
        await page.evaluate(MAKE)
        yield page, complaints


async def thrown_by(page: Page, call: str) -> str | None:
    """What a call throws."""
    text: str | None = await page.evaluate(
        f"(() => {{ try {{ {call}; return null }} catch (error) {{ return String(error) }} }})()"
    )
    return text


async def test_a_prompt_right_after_the_start_is_sent(browser: Browser, server: StreamServer) -> None:
    """As the example in the module's header does it; once, and in its place."""
    async with own_page(browser, server) as (page, complaints):
        await page.evaluate(f"{START}; stream.prompt('{GREEN_ON_BLACK}')")
        await until(page, "stream.rev === 1")
        prompts = [m["text"] for m in server.only.messages if m["type"] == "prompt"]
        assert (prompts, server.out_of_place, complaints) == ([GREEN_ON_BLACK], [], [])


async def test_a_pause_right_after_the_start_is_sent(browser: Browser, server: StreamServer) -> None:
    """The server hears of it with the session."""
    async with own_page(browser, server) as (page, _):
        await page.evaluate(f"{START}; stream.setPaused(true)")
        await server.until(lambda: len(server.sessions) == 1 and server.only.paused)
        await until(page, "stream.phase === 'paused'")
        await page.evaluate("stream.setPaused(false)")
        await until(page, "stream.player.framesDrawn >= 20")


@pytest.mark.parametrize(
    "call", ["stream.prompt(TEXT)", "stream.start({ prompt: TEXT })"], ids=["prompt", "start"]
)
async def test_a_prompt_that_is_too_long_is_thrown_back(
    browser: Browser, server: StreamServer, call: str
) -> None:
    """With a sentence, before anything is sent: the server would cut the connection, again and again."""
    async with own_page(browser, server) as (page, _):
        await page.evaluate(START)
        await until(page, "stream.player.framesDrawn >= 1")
        too_long = await thrown_by(page, call.replace("TEXT", "'🙂'.repeat(2001)"))
        assert too_long == "RangeError: A prompt has at most 2000 characters; this one has 2001."
        huge = await thrown_by(page, call.replace("TEXT", "'x'.repeat(70_000)"))
        assert huge == "RangeError: A prompt has at most 2000 characters; this one has 70000."
        half = await thrown_by(page, call.replace("TEXT", "'half \\ud83d'"))
        assert half is not None and half.startswith("RangeError")
        assert await page.evaluate("stream.phase") in ("generating", "stalled")
        await page.evaluate("stream.prompt('🙂'.repeat(2000))")  # 4,000 for JavaScript, 2,000 for the server
        await until(page, "stream.rev === 1")
        assert len(server.only.prompt) == 2000


DELAYS = """async () => {
    const { Connection } = await import("/connection.js");
    const delays = [];
    Math.random = () => 1;
    const session = JSON.stringify({ type: "session", session: "s_0000000000000001", resume: "r" });
    const openSocket = async () => {
        const socket = { readyState: WebSocket.OPEN, send() {}, close() {} };
        queueMicrotask(() => queueMicrotask(() => {
            socket.onopen();
            socket.onmessage({ data: session });
            socket.onclose({ code: 1006, reason: "" });
        }));
        return socket;
    };
    const realTimeout = window.setTimeout;
    return await new Promise((done) => {
        window.setTimeout = (action, ms) => {
            delays.push(ms);
            if (delays.length === 8) done(delays);
            else realTimeout(action, 0);
        };
        const handlers = { message() {}, media() {}, lost() {}, waiting() {}, ended() {}, nextSeq: () => 0 };
        new Connection(openSocket, handlers).start(() => ({ type: "start", id: "1", prompt: "x" }));
    });
}"""


async def test_a_server_that_lets_in_and_cuts_at_once_is_asked_more_and_more_slowly(
    browser: Browser, server: StreamServer
) -> None:
    """Else each of its clients would attach again as often as the network carries it."""
    async with own_page(browser, server) as (page, _):
        assert await page.evaluate(DELAYS) == [100, 200, 400, 800, 1600, 2000, 2000, 2000]


async def test_a_throwing_handler_does_not_break_the_stream(browser: Browser, server: StreamServer) -> None:
    """It is reported as the page's own error; pictures that come in the background go on as well."""
    script = f"{HIDEABLE}; delete window.VideoDecoder"
    async with own_page(browser, server, init_script=script) as (page, complaints):
        await page.evaluate("void stream.on('frame', () => { throw new Error('my own fault') })")
        await page.evaluate(f"setHidden(true); {START}")
        await server.until(lambda: len(server.sessions) == 1 and server.only.acked_seq >= 3)
        await page.evaluate("setHidden(false)")
        await until(page, "stream.player.framesDrawn >= 20")
        assert await page.evaluate("stream.phase") in ("generating", "stalled")
        assert len(complaints) >= 20
        assert [text for text in complaints if "my own fault" not in text] == []


LOOKS = """(() => {
    let looks = 0;
    stream.player.tick = () => (looks += 1);
    document.dispatchEvent(new Event("visibilitychange"));
    delete stream.player.tick;
    return looks;
})()"""
"""How many players look up when the page comes to the front."""


async def test_a_destroyed_stream_lets_go_of_everything(browser: Browser, server: StreamServer) -> None:
    """Connection, listeners, loop and handlers; the session is not stopped by it."""
    async with own_page(browser, server) as (page, complaints):
        await page.evaluate(START)
        await until(page, "stream.player.framesDrawn >= 5")
        assert await page.evaluate(LOOKS) == 1
        await page.evaluate("window.heard = 0; stream.on('change', () => heard++); stream.destroy()")
        await server.until(lambda: server.only.socket is None)
        assert await page.evaluate(LOOKS) == 0
        drawn = await page.evaluate("stream.player.framesDrawn")
        await page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert await page.evaluate("[stream.player.framesDrawn, stream.phase, heard]") == [drawn, "ready", 0]
        assert not any(m["type"] == "stop" for m in server.only.messages)
        assert complaints == []


async def test_calls_without_a_session_do_nothing(browser: Browser, server: StreamServer) -> None:
    """Before the start and after the end: no exception, and a prompt is refused with a reason."""
    async with own_page(browser, server) as (page, complaints):
        await page.evaluate(
            "window.said = []; void stream.on('refused', ({ message }) => said.push(message))"
        )
        await page.evaluate("stream.stop(); stream.reset(); stream.setPaused(true); stream.prompt('x')")
        assert await page.evaluate("[stream.phase, ...said]") == ["ready", "There is no session to steer."]
        assert complaints == []


TOO_LONG = {"type": "error", "code": "unavailable", "message": "not yet", "retry_after_ms": 60_000}


async def test_a_start_that_waited_too_long_is_made_again(browser: Browser, server: StreamServer) -> None:
    """4408 where no session was granted: the server closes a connection that has none for ten minutes, and
    nothing was paused."""
    server.faults.close_on_start, server.faults.close_starts = (4408, TOO_LONG), 1
    async with own_page(browser, server) as (page, _):
        await page.evaluate(START)
        await until(page, "stream.player.framesDrawn >= 1")
        assert (server.faults.close_starts, len(server.sessions)) == (0, 1)


async def test_a_start_that_is_never_taken_is_no_pause(browser: Browser, server: StreamServer) -> None:
    """It is not tried for ever, and what is said in the end is not about a session that never was."""
    server.faults.close_on_start = (4408, TOO_LONG)
    async with own_page(browser, server) as (page, _):
        await page.evaluate(START)
        await until(page, "stream.phase === 'failed'")
        assert "paused" not in await page.evaluate("stream.end.sentence")


SHARE = "stream.share().then(JSON.stringify, ({ message }) => message)"
DOWNLOAD = "stream.download().then(({ size }) => `${size} bytes`, ({ message }) => message)"
WATCH = "**/v1/sessions/*/watch"
RECORDING = "**/v1/sessions/*/recording.mp4"


async def test_a_link_holds_for_as_long_as_is_asked(browser: Browser, server: StreamServer) -> None:
    """A day, if not said otherwise; what the server granted is told."""
    asked: list[Any] = []

    async def grant(route: Route, request: Request) -> None:
        asked.append(request.post_data_json)
        await route.fulfill(json={"token": "view.er", "expires_in_s": asked[-1]["ttl_s"]})

    async with own_page(browser, server) as (page, _):
        await page.route(WATCH, grant)
        await page.evaluate(START)
        await until(page, "stream.id !== null")
        whole = {"session": server.only.id, "token": "view.er", "expiresInS": 86_400}
        assert await page.evaluate("stream.share()") == whole
        assert await page.evaluate("stream.share({ ttlS: 60 })") == whole | {"expiresInS": 60}
        assert asked == [{"resume": server.only.resume, "ttl_s": ttl_s} for ttl_s in (86_400, 60)]


async def test_why_a_session_is_not_shared(browser: Browser, server: StreamServer) -> None:
    """A session that is over, a server without viewers, one that is away and a bad token are told apart."""
    answers: list[tuple[int, str] | None] = [
        (404, "no_such_session"),
        (404, "bad_message"),
        (429, "rate"),
        None,
    ]

    async def refuse(route: Route) -> None:
        answer = answers.pop(0)
        if answer is None:
            await route.abort()
            return
        status, code = answer
        await route.fulfill(status=status, json={"error": {"code": code, "message": f"it is {code}"}})

    async with own_page(browser, server) as (page, _):
        await page.route(WATCH, refuse)
        await page.evaluate("window.token = null; void stream.destroy()")
        await page.evaluate(MAKE.replace("canvas:", "token: () => window.token, canvas:"))
        await page.evaluate(START)
        await until(page, "stream.id !== null")
        assert [await page.evaluate(SHARE) for _ in range(4)] == [
            "This session is over, or another's: it can't be shared.",
            "This server does not take viewers.",
            "it is rate",
            "The server does not answer.",
        ]
        await page.evaluate("window.token = 'no token'")
        assert "characters that no token has" in await page.evaluate(SHARE)
        assert answers == []


async def test_a_viewer_downloads_with_its_token(browser: Browser, server: StreamServer) -> None:
    """The token that it watches with opens the recording too, until it leaves; it has nothing to share."""
    bearers: list[str | None] = []

    async def send(route: Route, request: Request) -> None:
        bearers.append(request.headers.get("authorization"))
        await route.fulfill(body=b"video", content_type="video/mp4")

    async with own_page(browser, server) as (page, _), own_page(browser, server) as (other, _):
        await page.evaluate(START)
        await until(page, "stream.id !== null")
        session = server.only.id
        await other.route(RECORDING, send)
        await other.evaluate(f"stream.watch({{ session: '{session}', token: 'view.er' }})")
        await until(other, "stream.id !== null")
        assert await other.evaluate(DOWNLOAD) == "5 bytes"
        assert await other.evaluate(SHARE) == "Only who steers a session can share it."
        await other.evaluate(f"stream.watch({{ session: '{session}' }})")
        await until(other, "stream.id !== null")
        assert await other.evaluate(DOWNLOAD) == "5 bytes"
        assert bearers == ["Bearer view.er", None]


async def test_without_a_session_nothing_is_asked_for(browser: Browser, server: StreamServer) -> None:
    """There is nothing to share or download, and the server is not asked for session null."""
    async with own_page(browser, server) as (page, complaints):
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        assert [await page.evaluate(call) for call in (SHARE, DOWNLOAD)] == ["There is no session."] * 2
        assert (asked, complaints) == ([], [])


async def test_crashes_that_end_a_session_are_not_counted(browser: Browser, server: StreamServer) -> None:
    """Two or three close it, by who was there: the sentence promises neither."""
    async with own_page(browser, server) as (page, _):
        await page.evaluate(START)
        await until(page, "stream.id !== null")
        assert server.only.socket is not None
        await say(server.only.socket, type="closed", reason="engine_crashed")
        await until(page, "stream.phase === 'ended'")
        sentence = "One engine after another crashed while they had it. It may be what crashes them."
        assert await page.evaluate("stream.end.sentence") == sentence
