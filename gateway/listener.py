"""One TCP port for HTTP/1.1 and WebSocket.

h11 parses the request head; an upgrade goes to `websockets`' sans-I/O `ServerProtocol` on the same transport,
everything else to the `Application`. The transport stays reachable: it can be aborted, and its buffers
are small, so that a slow client is noticed after kilobytes instead of megabytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from email.utils import formatdate
from enum import Enum
from http import HTTPStatus
from typing import cast

import h11
from websockets.datastructures import Headers
from websockets.exceptions import NegotiationError
from websockets.http11 import Request as HandshakeRequest
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from gateway.http import Application, Request, Response, text_response
from gateway.limits import Places
from gateway.protocol import CODECS, MAX_CLIENT_MESSAGE_BYTES, TOKEN_SUBPROTOCOL_PREFIX
from gateway.websocket import SocketLimits, WebSocket

logger = logging.getLogger("gateway.listener")

TCP_NOTSENT_LOWAT = 25
"""Linux; not in every Python's socket module."""
RETRY_AFTER = ("Retry-After", "1")
BACKLOG = 512
NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""An address that this machine does not have: localhost may be one of IPv6 too, where there is none."""
UNREAD_BYTES, UNREAD_S = 1024 * 1024, 2.0
"""Of a request that was refused before its end: so much is still taken in, and for so long."""
ACCEPT_AGAIN_S = 0.5
"""After connections could not be accepted."""

HolderOf = Callable[[str, Request | None], str | None]
"""Whose a peer's connection is, before (None) and after a request's head; None: nobody's that is limited."""


class Refused(Enum):
    """Which limit of connections was reached."""

    ALL = "all"
    ADDRESS = "address"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerLimits:
    """Sizes and times of one connection, and how many there may be."""

    max_connections: int = 4096
    address_connections: int = 256
    """Of one holder."""
    head_bytes: int = 16 * 1024
    """Request line and headers together."""
    body_bytes: int = 64 * 1024
    request_timeout_s: float = 10.0
    """For a complete request since the connection opened or the previous answer."""
    stall_timeout_s: float = 30.0
    """A response that the peer does not read for so long is aborted."""
    write_high_bytes: int = 64 * 1024
    notsent_lowat_bytes: int = 16 * 1024


