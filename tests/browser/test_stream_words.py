"""What a `Stream` says and when, where its server, its browser or its network does not do as it should."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser

from tests.browser.driver import until
from tests.browser.stream_server import StreamServer
from tests.browser.test_stream import DOWNLOAD, MAKE, SHARE, START, own_page

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

BREAK = """window.fetch = async () => new Response(new ReadableStream({
    start(body) {
        body.enqueue(new Uint8Array(10));
        body.error(new TypeError("network error"));
    },
}))"""


async def test_a_download_that_breaks_off_is_a_sentence(browser: Browser, server: StreamServer) -> None:
    """Not the browser's own words for it, which differ and say little."""
    async with own_page(browser, server) as (page, _):
        await page.evaluate(START)
        await until(page, "stream.id !== null")
        await page.evaluate(f"{BREAK}; null")
        said = await page.evaluate(DOWNLOAD)
        assert said == "The connection broke before the whole recording was here. Try again."


async def test_a_session_that_is_left_is_told_as_any_change(browser: Browser, server: StreamServer) -> None:
    """`phase` and `change` come without a `refresh()`; of a destroyed stream nothing is heard."""
    async with own_page(browser, server) as (page, _):
        await page.evaluate(
            "window.heard = []; void stream.on('phase', ({ phase }) => heard.push(phase));"
            "void stream.on('change', () => heard.push('change'))"
        )
        await page.evaluate(START)
        await until(page, "stream.player.framesDrawn >= 1")
        await page.evaluate("heard = []; stream.leave()")
        assert await page.evaluate("heard") == ["ready", "change"]
        await page.evaluate(f"{START}; heard = []; stream.destroy()")
        assert await page.evaluate("heard") == []


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (
            "window.WebSocket = class { constructor() { throw new DOMException('It is not secure.') } }",
            "It is not secure.",
        ),
        (
            "token = () => { throw new Error('the account is closed') }",
            "No token could be had: the account is closed",
        ),
        ("token = () => Promise.reject()", "No token could be had: undefined"),
    ],
    ids=["socket", "token", "nothing thrown"],
)
async def test_why_no_connection_is_begun(
    browser: Browser, server: StreamServer, fault: str, sentence: str
) -> None:
    """A socket that the browser does not open is no matter of tokens."""
    async with own_page(browser, server) as (page, _):
        await page.evaluate("window.token = () => null; stream.destroy()")
        await page.evaluate(MAKE.replace("canvas:", "token: () => window.token(), canvas:"))
        await page.evaluate(f"{fault}; {START}")
        await until(page, "stream.phase === 'failed'")
        assert await page.evaluate("stream.end.sentence") == sentence


async def test_a_link_for_which_no_token_can_be_had_says_so(browser: Browser, server: StreamServer) -> None:
    """The server was not asked: it is not the one that does not answer."""
    async with own_page(browser, server) as (page, _):
        await page.evaluate("window.token = () => null; stream.destroy()")
        await page.evaluate(MAKE.replace("canvas:", "token: () => window.token(), canvas:"))
        await page.evaluate(START)
        await until(page, "stream.id !== null")
        await page.evaluate("window.token = () => { throw new Error('the account is closed') }; null")
        assert await page.evaluate(SHARE) == "No token could be had: the account is closed"


async def test_only_what_can_be_recorded_is_offered(browser: Browser, server: StreamServer) -> None:
    """Before the server has said what the video is, `startRecording` would do nothing."""
    async with own_page(browser, server) as (page, _):
        # At once: nothing has come by then.
        assert await page.evaluate(f"{START}; [stream.isLive, stream.isRecordable]") == [True, False]
        await until(page, "stream.id !== null")
        await page.evaluate("stream.startRecording()")
        assert await page.evaluate("[stream.isRecordable, stream.isRecording]") == [True, True]


async def test_video_that_cannot_be_decoded_is_not_made_for_nobody(
    browser: Browser, server: StreamServer
) -> None:
    """Its session is stopped: nobody can come back to it, and it would count against a quota."""
    server.faults.damaged = range(1000)
    async with own_page(browser, server) as (page, _):
        await page.evaluate(START)
        await until(page, "stream.phase === 'failed'")
        await server.until(lambda: any(m["type"] == "stop" for m in server.only.messages))
        await server.until(lambda: server.only.socket is None)


