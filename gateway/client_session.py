"""One session of the Python client: a task that keeps the connection, and what the user holds.

The task owns the socket. It reads until the connection ends, decides from the close code whether to come
back, and then attaches from the first chunk not held completely and repeats every input that was not yet
answered, with the same id, which the server answers without doing it twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

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
from gateway.client_playback import Playhead
from gateway.protocol import (
    CODECS,
    JSON_SUBPROTOCOL,
    SERVER_MESSAGES,
    Accepted,
    Ack,
    Applied,
    Attach,
    ChunkHeader,
    ClientMessage,
    CloseCode,
    Closed,
    Codec,
    Control,
    Error,
    Gap,
    MessageError,
    Pause,
    Pong,
    Prompt,
    Queued,
    Reset,
    Resume,
    ServerMessage,
    Start,
    State,
    Stats,
    Stop,
)
from gateway.protocol import Session as SessionInfo
from scheduler.messages import ErrorCode

__all__ = ["MAX_QUEUED_CHUNKS", "MAX_QUEUED_EVENTS", "Dial", "Session"]

log = logging.getLogger("turboserve.client")

Mode = Literal["viewer", "recorder"]
Event = State | Queued | Gap | Stats | Applied | Error | Closed
Input = Prompt | Reset | Pause | Resume | Stop
Dial = Callable[[], Awaitable[ClientConnection]]
OnPart = Callable[[ChunkHeader], Awaitable[None]]

MAX_QUEUED_CHUNKS = 64
"""Chunks waiting for the user; when full, nothing more is read from the connection."""
MAX_QUEUED_EVENTS = 256
"""Events waiting for the user; when full, the oldest are dropped."""
MAX_OPEN_INPUTS = 64
"""Inputs without an answer; more are refused."""
ACK_EVERY_S = 0.5
FIRST_DELAY_S = 0.05
LONGEST_DELAY_S = 2.0
RATE_DELAY_S = 2.0
STOP_WITHIN_S = 5.0
"""After that a stop without an answer is left to the server's own clean-up."""

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
    """An attach shall be tried again on the same connection."""

    def __init__(self, delay_s: float) -> None:
        super().__init__()
        self.delay_s = delay_s


@dataclass(slots=True)
class _OpenInput:
    """An input that the server has not fully answered."""

    message: Input
    accepted: asyncio.Future[None]
    applied: asyncio.Future[Applied]