class Listener:
    """Accepts connections on one address. `start`, then `close`."""

    def __init__(
        self,
        application: Application,
        *,
        limits: ListenerLimits | None = None,
        sockets: SocketLimits | None = None,
        tls: ssl.SSLContext | None = None,
        holder_of: HolderOf | None = None,
        count_refused: Callable[[Refused], None] | None = None,
    ) -> None:
        """Without `holder_of` nobody has a limit of their own."""
        self.application = application
        self.holder_of = holder_of or _nobody
        self.count_refused = count_refused or _do_nothing
        self.limits = limits or ListenerLimits()
        self.socket_limits = sockets or SocketLimits()
        self._tls = tls
        self.connections: set[HttpConnection] = set()
        self.places = Places(self.limits.address_connections)
        self._accepting: list[asyncio.Task[None]] = []
        self._gone = asyncio.Event()

    async def start(self, host: str, port: int) -> int:
        """Bind and listen. Returns the port, which the system chooses when `port` is 0. Raises OSError."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        sockets: list[socket.socket] = []
        missing: OSError | None = None
        try:
            for family, *_, address in found:
                try:
                    sockets.append(socket.create_server(address, family=family, backlog=BACKLOG))
                except OSError as exc:
                    if exc.errno not in NOT_HERE:
                        raise
                    missing = exc
            if missing is not None and not sockets:
                raise missing
        except OSError:
            for listening in sockets:
                listening.close()
            raise
        self._accepting = [loop.create_task(self._accept(listening)) for listening in sockets]
        bound: int = sockets[0].getsockname()[1]
        return bound

    async def _accept(self, listening: socket.socket) -> None:
        """Until cancelled. Not by asyncio's server: it would tell of a connection only once TLS is agreed on,
        and until then it would count for no limit."""
        listening.setblocking(False)
        with listening:
            while True:
                try:
                    accepted, address = await asyncio.get_running_loop().sock_accept(listening)
                except OSError as exc:  # too many open files, or the peer is gone already
                    logger.warning("a connection can't be accepted: %s", exc)
                    await asyncio.sleep(ACCEPT_AGAIN_S)
                    continue
                try:
                    self._take_in(accepted, str(address[0]))
                except Exception as exc:  # others want in
                    accepted.close()
                    text = "a connection could not be taken in"
                    asyncio.get_running_loop().call_exception_handler({"message": text, "exception": exc})

    def _take_in(self, accepted: socket.socket, peer: str) -> None:
        connection = HttpConnection(self, accepted, peer)
        if len(self.connections) >= self.limits.max_connections:
            self.count_refused(Refused.ALL)
            self._turn_away(
                accepted, text_response(503, "too many connections; try again later", RETRY_AFTER)
            )
        elif (refusal := connection.take_place(None)) is not None:
            self._turn_away(accepted, refusal)
        else:
            self.connections.add(connection)
            connection.opening = asyncio.get_running_loop().create_task(self._open(accepted, connection))

    def _turn_away(self, accepted: socket.socket, refusal: Response) -> None:
        """At once, whatever it asks; over TLS without an answer, which would be much more work."""
        with accepted, contextlib.suppress(OSError):
            if self._tls is not None:
                return
            accepted.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                accepted.recv(self.limits.head_bytes)  # unread, it would turn the close into a reset
            accepted.send(_whole(h11.Connection(h11.SERVER), _closing(refusal)))

    async def _open(self, accepted: socket.socket, connection: HttpConnection) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=self._tls,
                ssl_handshake_timeout=self.limits.request_timeout_s if self._tls is not None else None,
            )
        except OSError as exc:
            logger.debug("%s: no connection: %s", connection.peer, exc)
        connection.receive_opened()

    def stop_accepting(self) -> None:
        """Refuse new connections and drop idle ones; answers and WebSockets under way live on."""
        for task in self._accepting:
            task.cancel()
        for connection in tuple(self.connections):
            connection.close_if_idle()

    async def drained(self) -> None:
        """Wait until the last open connection is gone."""
        while self.connections:
            self._gone.clear()
            await self._gone.wait()

    def forget(self, connection: HttpConnection) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        self._gone.set()

    async def close(self) -> None:
        """Stop accepting and drop what is still open."""
        self.stop_accepting()
        tasks = [*self._accepting]
        for connection in tuple(self.connections):
            connection.abort()
            tasks += [task for task in (connection.opening, connection.task) if task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)


class HttpConnection(asyncio.Protocol):
    """One connection: HTTP requests one after the other, or a WebSocket from the upgrade on."""

    transport: asyncio.Transport

    def __init__(self, listener: Listener, accepted: socket.socket, peer: str) -> None:
        """`peer`: the address of the other end."""
        self._listener = listener
        self._limits = listener.limits
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=listener.limits.head_bytes)
        self._accepted = accepted
        self.peer = peer
        self._is_made = False
        """Is there a transport?"""
        self._holder: str | None = None
        """Who has a place taken for this connection."""
        self._request: Request | None = None
        self._body = bytearray()
        self._heard = False
        self._unread_bytes: int | None = None
        """Once a request was refused: how many more may come behind it."""
        self._websocket: WebSocket | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._timer: asyncio.TimerHandle | None = None
        self.opening: asyncio.Task[None] | None = None
        """Until there is a transport: with TLS, while the handshake lasts."""
        self.task: asyncio.Task[None] | None = None

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports do not derive from it
        self._is_made = True
        _set_buffers(self.transport, self._limits)
        self._restart_timer()

    def data_received(self, data: bytes) -> None:
        if self._websocket is not None:
            self._websocket.receive_data(data)
            return
        if self._unread_bytes is not None:
            self._unread_bytes -= len(data)
            if self._unread_bytes < 0:
                self._close()
            return
        self._heard = True
        try:
            self._h11.receive_data(data)
            self._advance()
        except h11.RemoteProtocolError as exc:
            self._refuse(_explain(exc))

    def eof_received(self) -> bool | None:
        if self._websocket is not None:
            self._websocket.receive_eof()
            return False
        # A client may half-close after its request and still read the answer.
        return self.task is not None

    def receive_opened(self) -> None:
        """The transport was there, or will never be."""
        self.opening = None
        if not self._is_made:
            self.connection_lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.forget(self)
        self._hold(None)
        self._cancel_timer()
        self._writable.set()
        if self._websocket is not None:
            self._websocket.receive_connection_lost()
            self._websocket.release()
        if self.task is not None:
            self.task.cancel()
            self.task = None  # how it ended has frames with us in it

    def pause_writing(self) -> None:
        self._writable.clear()
        if self._websocket is not None:
            self._websocket.pause_writing()

    def resume_writing(self) -> None:
        self._writable.set()
        if self._websocket is not None:
            self._websocket.resume_writing()

    def close_if_idle(self) -> None:
        """Close before the first request or between two."""
        if not self._is_made:
            self.abort()
        elif self._is_between():
            self._close()

    def _is_between(self) -> bool:
        """Neither a WebSocket nor busy with an answer?"""
        return self._websocket is None and self.task is None

    def _close(self) -> None:
        """Once the peer has read what was written, or has not for too long."""
        self._cancel_timer()
        if not self.transport.is_closing():
            self.transport.close()
            self._timer = asyncio.get_running_loop().call_later(
                self._limits.stall_timeout_s, self.transport.abort
            )

    def _close_unread(self) -> None:
        """`_close` once the peer has stopped sending, or goes on for too long.

        What lies there unread would turn the close into a reset, and the answer might be lost.
        """
        if self.transport.is_closing() or not self.transport.can_write_eof():
            self._close()
            return
        self._cancel_timer()
        self._unread_bytes = UNREAD_BYTES
        self.transport.write_eof()
        self._timer = asyncio.get_running_loop().call_later(UNREAD_S, self._close)

    def abort(self) -> None:
        """Drop the connection at once."""
        if self._is_made:
            self.transport.abort()
            return
        with contextlib.suppress(OSError):  # it is gone
            self._accepted.shutdown(socket.SHUT_RDWR)  # and so is the handshake

    # --- places ---

    def take_place(self, request: Request | None) -> Response | None:
        """One of who comes now, on a proxy's connection perhaps another than before; or why there is none."""
        if self._hold(self._listener.holder_of(self.peer, request)):
            return None
        self._listener.count_refused(Refused.ADDRESS)
        return text_response(429, "too many connections from this address", RETRY_AFTER)

    def _hold(self, holder: str | None) -> bool:
        """Take a place of `holder` instead of the one before. False: there is none, and then none is held."""
        if holder == self._holder:
            return True
        if self._holder is not None:
            self._listener.places.give_back(self._holder)
        is_held = holder is None or self._listener.places.take(holder)
        self._holder = holder if is_held else None
        return is_held

    # --- requests ---

    def _advance(self) -> None:
        """Take what h11 has parsed, until a request is complete or more bytes are needed."""
        while self._is_between() and self._unread_bytes is None and not self.transport.is_closing():
            event = self._h11.next_event()
            if event is h11.NEED_DATA:
                if self._h11.they_are_waiting_for_100_continue:
                    self._send(h11.InformationalResponse(status_code=100, headers=[]))
                return
            match event:
                case h11.Request():
                    self._begin(event)
                case h11.Data():
                    self._body += event.data
                    if len(self._body) > self._limits.body_bytes:
                        self._refuse(text_response(413, f"a body may have {self._limits.body_bytes} bytes"))
                case h11.EndOfMessage():
                    self._dispatch()
                case _:  # PAUSED, ConnectionClosed
                    if event is not h11.PAUSED:
                        self._close()
                    return

    def _begin(self, event: h11.Request) -> None:
        request = _to_request(event, self.peer)
        if _head_bytes(event) > self._limits.head_bytes:  # h11 only limits heads that come in pieces
            self._refuse(text_response(431, "the request head is too large"))
            return
        if (refusal := self._listener.application.check(request)) is not None:
            self._refuse(refusal, head=request.method == "HEAD")
            return
        if (refusal := self.take_place(request)) is not None:
            self._refuse(refusal, head=request.method == "HEAD")
            return
        if "websocket" in (request.header("upgrade") or "").lower():
            self._upgrade(request)
            return
        length = request.header("content-length")
        if length is not None and int(length) > self._limits.body_bytes:
            self._refuse(text_response(413, f"a body may have {self._limits.body_bytes} bytes"))
            return
        self._request, self._body = request, bytearray()

    def _dispatch(self) -> None:
        assert self._request is not None
        self._cancel_timer()
        self.transport.pause_reading()  # one request at a time: what is pipelined waits in the kernel
        request = replace(self._request, body=bytes(self._body))
        self.task = asyncio.get_running_loop().create_task(self._answer(request))

    async def _answer(self, request: Request) -> None:
        try:
            response = await self._listener.application.respond(request)
        except Exception as exc:
            response = self._listener.application.fail(request, exc)
        try:
            await self._send_response(response, head=request.method == "HEAD")
            await self._written()
        except (h11.LocalProtocolError, OSError, TimeoutError) as exc:
            logger.info("response cut off: %s %.200r: %s", request.method, request.path, exc)
            self.transport.abort()
            return
        self.task = None
        self._next_request()

    def _next_request(self) -> None:
        if self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE:
            self._close()
            return
        self._h11.start_next_cycle()
        self._request = None
        self._heard = False
        self._hold(self._listener.holder_of(self.peer, None))  # a proxy's is nobody's between two requests
        self._restart_timer()
        self.transport.resume_reading()
        try:
            self._advance()
        except h11.RemoteProtocolError as exc:
            self._refuse(_explain(exc))

    # --- answers ---

    async def _send_response(self, response: Response, *, head: bool) -> None:
        if isinstance(response.body, bytes):
            self._send_whole(response, head=head)
            return
        await self._send_stream(response, response.body, head=head)

    def _send_whole(self, response: Response, *, head: bool) -> None:
        data = _whole(self._h11, response, head=head)
        if not self.transport.is_closing():
            self.transport.write(data)

    async def _send_stream(
        self, response: Response, body: AsyncGenerator[bytes, None], *, head: bool
    ) -> None:
        self._send(_head(response, response.length))
        async with contextlib.aclosing(body):
            if not head:
                async for piece in body:
                    self._send(h11.Data(data=piece))
                    await self._written()
        self._send(h11.EndOfMessage())

    async def _written(self) -> None:
        """Wait until the peer has taken most of it. Raises TimeoutError."""
        async with asyncio.timeout(self._limits.stall_timeout_s):  # `wait_for` could miss our cancelling
            await self._writable.wait()

    def _refuse(self, response: Response, *, head: bool = False) -> None:
        """Answer before the request is complete, then close: the rest of it is not worth reading."""
        if self._h11.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            with contextlib.suppress(h11.LocalProtocolError):
                self._send_whole(_closing(response), head=head)
        self._close_unread()

    def _send(self, event: h11.Event) -> None:
        data = self._h11.send(event)
        if data and not self.transport.is_closing():
            self.transport.write(data)

    # --- upgrade ---

    def _upgrade(self, request: Request) -> None:
        receiver = self._listener.application.accept(request)
        if isinstance(receiver, Response):
            self._refuse(receiver)
            return
        handshake = _Handshake()
        response = handshake.accept(_to_handshake(request))
        handshake.parser.close()  # else it holds itself, and so do the frames of an exception
        handshake.handshake_exc = None
        self._cancel_timer()
        self.transport.write(response.serialize())
        if response.status_code != 101:
            self._close()
            return
        # A protocol that did not parse the request itself has to begin in the open state.
        protocol = ServerProtocol(state=State.OPEN, max_size=MAX_CLIENT_MESSAGE_BYTES)
        protocol.subprotocol = handshake.subprotocol
        self._websocket = WebSocket(self.transport, protocol, receiver, self._listener.socket_limits)
        receiver.receive_open(self._websocket)
        rest, _closed = self._h11.trailing_data
        if rest:
            self._websocket.receive_data(rest)

    # --- timer ---

    def _restart_timer(self) -> None:
        self._cancel_timer()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._limits.request_timeout_s, self._time_out)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self) -> None:
        if self._heard:
            self._refuse(text_response(408, "the request was not complete in time"))
        else:  # nobody asked anything: nothing to answer
            self._close()


