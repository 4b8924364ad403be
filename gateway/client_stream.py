"""A stream of chunks that outlives its connections: what sessions and viewers of the Python client share.

A task owns the socket. It reads until the connection ends, decides from the close code whether to come back,
and then says again what it wants (`_next_opening`).
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import assert_never

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from gateway.client_chunks import Chunk, ChunkAssembler
from gateway.client_errors import (
    BadServer,
    ClientError,
    ConnectionLost,
    ServerError,
    SessionEnded,
    TakenOver,
)
from gateway.protocol import (
    CODECS,
    JSON_SUBPROTOCOL,
    MSGPACK_SUBPROTOCOL,
    SERVER_MESSAGES,
    Accepted,
    Applied,
    Attach,
    ChunkHeader,
    ClientMessage,
    CloseCode,
    Closed,
    Codec,
    Error,
    Gap,
    MessageError,
    Pong,
    Queued,
    ServerMessage,
    Start,
    State,
    Stats,
    Watch,
)
from gateway.protocol import Session as SessionInfo
from scheduler.messages import ErrorCode

__all__ = [
    "MAX_QUEUED_CHUNKS",
    "MAX_QUEUED_EVENTS",
    "Dial",
    "Event",
    "OnPart",
    "Stream",
    "check_sendable",
    "new_id",
    "now_ms",
]

log = logging.getLogger("turboserve.client")

Event = State | Queued | Gap | Stats | Applied | Error | Closed
Dial = Callable[[], Awaitable[ClientConnection]]
OnPart = Callable[[ChunkHeader], Awaitable[None]]

MAX_QUEUED_CHUNKS = 64
"""Chunks waiting for the user; with so many nothing more is read from the connection, unless the user waits
for an answer: it comes behind the next chunks, which perhaps nobody takes meanwhile."""
MAX_QUEUED_EVENTS = 256
"""Events waiting for the user; when full, the oldest are dropped."""
FIRST_DELAY_S = 0.05
LONGEST_DELAY_S = 2.0
RATE_DELAY_S = 2.0
STEADY_S = 2.0
"""A connection that was let in and lost sooner makes the next ones wait longer."""

_FINAL = {
    CloseCode.DONE: "the session is over",
    CloseCode.PROTOCOL: "the server refused this client's messages",
    CloseCode.NOT_AUTHORISED: "the token is missing, wrong or expired",
    CloseCode.ORIGIN: "the server does not accept this origin",
    CloseCode.NO_SUCH_SESSION: "the session no longer exists",
    CloseCode.IDLE: "the session was idle for too long",
    CloseCode.TAKEN_OVER: "another connection has taken the session over",
    CloseCode.NO_CAPACITY: "the server has no capacity",
}


class _NotYet(Exception):
    """An attach or watch shall be tried again on the same connection."""

    def __init__(self, delay_s: float) -> None:
        super().__init__()
        self.delay_s = delay_s


class Stream(abc.ABC):
    """Iterate over it for chunks. `info` holds what the server says of the session (id, size, frame rate),
    `state`, `engine`, `queued` and `stats` the newest of each.
    """

    def __init__(
        self, dial: Dial, assembler: ChunkAssembler, *, give_up_s: float, on_part: OnPart | None = None
    ) -> None:
        self.state: State | None = None
        self.queued: Queued | None = None
        self.stats: Stats | None = None
        self._dial = dial
        self._give_up_s = give_up_s
        self._on_part = on_part
        self._assembler = assembler
        self._chunks: asyncio.Queue[Chunk | None] = asyncio.Queue()
        self._can_read = asyncio.Event()
        self._events: asyncio.Queue[Event] = asyncio.Queue(MAX_QUEUED_EVENTS)
        self._established: asyncio.Future[SessionInfo] = asyncio.get_running_loop().create_future()
        self._socket: ClientConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._refused_since: float | None = None  # the server said "not yet" since then
        self._let_in_s: float | None = None
        """When, on this connection."""
        self._short_lived = 0
        """Connections in a row that were lost at once, let in or not."""
        self._out_since_s: float | None = None
        """Since when no connection has been let in."""
        self._end: ClientError | None = None
        self._opened_with: Start | Attach | Watch | None = None
        """What was asked for first on this connection."""
        self._is_settled = False
        self._is_over = False
        self._is_stopping = False

    @abc.abstractmethod
    def _next_opening(self) -> Start | Attach | Watch:
        """What a fresh connection begins with."""

    @abc.abstractmethod
    def _take_part(self, header: ChunkHeader, payload: memoryview) -> Awaitable[None]:
        """A part has arrived."""

    def _waits_for_answer(self) -> bool:
        """Does the user wait for something that the server has yet to say?"""
        return False

    async def _keep(self, chunk: Chunk) -> None:
        """For the user to take. Returns when more may be read."""
        self._chunks.put_nowait(chunk)
        while self._chunks.qsize() >= MAX_QUEUED_CHUNKS and not self._waits_for_answer():
            self._can_read.clear()
            await self._can_read.wait()

    @abc.abstractmethod
    def _take_answer(self, message: Accepted | Applied | Error) -> None:
        """The server answers one of our messages, on a connection that was opened."""

    async def _reopened(self) -> None:  # noqa: B027 - not everybody has something to do
        """The server has let us in again on another connection."""

    # --- for the user ---------------------------------------------------------------------------------

    @property
    def info(self) -> SessionInfo:
        return self._established.result()

    @property
    def id(self) -> str:
        return self.info.session

    @property
    def engine(self) -> str | None:
        return None if self.state is None else self.state.engine

    @property
    def is_over(self) -> bool:
        """Will no more chunks be received?"""
        return self._is_over

    @property
    def next_seq(self) -> int:
        """The first chunk not yet received completely; where another `attach` would go on."""
        return self._assembler.next_seq

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        """The next chunk, contiguous but for a `gap`. Ends after our own `stop`, else raises why it ended."""
        chunk = await self._chunks.get()
        if chunk is not None:
            self._can_read.set()
            return chunk
        self._chunks.put_nowait(None)  # the end is the end, for whoever asks
        if self._end is not None:
            raise self._end
        raise StopAsyncIteration

    async def events(self) -> AsyncIterator[Event]:
        """What the server says beside the chunks, as it comes. Ends with `closed`, also if it has ended."""
        while True:
            event = await self._events.get()
            if isinstance(event, Closed):
                self._events.put_nowait(event)
                yield event
                return
            yield event

    async def close(self) -> None:
        """Leave without ending the session: within the server's linger time it can be attached to again."""
        if self._task is not None:
            if not self._is_over:  # then it is closing the connection, which must not be cut short
                self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def cut(self) -> None:
        """Lose the connection as a network would: the session comes back by itself. For drills."""
        if self._socket is not None:
            self._socket.transport.abort()

    # --- the task -------------------------------------------------------------------------------------

    async def open(self, socket: ClientConnection) -> None:
        """Start on a fresh connection; returns when the server has accepted. Raises ClientError."""
        self._task = asyncio.create_task(self._run(socket))
        try:
            await asyncio.shield(self._established)
        except asyncio.CancelledError:
            await self.close()
            raise

    async def _run(self, socket: ClientConnection) -> None:
        try:
            while True:
                try:
                    code = await self._serve(socket)
                except _NotYet as exc:
                    self._out_since_s = None  # it answers: `_refused_since` counts
                    await asyncio.sleep(exc.delay_s)
                    continue
                end = self._why_final(code)
                if self._is_over or end is not None:
                    self._finish(end)
                    return
                log.info("connection lost (close code %s), attaching again", code)
                self._count_lost()
                socket = await self._redial(RATE_DELAY_S if code == CloseCode.RATE else 0.0)
        except ClientError as exc:
            self._finish(exc)
        except Exception as exc:  # of the user's `on_part`, or a fault of ours: whoever waits shall hear it
            log.exception("the client has failed")
            failure = ClientError(f"the client has failed: {exc!r}")
            failure.__cause__ = exc
            self._finish(failure)
        except asyncio.CancelledError:
            self._finish(SessionEnded("the client was closed"))
            raise
        finally:
            self._socket = None
            await socket.close()

    async def _serve(self, socket: ClientConnection) -> int:
        """Speak on one connection until it ends. Returns the close code, 1006 where there was none."""
        self._socket, self._is_settled = socket, False
        codec = _codec(socket)
        self._opened_with = replace(self._next_opening(), id=new_id())
        with contextlib.suppress(ConnectionClosed):
            await socket.send(codec.encode_control(self._opened_with))
        while (data := await _receive(socket)) is not None:
            try:
                if codec.is_media(data):
                    await self._take_part(*codec.decode_media(data))
                else:
                    await self._take(codec.decode_control(SERVER_MESSAGES, data))
            except MessageError as exc:
                raise BadServer(f"the server sent a bad message: {exc}") from exc
            if self._is_over:
                return CloseCode.DONE
        self._socket = None
        return socket.close_code or 1006

    def _count_lost(self) -> None:
        now_s = time.monotonic()
        is_short = self._let_in_s is None or now_s - self._let_in_s < STEADY_S
        self._short_lived = self._short_lived + 1 if is_short else 0
        self._out_since_s = now_s if self._out_since_s is None else self._out_since_s
        self._let_in_s = None

    async def _redial(self, first_delay_s: float) -> ClientConnection:
        """At once after a connection that has lasted, or was the first that did not."""
        assert self._out_since_s is not None, "it was lost"
        deadline = self._out_since_s + self._give_up_s
        attempt = max(0, self._short_lived - 1)
        await asyncio.sleep(max(first_delay_s, _draw_delay_s(attempt) if attempt else 0.0))
        error: Exception | None = None
        while attempt == 0 or time.monotonic() < deadline:
            try:
                return await self._dial()
            except (OSError, TimeoutError, InvalidHandshake) as exc:
                error = exc
            attempt += 1
            await asyncio.sleep(_draw_delay_s(attempt - 1))
        why = error or "each was closed before the server answered"
        raise ConnectionLost(f"no connection for {self._give_up_s:.0f} s: {why}") from error

    def _why_final(self, code: int) -> ClientError | None:
        if code not in _FINAL or self._is_stopping:
            return None
        if code == CloseCode.TAKEN_OVER:
            return TakenOver(_FINAL[CloseCode.TAKEN_OVER], code)
        if code == CloseCode.NOT_AUTHORISED and not self._established.done():
            return ServerError(ErrorCode.UNAUTHORISED.value, _FINAL[CloseCode.NOT_AUTHORISED])
        return SessionEnded(_FINAL[CloseCode(code)], code)

    def _finish(self, end: ClientError | None) -> None:
        if not self._is_over:
            self._is_over = True
            self._end = None if self._is_stopping else end
            self._put_event(Closed(reason=str(end) if end is not None else "closed"))
        failure = end or SessionEnded("the session is over")
        if not self._established.done():
            self._established.set_exception(failure)
        self._fail_open(failure)
        self._chunks.put_nowait(None)

    # --- what the server says -------------------------------------------------------------------------

    async def _take(self, message: ServerMessage) -> None:
        match message:
            case SessionInfo():
                await self._take_info(message)
            case Error() if self._is_of_opening(message):
                raise self._why_not_opened(message)
            case Accepted() | Applied() | Error():
                self._take_answer(message)
            case State() | Queued() | Stats():
                self._remember(message)
            case Gap():
                self._assembler.skip(message.to_seq)
            case Closed():
                self._finish(None if self._is_stopping else SessionEnded(message.reason))
                return
            case Pong():
                pass
            case _:
                assert_never(message)
        if not isinstance(message, SessionInfo | Accepted | Pong):
            self._put_event(message)

    async def _take_info(self, info: SessionInfo) -> None:
        self._is_settled, self._refused_since = True, None
        self._let_in_s, self._out_since_s = time.monotonic(), None
        if not self._established.done():
            self._established.set_result(info)
            return
        await self._reopened()

    def _is_of_opening(self, error: Error) -> bool:
        """By its id; until we are let in also without one. Others answer what was sent before."""
        if error.id is None:
            return not self._is_settled
        return self._opened_with is not None and error.id == self._opened_with.id

    def _fail_open(self, failure: ClientError) -> None:  # noqa: B027 - as above
        """It is over: whoever waits for an answer shall hear it."""

    def _remember(self, message: State | Queued | Stats) -> None:
        match message:
            case State():
                self.state = message
                self.queued = None
            case Queued():
                self.queued = message
            case Stats():
                self.stats = message

    def _why_not_opened(self, refusal: Error) -> Exception:
        """What was asked for on this connection was refused. Raises nothing; says what to raise."""
        error = ServerError(refusal.code.value, refusal.message, refusal.retry_after_ms)
        if not self._established.done():
            return error
        if error.code == ErrorCode.NO_SUCH_SESSION.value:
            return SessionEnded(str(error), CloseCode.NO_SUCH_SESSION)
        if error.code != ErrorCode.UNAVAILABLE.value:
            return error
        at_ms = now_ms()
        self._refused_since = at_ms if self._refused_since is None else self._refused_since
        if at_ms - self._refused_since > self._give_up_s * 1000:
            return error
        return _NotYet((error.retry_after_ms or 1000) / 1000)

    def _put_event(self, event: Event) -> None:
        if self._events.full():
            self._events.get_nowait()
        self._events.put_nowait(event)

    async def _send(self, message: ClientMessage) -> None:
        """Send if let in. Inputs are sent again after an attach, acks are not worth it."""
        if self._socket is not None and self._is_settled:
            with contextlib.suppress(ConnectionClosed):
                await self._socket.send(_codec(self._socket).encode_control(message))


def check_sendable(message: ClientMessage) -> None:
    """Raises ValueError for what no connection could carry: it would break each one anew."""
    try:
        CODECS[MSGPACK_SUBPROTOCOL].encode_control(message)
    except (TypeError, ValueError, OverflowError) as exc:
        raise ValueError(f"this cannot be sent: {exc}") from exc


async def _receive(socket: ClientConnection) -> str | bytes | None:
    """The next message; None where the connection has ended. What is done with a message may fail in the same
    way, if its user has connections of its own: that is no end of ours."""
    try:
        return await socket.recv()
    except ConnectionClosed:
        return None


def _codec(socket: ClientConnection) -> Codec:
    return CODECS[socket.subprotocol or JSON_SUBPROTOCOL]


def _draw_delay_s(attempt: int) -> float:
    ceiling_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(attempt, 16))
    return ceiling_s * random.uniform(0.5, 1)


def new_id() -> str:
    """Of a message: the server gives it back with its answer."""
    return secrets.token_hex(8)


def now_ms() -> float:
    """Monotonic."""
    return time.monotonic() * 1000
