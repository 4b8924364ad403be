"""One session of the Python client: what the user steers.

After a lost connection it attaches from the first chunk not held completely and repeats every input that was
not yet answered, with the same id, which the server answers without doing it twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, SupportsIndex

from websockets.asyncio.client import ClientConnection

from gateway.client_chunks import ChunkAssembler
from gateway.client_errors import ClientError, ConnectionLost, ServerError, SessionEnded
from gateway.client_playback import Playhead
from gateway.client_stream import MAX_QUEUED_CHUNKS, Dial, OnPart, Stream, check_sendable, new_id, now_ms
from gateway.protocol import (
    Accepted,
    Ack,
    Applied,
    Attach,
    ChunkHeader,
    Control,
    Error,
    Pause,
    Prompt,
    Reset,
    Resume,
    Start,
    Stop,
)
from scheduler.messages import MAX_PROMPT_CHARS, ErrorCode

__all__ = ["Mode", "Session", "check_prompt", "whole"]

Mode = Literal["viewer", "recorder"]
Input = Prompt | Reset | Pause | Resume | Stop

MAX_OPEN_INPUTS = 64
"""Inputs without an answer; more are refused."""
ACK_EVERY_S = 0.5
STOP_WITHIN_S = 5.0
"""After that a stop without an answer is left to the server's own clean-up."""


@dataclass(slots=True)
class _OpenInput:
    """An input that the server has not fully answered."""

    message: Input
    accepted: asyncio.Future[None]
    applied: asyncio.Future[Applied]