def _set_buffers(transport: asyncio.Transport, limits: ListenerLimits) -> None:
    transport.set_write_buffer_limits(high=limits.write_high_bytes, low=limits.write_high_bytes // 4)
    raw = transport.get_extra_info("socket")
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio sets it on sockets of its own only
    with contextlib.suppress(OSError):  # not Linux
        raw.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, limits.notsent_lowat_bytes)


def _nobody(_peer: str, _request: Request | None) -> str | None:
    return None


def _do_nothing(_refused: Refused) -> None:
    pass


def _to_request(event: h11.Request, peer: str) -> Request:
    headers: dict[str, str] = {}
    for raw_name, raw_value in event.headers:
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return Request(
        method=event.method.decode("ascii"),
        target=event.target.decode("ascii"),
        headers=headers,
        peer=peer,
    )


def _head_bytes(event: h11.Request) -> int:
    return len(event.target) + sum(len(name) + len(value) + 4 for name, value in event.headers)


def _to_handshake(request: Request) -> HandshakeRequest:
    return HandshakeRequest(request.target, Headers(dict(request.headers)), method=request.method)


class _Handshake(ServerProtocol):
    def select_subprotocol(self, subprotocols: Sequence[Subprotocol]) -> Subprotocol | None:
        """The first flavour that the client offers. None (JSON) when it names no flavour at all."""
        names = [name for name in subprotocols if not name.startswith(TOKEN_SUBPROTOCOL_PREFIX)]
        for name in names:
            if name in CODECS:
                return name
        if names:
            raise NegotiationError(f"none of the offered subprotocols is served; use {' or '.join(CODECS)}")
        return None


def _closing(response: Response) -> Response:
    return replace(response, headers=(*response.headers, ("Connection", "close")))


def _whole(connection: h11.Connection, response: Response, *, head: bool = False) -> bytes:
    """A response whose body is known. Raises LocalProtocolError."""
    assert isinstance(response.body, bytes)
    events: list[h11.Event] = [_head(response, len(response.body)), h11.EndOfMessage()]
    if response.body and not head:
        events.insert(1, h11.Data(data=response.body))
    return b"".join(connection.send(event) or b"" for event in events)


def _head(response: Response, length: int | None) -> h11.Response:
    headers = [("Date", formatdate(usegmt=True)), ("Content-Type", response.content_type), *response.headers]
    # Without a length h11 chooses chunked encoding.
    if length is not None and response.status not in (204, 304):
        headers.append(("Content-Length", str(length)))
    reason = HTTPStatus(response.status).phrase
    return h11.Response(status_code=response.status, headers=headers, reason=reason.encode())


def _explain(exc: h11.RemoteProtocolError) -> Response:
    if exc.error_status_hint == 431:
        return text_response(431, "the request head is too large")
    return text_response(exc.error_status_hint, "not a valid HTTP/1.1 request")