class Session:
    """A running session. Iterate over it for chunks; make one with `Client.start` or `Client.attach`.

    `info` holds what the server says of it (id, resume token, size, frame rate), `state`, `engine`, `queued`
    and `stats` the newest of each; `playhead` what a viewer would have seen of it.
    """

    def __init__(
        self,
        dial: Dial,
        opening: Start | Attach,
        *,
        mode: Mode,
        give_up_s: float,
        on_part: OnPart | None = None,
    ) -> None:
        self.state: State | None = None
        self.queued: Queued | None = None
        self.stats: Stats | None = None
        self.playhead = Playhead()
        self._dial = dial
        self._opening: Start | Attach = opening
        self._mode = mode
        self._give_up_s = give_up_s
        self._on_part = on_part
        self._assembler = ChunkAssembler(opening.next_seq if isinstance(opening, Attach) else 0)
        self._chunks: asyncio.Queue[Chunk | None] = asyncio.Queue(MAX_QUEUED_CHUNKS)
        self._events: asyncio.Queue[Event] = asyncio.Queue(MAX_QUEUED_EVENTS)
        self._open_inputs: dict[str, _OpenInput] = {}
        self._established: asyncio.Future[SessionInfo] = asyncio.get_running_loop().create_future()
        self._socket: ClientConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._refused_since: float | None = None  # attaching, the server said "not yet" since then
        self._end: ClientError | None = None
        self._is_settled = False
        self._is_over = False
        self._is_stopping = False

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
        if not (self._is_over and self._chunks.empty()):
            chunk = await self._chunks.get()
            if chunk is not None:
                return chunk
        if self._end is not None:
            raise self._end
        raise StopAsyncIteration

    async def events(self) -> AsyncIterator[Event]:
        """What the server says beside the chunks, as it comes. Ends with `closed`."""
        while True:
            event = await self._events.get()
            yield event
            if isinstance(event, Closed):
                return

    async def prompt(
        self, text: str, *, transition: Literal["cut", "blend"] = "cut", blend_chunks: int = 2
    ) -> Applied:
        """Steer the video. Returns, once it is known, the revision and the first chunk made with the prompt.

        Does not wake a paused session: then it waits for a resume. Raises ServerError when refused.
        """
        return await (await self.submit_prompt(text, transition=transition, blend_chunks=blend_chunks))

    async def submit_prompt(
        self, text: str, *, transition: Literal["cut", "blend"] = "cut", blend_chunks: int = 2
    ) -> asyncio.Future[Applied]:
        """Like `prompt`, but returns when the prompt is sure not to be lost, with a future of the rest."""
        message = Prompt(text=text, transition=transition, blend_chunks=blend_chunks, id=_new_id())
        return await self._submit(message)

    async def hold(self, keys: Sequence[str] = (), axes: Mapping[str, float] | None = None) -> None:
        """Say which keys and axes (in [−1, 1]) are held from now on; `hold()` lets go of all.

        Not waited for and not sent again after a lost connection: it is a state, and the next one counts.
        """
        await self._send(Control(keys=tuple(keys), axes=None if axes is None else dict(axes)))

    async def reset(self, seed: int | None = None) -> Applied:
        """Forget the past, keep the prompt. Returns the first chunk of the new beginning."""
        return await (await self._submit(Reset(seed=seed, id=_new_id())))

    async def pause(self) -> None:
        """Make no more chunks for now."""
        self.playhead.pause(_now_ms())
        await self._submit(Pause(id=_new_id()))

    async def resume(self) -> None:
        """Go on after a pause."""
        await self._submit(Resume(id=_new_id()))
        self.playhead.resume(_now_ms())

    async def stop(self) -> None:
        """End the session. Chunks already received can still be iterated over."""
        if self._is_over:
            return
        self._is_stopping = True
        with contextlib.suppress(SessionEnded, ConnectionLost, TimeoutError):
            async with asyncio.timeout(STOP_WITHIN_S):
                await self._submit(Stop(id=_new_id()))
        await self.close()

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
        acks = asyncio.create_task(self._keep_acking())
        try:
            while True:
                try:
                    code = await self._serve(socket)
                except _NotYet as exc:
                    await asyncio.sleep(exc.delay_s)
                    continue
                end = self._why_final(code)
                if self._is_over or end is not None:
                    self._finish(end)
                    return
                log.info("connection lost (close code %s), attaching again", code)
                socket = await self._redial(RATE_DELAY_S if code == CloseCode.RATE else 0.0)
        except ClientError as exc:
            self._finish(exc)
        except asyncio.CancelledError:
            self._finish(SessionEnded("the client was closed"))
            raise
        finally:
            acks.cancel()
            self._socket = None
            await socket.close()

    async def _serve(self, socket: ClientConnection) -> int:
        """Speak on one connection until it ends. Returns the close code, 1006 where there was none."""
        self._socket, self._is_settled = socket, False
        codec = _codec(socket)
        with contextlib.suppress(ConnectionClosed):
            await socket.send(codec.encode_control(self._next_opening()))
            async for data in socket:
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

    def _next_opening(self) -> Start | Attach:
        if not self._established.done():
            return self._opening
        info = self._established.result()
        token = self._opening.token
        return Attach(
            session=info.session, resume=info.resume, next_seq=self._assembler.next_seq, token=token
        )

    async def _redial(self, first_delay_s: float) -> ClientConnection:
        deadline = time.monotonic() + self._give_up_s
        attempt = 0
        await asyncio.sleep(first_delay_s)
        while True:
            try:
                return await self._dial()
            except (OSError, TimeoutError, InvalidHandshake) as exc:
                if time.monotonic() >= deadline:
                    raise ConnectionLost(f"no connection for {self._give_up_s:.0f} s: {exc}") from exc
            ceiling_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2**attempt)
            attempt = min(attempt + 1, 16)
            await asyncio.sleep(ceiling_s * random.uniform(0.5, 1))

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
        for entry in self._open_inputs.values():
            _fail(entry, failure)
        self._open_inputs.clear()
        if not self._chunks.full():  # when full, the reader sees _is_over instead
            self._chunks.put_nowait(None)

    # --- what the server says -------------------------------------------------------------------------

    async def _take(self, message: ServerMessage) -> None:
        match message:
            case SessionInfo():
                await self._take_info(message)
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
        if not self._established.done():
            self._established.set_result(info)
            return
        for entry in list(self._open_inputs.values()):
            await self._send(entry.message)

    def _remember(self, message: State | Queued | Stats) -> None:
        match message:
            case State():
                self.state = message
                self.queued = None
            case Queued():
                self.queued = message
            case Stats():
                self.stats = message

    def _take_answer(self, message: Accepted | Applied | Error) -> None:
        match message:
            case Accepted():
                self._take_accepted(message)
            case Applied():
                self._take_applied(message)
            case Error():
                self._take_error(message)

    def _take_accepted(self, message: Accepted) -> None:
        entry = self._open_inputs.get(message.id)
        if entry is None:
            return
        if not entry.accepted.done():
            entry.accepted.set_result(None)
        if not isinstance(entry.message, Prompt | Reset):
            del self._open_inputs[message.id]

    def _take_applied(self, message: Applied) -> None:
        entry = self._open_inputs.pop(message.id, None) if message.id is not None else None
        if entry is None:
            return
        if not entry.accepted.done():
            entry.accepted.set_result(None)
        if not entry.applied.done():
            entry.applied.set_result(message)

    def _take_error(self, message: Error) -> None:
        error = ServerError(message.code.value, message.message, message.retry_after_ms)
        if not self._is_settled:
            raise self._why_not_opened(error)
        entry = self._open_inputs.pop(message.id, None) if message.id is not None else None
        if entry is not None:
            _fail(entry, error)

    def _why_not_opened(self, error: ServerError) -> Exception:
        """Start or attach was refused on this connection. Raises nothing; says what to raise."""
        if not self._established.done():
            return error
        if error.code == ErrorCode.NO_SUCH_SESSION.value:
            return SessionEnded(str(error), CloseCode.NO_SUCH_SESSION)
        if error.code != ErrorCode.UNAVAILABLE.value:
            return error
        now_ms = _now_ms()
        self._refused_since = now_ms if self._refused_since is None else self._refused_since
        if now_ms - self._refused_since > self._give_up_s * 1000:
            return error
        return _NotYet((error.retry_after_ms or 1000) / 1000)

    def _put_event(self, event: Event) -> None:
        if self._events.full():
            self._events.get_nowait()
        self._events.put_nowait(event)

    async def _take_part(self, header: ChunkHeader, payload: memoryview) -> None:
        if self._on_part is not None:
            await self._on_part(header)
        chunk = self._assembler.add(header, payload)
        if chunk is None:
            return
        self.playhead.delivered(chunk.pts_ms, chunk.end_ms, _now_ms())
        await self._ack()
        if not self._is_stopping:
            await self._chunks.put(chunk)

    # --- what we say ----------------------------------------------------------------------------------

    async def _submit(self, message: Input) -> asyncio.Future[Applied]:
        """Send an input and wait until it is accepted."""
        if self._is_over:
            raise self._end or SessionEnded("the session is over")
        if len(self._open_inputs) >= MAX_OPEN_INPUTS:
            raise ClientError(f"{MAX_OPEN_INPUTS} inputs wait for the server already")
        loop = asyncio.get_running_loop()
        entry = _OpenInput(message, loop.create_future(), loop.create_future())
        assert message.id is not None
        self._open_inputs[message.id] = entry
        await self._send(message)
        await entry.accepted
        return entry.applied

    async def _send(self, message: ClientMessage) -> None:
        """Send if connected. Inputs are sent again after an attach, acks are not worth it."""
        if self._socket is not None:
            with contextlib.suppress(ConnectionClosed):
                await self._socket.send(_codec(self._socket).encode_control(message))

    async def _keep_acking(self) -> None:
        await asyncio.wait([self._established])  # unlike awaiting it, this never cancels it
        while not self._is_over:
            await asyncio.sleep(ACK_EVERY_S)
            await self._ack()

    async def _ack(self) -> None:
        await self._send(Ack(seq=self._assembler.next_seq - 1, buffer_ms=self._buffer_ms()))

    def _buffer_ms(self) -> float:
        if self._mode == "viewer":
            return self.playhead.buffer_ms(_now_ms())
        if self._open_inputs:
            # An input is applied where a chunk begins: without credit none would, for ever.
            return 0.0
        return self._chunks.qsize() * 1000 * self.info.chunk_frames / self.info.fps


def _fail(entry: _OpenInput, error: ClientError) -> None:
    for future in (entry.accepted, entry.applied):
        if not future.done():
            future.set_exception(error)
            future.exception()  # it may be that nobody waits for this one


def _codec(socket: ClientConnection) -> Codec:
    return CODECS[socket.subprotocol or JSON_SUBPROTOCOL]


def _now_ms() -> float:
    return time.monotonic() * 1000


def _new_id() -> str:
    return secrets.token_hex(8)
