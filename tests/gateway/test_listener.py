"""The listener on real sockets: HTTP and WebSocket on one port, its limits and its refusals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from gateway.http import Request, Response, json_response, text_response
from gateway.listener import UNREAD_BYTES, HolderOf, Listener, ListenerLimits, Refused
from gateway.websocket import Receiver, SocketLimits, WebSocket
from tests.gateway.gateway_fixtures import make_certificate
from tests.patience import PATIENCE_S

BIG_BYTES = 100 * 1024 * 1024
PAGE_BYTES = 16 * 1024 * 1024
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


class Echo:
    """Sends back what it gets; `flood` answers with more than a peer that does not read can take."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        self.heard: list[str | bytes] = []

    def receive_open(self, socket: WebSocket) -> None:
        self.socket = socket

    def receive_frame(self, data: str | bytes) -> None:
        self.heard.append(data)
        if data == "flood":
            for _ in range(64):
                self.socket.send(bytes(1024 * 1024))
        elif data == "close":
            self.socket.close(4400, "asked for it")
        else:
            self.socket.send(data)

    def receive_lost(self) -> None:
        self.lost.set()


class App:
    """Routes for these tests."""

    def __init__(self) -> None:
        self.echoes: list[Echo] = []
        self.num_pages = 0
        self.asked = asyncio.Event()
        self.opened = asyncio.Event()

    def check(self, request: Request) -> Response | None:
        return text_response(405, "no", ("Allow", "GET")) if request.method == "DELETE" else None

    async def respond(self, request: Request) -> Response:
        if request.path == "/big":
            return Response(body=_big(), length=BIG_BYTES, content_type="application/octet-stream")
        if request.path == "/chunked":
            return Response(body=_few())
        if request.path == "/page":
            self.num_pages += 1
            self.asked.set()
            return Response(body=bytes(PAGE_BYTES))
        if request.path == "/broken":
            raise RuntimeError("a handler fails")
        return json_response({"method": request.method, "path": request.path, "bytes": len(request.body)})

    def fail(self, request: Request, exc: Exception) -> Response:
        return text_response(500, str(exc))

    def accept(self, request: Request) -> Receiver | Response:
        if request.path != "/ws":
            return text_response(404, "no")
        self.echoes.append(Echo())
        self.opened.set()
        return self.echoes[-1]