HARDWARE = """{
    const Real = window.VideoDecoder;
    window.configured = [];
    window.VideoDecoder = class {
        #real; #error;
        static isConfigSupported(config) { return Real.isConfigSupported(config); }
        constructor(init) { this.#error = init.error; this.#real = new Real(init); }
        get state() { return this.#real.state; }
        configure(config) { configured.push(config.hardwareAcceleration); this.#real.configure(config); }
        decode(chunk) {
            if (configured.at(-1) === "prefer-software") this.#real.decode(chunk);
            else if (%(fails)s) this.#error(new DOMException("Decoding error.", "EncodingError"));
        }
        close() { this.#real.close(); }
    };
}"""


async def test_where_hardware_fails_software_decodes(browser: Browser, server: StreamServer) -> None:
    """After a second failure: the first may be of the video."""
    async with own_page(browser, server, init_script=HARDWARE % {"fails": "true"}) as (page, _):
        await page.evaluate(START)
        await until(page, "stream.player.framesDrawn >= 20")
        assert await page.evaluate("configured") == ["no-preference"] * 2 + ["prefer-software"]


async def test_where_hardware_keeps_its_pictures_software_decodes(
    browser: Browser, server: StreamServer
) -> None:
    """Without an error, as some do; once it has given nothing for longer than a busy machine would take."""
    async with own_page(browser, server, init_script=HARDWARE % {"fails": "false"}) as (page, complaints):
        await page.evaluate(START)
        await until(page, "stream.player.framesDrawn >= 20")
        assert await page.evaluate("configured") == ["no-preference", "prefer-software"]
        assert complaints == ["warning: video decoder: it keeps pictures to itself, trying software"]


LATE = """async (silences) => {
    window.VideoDecoder = class {
        state = "configured";
        configure() {}
        decode() {}
        close() {}
    };
    const { makeDecoder } = await import("/decoder.js");
    let [nowMs, lost] = [0, 0];
    const decoder = makeDecoder("vp9", { frame() {}, failed() {}, lost: () => (lost += 1) });
    for (let unit = 0; unit < 12; unit++) decoder.decode(new Uint8Array(1), unit === 0, { seq: 0 });
    return silences.map((ms) => {
        for (const endMs = nowMs + ms; nowMs < endMs; ) decoder.check((nowMs += 20));
        return lost;
    });
}"""
"""A chunk of twelve, and no picture of it: how many are given up after so many more ms each."""


async def test_a_decoder_that_is_only_slow_loses_nothing(browser: Browser, server: StreamServer) -> None:
    """Where there is far too much to do one took a second. One that has stopped is given up all the same."""
    async with own_page(browser, server) as (page, _):
        assert await page.evaluate(LATE, [2_500, 1_000]) == [0, 12]


FULL_LEAD = """async () => {
    const { Player } = await import("/player.js");
    const canvas = Object.assign(document.createElement("canvas"), { width: 8, height: 8 });
    canvas.getContext("2d");
    const jpeg = await new Promise((done) => canvas.toBlob(done, "image/jpeg"));
    const unit = new Uint8Array(await jpeg.arrayBuffer());
    const player = new Player(canvas, { complete() {}, drawn() {}, failed() {} });
    const video = { codec: "mjpeg", width: 8, height: 8, fps: 60, chunk_frames: 60, lead_ms: 10_000 };
    player.open({ type: "session", ...video }, 0);
    player.setPaused(true);
    const units = new Array(60).fill(unit);
    for (let seq = 0; seq < 10; seq++) {
        player.part({ header: { seq, part: 0, parts: 1, key: true, rev: 0, pts_ms: seq * 1000 }, units });
    }
    const last = new Promise((done) => {
        const real = window.createImageBitmap;
        window.createImageBitmap = (blob) => real(blob).then((picture) => (setTimeout(done), picture));
    });
    player.part({ header: { seq: 10, part: 0, parts: 1, key: true, rev: 0, pts_ms: 10_000 }, units: [unit] });
    await last;
    player.destroy();
    return player.framesSkipped;
}"""


async def test_a_long_lead_is_kept_whole(browser: Browser, server: StreamServer) -> None:
    """Ten seconds of 60 pictures a second, the most that a start may ask for: none is dropped unseen."""
    async with own_page(browser, server) as (page, _):
        assert await page.evaluate(FULL_LEAD) == 0
