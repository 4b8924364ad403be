"""The link: a WebSocket server that gateways connect to. One connection carries all sessions of one gateway.

Text frames are JSON messages (`scheduler.messages`: LinkRequest in, LinkReply out), binary frames are framed
media. The engine never waits for a link: what goes out is queued, bounded in bytes, and a link whose queue
overflows or whose peer takes nothing for SEND_TIMEOUT_S is aborted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from scheduler.messages import LINK_REQUESTS, DecodeError, LinkReply, LinkRequest, decode_json, encode_json

__all__ = ["LINK_PATH", "Link", "LinkHandler", "LinkServer"]

_log = logging.getLogger("turboserve.engine.link")

LINK_PATH = "/link"
MAX_QUEUE_BYTES = 64 * 1024 * 1024
"""What may wait for one gateway. When full: the link is aborted; its sessions linger until a new one."""
MAX_REQUEST_BYTES = 64 * 1024
SEND_TIMEOUT_S = 10.0
PROTOCOL_ERROR = 1002
GOING_AWAY = 1001


class LinkHandler(Protocol):
    """What the engine does with a link's traffic; called on the event loop, must not block."""

    def receive_request(self, link: Link, request: LinkRequest) -> None:
        """A gateway asks for something."""

    def receive_link_lost(self, link: Link) -> None:
        """This link is gone; nothing more can be sent on it."""


class Link:
    """The sending side of one gateway's connection."""

    def __init__(self, connection: ServerConnection, *, max_queue_bytes: int = MAX_QUEUE_BYTES) -> None:
        self._connection = connection
        self._queue: deque[tuple[str | bytes, Callable[[], None] | None]] = deque()
        self._queued_bytes = 0
        self._max_queue_bytes = max_queue_bytes
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.lost = False

    def send(self, message: LinkReply) -> None:
        """Queue a message. On a lost link it is dropped: the gateway asks again on a new one."""
        self._put(encode_json(message).decode(), None)

    def send_media(self, data: bytes, on_sent: Callable[[], None] | None = None) -> None:
        """Queue framed media; `on_sent` is called when its last byte was handed to the connection."""
        self._put(data, on_sent)

    def abort(self) -> None:
        """Cut the connection without a closing handshake."""
        self.lost = True
        self._queue.clear()
        self._queued_bytes = 0
        self._wake.set()
        self._idle.set()
        self._connection.transport.abort()

    async def drained(self) -> None:
        """Wait until everything queued so far was handed to the connection, or the link is lost."""
        await self._idle.wait()

    async def pump(self) -> None:
        """Send what is queued, in order, until the link is lost."""
        try:
            while not self.lost:
                await self._wake.wait()
                self._wake.clear()
                await self._send_queued()
                self._idle.set()
        except Exception:
            _log.exception("a link to a gateway failed")
            self.abort()  # it would stay up, with nothing on it but pings

    async def _send_queued(self) -> None:
        while self._queue:
            data, on_sent = self._queue.popleft()
            await self._send_one(data)
            self._queued_bytes -= len(data)
            if on_sent is not None and not self.lost:
                on_sent()

    async def _send_one(self, data: str | bytes) -> None:
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self._connection.send(data)
        except TimeoutError:
            _log.warning("a gateway took nothing for %g s: its link is cut", SEND_TIMEOUT_S)
            self.abort()
        except ConnectionClosed:
            self.lost = True
            self._queue.clear()

    def _put(self, data: str | bytes, on_sent: Callable[[], None] | None) -> None:
        if self.lost:
            return
        if self._queued_bytes + len(data) > self._max_queue_bytes:
            _log.warning("more than %d bytes wait for a gateway: its link is cut", self._max_queue_bytes)
            self.abort()
            return
        self._queue.append((data, on_sent))
        self._queued_bytes += len(data)
        self._idle.clear()
        self._wake.set()


class LinkServer:
    """Listens for gateways. Use `start`, then `url`; end with `close`."""

    def __init__(self, handler: LinkHandler, *, secret: str, max_queue_bytes: int = MAX_QUEUE_BYTES) -> None:
        self._handler = handler
        self._expected = f"Bearer {secret}".encode()
        self._max_queue_bytes = max_queue_bytes
        self._server: Server | None = None
        self._links: set[Link] = set()
        self.url = ""

    async def start(self, host: str, port: int) -> None:
        """Listen; sets `url`.

        Raises:
            OSError: the address cannot be bound.
        """
        self._server = await serve(
            self._serve,
            host,
            port,
            process_request=self._check,
            compression=None,
            max_size=MAX_REQUEST_BYTES,
            server_header=None,
        )
        bound = self._server.sockets[0].getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        self.url = f"ws://{shown}:{bound}{LINK_PATH}"

    async def drained(self) -> None:
        """Wait until every link has taken what is queued for it."""
        await asyncio.gather(*(link.drained() for link in list(self._links)))

    async def close(self) -> None:
        """Close every link with 1001 and stop listening."""
        if self._server is not None:
            self._server.close(close_connections=True, code=GOING_AWAY, reason="the engine stops")
            await self._server.wait_closed()

    def _check(self, connection: ServerConnection, request: Request) -> Response | None:
        given = request.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, self._expected):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "the link secret is missing or wrong\n")
        if request.path != LINK_PATH:
            return connection.respond(HTTPStatus.NOT_FOUND, f"the link is at {LINK_PATH}\n")
        return None

    async def _serve(self, connection: ServerConnection) -> None:
        link = Link(connection, max_queue_bytes=self._max_queue_bytes)
        self._links.add(link)
        pump = asyncio.create_task(link.pump())
        try:
            async for data in connection:
                if (request := _decoded(data)) is not None:
                    self._handler.receive_request(link, request)
        except DecodeError as exc:
            _log.warning("a gateway sent a bad message: %s", exc)
            await connection.close(PROTOCOL_ERROR, str(exc)[:100])
        except ConnectionClosed:
            pass
        finally:
            link.lost = True
            pump.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pump
            self._links.discard(link)
            self._handler.receive_link_lost(link)


def _decoded(data: str | bytes) -> LinkRequest | None:
    """None: of a kind that only newer gateways know; they are upgraded before engines. Raises DecodeError."""
    try:
        return decode_json(LINK_REQUESTS, data)
    except DecodeError as exc:
        if not exc.unknown_type:
            raise
        _log.warning("left out a gateway's message: %s", exc)
        return None