async def _big() -> AsyncGenerator[bytes, None]:
    piece = bytes(64 * 1024)
    for _ in range(BIG_BYTES // len(piece)):
        yield piece


async def _few() -> AsyncGenerator[bytes, None]:
    for word in (b"one ", b"two ", b"three"):
        yield word


@asynccontextmanager
async def listening(
    limits: ListenerLimits | None = None,
    sockets: SocketLimits | None = None,
    tls: ssl.SSLContext | None = None,
    holder_of: HolderOf | None = None,
    count_refused: Callable[[Refused], None] | None = None,
) -> AsyncIterator[tuple[App, int]]:
    app = App()
    listener = Listener(
        app, limits=limits, sockets=sockets, tls=tls, holder_of=holder_of, count_refused=count_refused
    )
    port = await listener.start("127.0.0.1", 0)
    try:
        yield app, port
    finally:
        await listener.close()


async def talk(port: int, data: bytes) -> bytes:
    """Send bytes, read until the server closes. They lie there when it takes the connection in: on a machine
    that stands still, its limits of time would else be over before it has heard a word."""
    spoken = socket.create_connection(("127.0.0.1", port))
    spoken.setblocking(False)
    num_sent = spoken.send(data)
    reader, writer = await asyncio.open_connection(sock=spoken)
    writer.write(data[num_sent:])
    answer = await reader.read()
    writer.close()
    return answer


def ask(path: str, method: str = "GET", body: bytes = b"", close: bool = True) -> bytes:
    connection = "Connection: close\r\n" if close else ""
    return (
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{connection}Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


async def test_post_stream_and_websocket_on_one_port() -> None:
    """A POST, a 100 MB streamed GET with flat memory and a WebSocket are served on one port."""
    async with listening() as (_app, port):
        answer = await talk(port, ask("/post", "POST", b"x" * 1000))
        assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {
            "method": "POST",
            "path": "/post",
            "bytes": 1000,
        }

        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(ask("/big"))
        head = await reader.readuntil(b"\r\n\r\n")
        assert f"Content-Length: {BIG_BYTES}".encode() in head
        async with connect(f"ws://127.0.0.1:{port}/ws") as ws:  # while the download waits
            await ws.send("hello")
            assert await ws.recv() == "hello"
            await ws.send(b"\x00\xff")
            assert await ws.recv() == b"\x00\xff"
        received = 0
        while piece := await reader.read(1 << 20):
            received += len(piece)
        writer.close()
        assert received == BIG_BYTES
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
        assert grown_kib < 30 * 1024


async def test_keep_alive_serves_several_requests_on_a_connection() -> None:
    """Requests on one connection are answered in order, pipelined ones too."""
    async with listening() as (_app, port):
        answer = await talk(port, ask("/a", close=False) + ask("/b", close=False) + ask("/c"))
        assert [path in answer for path in (b'"/a"', b'"/b"', b'"/c"')] == [True] * 3
        assert answer.count(b"HTTP/1.1 200") == 3


async def test_head_has_the_length_and_no_body() -> None:
    """HEAD is answered like GET without the body."""
    async with listening() as (_app, port):
        head, _, body = (await talk(port, ask("/big", "HEAD"))).partition(b"\r\n\r\n")
        assert f"Content-Length: {BIG_BYTES}".encode() in head and body == b""


async def test_a_body_of_unknown_length_is_chunked() -> None:
    """A generator without a length is sent with chunked encoding."""
    async with listening() as (_app, port):
        answer = await talk(port, ask("/chunked"))
        assert b"chunked" in answer.lower() and b"5\r\nthree\r\n0\r\n" in answer


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (ask("/x", "DELETE"), 405),
        (ask("/broken"), 500),
        (ask("/x", "POST", b"y" * 70_000), 413),
        (b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"GET /x HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 20_000 + b"\r\n\r\n", 431),
        (b"\x00\x01\x02 garbage\r\n\r\n", 400),
        (b"GET /x HTTP/1.1\r\n\r\n", 400),
        (b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 400),
    ],
)
async def test_refusals(request_bytes: bytes, status: int) -> None:
    """What is wrong with a request is answered with its status, and the connection closes."""
    async with listening() as (_app, port):
        answer = await talk(port, request_bytes)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer[:80]


async def test_a_chunked_body_beyond_the_limit_is_refused() -> None:
    """The body limit holds without a Content-Length too."""
    async with listening() as (_app, port):
        body = b"".join(b"4000\r\n" + b"z" * 0x4000 + b"\r\n" for _ in range(5)) + b"0\r\n\r\n"
        head = b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert (await talk(port, head + body)).startswith(b"HTTP/1.1 413")


async def test_an_answer_is_read_although_more_of_the_request_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reset would take it away from a client that is still sending."""
    monkeypatch.setattr("gateway.listener.UNREAD_S", 600.0)
    async with listening() as (_app, port):
        head = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head)
        for _ in range(30):
            writer.write(bytes(20_000))
            await writer.drain()
            await asyncio.sleep(0)
        assert (await reader.read()).startswith(b"HTTP/1.1 413")
        writer.close()


async def test_who_goes_on_after_a_refusal_is_cut_off() -> None:
    """It is not listened to for ever."""
    async with listening() as (_app, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n")
        with pytest.raises(ConnectionError):
            for _ in range(2 * UNREAD_BYTES // 2**16):
                writer.write(bytes(2**16))
                await writer.drain()
                await asyncio.sleep(0.001)
            await reader.read()
        writer.close()


async def test_silent_connections_are_closed_and_harm_nobody() -> None:
    """100 connections that never speak are closed without an answer while others are served."""
    async with listening(ListenerLimits(request_timeout_s=0.5)) as (_app, port):
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(100)]
        assert b"200 OK" in await talk(port, ask("/x"))
        for reader, writer in silent:
            assert await reader.read() == b""
            writer.close()


async def test_half_a_request_is_answered_408() -> None:
    """A request that is not complete in time is refused."""
    async with listening(ListenerLimits(request_timeout_s=0.2)) as (_app, port):
        assert (await talk(port, b"GET /x HTTP/1.1\r\nHo")).startswith(b"HTTP/1.1 408")


async def test_too_many_connections_are_refused() -> None:
    """Beyond max_connections the answer is 503."""
    async with listening(ListenerLimits(max_connections=1)) as (_app, port):
        _reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert b"200 OK" in await first_answer(_reader, writer)
        assert (await talk(port, ask("/x"))).startswith(b"HTTP/1.1 503")
        writer.close()


async def test_one_peer_has_so_many_connections() -> None:
    """Also silent ones count; beyond the limit the answer is 429, until one of them is gone."""
    refused: list[Refused] = []
    limits = ListenerLimits(address_connections=2)

    def holder_of(peer: str, _request: Request | None) -> str:
        return peer

    async with listening(limits, holder_of=holder_of, count_refused=refused.append) as (_app, port):
        streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        assert (await talk(port, b"")).startswith(b"HTTP/1.1 429"), "before it has asked anything"
        reader, writer = streams[0]
        writer.write(ask("/x"))
        assert b"200 OK" in await reader.read()
        assert b"200 OK" in await talk(port, ask("/x"))
        for _, writer in streams:
            writer.close()
    assert refused == [Refused.ADDRESS]


async def test_a_proxys_connection_is_whose_request_it_carries() -> None:
    """And nobody's between two requests; a WebSocket stays its client's."""
    limits = ListenerLimits(address_connections=1)

    def holder_of(_peer: str, request: Request | None) -> str | None:
        return request.header("x-client") if request is not None else None

    def ask_as(client: str, close: bool = True) -> bytes:
        return ask("/x", close=close).replace(b"\r\n\r\n", f"\r\nX-Client: {client}\r\n\r\n".encode())

    async with listening(limits, holder_of=holder_of) as (_app, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for client in ("a", "b"):
            writer.write(ask_as(client, close=False))
            assert b"200 OK" in await reader.readuntil(b"}")
            assert b"200 OK" in await talk(port, ask_as(client))
        async with connect(f"ws://127.0.0.1:{port}/ws", additional_headers={"X-Client": "a"}):
            assert (await talk(port, ask_as("a"))).startswith(b"HTTP/1.1 429")
            assert b"200 OK" in await talk(port, ask_as("b"))
            writer.write(ask_as("a"))
            assert b" 429 " in await reader.read()
        writer.close()


async def unread(port: int, requests: bytes) -> asyncio.StreamWriter:
    """A connection that asks and does not read."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(requests)
    del reader
    return writer


@pytest.mark.parametrize(
    ("limits", "requests"),
    [
        (ListenerLimits(stall_timeout_s=0.3), ask("/page", close=False) * 10_000),
        (ListenerLimits(stall_timeout_s=0.3, write_high_bytes=2**30), ask("/page") + b"x" * 2**20),
    ],
    ids=["pipelined requests wait", "the last answer"],
)
async def test_answers_that_nobody_reads_keep_neither_memory_nor_a_place(
    limits: ListenerLimits, requests: bytes
) -> None:
    """No more is answered than the kernel and one full buffer take; then the connection is dropped."""
    app = App()
    listener = Listener(app, limits=limits)
    port = await listener.start("127.0.0.1", 0)
    writer = await unread(port, requests)
    async with asyncio.timeout(PATIENCE_S):
        await app.asked.wait()
        await listener.drained()
    assert app.num_pages * PAGE_BYTES < 100 * 2**20
    writer.transport.abort()
    await listener.close()


async def test_stopping_drops_idle_connections_only() -> None:
    """A kept-alive connection closes when the listener stops accepting, a WebSocket stays."""
    app = App()
    listener = Listener(app)
    port = await listener.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await first_answer(reader, writer)
    async with connect(f"ws://127.0.0.1:{port}/ws") as ws:
        listener.stop_accepting()
        await reader.read()  # to the end
        await ws.send("still here")
        assert await ws.recv() == "still here"
    writer.close()
    await listener.close()


async def first_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(ask("/x", close=False))
    return await reader.readuntil(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (None, None),
        (["turboserve.v1+json"], "turboserve.v1+json"),
        (["other", "turboserve.v1+msgpack", "turboserve.v1+json"], "turboserve.v1+msgpack"),
        (["turboserve.token.abc", "turboserve.v1+json"], "turboserve.v1+json"),
        (["turboserve.token.abc"], None),
    ],
)
async def test_subprotocol(offered: list[str] | None, chosen: str | None) -> None:
    """The first flavour offered is chosen; a token is never echoed."""
    async with listening() as (_app, port):
        async with connect(f"ws://127.0.0.1:{port}/ws", subprotocols=offered) as ws:  # type: ignore[arg-type]
            assert ws.subprotocol == chosen


