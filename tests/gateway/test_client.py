"""The Python client against a scripted server: what a user does, and each fault on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import av
import numpy as np
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosedError
from websockets.typing import Subprotocol

from gateway import protocol as wire
from gateway.client import (
    BadServer,
    Chunk,
    Client,
    ClientError,
    ConnectionLost,
    ServerError,
    Session,
    SessionEnded,
    TakenOver,
    connect,
    record,
    stream_url,
)
from gateway.protocol import JSON_SUBPROTOCOL, MSGPACK_SUBPROTOCOL, ChunkHeader
from scheduler.messages import MAX_PROMPT_CHARS, ErrorCode
from tests.browser.stream_server import StreamServer
from tests.patience import PATIENCE_S

RED_ON_BLUE = "a red ball bouncing on a blue background"
GREEN_ON_BLACK = "a green ball bouncing on a black background"


@pytest.fixture
async def client(server: StreamServer) -> AsyncIterator[Client]:
    async with connect(server.url, give_up_s=PATIENCE_S) as instance:
        yield instance


async def take(session: Session, count: int) -> list[Chunk]:
    return [await anext(session) for _ in range(count)]


def names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


def seqs(chunks: list[Chunk]) -> list[int]:
    return [chunk.seq for chunk in chunks]


@pytest.mark.parametrize("flavour", [JSON_SUBPROTOCOL, MSGPACK_SUBPROTOCOL])
async def test_chunks_come_as_pictures(server: StreamServer, flavour: str) -> None:
    """A started session yields contiguous chunks that decode to pictures in the prompt's colours."""
    async with connect(server.url, flavour=flavour) as client:
        session = await client.start(RED_ON_BLUE, seed=3, mode="recorder")
        chunks = await take(session, 3)
        assert seqs(chunks) == [0, 1, 2]
        assert server.only.messages[0]["seed"] == 3
        picture = chunks[2].frames()[0]
        assert picture.shape == (session.info.height, session.info.width, 3)
        assert np.abs(picture[90, 5].astype(int) - (25, 60, 200)).max() <= 6


async def test_prompt_returns_where_it_applies(client: Client) -> None:
    """The chunk named by `applied` is the first with the new revision and the new colours."""
    session = await client.start(RED_ON_BLUE, mode="recorder")
    chunks = await take(session, 2)
    applied = await session.prompt(GREEN_ON_BLACK)
    while chunks[-1].seq < applied.seq:
        chunks += await take(session, 1)
    assert [chunk.rev for chunk in chunks] == [0] * applied.seq + [applied.rev]
    assert chunks[-1].frames()[0][90, 5].max() < 20


async def test_prompt_of_an_untaken_recorder_is_not_a_deadlock(client: Client) -> None:
    """A recorder that takes no chunks while it waits for `applied` still gets it."""
    session = await client.start(RED_ON_BLUE, mode="recorder", lead_ms=100)
    await take(session, 1)
    async with asyncio.timeout(PATIENCE_S):
        for number in range(3):
            assert (await session.prompt(GREEN_ON_BLACK)).rev == number + 1


async def test_lost_connection_leaves_no_gap_and_no_repeat(client: Client, server: StreamServer) -> None:
    """Two broken connections: the chunks are contiguous and the session is the same."""
    session = await client.start(RED_ON_BLUE, mode="recorder")
    chunks = await take(session, 2)
    for _ in range(2):
        server.abort_all()
        chunks += await take(session, 4)
    assert seqs(chunks) == list(range(10))
    assert server.attaches == 2
    assert len(server.sessions) == 1


async def test_a_token_is_asked_for_before_each_connection(server: StreamServer) -> None:
    """They are short-lived: a lost connection is made again with a new one. A token service that is away for
    a moment is like a server that is."""
    asked = list[str]()

    async def token() -> str:
        asked.append(f"jwt{len(asked)}")
        if len(asked) == 2:
            raise ConnectionRefusedError("the token service starts again")
        return asked[-1]

    async with connect(server.url, token) as client:
        session = await client.start(RED_ON_BLUE, mode="recorder")
        await take(session, 1)
        server.abort_all()
        await take(session, 2)
        socket = server.only.socket
        assert socket is not None and socket.request is not None
        assert "turboserve.token.jwt2" in socket.request.headers["Sec-WebSocket-Protocol"]
    assert asked == ["jwt0", "jwt1", "jwt2"]


