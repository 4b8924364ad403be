"""One WebSocket to one engine, shared by all sessions of this gateway that it serves.

Reconnects by itself while anybody follows it. What arrives is handed on at once and never waits for a client.
What goes out is written at once, but for credits: they wait up to CREDIT_WAIT_S, and what is sent meanwhile
goes out in one write.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol, cast

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException
from websockets.frames import Frame, Opcode
from websockets.protocol import Event, State

from gateway.faults import Faults
from gateway.frames import FrameCutter, draw_masks, is_text, masked_text, message_of
from scheduler.messages import (
    LINK_REPLIES,
    MAX_LINK_MESSAGE_BYTES,
    Bytes,
    ChunkPart,
    Credit,
    DecodeError,
    EngineId,
    LinkReply,
    LinkRequest,
    SessionId,
    decode_json,
    encode_json,
    unframe_media,
)

logger = logging.getLogger("gateway.link")

MAX_QUEUED_BYTES = 1024 * 1024
"""Of requests that the engine does not take; beyond, the link is cut and everybody subscribes again."""
CONNECT_TIMEOUT_S = 5.0
PING_INTERVAL_S = 5.0
PING_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 1.0
"""Who has not answered a ping does not answer a close either."""
FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 1.0
LINGER_S = 30.0
"""An unused link stays up for so long."""
CREDIT_WAIT_S = 0.01
"""Each ack of each client is a credit, and a write is a third of what it costs. So much later is nothing to
a lead of hundreds of milliseconds. All links write at multiples of it: the process wakes up once for all."""
_HEAD_END = b"\r\n\r\n"


class Follower(Protocol):
    """A connection that follows an engine. Called on the event loop; must neither block nor raise."""

    def receive_link_up(self, engine: EngineId) -> None: ...

    def receive_link_down(self, engine: EngineId) -> None: ...

    def receive_link(self, engine: EngineId, reply: LinkReply) -> None: ...

    def receive_chunk(self, engine: EngineId, part: ChunkPart, payload: memoryview, arrived_s: float) -> None:
        """`arrived_s`: time.perf_counter() when the whole message was here."""


class LinkConnection(ClientConnection):
    """Hands on each message inside the read that completed it, without `websockets`' queue and a task behind
    it: nobody would wait on either side of that queue. `websockets` reads the handshake and all that is not a
    message in one frame."""

    def __init__(self, receive: Callable[[Bytes, bool], None], *args: Any, **kwargs: Any) -> None:
        """receive: gets a message and whether it is text."""
        super().__init__(*args, **kwargs)
        self._receive = receive
        self._cutter: FrameCutter | None = None
        """None: `websockets` reads everything."""

    def data_received(self, data: bytes) -> None:
        if self._cutter is None:
            was_open = self.state is State.OPEN
            super().data_received(data)
            # A read that ends with the head of the answer ends where a frame begins.
            if (
                not was_open
                and self.state is State.OPEN
                and data.find(_HEAD_END) + len(_HEAD_END) == len(data)
            ):
                self._cutter = FrameCutter(whole_bytes=MAX_LINK_MESSAGE_BYTES)
            return
        for piece, is_frame in self._cutter.cut(data):
            message = message_of(piece) if is_frame and self.state is State.OPEN else None
            if message is None:
                super().data_received(piece)
            else:
                self._receive(message, is_text(piece))

    def process_event(self, event: Event) -> None:
        if not isinstance(event, Frame) or event.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            super().process_event(event)
        elif event.fin and event.opcode is not Opcode.CONT:
            self._receive(event.data, event.opcode is Opcode.TEXT)
        else:
            logger.error("an engine sent a message in fragments: its link is cut")
            self.transport.abort()


class EngineLink:
    """See the module's docstring. `run` is its life."""

    def __init__(
        self,
        engine: EngineId,
        find_url: Callable[[EngineId], Awaitable[str | None]],
        secret: str,
        count_drop: Callable[[], None],
        faults: Faults,
    ) -> None:
        self.engine = engine
        self._faults = faults
        self._count_drop = count_drop
        self._find_url = find_url
        self._secret = secret
        self._followers: dict[SessionId, set[Follower]] = {}
        self._connection: ClientConnection | None = None
        self._masks = draw_masks()
        self._waiting: list[bytes] = []
        """Frames for the next write."""
        self._write_timer: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()
        self._has_failed = False

    def is_up(self) -> bool:
        return self._connection is not None

    @property
    def latency_s(self) -> float:
        """Round trip of the newest ping; 0 before the first."""
        return self._connection.latency if self._connection is not None else 0.0

    def is_used(self) -> bool:
        return bool(self._followers)

    def add(self, session: SessionId, follower: Follower) -> None:
        """Hand what arrives about `session` to `follower`, and tell it when the link is up."""
        self._followers.setdefault(session, set()).add(follower)
        self._changed.set()
        if self.is_up():
            asyncio.get_running_loop().call_soon(self._tell_up, session, follower)

    def remove(self, session: SessionId, follower: Follower) -> None:
        followers = self._followers.get(session, set())
        followers.discard(follower)
        if not followers:
            self._followers.pop(session, None)
        self._changed.set()

    def send(self, request: LinkRequest) -> None:
        """Send a request; dropped while the link is down, because a new link starts with subscriptions."""
        if not self.is_up():
            return
        self._waiting.append(masked_text(encode_json(request), next(self._masks)))
        if not isinstance(request, Credit):
            self._write()
        elif self._write_timer is None:
            loop = asyncio.get_running_loop()
            due_s = math.ceil(loop.time() / CREDIT_WAIT_S) * CREDIT_WAIT_S
            self._write_timer = loop.call_at(due_s, self._write)

    def _write(self) -> None:
        """Straight to the transport, which takes whole frames only, without a queue and a task."""
        frames = b"".join(self._waiting)
        self._forget_waiting()
        connection = self._connection
        if connection is None or connection.state is not State.OPEN:
            return
        connection.transport.write(frames)
        if connection.transport.get_write_buffer_size() > MAX_QUEUED_BYTES:
            logger.error("link to %s is stuck: cut", self.engine)
            connection.transport.abort()

    def _forget_waiting(self) -> None:
        self._waiting.clear()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    async def run(self) -> None:
        """Connect, read, connect again; returns when nobody followed for LINGER_S."""
        backoff_s = FIRST_BACKOFF_S
        while await self._is_wanted():
            url = await self._find_url(self.engine)
            if url is not None and await self._serve_once(url):
                backoff_s = FIRST_BACKOFF_S
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    async def _is_wanted(self) -> bool:
        if self.is_used():
            return True
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await self._changed.wait()
        return self.is_used()

    async def _serve_once(self, url: str) -> bool:
        """One connection's life. Returns whether it was ever up, and not cut for a fault of ours."""
        self._has_failed = False
        try:
            connection = await connect(
                url,
                additional_headers={"Authorization": f"Bearer {self._secret}"},
                compression=None,
                max_size=MAX_LINK_MESSAGE_BYTES,
                open_timeout=CONNECT_TIMEOUT_S,
                ping_interval=PING_INTERVAL_S,
                ping_timeout=PING_TIMEOUT_S,
                close_timeout=CLOSE_TIMEOUT_S,
                proxy=None,
                create_connection=cast(type[ClientConnection], partial(LinkConnection, self._receive)),
            )
        except (OSError, TimeoutError, WebSocketException) as exc:
            logger.info("no link to %s at %s: %s", self.engine, url, exc)
            return False
        self._connection = connection
        tasks = [asyncio.create_task(job) for job in (connection.wait_closed(), self._watch_use())]
        try:
            self._tell_all_up()
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            logger.info("link to %s ended: %s", self.engine, connection.close_code)
        finally:
            self._connection = None
            self._forget_waiting()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._hang_up(connection)
            self._tell_all_down()
        return not self._has_failed

    async def _hang_up(self, connection: ClientConnection) -> None:
        with contextlib.suppress(TimeoutError, WebSocketException):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await connection.close()

    async def _watch_use(self) -> None:
        """Ends when nobody followed for LINGER_S, which ends the link."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if not await self._is_wanted():
                return

    def _receive(self, message: Bytes, is_text: bool) -> None:
        """A whole message; the link survives one that can't be read."""
        arrived_s = time.perf_counter()
        try:
            if is_text:
                self._receive_reply(message)
            else:
                self._receive_media(message, arrived_s)
        except DecodeError as exc:
            logger.warning("%s sent a message that can't be read: %s", self.engine, exc)
        except Exception as exc:
            self._has_failed = True
            self._faults.note("link", f"the link to {self.engine} is cut", exc)
            if self._connection is not None:
                self._connection.transport.abort()

    def _receive_reply(self, data: Bytes) -> None:
        reply = decode_json(LINK_REPLIES, data)
        for follower in self._of(reply.session):
            follower.receive_link(self.engine, reply)

    def _receive_media(self, data: Bytes, arrived_s: float) -> None:
        header, payload = unframe_media(data)
        part = decode_json(LINK_REPLIES, header)
        if not isinstance(part, ChunkPart) or sum(part.sizes) != len(payload):
            raise DecodeError("a media message whose header does not fit")
        followers = self._of(part.session)
        if not followers:
            self._count_drop()
        for follower in followers:
            follower.receive_chunk(self.engine, part, payload, arrived_s)

    def _of(self, session: SessionId) -> tuple[Follower, ...]:
        return tuple(self._followers.get(session, ()))

    def _tell_up(self, session: SessionId, follower: Follower) -> None:
        if self.is_up() and follower in self._followers.get(session, ()):
            follower.receive_link_up(self.engine)

    def _tell_all_up(self) -> None:
        for session in tuple(self._followers):
            for follower in self._of(session):
                follower.receive_link_up(self.engine)

    def _tell_all_down(self) -> None:
        for session in tuple(self._followers):
            for follower in self._of(session):
                follower.receive_link_down(self.engine)