async def test_an_unknown_subprotocol_is_refused() -> None:
    """Offering only unknown protocols fails the handshake with 400."""
    async with listening() as (_app, port):
        with pytest.raises(InvalidStatus) as caught:
            await connect(f"ws://127.0.0.1:{port}/ws", subprotocols=["nope"])  # type: ignore[list-item]
        assert caught.value.response.status_code == 400


async def test_the_first_frame_may_come_with_the_handshake() -> None:
    """Bytes behind the upgrade request reach the WebSocket."""
    async with listening() as (_app, port):
        head = (
            b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        frame = b"\x81\x82\x00\x00\x00\x00hi"  # masked with zeros
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + frame)
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(4) == b"\x81\x02hi"
        writer.close()


@pytest.mark.parametrize(("message", "code"), [("x" * (64 * 1024 + 1), 1009), ("close", 4400)])
async def test_close_codes(message: str, code: int) -> None:
    """A message over 64 KiB closes 1009; a close by the application arrives with its code."""
    async with listening() as (_app, port):
        async with connect(f"ws://127.0.0.1:{port}/ws") as ws:
            await ws.send(message)
            with pytest.raises(ConnectionClosed) as caught:
                await ws.recv()
            assert caught.value.rcvd is not None and caught.value.rcvd.code == code