async def test_a_server_that_lets_in_and_cuts_at_once_is_asked_more_and_more_slowly(
    client: Client, server: StreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each of its clients would attach again as often as the network carries it."""
    attempts: list[int] = []
    let_in = asyncio.Event()
    reopened = Session._reopened

    def no_delay(attempt: int) -> float:
        attempts.append(attempt)
        return 0.0

    async def tell(session: Session) -> None:
        await reopened(session)
        let_in.set()

    monkeypatch.setattr("gateway.client_stream._draw_delay_s", no_delay)
    monkeypatch.setattr("gateway.client_stream.STEADY_S", 3600.0)
    monkeypatch.setattr(Session, "_reopened", tell)
    session = await client.start(RED_ON_BLUE, mode="recorder")
    for number in range(5):
        if number == 4:
            monkeypatch.setattr("gateway.client_stream.STEADY_S", 0.0)
        let_in.clear()
        server.abort_all()
        await asyncio.wait_for(let_in.wait(), PATIENCE_S)
    assert attempts == [1, 2, 3]
    assert seqs(await take(session, 5)) == list(range(5))


async def test_a_cut_is_a_lost_connection(client: Client, server: StreamServer) -> None:
    """The session comes back, contiguous; its playhead has gone on."""
    session = await client.start(RED_ON_BLUE, mode="recorder")
    chunks = await take(session, 2)
    session.cut()
    chunks += await take(session, 3)
    assert seqs(chunks) == list(range(5)) and server.attaches == 1


async def test_parts_are_shown_before_they_are_put_together(client: Client, server: StreamServer) -> None:
    """Each header once, in order; nothing more is read while the caller waits."""
    server.faults.parts = 2
    seen: list[tuple[int, int]] = []
    gate, held = asyncio.Event(), asyncio.Event()

    async def on_part(header: ChunkHeader) -> None:
        seen.append((header.seq, header.part))
        if len(seen) == 3:
            held.set()
            await gate.wait()

    session = await client.start(RED_ON_BLUE, mode="recorder", on_part=on_part)
    await take(session, 1)
    async with asyncio.timeout(PATIENCE_S):
        await held.wait()
    assert seen == [(0, 0), (0, 1), (1, 0)] and session.next_seq == 1
    gate.set()
    await take(session, 1)
    assert seen[:4] == [(0, 0), (0, 1), (1, 0), (1, 1)]


async def test_chunk_cut_in_the_middle_arrives_whole(client: Client, server: StreamServer) -> None:
    """A chunk whose connection broke after its first part is delivered once, complete."""
    server.faults.parts, server.faults.cut_in_chunk = 3, 2
    session = await client.start(RED_ON_BLUE, mode="recorder")
    chunks = await take(session, 5)
    assert server.attaches == 1
    assert seqs(chunks) == [0, 1, 2, 3, 4]
    assert all(len(chunk.frames()) == 12 for chunk in chunks)


async def test_input_sent_while_disconnected_is_applied_once(client: Client, server: StreamServer) -> None:
    """A prompt submitted as the connection breaks is sent again after the attach and has one effect."""
    session = await client.start(RED_ON_BLUE, mode="recorder")
    await take(session, 1)
    server.faults.refuse_connections = True
    server.abort_all()
    waiting = asyncio.create_task(session.prompt(GREEN_ON_BLACK))
    await server.until(lambda: server.only.socket is None)
    server.faults.refuse_connections = False
    applied = await waiting
    assert applied.rev == 1
    assert server.only.rev == 1


async def test_gap_is_an_event_and_iteration_goes_on(client: Client, server: StreamServer) -> None:
    """A chunk that the server skips is missing from the iteration and reported as an event."""
    server.faults.gap_at = 1
    session = await client.start(RED_ON_BLUE, mode="recorder")
    assert seqs(await take(session, 2)) == [0, 2]
    async for event in session.events():
        if event.type == "gap":
            assert (event.from_seq, event.to_seq) == (1, 1)
            break


async def test_stop_ends_the_iteration(client: Client) -> None:
    """After our own stop the iteration ends without an error, and the client can start again."""
    session = await client.start(RED_ON_BLUE, mode="recorder")
    count = 0
    async for chunk in session:
        count += 1
        if chunk.seq == 1:
            await session.stop()
    assert count >= 2
    assert session.is_over
    with pytest.raises(SessionEnded):
        await session.prompt("too late")
    again = await client.start(GREEN_ON_BLACK, mode="recorder")
    assert again.id != session.id
    assert seqs(await take(again, 1)) == [0]


async def test_taken_over_is_told_and_not_fought(client: Client, server: StreamServer) -> None:
    """When another client attaches, this one ends with TakenOver and the other one continues the session."""
    session = await client.start(RED_ON_BLUE, mode="recorder")
    await take(session, 2)
    async with connect(server.url) as other:
        heir = await other.attach(session.id, session.info.resume, session.next_seq, mode="recorder")
        with pytest.raises(TakenOver):
            while True:
                await anext(session)
        assert (await anext(heir)).seq == session.next_seq
        assert server.attaches == 1


async def test_end_by_the_server_is_an_error(client: Client, server: StreamServer) -> None:
    """A session closed by the server raises SessionEnded with the close code, also for inputs under way."""
    session = await client.start(RED_ON_BLUE, mode="recorder")
    await take(session, 1)
    await server.close_all(4408)
    with pytest.raises(SessionEnded, match="idle") as caught:
        while True:
            await anext(session)
    assert caught.value.close_code == 4408


async def test_refused_start_carries_the_servers_words(server: StreamServer) -> None:
    """An error instead of a session raises ServerError with code, sentence and when to try again."""
    answer = {"type": "error", "code": "capacity", "message": "All engines are full.", "retry_after_ms": 4000}
    server.faults.close_on_start = (4503, answer)
    async with connect(server.url) as client:
        with pytest.raises(ServerError, match="All engines are full") as caught:
            await client.start(RED_ON_BLUE)
    assert (caught.value.code, caught.value.retry_after_ms) == ("capacity", 4000)


NOT_YET = {"code": "unavailable", "message": "the model is not known here yet", "retry_after_ms": 10}


async def test_attach_is_tried_again_while_the_server_is_not_ready(
    client: Client, server: StreamServer
) -> None:
    """A gateway that has just come up refuses the attach for a moment; the session goes on all the same."""
    session = await client.start(RED_ON_BLUE, mode="recorder")
    chunks = await take(session, 2)
    server.faults.refusals = [NOT_YET, NOT_YET]
    server.abort_all()
    chunks += await take(session, 4)
    assert seqs(chunks) == list(range(6))
    assert server.faults.refusals == []


INFO = wire.Session(
    session="s_0000000000000001",
    resume="secret",
    model="shapes",
    width=96,
    height=96,
    fps=16,
    chunk_frames=12,
    codec="h264",
    lead_ms=1500,
)


async def test_nothing_is_said_before_the_server_has_let_us_in() -> None:
    """A pause made while an attach waits for its time comes after it; and a refusal that comes later than
    `session`, as an engine's does, is known by the id of the attach."""
    codec, heard = wire.CODECS[MSGPACK_SUBPROTOCOL], list[wire.ClientMessage]()
    is_refused, is_let_in = asyncio.Event(), asyncio.Event()

    async def serve_one(socket: ServerConnection) -> None:
        async def say(message: wire.ServerMessage) -> None:
            await socket.send(codec.encode_control(message))

        async for data in socket:
            message = codec.decode_control(wire.CLIENT_MESSAGES, data)
            if not isinstance(message, wire.Ack) or not is_let_in.is_set():
                heard.append(message)
            match message:
                case wire.Start():
                    await say(INFO)
                    await socket.close(wire.CloseCode.RESTART)
                case wire.Attach() if not is_refused.is_set():
                    text = "the model is not known here yet"
                    await say(wire.Error(code=ErrorCode.UNAVAILABLE, message=text, retry_after_ms=200))
                    is_refused.set()
                case wire.Attach():
                    is_let_in.set()
                    await say(INFO)
                case wire.Pause():
                    attach = heard[-2]
                    assert attach.id is not None and message.id is not None
                    await say(wire.Accepted(id=message.id))
                    text = "next_seq must be between 0 and 3"
                    await say(wire.Error(code=ErrorCode.BAD_STATE, message=text, id=attach.id))

    async with serve(serve_one, "127.0.0.1", 0, subprotocols=[Subprotocol(MSGPACK_SUBPROTOCOL)]) as server:
        async with connect(f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}") as client:
            session = await client.start(RED_ON_BLUE)
            await is_refused.wait()
            await session.pause()
            with pytest.raises(ServerError, match="next_seq must be"):
                await anext(session)
    assert [message.type for message in heard] == ["start", "attach", "attach", "pause"]


async def test_a_prompt_beyond_the_limit_is_refused_here(client: Client) -> None:
    """One beyond the size of messages would end the connection, after each attach again."""
    for length in (MAX_PROMPT_CHARS + 1, wire.MAX_CLIENT_MESSAGE_BYTES + 1):
        with pytest.raises(ServerError, match="a prompt may have") as caught:
            await client.start("x" * length)
        assert caught.value.code == ErrorCode.TOO_LARGE.value
    session = await client.start(RED_ON_BLUE, mode="recorder")
    with pytest.raises(ServerError, match="a prompt may have"):
        await session.prompt("x" * (MAX_PROMPT_CHARS + 1))
    assert seqs(await take(session, 1)) == [0]


async def test_attach_refused_for_good_ends_the_session(client: Client, server: StreamServer) -> None:
    """Any other refusal of an attach is raised with the server's words."""
    session = await client.start(RED_ON_BLUE, mode="recorder")
    server.faults.refusals = [{"code": "bad_state", "message": "next_seq 9 is beyond what was generated"}]
    server.abort_all()
    with pytest.raises(ServerError, match="beyond"):
        while True:
            await anext(session)


async def test_start_refused_for_a_moment_can_be_repeated(client: Client, server: StreamServer) -> None:
    """A refused start is the caller's to repeat, with the same client."""
    server.faults.refusals = [NOT_YET]
    with pytest.raises(ServerError) as caught:
        await client.start(RED_ON_BLUE)
    assert caught.value.retry_after_ms == 10
    session = await client.start(RED_ON_BLUE, mode="recorder")
    assert seqs(await take(session, 1)) == [0]


async def test_server_that_stays_away_is_given_up(server: StreamServer) -> None:
    """When no connection can be made again in time, iteration raises ConnectionLost."""
    async with connect(server.url, give_up_s=0.2) as client:
        session = await client.start(RED_ON_BLUE, mode="recorder")
        server.faults.refuse_connections = True
        server.abort_all()
        with pytest.raises(ConnectionLost):
            while True:
                await anext(session)


async def test_server_that_cuts_before_it_answers_is_given_up() -> None:
    """It takes each new connection, and each ends before the attach is answered."""
    codec = wire.CODECS[MSGPACK_SUBPROTOCOL]

    async def serve_one(socket: ServerConnection) -> None:
        message = codec.decode_control(wire.CLIENT_MESSAGES, await socket.recv())
        if isinstance(message, wire.Start):
            await socket.send(codec.encode_control(INFO))
        await socket.close(wire.CloseCode.RESTART)

    async with serve(serve_one, "127.0.0.1", 0, subprotocols=[Subprotocol(MSGPACK_SUBPROTOCOL)]) as server:
        url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        async with connect(url, give_up_s=0.5) as client:
            session = await client.start(RED_ON_BLUE)
            with pytest.raises(ConnectionLost, match="closed before the server answered"):
                await anext(session)


@pytest.mark.parametrize("flavour", [JSON_SUBPROTOCOL, MSGPACK_SUBPROTOCOL])
async def test_seeds_of_numpy_are_seeds(server: StreamServer, flavour: str) -> None:
    """What draws random numbers often gives these."""
    async with connect(server.url, flavour=flavour) as client:
        session = await client.start(RED_ON_BLUE, seed=np.int64(7), mode="recorder")
        await take(session, 1)
        assert (await session.reset(np.int64(8))).seq >= 1


async def test_what_cannot_be_sent_is_said_at_once(client: Client) -> None:
    """And does not stay behind to break each later connection."""
    with pytest.raises(ValueError, match="cannot be sent"):
        await client.start(RED_ON_BLUE, seed=2**64)
    session = await client.start(RED_ON_BLUE, mode="recorder")
    with pytest.raises(ValueError, match="cannot be sent"):
        await session.prompt("half a character: \ud83d")
    with pytest.raises(TypeError):
        await session.reset(1.5)  # type: ignore[arg-type]
    session.cut()
    assert seqs(await take(session, 3)) == [0, 1, 2]


@pytest.mark.parametrize("fault", [KeyError("mine"), ConnectionClosedError(None, None)])
async def test_a_fault_of_the_user_s_own_ends_the_iteration(client: Client, fault: Exception) -> None:
    """`on_part` runs where messages are read: whoever waits for chunks or answers hears of it."""

    async def on_part(header: ChunkHeader) -> None:
        if header.seq == 2:
            raise fault

    session = await client.start(RED_ON_BLUE, mode="recorder", on_part=on_part)
    with pytest.raises(ClientError, match="failed") as caught:
        await take(session, 10)
    assert caught.value.__cause__ is fault
    with pytest.raises(ClientError, match="failed"):
        await session.prompt(GREEN_ON_BLACK)


async def test_a_stop_is_sent_behind_however_many_inputs(client: Client, server: StreamServer) -> None:
    """A paused session answers no prompt."""
    session = await client.start(RED_ON_BLUE, mode="recorder")
    await session.pause()
    for _ in range(64):
        await session.submit_prompt(GREEN_ON_BLACK)
    with pytest.raises(ClientError, match="64 inputs"):
        await session.submit_prompt(GREEN_ON_BLACK)
    await session.stop()
    assert "stop" in [message["type"] for message in server.only.messages]


@pytest.mark.parametrize("data", [b"\x01\x00\x00\xff\xff", b"\x00\x81\xa4type\xa3???", "text"])
async def test_server_that_breaks_the_protocol(
    client: Client, server: StreamServer, data: str | bytes
) -> None:
    """Half a frame, an unknown type or the wrong kind of frame end the session with BadServer."""
    session = await client.start(RED_ON_BLUE, mode="recorder")
    assert server.only.socket is not None
    await server.only.socket.send(data)
    with pytest.raises(BadServer):
        while True:
            await anext(session)


async def test_unreachable_server_is_said_at_once() -> None:
    """Connecting to a port where nobody listens raises ConnectionLost, not a bare OSError."""
    with pytest.raises(ConnectionLost, match="localhost:9"):
        async with connect("http://localhost:9"):
            pass


async def test_one_session_at_a_time(client: Client) -> None:
    """A second start on the same client is refused while the first session runs."""
    await client.start(RED_ON_BLUE, mode="recorder")
    with pytest.raises(ClientError, match="has a session already"):
        await client.start(GREEN_ON_BLACK)


async def test_the_client_iterates_over_its_session(client: Client) -> None:
    """`async for chunk in client` is short for the session that it carries; without one it says so."""
    with pytest.raises(ClientError, match="no session"):
        aiter(client)
    await client.start("a red ball", seed=1)
    async for chunk in client:
        if chunk.seq == 1:
            break
    assert chunk.seq == 1


async def test_viewer_is_served_in_real_time(
    client: Client, server: StreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A viewer acknowledges what a screen would hold: the server stops at its lead and does not run ahead."""
    now_ms = 0.0
    monkeypatch.setattr("gateway.client_session.now_ms", lambda: now_ms)
    session = await client.start(RED_ON_BLUE, lead_ms=800)
    await take(session, 2)
    await server.until(lambda: server.only.acked_seq >= 1)
    assert (server.only.buffer_ms, len(server.only.chunks)) == (1500, 2)
    now_ms = 750.0
    await take(session, 1)
    await server.until(lambda: server.only.acked_seq >= 2)
    assert (server.only.buffer_ms, len(server.only.chunks)) == (1500, 3)


async def test_pause_and_resume(client: Client, server: StreamServer) -> None:
    """Pause and resume reach the server and the newest state is visible."""
    session = await client.start(RED_ON_BLUE, mode="recorder")
    await take(session, 1)
    await session.pause()
    assert server.only.paused
    await session.resume()
    assert not server.only.paused
    await take(session, 3)
    assert session.engine == "e_test"


@pytest.mark.parametrize(("seconds", "frames"), [(0.1, 12), (1.5, 24), (1.6, 36), (3, 48)])
async def test_record_keeps_the_fewest_whole_chunks(
    server: StreamServer, tmp_path: Path, seconds: float, frames: int
) -> None:
    """S seconds are all frames of the fewest chunks that reach S, and nothing else is left."""
    path = tmp_path / "out.mp4"
    recording = await record(server.url, RED_ON_BLUE, seconds, 1, path)
    assert recording.num_frames == frames
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == frames
    assert names(tmp_path) == ["out.mp4"]


async def test_a_recording_is_stopped_while_its_server_says_nothing(tmp_path: Path) -> None:
    """At once, not when it is given up: whoever presses Ctrl-C waits for no server."""
    stop, silent = asyncio.Event(), asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        stop.set()
        await silent.wait()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        made = await record(url, RED_ON_BLUE, 1.0, 1, tmp_path / "x.mp4", stop=stop)
        silent.set()
    assert made.num_chunks == 0 and names(tmp_path) == []


async def test_failed_recording_leaves_nothing(server: StreamServer, tmp_path: Path) -> None:
    """When the server ends the session in the middle, no broken file is left."""
    server.faults.gen_s = 0.2
    task = asyncio.create_task(record(server.url, RED_ON_BLUE, 60, 1, tmp_path / "out.mp4"))
    await server.until(lambda: bool(server.sessions) and len(server.only.chunks) > 1)
    await server.close_all(4408)
    with pytest.raises(SessionEnded):
        await task
    assert names(tmp_path) == []


async def test_a_recording_that_could_not_be_kept_is_not_begun(server: StreamServer, tmp_path: Path) -> None:
    """A folder is where a file was meant to be."""
    with pytest.raises(IsADirectoryError, match="is a folder"):
        await record(server.url, RED_ON_BLUE, 0.1, 1, tmp_path)
    assert (server.sessions, names(tmp_path)) == ({}, [])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://localhost:8000", "ws://localhost:8000/v1/stream"),
        ("https://host/video/", "wss://host/video/v1/stream"),
        ("ws://127.0.0.1:1/v1/stream", "ws://127.0.0.1:1/v1/stream"),
        ("localhost:8000", "ws://localhost:8000/v1/stream"),
    ],
)
def test_addresses(given: str, expected: str) -> None:
    """The page's address, the stream's address and host:port all work."""
    assert stream_url(given) == expected


@pytest.mark.parametrize("given", ["ftp://host", "http://", ""])
def test_wrong_addresses(given: str) -> None:
    """What cannot be an address is refused with a sentence."""
    with pytest.raises(ValueError, match="not the address of a server"):
        stream_url(given)
