"""One client of a load test: plays its script over a real connection and tells what it sees."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import assert_never

from gateway.client import BadServer, Chunk, Client, ClientError, ServerError, Session, SessionEnded, connect
from gateway.protocol import Applied, ChunkHeader, Gap, Stats
from launch.loadtest.load import Do, Script, Step
from launch.loadtest.samples import (
    ChunkSeen,
    Edited,
    Ended,
    Fault,
    FirstPart,
    GapSaid,
    Latency,
    Outcome,
    Refused,
    Sample,
    Started,
)
from launch.loadtest.stream_check import StreamCheck

__all__ = ["Player"]

GIVE_UP_S = 30.0
"""For how long a lost connection, or a first one, is tried."""
ANSWER_S = 2 * GIVE_UP_S
"""For how long an answer is waited for, over lost connections: a load ends, whatever the server does."""
STOP_S = 4.0
"""For a stop's answer: the client itself waits for a second longer and then says nothing."""


@dataclass(slots=True)
class _Edit:
    """A prompt on its way to the picture of somebody who watches."""

    sent_ms: float
    applied: Applied | None = None
    """Where it is in the video, once that is known."""


class Player:
    """Runs once."""

    def __init__(
        self,
        script: Script,
        url: str,
        token: str | None = None,
        *,
        begin_s: float,
        decode: bool,
        put: Callable[[Sample], None],
    ) -> None:
        """`begin_s`: when the load starts, by the monotonic clock; `put` takes each sample."""
        self._script, self._url, self._token, self._begin_s = script, url, token, begin_s
        self._decode, self._put = decode, put
        self._client = script.client
        self._check = StreamCheck()
        self._started_ms: float | None = None
        """When its start was accepted, later by the time that it was paused; None before."""
        self._has_part = False
        self._cuts = 0
        self._is_idle = False
        self._paused_ms = 0.0
        """Since when it is idle, if it is."""
        self._stop_ms: float | None = None
        """When it stopped by itself."""
        self._lost = ""
        """Why its own stop was no good end, if it was none."""
        self._played_ms = self._stalled_ms = 0.0
        self._edits: list[_Edit] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """From start to stop. Never raises what the server or the network does."""
        outcome, reason = Outcome.DONE, ""
        await self._until(self._script.steps[0].at_s)
        try:
            async with connect(
                self._url, self._token, give_up_s=GIVE_UP_S, open_timeout_s=GIVE_UP_S
            ) as client:
                await self._live(await self._start(client))
            if self._lost:
                outcome, reason = Outcome.LOST, self._lost
        except ClientError as exc:
            outcome, reason = Outcome.LOST, str(exc)
            if isinstance(exc, ServerError) and self._started_ms is None:
                outcome, reason = Outcome.REFUSED, exc.code
                self._refused(Do.START, exc)
        for fault in self._check.finish():
            self._fault(fault)
        self._put(self._ended(outcome, reason))

    async def _start(self, client: Client) -> Session:
        first, script = self._script.steps[0], self._script
        try:
            async with asyncio.timeout(ANSWER_S):
                return await client.start(
                    first.prompt, seed=script.seed, model=script.model, on_part=self._on_part
                )
        except TimeoutError:
            raise ClientError(f"start was not answered for {ANSWER_S:g} s") from None

    async def _live(self, session: Session) -> None:
        info = session.info
        self._put(
            Started(
                client=self._client,
                at_ms=self._accepted_ms(self._now_ms()),
                session=session.id,
                model=info.model,
                chunk_ms=1000.0 * info.chunk_frames / info.fps,
                is_slow=self._script.slow_factor > 0,
            )
        )
        doing = asyncio.create_task(self._act(session))
        hearing = asyncio.create_task(self._hear(session))
        try:
            async for chunk in session:  # ends by our own stop
                await self._take_chunk(session, chunk)
            await doing
        finally:
            if not doing.done():
                self._note_play(session)
            for task in (doing, hearing, *self._tasks):
                task.cancel()
            await asyncio.gather(doing, hearing, *self._tasks, return_exceptions=True)

    # --- what it does ---------------------------------------------------------------------------------

    async def _act(self, session: Session) -> None:
        *steps, stop = self._script.steps[1:]
        with suppress(TimeoutError):  # who waits for an answer leaves when it wants to all the same
            async with asyncio.timeout_at(self._begin_s + stop.at_s):
                for step in steps:
                    await self._take_step(session, step)
        await self._take_step(session, stop)

    async def _take_step(self, session: Session, step: Step) -> None:
        await self._until(step.at_s)
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._do(session, step)
        except ClientError as exc:
            self._refused(step.do, exc)
        except TimeoutError:
            self._refused(step.do, ClientError(f"not answered for {ANSWER_S:g} s"))

    async def _do(self, session: Session, step: Step) -> None:
        match step.do:
            case Do.PAUSE:
                self._is_idle, self._paused_ms = True, self._now_ms()
                self._edits.clear()  # a viewer who rests waits for nothing
                await session.pause()
            case Do.RESUME:
                now_ms, self._is_idle = self._now_ms(), False
                self._started_ms = self._accepted_ms(now_ms) + now_ms - self._paused_ms
                session.playhead.resume(time.monotonic() * 1000.0)  # watched from now on, accepted or not
                await session.resume()
            case Do.PROMPT:
                task = asyncio.create_task(self._edit(session, step.prompt))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case Do.CUT:
                self._cuts += 1
                session.cut()
            case Do.STOP:
                self._note_play(session)
                self._stop_ms = self._now_ms()
                await self._stop(session)
            case Do.START:
                raise AssertionError("a script starts once")
            case _:
                assert_never(step.do)

    async def _edit(self, session: Session, text: str) -> None:
        edit = _Edit(self._now_ms())
        if self._check.num_chunks > 0 and not self._is_idle:
            self._edits.append(edit)
        try:
            edit.applied = await session.prompt(text)
        except ClientError as exc:
            if isinstance(exc, ServerError) and edit in self._edits:
                self._edits.remove(edit)
            self._refused(Do.PROMPT, exc)

    async def _stop(self, session: Session) -> None:
        """A slow reader may have much to read before the answer."""
        try:
            async with asyncio.timeout(None if self._script.slow_factor else STOP_S):
                await session.stop()
        except TimeoutError:
            self._lost = f"its stop was not answered for {STOP_S:g} s"

    def _note_play(self, session: Session) -> None:
        session.playhead.buffer_ms(time.monotonic() * 1000.0)  # up to now
        self._played_ms, self._stalled_ms = session.playhead.played_ms, session.playhead.stalled_ms

    # --- what it sees ---------------------------------------------------------------------------------

    def _accepted_ms(self, now_ms: float) -> float:
        """When its start was accepted: the first part may be read in one go with that."""
        if self._started_ms is None:
            self._started_ms = now_ms
        return self._started_ms

    def _waited_ms(self, now_ms: float) -> float:
        """For the first part so far."""
        return (self._paused_ms if self._is_idle else now_ms) - self._accepted_ms(now_ms)

    async def _on_part(self, header: ChunkHeader) -> None:
        if not self._has_part:  # an incomplete chunk may come again
            self._has_part, now_ms = True, self._now_ms()
            self._put(FirstPart(client=self._client, at_ms=now_ms, ttfc_ms=self._waited_ms(now_ms)))
        for fault in self._check.part(header):
            self._fault(fault)
        if self._script.slow_factor:
            await asyncio.sleep(header.duration_ms * self._script.slow_factor / 1000.0)

    async def _take_chunk(self, session: Session, chunk: Chunk) -> None:
        now_ms = self._now_ms()
        ahead_ms = session.playhead.buffer_ms(time.monotonic() * 1000.0) - chunk.duration_ms
        self._put(
            ChunkSeen(
                client=self._client,
                at_ms=now_ms,
                seq=chunk.seq,
                engine=chunk.engine,
                stalled_ms=session.playhead.stalled_ms,
            )
        )
        for edit in [e for e in self._edits if e.applied is not None and e.applied.seq <= chunk.seq]:
            self._edits.remove(edit)
            waited_ms = now_ms - edit.sent_ms
            self._put(
                Edited(
                    client=self._client,
                    at_ms=now_ms,
                    chunk_ms=waited_ms,
                    picture_ms=waited_ms + max(0.0, ahead_ms),
                )
            )
        if self._decode:
            try:
                await asyncio.to_thread(chunk.frames)
            except BadServer as exc:
                self._fault(f"chunk {chunk.seq}: {exc}")

    async def _hear(self, session: Session) -> None:
        async for event in session.events():
            if isinstance(event, Gap):
                before = len(self._check.gaps)
                self._check.gap(event.from_seq, event.to_seq)
                missing = len(self._check.gaps) - before
                self._put(GapSaid(client=self._client, at_ms=self._now_ms(), chunks=missing))
            elif isinstance(event, Stats):
                self._put(
                    Latency(
                        client=self._client,
                        at_ms=self._now_ms(),
                        seq=event.seq,
                        latency_ms=event.latency_ms,
                        gen_ms=event.gen_ms,
                        batch=event.batch,
                    )
                )

    def _fault(self, what: str) -> None:
        self._put(Fault(client=self._client, at_ms=self._now_ms(), what=what))

    def _refused(self, what: Do, exc: ClientError) -> None:
        if isinstance(exc, SessionEnded):
            return  # that is told once, by `Ended`
        code = exc.code if isinstance(exc, ServerError) else str(exc)
        self._put(Refused(client=self._client, at_ms=self._now_ms(), what=what.value, code=code))

    def _ended(self, outcome: Outcome, reason: str) -> Ended:
        now_ms = self._now_ms()
        until_ms = now_ms if self._stop_ms is None else self._stop_ms
        has_waited = self._started_ms is not None and not self._has_part
        return Ended(
            client=self._client,
            at_ms=now_ms,
            outcome=outcome,
            reason=reason,
            chunks=self._check.num_chunks,
            gaps=len(self._check.gaps),
            cuts=self._cuts,
            played_ms=self._played_ms,
            stalled_ms=self._stalled_ms,
            waited_ms=self._waited_ms(until_ms) if has_waited else None,
            prompts_ms=tuple(until_ms - edit.sent_ms for edit in self._edits),
        )

    # --- time -----------------------------------------------------------------------------------------

    def _now_ms(self) -> float:
        return (time.monotonic() - self._begin_s) * 1000.0

    async def _until(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, self._begin_s + at_s - time.monotonic()))