async def test_a_message_of_64_kib_is_taken() -> None:
    """The limit itself is allowed, in fragments too."""
    async with listening() as (_app, port), connect(f"ws://127.0.0.1:{port}/ws") as ws:
        await ws.send("x" * 64 * 1024)
        assert len(await ws.recv()) == 64 * 1024
        await ws.send(["a" * 1000, "b" * 1000])
        assert await ws.recv() == "a" * 1000 + "b" * 1000


async def test_empty_fragments_are_not_kept() -> None:
    """They count nothing towards the size of a message, only for the rate."""
    async with listening() as (app, port), connect(f"ws://127.0.0.1:{port}/ws") as ws:
        ws.transport.write(b"\x01\x80\0\0\0\0" + b"\x00\x80\0\0\0\0" * 150)
        await (await ws.ping())
        assert len(app.echoes[0].socket._fragments) == 0
        ws.transport.write(b"\x80\x82\0\0\0\0hi")
        assert await ws.recv() == "hi"


def test_a_malformed_target_is_a_path_as_it_was_sent() -> None:
    """Nothing is served there, and nobody stumbles over it."""
    for target in ("//[", "//[x]/v1/cluster", "http://[/metrics"):
        request = Request(method="GET", target=f"{target}?a=1", headers={})
        assert (request.path, request.query) == (target, {"a": "1"})


async def test_text_that_is_not_utf8_closes_1007() -> None:
    """The WebSocket protocol asks for it."""
    async with listening() as (_app, port), connect(f"ws://127.0.0.1:{port}/ws") as ws:
        await ws.send(b"\xff\xfe", text=True)
        with pytest.raises(ConnectionClosed) as caught:
            await ws.recv()
        assert caught.value.rcvd is not None and caught.value.rcvd.code == 1007


async def test_a_message_that_comes_with_the_close_frame_counts() -> None:
    """A client that says its last word and closes at once, in one segment, is heard."""
    async with listening() as (app, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HANDSHAKE)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"\x81\x84\0\0\0\0stop" + b"\x88\x82\0\0\0\0\x03\xe8")
        await reader.read()
        await app.echoes[0].lost.wait()
        assert app.echoes[0].heard == ["stop"]
        writer.close()