class Session(Stream):
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
        assembler = ChunkAssembler(opening.next_seq if isinstance(opening, Attach) else 0)
        super().__init__(dial, assembler, give_up_s=give_up_s, on_part=on_part)
        self.playhead = Playhead()
        self._opening: Start | Attach = opening
        self._mode = mode
        self._open_inputs: dict[str, _OpenInput] = {}
        self._held: Control | None = None

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
        check_prompt(text)
        message = Prompt(text=text, transition=transition, blend_chunks=blend_chunks, id=new_id())
        return await self._submit(message)

    async def hold(self, keys: Sequence[str] = (), axes: Mapping[str, float] | None = None) -> None:
        """Say which keys and axes (in [−1, 1]) are held from now on; `hold()` lets go of all.

        Not waited for: it is a state, and the newest counts. It is said again after a lost connection. Raises
        ValueError for what cannot be sent.
        """
        held = Control(keys=tuple(keys), axes=None if axes is None else dict(axes))
        check_sendable(held)
        self._held = held
        await self._send(held)

    async def reset(self, seed: SupportsIndex | None = None) -> Applied:
        """Forget the past, keep the prompt. Returns the first chunk of the new beginning."""
        return await (await self._submit(Reset(seed=whole(seed), id=new_id())))

    async def pause(self) -> None:
        """Make no more chunks for now."""
        self.playhead.pause(now_ms())
        try:
            await self._submit(Pause(id=new_id()))
        except ClientError:  # it plays on, and what acks say must go on falling
            self.playhead.resume(now_ms())
            raise

    async def resume(self) -> None:
        """Go on after a pause."""
        try:
            await self._submit(Resume(id=new_id()))
        except asyncio.CancelledError:  # nobody waits for it any more, but it is on its way
            self.playhead.resume(now_ms())
            raise
        self.playhead.resume(now_ms())

    async def stop(self) -> None:
        """End the session. Chunks received can still be iterated over. Raises ServerError when refused."""
        if self._is_over:
            return
        self._is_stopping = True
        try:
            with contextlib.suppress(SessionEnded, ConnectionLost, TimeoutError):
                async with asyncio.timeout(STOP_WITHIN_S):
                    await self._submit(Stop(id=new_id()))
        finally:
            await self.close()

    # --- what the server says -------------------------------------------------------------------------

    async def _run(self, socket: ClientConnection) -> None:
        acks = asyncio.create_task(self._keep_acking())
        try:
            await super()._run(socket)
        finally:
            acks.cancel()

    def _next_opening(self) -> Start | Attach:
        if not self._established.done():
            return self._opening
        info = self._established.result()
        token = self._opening.token
        return Attach(
            session=info.session, resume=info.resume, next_seq=self._assembler.next_seq, token=token
        )

    async def _reopened(self) -> None:
        for entry in list(self._open_inputs.values()):
            await self._send(entry.message)
        if self._held is not None:  # what was let go of meanwhile would be held for ever
            await self._send(self._held)

    def _fail_open(self, failure: ClientError) -> None:
        for entry in self._open_inputs.values():
            _fail(entry, failure)
        self._open_inputs.clear()

    def _waits_for_answer(self) -> bool:
        return bool(self._open_inputs)

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
        entry = self._open_inputs.pop(message.id, None) if message.id is not None else None
        if entry is not None:
            _fail(entry, ServerError(message.code.value, message.message, message.retry_after_ms))

    async def _take_part(self, header: ChunkHeader, payload: memoryview) -> None:
        if self._on_part is not None:
            await self._on_part(header)
        chunk = self._assembler.add(header, payload)
        if chunk is None:
            return
        self.playhead.delivered(chunk.pts_ms, chunk.end_ms, now_ms())
        await self._ack()
        if not self._is_stopping:
            await self._keep(chunk)

    # --- what we say ----------------------------------------------------------------------------------

    async def _submit(self, message: Input) -> asyncio.Future[Applied]:
        """Send an input and wait until it is accepted. Raises ClientError, ValueError if it cannot be."""
        check_sendable(message)
        if self._is_over:
            raise self._end or SessionEnded("the session is over")
        if len(self._open_inputs) >= MAX_OPEN_INPUTS and not isinstance(message, Stop):
            raise ClientError(f"{MAX_OPEN_INPUTS} inputs wait for the server already")
        loop = asyncio.get_running_loop()
        entry = _OpenInput(message, loop.create_future(), loop.create_future())
        assert message.id is not None
        self._open_inputs[message.id] = entry
        self._can_read.set()
        await self._send(message)
        await entry.accepted
        return entry.applied

    async def _keep_acking(self) -> None:
        await asyncio.wait([self._established])  # unlike awaiting it, this never cancels it
        while not self._is_over:
            await asyncio.sleep(ACK_EVERY_S)
            await self._ack()

    async def _ack(self) -> None:
        await self._send(Ack(seq=self._assembler.next_seq - 1, buffer_ms=self._buffer_ms()))

    def _buffer_ms(self) -> float:
        if self._mode == "viewer":
            return self.playhead.buffer_ms(now_ms())
        is_in_log = any(entry.accepted.done() for entry in self._open_inputs.values())
        if is_in_log or (self._open_inputs and self._chunks.qsize() < MAX_QUEUED_CHUNKS):
            # An input is applied where a chunk begins: without credit none would, for ever.
            return 0.0
        return self._chunks.qsize() * 1000 * self.info.chunk_frames / self.info.fps


def whole(seed: SupportsIndex | None) -> int | None:
    """A whole number of any kind, NumPy's too, as Python's own. Raises TypeError for others."""
    return None if seed is None else operator.index(seed)


def check_prompt(text: str) -> None:
    """Raises ServerError, as the server would: a longer one might end the connection instead."""
    if len(text) > MAX_PROMPT_CHARS:
        sentence = f"a prompt may have {MAX_PROMPT_CHARS} characters, this one has {len(text)}"
        raise ServerError(ErrorCode.TOO_LARGE.value, sentence)


def _fail(entry: _OpenInput, error: ClientError) -> None:
    for future in (entry.accepted, entry.applied):
        if not future.done():
            future.set_exception(error)
            future.exception()  # it may be that nobody waits for this one
