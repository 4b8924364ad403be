"""The page in a real Chromium against a scripted server: what works, and what each fault looks like."""

from __future__ import annotations

import asyncio
from pathlib import Path

import av
import pytest
from playwright.async_api import Browser, Page

from tests.browser.driver import (
    HIDEABLE,
    NARROW,
    WIDE,
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
from tests.browser.stream_server import CHUNK_FRAMES, FPS, StreamServer, say, say_state
from tests.cluster import until as until_here

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

RED_ON_BLUE = "a red ball bouncing on a blue background"
GREEN_ON_BLACK = "a green ball bouncing on a black background"


async def begin(page: Page, prompt: str = RED_ON_BLUE, frames: int = 20) -> None:
    await ask(page, prompt)
    await until(page, f"turboserve.framesDrawn >= {frames}")


async def test_prompt_becomes_moving_pictures_in_its_colours(browser: Browser, server: StreamServer) -> None:
    """Typing a prompt draws decoded frames whose colours are the prompt's, without any complaint."""
    async with tab(browser, server.url) as (page, complaints):
        await begin(page, frames=60)
        samples = await pixels(page)
        assert share(samples, 2) > 0.5
        assert share(samples, 0) > 0.03
        await until(page, "turboserve.state === 'generating'")
        assert complaints == []


async def test_new_prompt_changes_the_running_video(browser: Browser, server: StreamServer) -> None:
    """A second prompt keeps the session, is reported from pending to on screen, and changes the picture."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        server.only.lead_ms = 5_000
        await until(page, "turboserve.bufferMs > 4000")  # much is queued, however late this machine is
        before = await stats(page)
        await ask(page, GREEN_ON_BLACK)
        await until(page, "turboserve.rev === 1")
        await until(page, "document.getElementById('steering').textContent.startsWith('On screen')")
        samples = await pixels(page)
        assert share(samples, 1) > 0.03
        assert share(samples, 2) < 0.05
        after = await stats(page)
        assert after["session"] == before["session"]
        assert after["framesSkipped"] > before["framesSkipped"]  # what was queued of the old prompt was cut
        assert await page.text_content("#caption") == GREEN_ON_BLACK
        assert await page.locator("#history li").count() == 2


NOTE_WHERE_IT_WAS = """addEventListener("pagehide", () => sessionStorage.setItem("left", turboserve.seq))"""


async def test_reload_resumes_the_running_session(browser: Browser, server: StreamServer) -> None:
    """After a reload the same session plays on from where the picture was, its prompts still listed."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        session = (await stats(page))["session"]
        await page.evaluate(NOTE_WHERE_IT_WAS)
        await page.reload()
        await until(page, "window.turboserve !== undefined && turboserve.framesDrawn >= 20")
        assert server.asked_from == [int(await page.evaluate("sessionStorage.getItem('left')"))]
        assert (await stats(page))["session"] == session
        assert await page.input_value("#prompt") == RED_ON_BLUE
        assert len(server.sessions) == 1
        await until(page, "document.querySelector('canvas.thumb') !== null")


async def test_lost_connection_is_survived_without_a_gap(browser: Browser, server: StreamServer) -> None:
    """Two broken connections: the page attaches again and every chunk is played exactly once."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        for attaches in (1, 2):
            server.abort_all()
            await until_here(lambda attaches=attaches: server.attaches == attaches)  # type: ignore[misc]
            await until(page, f"turboserve.state === 'generating' && turboserve.seq >= {attaches * 3}")
            assert server.attaches == attaches
        figures = await stats(page)
        assert (figures["gaps"], figures["chunks"]) == (0, figures["newestSeq"] + 1)


async def assert_each_frame_shown_once(page: Page) -> None:
    """Of all frames up to the one on the canvas, each was drawn or passed over exactly once."""
    figures = await stats(page)
    index = round(figures["ptsMs"] * FPS / 1000)
    assert figures["framesDrawn"] + figures["framesSkipped"] == index + 1


async def test_chunk_cut_in_the_middle_is_replaced_by_its_second_sending(
    browser: Browser, server: StreamServer
) -> None:
    """A chunk cut off after its first part is sent again: no frame lost or doubled."""
    server.faults.parts, server.faults.cut_in_chunk = 3, 2
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        await until(page, "turboserve.seq >= 4")
        assert server.attaches == 1
        await assert_each_frame_shown_once(page)


async def test_shown_part_of_a_chunk_is_not_shown_again(browser: Browser, server: StreamServer) -> None:
    """When the first part was played before the connection came back, playback goes on behind it."""
    server.faults.parts, server.faults.cut_in_chunk, server.faults.away_after_cut = 3, 1, True
    async with tab(browser, server.url) as (page, _):
        await ask(page, RED_ON_BLUE)
        await until(page, f"turboserve.ptsMs === {(CHUNK_FRAMES + CHUNK_FRAMES // 3 - 1) * 1000 / FPS}")
        server.faults.refuse_connections = False
        await until(page, "turboserve.seq >= 3")
        assert server.attaches == 1
        await assert_each_frame_shown_once(page)


async def test_chunks_sent_twice_are_played_once(browser: Browser, server: StreamServer) -> None:
    """Complete chunks that come again after an attach are ignored."""
    server.faults.overlap_chunks = 2
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        server.abort_all()
        await until_here(lambda: server.attaches == 1)
        await until(page, "turboserve.seq >= 4")
        assert server.attaches == 1
        await assert_each_frame_shown_once(page)


async def test_gap_is_jumped_over(browser: Browser, server: StreamServer) -> None:
    """Playback goes on behind chunks that the server will not send."""
    server.faults.gap_at = 2
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        await until(page, "turboserve.seq >= 5")
        figures = await stats(page)
        assert figures["gaps"] == 1
        assert figures["chunks"] == figures["newestSeq"]


@pytest.mark.parametrize("init_script", [None, "delete window.VideoDecoder"], ids=["video", "pictures"])
async def test_damaged_chunk_costs_only_itself(
    browser: Browser, server: StreamServer, init_script: str | None
) -> None:
    """After a broken access unit the decoder is made anew and plays from the next key frame; of Motion JPEG
    one picture is missing."""
    server.faults.damaged = range(2, 3)
    async with tab(browser, server.url, init_script=init_script) as (page, complaints):
        await begin(page)
        await until(page, "turboserve.seq >= 5 && turboserve.state === 'generating'")
        assert share(await pixels(page), 2) > 0.5
        assert not [text for text in complaints if "pageerror" in text]


async def test_slow_engine_shows_the_last_picture_and_goes_on(browser: Browser, server: StreamServer) -> None:
    """When chunks come late the picture holds and playback slows down a little instead of breaking."""
    server.faults.gen_s = 1.2
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        await until(page, "turboserve.stalls >= 1 && turboserve.rate < 1")
        seq = (await stats(page))["newestSeq"]
        await until(page, f"turboserve.seq > {seq}")


async def test_pause_freezes_the_picture_and_resume_continues_it(
    browser: Browser, server: StreamServer
) -> None:
    """Pausing stops drawing and tells the server; resuming goes on from the same picture."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        await page.click("#pause")
        await until(page, "turboserve.state === 'paused'")
        await until(page, "document.getElementById('pause-label').textContent === 'Resume'")
        frozen = await stats(page)
        await asyncio.sleep(0.3)
        assert (await stats(page))["framesDrawn"] == frozen["framesDrawn"]
        await server.until(lambda: server.only.paused)
        await page.click("#pause")
        await until(page, f"turboserve.framesDrawn > {frozen['framesDrawn'] + 20}")
        assert (await stats(page))["mediaMs"] > frozen["mediaMs"]


async def test_paused_session_reloads_as_a_still_picture(browser: Browser, server: StreamServer) -> None:
    """A reload while paused stays paused, and shows one picture instead of an empty frame."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        await page.click("#pause")
        await until(page, "turboserve.state === 'paused'")
        await page.reload()
        await until(
            page,
            "window.turboserve !== undefined && turboserve.state === 'paused' && turboserve.seq !== null",
        )
        assert share(await pixels(page), 2) > 0.5
        assert (await stats(page))["framesDrawn"] == 1


async def test_a_pause_before_the_first_picture_ends_as_any_other(
    browser: Browser, server: StreamServer
) -> None:
    """In line, paused and resumed: the video plays at its pace, not a picture per chunk."""
    server.faults.queue = asyncio.Event()
    async with tab(browser, server.url) as (page, _):
        await ask(page, RED_ON_BLUE)
        await until(page, "turboserve.state === 'queued'")
        await page.click("#pause")
        await until(page, "turboserve.state === 'paused'")
        two_frames = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        await page.evaluate(two_frames)  # the player has seen that there is nothing to do
        await page.click("#pause")
        await server.until(lambda: not server.only.paused)
        server.faults.queue.set()
        await until(page, "turboserve.framesDrawn > turboserve.chunks + 3")


async def test_queue_place_is_shown_and_ends_by_itself(browser: Browser, server: StreamServer) -> None:
    """In line, the page says the place and the estimate; generation starts without another click."""
    server.faults.queue = asyncio.Event()
    async with tab(browser, server.url) as (page, _):
        await ask(page, RED_ON_BLUE)
        await until(page, "turboserve.state === 'queued'")
        assert await page.text_content("#status") == "Queued, place 2 in line"
        text = await page.text_content("#veil-text") or ""
        assert text.startswith("Place 2, about 12 s to go.")  # on a phone the status line has no room for it
        await page.reload()
        await until(page, "window.turboserve !== undefined && turboserve.state === 'queued'")
        assert await page.input_value("#prompt") == RED_ON_BLUE  # it survives, though nothing was shown yet
        assert await page.locator("#history .text").all_text_contents() == [RED_ON_BLUE]
        server.faults.queue.set()
        await until(page, "turboserve.state === 'generating' && turboserve.seq >= 1")
        assert await page.text_content("#steering") == "On screen"


async def test_a_lost_engine_is_named_as_the_reason_to_wait(browser: Browser, server: StreamServer) -> None:
    """A running session that must wait says why, promises no time, and plays on when it has a place again."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        socket = server.only.socket
        assert socket is not None
        await say(socket, type="state", state="queued", engine=None, reason="engine_lost")
        await say(socket, type="queued", position=1, eta_ms=30_000)
        await until(page, "turboserve.state === 'queued'")
        text = await page.text_content("#veil-text") or ""
        assert "engine is gone" in text and "30 s" not in text
        await say_state(socket, server.only, engine="e_other")
        await until(page, "document.getElementById('badge').textContent.includes('Recovered')")
        await until(page, "turboserve.state === 'generating' && turboserve.marks.includes('recovered')")


async def test_a_move_between_engines_is_told_and_interrupts_nothing(
    browser: Browser, server: StreamServer
) -> None:
    """The corner of the picture and the timeline say that it moved; the phase stays what it was."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        assert server.only.socket is not None
        await say_state(server.only.socket, server.only, engine="e_other")
        await until(page, "turboserve.marks.includes('moved') && turboserve.engine === 'e_other'")
        assert (await stats(page))["state"] in ("generating", "stalled")
        assert "Moved" in (await page.text_content("#badge") or "")
        assert await page.locator(".tick[data-kind=moved]").count() == 1


async def test_a_session_that_lost_its_place_says_so(browser: Browser, server: StreamServer) -> None:
    """Suspended while idle and queued again: neither an error nor a new start."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        assert server.only.socket is not None
        await say(server.only.socket, type="state", state="queued", engine=None, reason="returned")
        await until(page, "turboserve.state === 'queued'")
        assert "given to others" in (await page.text_content("#veil-text") or "")
        await say_state(server.only.socket, server.only)
        await until(page, "turboserve.state === 'generating'")


async def test_a_thin_network_is_called_catching_up(browser: Browser, server: StreamServer) -> None:
    """Parts that come more slowly than they play stall the picture with a word; it ends by itself."""
    server.faults.parts = 2
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        server.faults.part_gap_s = 1.2
        await until(page, "document.getElementById('status').textContent === 'Catching up…'")
        server.faults.part_gap_s = 0
        seq = (await stats(page))["newestSeq"]
        await until(page, f"turboserve.state === 'generating' && turboserve.seq >= {seq + 2}")
        assert (await stats(page))["gaps"] == 0


async def test_recording_is_the_stream_itself(browser: Browser, server: StreamServer, tmp_path: Path) -> None:
    """Record, then save: an MP4 file with whole chunks, frame by frame what the server sent."""
    async with tab(browser, server.url) as (page, _):
        await begin(page, frames=1)
        await page.click("#record")
        await until(page, "/^Save 0:0[2-9]$/.test(document.getElementById('record-label').textContent)")
        async with page.expect_download() as download:
            await page.click("#record")
        path = tmp_path / "saved.mp4"
        await (await download.value).save_as(path)
    with av.open(str(path)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    numbers = [sum(1 << bit for bit in range(12) if frame[3, bit * 8 + 4].mean() > 128) for frame in frames]
    assert len(frames) % 12 == 0 and len(frames) >= 24
    assert numbers == list(range(numbers[0], numbers[0] + len(frames)))


async def test_the_slider_turns_a_cut_into_a_blend(browser: Browser, server: StreamServer) -> None:
    """What the slider says is what the prompt asks for; the longer word moves nothing."""
    height = "document.getElementById('form').offsetHeight"
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        before = await page.evaluate(height)
        await page.focus("#blend")
        await page.keyboard.press("ArrowRight")
        await page.keyboard.press("ArrowRight")
        assert await page.text_content("#blend-value") == "over 1.5 s"
        assert await page.evaluate(height) == before
        await page.click("#edits button >> nth=0")
        await until(page, "turboserve.rev === 1")
        (prompt,) = [m for m in server.only.messages if m["type"] == "prompt"]
        assert (prompt["text"], prompt["transition"], prompt["blend_chunks"]) == ("make it night", "blend", 2)


async def test_a_link_lets_others_watch_and_not_steer(browser: Browser, server: StreamServer) -> None:
    """A viewer sees the running video from the next chunk on, has no controls, and asks for nothing."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        link = f"{server.url}/#watch={server.only.id}&token=abc"
        sent = len(server.only.messages)
        async with tab(browser, link) as (other, complaints):
            await until(other, "turboserve.framesDrawn >= 20")
            assert not await other.is_visible("#form") and not await other.is_visible("#pause")
            await until(other, "document.getElementById('status').textContent === 'Watching'")
            assert share(await pixels(other), 2) > 0.5
            assert complaints == []
            await until(page, f"turboserve.newestSeq >= {(await stats(page))['newestSeq'] + 1}")
        assert {m["type"] for m in server.only.messages[sent:]} == {"ack"}
        async with tab(browser, f"{server.url}/#watch=s_0000000000000000") as (other, _):
            await until(other, "turboserve.state === 'failed'")
            assert "takes no viewers" in (await other.text_content("#veil-text") or "")


async def test_a_token_is_asked_for_and_travels_as_a_subprotocol(
    browser: Browser, server: StreamServer
) -> None:
    """4401 is a question, not an error; the answer goes with the next connection and nowhere else."""
    error = {"type": "error", "code": "unauthorised", "message": "a valid token is needed"}
    server.faults.close_on_start = (4401, error)
    async with tab(browser, server.url) as (page, _):
        await ask(page, RED_ON_BLUE)
        await until(page, "turboserve.state === 'locked'")
        server.faults.close_on_start = None
        await page.fill("#token", "eyJ.abc.def")
        await page.press("#token", "Enter")
        await until(page, "turboserve.framesDrawn >= 5")
        assert server.only.socket is not None and server.only.socket.request is not None
        offered = server.only.socket.request.headers["Sec-WebSocket-Protocol"]
        assert "turboserve.token.eyJ.abc.def" in offered
        assert "eyJ" not in page.url


async def lock(page: Page, server: StreamServer) -> None:
    """A start that is refused for the lack of a token; the next one would be taken."""
    error = {"type": "error", "code": "unauthorised", "message": "a valid token is needed"}
    server.faults.close_on_start = (4401, error)
    await ask(page, RED_ON_BLUE)
    await until(page, "turboserve.state === 'locked'")
    server.faults.close_on_start = None


async def paste_token(page: Page, text: str) -> None:
    await page.fill("#token", text)
    await page.press("#token", "Enter")


def offered_by(server: StreamServer) -> list[str]:
    """The subprotocols that the newest connection of the session came with."""
    assert server.only.socket is not None and server.only.socket.request is not None
    return [item.strip() for item in server.only.socket.request.headers["Sec-WebSocket-Protocol"].split(",")]


SAVED_TOKEN = "sessionStorage.getItem('turboserve.token')"


async def test_a_token_is_taken_as_it_is_pasted(browser: Browser, server: StreamServer) -> None:
    """Spaces around it and the word Bearer are none of it."""
    async with tab(browser, server.url) as (page, _):
        await lock(page, server)
        await paste_token(page, "  Bearer eyJ.abc.def ")
        await until(page, "turboserve.framesDrawn >= 5")
        assert "turboserve.token.eyJ.abc.def" in offered_by(server)


async def test_what_is_no_token_is_said_and_not_kept(browser: Browser, server: StreamServer) -> None:
    """Quotes can't be in a token: the form stays, with the reason, and takes the next try."""
    async with tab(browser, server.url) as (page, _):
        await lock(page, server)
        await paste_token(page, '"eyJ.abc.def"')
        await until(page, "document.getElementById('veil-text').textContent.includes('no access token')")
        assert (await stats(page))["state"] == "locked"
        assert await page.get_attribute("#token", "aria-invalid") == "true"
        assert await page.evaluate(SAVED_TOKEN) is None
        await paste_token(page, "eyJ.abc.def")
        await until(page, "turboserve.framesDrawn >= 5")


async def test_a_bad_token_of_before_is_asked_for_again(browser: Browser, server: StreamServer) -> None:
    """What is kept and can't be a token locks the page at once, and the session is still there afterwards."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        session = (await stats(page))["session"]
        await page.evaluate("sessionStorage.setItem('turboserve.token', 'Bearer \"eyJ\"')")
        server.abort_all()
        await until(page, "turboserve.state === 'locked'")
        assert await page.is_visible("#token")
        await page.reload()
        await until(page, "window.turboserve !== undefined && turboserve.state === 'locked'")
        await paste_token(page, "eyJ.abc.def")
        await until(page, "turboserve.framesDrawn >= 5")
        assert (await stats(page))["session"] == session
        assert server.attaches == 1


async def test_a_token_that_expires_costs_no_recording(browser: Browser, server: StreamServer) -> None:
    """The page is locked amid a recording: what there is of it is saved."""
    async with tab(browser, server.url) as (page, _):
        await begin(page, frames=1)
        await page.click("#record")
        await until(page, "/^Save 0:0[1-9]$/.test(document.getElementById('record-label').textContent)")
        async with page.expect_download() as download:
            await server.close_all(4401)
        assert (await (await download.value).path()).stat().st_size > 1_000
        assert (await stats(page))["state"] == "locked"


async def test_a_token_pasted_into_the_open_page_is_taken(browser: Browser, server: StreamServer) -> None:
    """As a link it leaves the address bar, and opens a page that was locked."""
    async with tab(browser, server.url) as (page, _):
        await lock(page, server)
        await page.evaluate("location.hash = '#token=eyJ.abc.def'")
        await until(page, "turboserve.framesDrawn >= 5")
        assert "turboserve.token.eyJ.abc.def" in offered_by(server)
        assert "#" not in page.url
        session = (await stats(page))["session"]
        await page.evaluate("location.hash = '#token=eyJ.newer'")
        await until(page, f"{SAVED_TOKEN} === 'eyJ.newer' && location.hash === ''")
        assert (await stats(page))["session"] == session and server.attaches == 0


async def test_a_link_pasted_into_the_open_page_is_watched(browser: Browser, server: StreamServer) -> None:
    """It does what it does in a new page; without it this tab's own session goes on."""
    async with tab(browser, server.url) as (page, _), tab(browser, server.url) as (other, _):
        await begin(page)
        shown = server.only.id
        await begin(other, GREEN_ON_BLACK)
        own = (await stats(other))["session"]
        await other.evaluate(f"location.hash = '#watch={shown}'")
        await until(other, "document.getElementById('status').textContent === 'Watching'")
        assert (await stats(other))["session"] == shown
        await other.evaluate("location.hash = ''")
        await until(other, f"turboserve.session === '{own}' && turboserve.state === 'generating'")
        assert not any(message["type"] == "stop" for s in server.sessions.values() for message in s.messages)


async def test_the_example_of_twenty_lines_plays(browser: Browser, server: StreamServer) -> None:
    """`example.html` as the README shows it: start, then steer."""
    async with empty_tab(browser) as page:
        complaints = listen(page)
        await page.goto(f"{server.url}/example.html")
        await page.click("button")
        await server.until(lambda: len(server.sessions) == 1 and server.only.acked_seq >= 1)
        await until(page, "document.querySelector('p').textContent === 'generating'")
        await page.fill("input", GREEN_ON_BLACK)
        await page.click("button")
        await server.until(lambda: server.only.rev == 1)
        assert complaints == []


async def test_session_taken_over_by_another_tab_does_not_fight_back(
    browser: Browser, server: StreamServer
) -> None:
    """Close code 4409 ends this tab's connection; it attaches again only when asked to."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        await server.close_all(4409)
        await until(page, "turboserve.state === 'taken'")
        attaches = server.attaches
        await asyncio.sleep(0.3)
        assert server.attaches == attaches
        await page.click("#veil-action")
        await until(page, "turboserve.state === 'generating'")
        assert server.attaches == attaches + 1


async def test_no_capacity_says_when_to_try_again(browser: Browser, server: StreamServer) -> None:
    """A start that finds the queue full is no alarm: it says how long to wait, and offers it."""
    sentence = "the queue is full, try again in 4 s"
    error = {"type": "error", "code": "capacity", "message": sentence, "retry_after_ms": 4000}
    server.faults.close_on_start = (4503, error)
    async with tab(browser, server.url) as (page, _):
        await ask(page, RED_ON_BLUE)
        await until(page, "turboserve.state === 'full'")
        assert (await page.text_content("#veil-text") or "").count("4 s") == 1
        server.faults.close_on_start = None
        await page.click("#veil-action")
        await until(page, "turboserve.state === 'generating'")


async def test_start_before_the_engines_are_ready(browser: Browser, server: StreamServer) -> None:
    """A start that comes too early is repeated by the page until it works, with the reason on show."""
    not_yet = {"code": "unavailable", "message": "no engine is ready yet", "retry_after_ms": 50}
    server.faults.refusals = [not_yet] * 10_000
    async with tab(browser, server.url) as (page, _):
        await ask(page, RED_ON_BLUE)
        await until(
            page, "document.getElementById('veil-text').textContent.includes('no engine is ready yet')"
        )
        await server.until(lambda: len(server.faults.refusals) < 9_998)
        server.faults.refusals.clear()
        await until(page, "turboserve.state === 'generating'")
        assert len(server.sessions) == 1


async def test_reconnect_to_a_gateway_that_is_not_ready(browser: Browser, server: StreamServer) -> None:
    """An attach answered with `unavailable` is repeated; playback goes on without a gap."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        server.faults.refusals = [{"code": "unavailable", "message": "not yet", "retry_after_ms": 50}]
        server.abort_all()
        await until(page, "turboserve.seq >= 4 && turboserve.state === 'generating'")
        figures = await stats(page)
        assert (figures["gaps"], figures["chunks"]) == (0, figures["newestSeq"] + 1)


async def test_what_is_asked_for_before_an_attach_is_granted_waits(
    browser: Browser, server: StreamServer
) -> None:
    """While the server says "not yet" a pause and a prompt are kept; the session takes both once it can."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        session = (await stats(page))["session"]
        not_yet = {"code": "unavailable", "message": "not yet", "retry_after_ms": 50}
        server.faults.refusals = [not_yet] * 10_000
        server.abort_all()
        await server.until(
            lambda: len(server.faults.refusals) < 9_998
        )  # the socket is open, and is not attached
        await page.click("#pause")
        await ask(page, GREEN_ON_BLACK)
        left = len(server.faults.refusals)
        await server.until(lambda: len(server.faults.refusals) < left - 1)
        assert (await stats(page))["state"] == "lost"
        server.faults.refusals.clear()
        await server.until(lambda: server.only.paused)
        await until(page, "turboserve.state === 'paused'")
        await page.click("#pause")
        await until(page, "turboserve.rev === 1")
        assert ((await stats(page))["session"], server.out_of_place) == (session, [])


async def test_an_error_about_something_else_refuses_no_attach(
    browser: Browser, server: StreamServer
) -> None:
    """It names another message than the attach, which is answered after it."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        session = (await stats(page))["session"]
        server.faults.stray_error = {"code": "rate", "message": "too many messages", "id": "another"}
        server.abort_all()
        await server.until(lambda: server.attaches == 1)
        seq = (await stats(page))["newestSeq"]
        await until(page, f"turboserve.state === 'generating' && turboserve.newestSeq > {seq}")
        assert (await stats(page))["session"] == session


async def test_a_pause_that_was_not_heard_before_a_reload_is_said_again(
    browser: Browser, server: StreamServer
) -> None:
    """The page shows it paused, so the server is told."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        server.faults.refuse_connections = True
        server.abort_all()
        await until(page, "turboserve.state === 'lost'")
        await page.click("#pause")
        await page.reload()
        await until(page, "window.turboserve !== undefined && turboserve.state === 'connecting'")
        assert not server.only.paused
        server.faults.refuse_connections = False
        await until(page, "turboserve.state === 'paused'")
        await server.until(lambda: server.only.paused)


async def test_session_gone_after_a_reload_is_a_calm_start(browser: Browser, server: StreamServer) -> None:
    """If the saved session no longer exists, the page is ready for a new one instead of showing an error."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        server.sessions.clear()
        await page.reload()
        await until(page, "window.turboserve !== undefined && turboserve.state === 'ready'")
        await begin(page)


async def test_server_away_and_back(browser: Browser, server: StreamServer) -> None:
    """While no connection can be made the page says so, and continues when the server is back."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        server.faults.refuse_connections = True
        server.abort_all()
        await until(page, "turboserve.state === 'lost'")
        assert "retrying" in (await page.text_content("#status") or "")
        server.faults.refuse_connections = False
        await until(page, "turboserve.state === 'generating'")


async def test_prompt_is_text_not_markup(browser: Browser, server: StreamServer) -> None:
    """A prompt full of HTML is shown literally everywhere and runs nothing."""
    evil = '<img src=x onerror="window.hacked=1"> <script>window.hacked=1</script> red'
    async with tab(browser, server.url) as (page, _):
        await begin(page, evil)
        await until(page, "document.getElementById('caption').textContent !== ''")
        assert await page.text_content("#caption") == evil
        assert await page.evaluate(
            "window.hacked === undefined && document.querySelector('main img') === null"
        )


async def test_stop_ends_and_start_begins_anew(browser: Browser, server: StreamServer) -> None:
    """Stop ends the session for good: a reload does not bring it back, and Start makes another one."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        first = (await stats(page))["session"]
        await page.click("#stop")
        await until(page, "turboserve.state === 'ended'")
        await page.reload()
        await until(page, "window.turboserve !== undefined && turboserve.state === 'ready'")
        await begin(page)
        assert (await stats(page))["session"] != first


def has_stop(server: StreamServer) -> bool:
    return any(m["type"] == "stop" for session in server.sessions.values() for m in session.messages)


@pytest.mark.parametrize("reload", [False, True], ids=["lost", "reloaded"])
async def test_a_stop_without_a_connection_reaches_the_server(
    browser: Browser, server: StreamServer, reload: bool
) -> None:
    """The page says at once that it ended; the server ends it when it is back, and nothing is shown of it."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        server.faults.refuse_connections = True
        server.abort_all()
        await until(page, "turboserve.state === 'lost'")
        if reload:
            await page.reload()
            await until(page, "window.turboserve !== undefined && turboserve.state === 'connecting'")
        await page.click("#stop")
        await until(page, "turboserve.state === 'ended'")
        assert await page.evaluate("sessionStorage.getItem('turboserve.session')") is None
        drawn = (await stats(page))["framesDrawn"]
        server.faults.refuse_connections = False
        await server.until(lambda: has_stop(server) and server.only.socket is None)
        assert server.attaches == 1
        figures = await stats(page)
        assert (figures["state"], figures["framesDrawn"]) == ("ended", drawn)


async def test_a_stop_that_overtakes_the_start_is_sent_behind_it(
    browser: Browser, server: StreamServer
) -> None:
    """The session that comes of it is stopped as soon as it is known."""
    server.faults.hold_start = asyncio.Event()
    async with tab(browser, server.url) as (page, _):
        await ask(page, RED_ON_BLUE)
        await server.until(lambda: len(server.sessions) == 1)
        await page.click("#stop")
        await until(page, "turboserve.state === 'ended'")
        server.faults.hold_start.set()
        await server.until(lambda: has_stop(server) and server.only.socket is None)
        assert (server.attaches, server.out_of_place) == (0, [])


IMPATIENT = """
    const set = window.setTimeout.bind(window);
    window.setTimeout = (done, ms, ...rest) => {
      if (ms !== 30_000) return set(done, ms, ...rest);
      return set(() => { done(); window.gaveUp = true }, 200);
    };
"""
"""The half minute for which a stop is tried is short."""


async def test_a_stop_is_not_tried_for_ever(browser: Browser, server: StreamServer) -> None:
    """A server that stays away is left alone in the end."""
    async with tab(browser, server.url, init_script=IMPATIENT) as (page, _):
        await begin(page)
        server.faults.refuse_connections = True
        server.abort_all()
        await until(page, "turboserve.state === 'lost'")
        await page.click("#stop")
        await until(page, "window.gaveUp === true")
        server.faults.refuse_connections = False
        await ask(page, GREEN_ON_BLACK)
        await until(page, "turboserve.seq >= 4")  # longer than the longest delay between two tries
        assert (server.attaches, has_stop(server)) == (0, False)


PASTE = """([name, text]) => {
    document.getElementById(name).select();
    document.execCommand("insertText", false, text);
}"""


async def test_seed_field_is_sent_and_checked(browser: Browser, server: StreamServer) -> None:
    """A whole number goes out with start; anything else is refused with a sentence and nothing is sent."""
    async with tab(browser, server.url) as (page, _):
        await page.fill("#seed", "12x")
        await ask(page, RED_ON_BLUE)
        assert "seed" in (await page.text_content("#steering") or "")
        assert server.sessions == {}
        await page.fill("#seed", "")
        await page.evaluate(PASTE, ["seed", "1234567890123456789"])  # of the Python client; all of it or none
        await ask(page, RED_ON_BLUE)
        assert "up to 9007199254740991" in (await page.text_content("#steering") or "")
        assert server.sessions == {}
        await page.fill("#seed", "1234")
        await begin(page, frames=1)
        assert server.only.messages[0]["seed"] == 1234


async def test_acks_tell_what_is_buffered(browser: Browser, server: StreamServer) -> None:
    """Every complete chunk is acknowledged with the media time left, never more than was delivered."""
    async with tab(browser, server.url) as (page, _):
        await begin(page, frames=60)
        await server.until(lambda: server.only.acked_seq >= 3)
        acks = [message for message in server.only.messages if message["type"] == "ack"]
        assert {ack["seq"] for ack in acks} >= set(range(4))
        assert all(0 <= ack["buffer_ms"] <= (ack["seq"] + 1) * 750 for ack in acks)
        assert max(ack["buffer_ms"] for ack in acks) > 500


async def test_hidden_tab_keeps_up_without_drawing(browser: Browser, server: StreamServer) -> None:
    """In the background nothing is drawn, but chunks are played and acknowledged; in front it is live."""
    async with tab(browser, server.url, init_script=HIDEABLE) as (page, _):
        await begin(page)
        await page.evaluate("setHidden(true)")
        hidden = await stats(page)
        await server.until(lambda: server.only.acked_seq >= hidden["newestSeq"] + 4)
        still = await stats(page)
        assert still["framesDrawn"] <= hidden["framesDrawn"] + 1
        assert still["seq"] >= hidden["seq"] + 2
        await page.evaluate("setHidden(false)")
        await until(page, f"turboserve.framesDrawn > {still['framesDrawn'] + 10}")
        assert (await stats(page))["bufferMs"] < 3000


async def test_what_went_wrong_is_read_out(browser: Browser, server: StreamServer) -> None:
    """The word in the picture's corner is a live region: a download that fails says so to everybody."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        await page.click("#download")
        await until(page, "document.getElementById('badge').textContent.includes('404')")
        assert await page.get_by_role("status").filter(has_text="404").count() == 1


SHIFTS = """
    window.shifted = [];
    new PerformanceObserver((list) => {
      for (const { sources } of list.getEntries()) {
        for (const { node } of sources) shifted.push(node?.id || node?.className || "");
      }
    }).observe({ type: "layout-shift", buffered: true });
"""
"""Collects what the browser saw moving since the first paint."""


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
async def test_layout_holds_still(browser: Browser, server: StreamServer, size: tuple[int, int]) -> None:
    """From ready to playing to steered nothing moves, and nothing sticks out sideways."""
    boxes = """() => ["stage", "form", "chips", "pause", "history"].map((id) => {
        const {x, y, width, height} = document.getElementById(id).getBoundingClientRect();
        return [x, y + scrollY, width, height].map(Math.round);
    })"""
    async with tab(browser, server.url, size, init_script=SHIFTS) as (page, _):
        ready = await page.evaluate(boxes)
        await begin(page)
        assert await page.evaluate(boxes) == ready
        await ask(page, GREEN_ON_BLACK)
        await until(page, "turboserve.rev === 1")
        assert await page.evaluate(boxes) == ready
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        if size == WIDE:
            assert await page.evaluate("document.documentElement.scrollHeight <= innerHeight")
        # Also not before the script ran; centred words move as their length changes.
        fixed = ["stage", "form", "chips", "history-title", "history"]
        known = "(names) => names.filter((name) => document.querySelector(`#${name}, .${name}`) !== null)"
        assert await page.evaluate(known, fixed) == fixed
        assert set(fixed).isdisjoint(await page.evaluate("shifted"))


async def test_arrows_push_while_they_are_held(browser: Browser, server: StreamServer) -> None:
    """Keys and the pad on the picture tell the server what is held; in the prompt they move the cursor."""

    def held() -> list[list[str]]:
        return [m["keys"] for m in server.only.messages if m["type"] == "control"]

    async with tab(browser, server.url) as (page, _):
        await begin(page)
        await page.focus("#prompt")
        await page.keyboard.press("ArrowLeft")
        await page.focus("#pause")
        await page.keyboard.down("ArrowLeft")
        await page.keyboard.down("ArrowLeft")  # what holding repeats
        await page.keyboard.down("ArrowUp")
        await page.keyboard.up("ArrowLeft")
        await page.keyboard.up("ArrowUp")
        box = await page.locator("[data-key=ArrowRight]").bounding_box()
        assert box is not None
        await page.mouse.move(box["x"] + 5, box["y"] + 5)
        await page.mouse.down()
        await page.mouse.move(5, 5)
        await page.mouse.up()
        await server.until(lambda: len(held()) == 7)
        none: list[str] = []  # as said at the start
        pressed = [["ArrowLeft"], ["ArrowLeft", "ArrowUp"], ["ArrowUp"], none, ["ArrowRight"], none]
        assert held() == [none, *pressed]
        newest = len(server.only.chunks)
        await until(page, f"turboserve.newestSeq >= {newest}")  # so the answers were heard, too
        assert "Applied" not in (await page.text_content("#steering") or "")
        assert await page.evaluate("scrollY") == 0


STOP = """() => {
    const node = document.activeElement;
    if (node === document.body) return [null]; // behind the last one
    const ringed = node.matches("textarea") ? node.closest(".ask") : node;
    const { outlineStyle, outlineWidth, outlineColor } = getComputedStyle(ringed);
    return [node.id || node.parentElement?.id, outlineStyle, outlineWidth, outlineColor];
}"""
"""What has the focus, and the ring around it."""


async def test_keyboard_alone_is_enough(browser: Browser, server: StreamServer) -> None:
    """Tab reaches every control in order and each shows where the focus is."""
    async with tab(browser, server.url) as (page, _):
        await begin(page)
        await page.focus("nav a")
        seen = []
        for _ in range(30):
            await page.keyboard.press("Tab")
            name, *ring = await page.evaluate(STOP)
            assert name is None or ring == ["solid", "2px", "rgb(53, 87, 214)"], name
            seen.append(name)
        order = ("theme", "pause", "reset", "stop", "record", "download", "share", "fullscreen", "drawer")
        order += ("prompt", "send", "blend", "seed", "chips", "edits")
        assert list(dict.fromkeys(name for name in seen if name in order)) == list(order)
        await page.focus("#pause")
        await page.keyboard.press("Enter")
        await until(page, "turboserve.state === 'paused'")
        await page.focus("#stop")
        await page.keyboard.press("Enter")
        await until(page, "turboserve.state === 'ended'")
        assert await page.evaluate("document.activeElement.id") == "veil-action"


ONLY = """
VideoDecoder.isConfigSupported = async ({ codec }) => ({ supported: codec.startsWith("%s") });
"""


@pytest.mark.parametrize(
    ("init_script", "codec"),
    [(ONLY % "vp09", "vp9"), (ONLY % "av01", "av1"), ("delete window.VideoDecoder", "mjpeg")],
)
async def test_a_browser_without_h264_gets_what_it_decodes(
    browser: Browser, server: StreamServer, init_script: str, codec: str
) -> None:
    """The best of what it has, or Motion JPEG where there is no video decoder, as on plain http."""
    async with tab(browser, server.url, init_script=init_script) as (page, complaints):
        await begin(page, frames=30)
        assert server.only.encoder.codec == codec
        await until_pixels(page, lambda seen: share(seen, 2) > 0.5 and share(seen, 0) > 0.01)
        await ask(page, "a green ball on white")
        await until_pixels(page, lambda seen: share(seen, 1) > 0.01 and share(seen, 2) < 0.1)
        assert (await stats(page))["gaps"] == 0
        assert await page.is_disabled("#record") and await page.is_enabled("#download")
        assert complaints == []


async def test_a_change_of_the_bitrate_is_not_noticed(browser: Browser, server: StreamServer) -> None:
    """Down and up again between two chunks: every frame is shown, with no complaint."""
    server.faults.low_chunks = range(2, 4)
    async with tab(browser, server.url) as (page, complaints):
        await begin(page)
        await until(page, "turboserve.seq >= 5")
        await assert_each_frame_shown_once(page)
        chunks = server.only.chunks
        assert sum(map(len, chunks[3].units)) < sum(map(len, chunks[1].units))
        assert share(await pixels(page), 2) > 0.5 and complaints == []


async def test_av1_plays_on_over_a_lost_encoder(browser: Browser, server: StreamServer) -> None:
    """The key frame amid a chunk, which a fresh encoder began with, is one frame like the others."""
    server.faults.lose_encoder_in = 2
    async with tab(browser, server.url, init_script=ONLY % "av01") as (page, complaints):
        await begin(page)
        await until(page, "turboserve.seq >= 4")
        await assert_each_frame_shown_once(page)
        assert server.only.encoder.codec == "av1"
        assert share(await pixels(page), 2) > 0.5 and complaints == []


async def test_without_any_decoder_the_page_says_what_to_do(browser: Browser, server: StreamServer) -> None:
    """A browser that shows neither video nor pictures gets a sentence, not a blank picture."""
    script = "delete window.VideoDecoder; delete window.createImageBitmap"
    async with tab(browser, server.url, init_script=script) as (page, _):
        await until(page, "turboserve.state === 'unsupported'")
        assert "Chrome" in (await page.text_content("#veil-text") or "")
        assert await page.is_disabled("#send")