async def test_a_peer_that_does_not_read_is_cut_off() -> None:
    """A send that is not finished in time aborts the socket."""
    async with listening(sockets=SocketLimits(send_timeout_s=0.3)) as (app, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        head = (
            b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        writer.write(head + b"\x81\x85\x00\x00\x00\x00flood")
        await asyncio.wait_for(asyncio.shield(_lost(app)), PATIENCE_S)
        writer.close()
        del reader


async def _lost(app: App) -> None:
    await app.opened.wait()
    await app.echoes[0].lost.wait()


async def test_pings_of_a_peer_that_does_not_read_do_not_pile_up() -> None:
    """Each answer waits in the transport, which has no limit of its own: the connection is dropped."""
    async with listening(sockets=SocketLimits(send_timeout_s=60)) as (app, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(HANDSHAKE)
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        echo = app.echoes[0]
        sent_bytes = 0
        while not echo.lost.is_set() and sent_bytes < BIG_BYTES // 4:
            writer.write((b"\x89\xfd\0\0\0\0" + bytes(125)) * 500)
            sent_bytes += 500 * 131
            await asyncio.sleep(0)
        assert echo.lost.is_set()
        writer.transport.abort()


@pytest.mark.parametrize(
    "frame",
    [b"\x89\x80\0\0\0\0", b"\x8a\x80\0\0\0\0", b"\x00\x80\0\0\0\0"],
    ids=["pings", "pongs", "fragments"],
)
async def test_a_flood_of_what_is_no_message_is_cut_off(frame: bytes) -> None:
    """Each costs as much as a message does, and counts for no rate of those."""
    begun = b"\x01\x81\0\0\0\0x" if frame[0] == 0 else b""
    async with listening() as (app, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HANDSHAKE)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(begun + 200 * frame)
        writer.write(b"\x80\x80\0\0\0\0" if begun else b"\x81\x82\0\0\0\0hi")
        while b"hi" not in (answer := await reader.read(1 << 16)) and b"x" not in answer:
            assert answer, "cut although it sent no more than it may"
        writer.write(begun + 1_000 * frame)
        with contextlib.suppress(ConnectionResetError):
            await reader.read()
        await asyncio.wait_for(app.echoes[0].lost.wait(), PATIENCE_S)
        assert app.echoes[0].socket.why_aborted == "too many pings, pongs or fragments"
        writer.close()


async def make_tls(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(the server's, of a client that trusts it)."""
    cert, key = await make_certificate(folder)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(cert, key)
    return tls, ssl.create_default_context(cafile=str(cert))


@pytest.mark.parametrize(
    ("limits", "limit"),
    [
        (ListenerLimits(address_connections=2), Refused.ADDRESS),
        (ListenerLimits(max_connections=2), Refused.ALL),
    ],
    ids=["address", "all"],
)
async def test_a_tls_handshake_takes_a_place(tmp_path: Path, limits: ListenerLimits, limit: Refused) -> None:
    """Who says nothing has as many connections as who speaks; another is closed without an answer."""
    tls, trust = await make_tls(tmp_path)
    refused: list[Refused] = []

    def holder_of(peer: str, _request: Request | None) -> str:
        return peer

    async with listening(limits, tls=tls, holder_of=holder_of, count_refused=refused.append) as (_app, port):
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        assert await asyncio.wait_for(talk(port, b""), PATIENCE_S) == b""
        assert refused == [limit]
        reader, writer = silent.pop()
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust)
        writer.write(ask("/x"))
        assert b"200 OK" in await reader.read()
        writer.close()
    for reader, writer in silent:  # the listener closed, and has not waited for it
        assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize("hello", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["nothing", "half a hello"])
async def test_a_tls_handshake_has_a_time_limit(tmp_path: Path, hello: bytes) -> None:
    """Whatever was sent of it."""
    tls, _trust = await make_tls(tmp_path)
    async with listening(ListenerLimits(request_timeout_s=0.2), tls=tls) as (_app, port):
        assert await asyncio.wait_for(talk(port, hello), PATIENCE_S) == b""


async def test_a_close_over_tls_ends_the_connection(tmp_path: Path) -> None:
    """TLS has no half-closed connections: a browser would wait for one that never ends."""
    tls, trust = await make_tls(tmp_path)
    async with listening(sockets=SocketLimits(close_timeout_s=600), tls=tls) as (_app, port):
        async with connect(f"wss://127.0.0.1:{port}/ws", ssl=trust, close_timeout=600) as ws:
            await ws.send("close")
            await asyncio.wait_for(ws.wait_closed(), PATIENCE_S)
            assert ws.close_code == 4400


async def test_a_dead_peer_is_noticed_by_ping() -> None:
    """Half a frame and then nothing: no pong can come, so the keepalive ends the connection."""
    async with listening(sockets=SocketLimits(ping_interval_s=0.2)) as (app, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = (
            b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        writer.write(head + b"\x81\xfe\x10")
        await asyncio.wait_for(_lost(app), PATIENCE_S)
        writer.close()
        del reader
