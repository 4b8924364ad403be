"""A client for tests that watches a session and checks that nothing is missing, repeated or out of order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.client import Chunk, Client, ServerError, Session, connect
from gateway.client_session import Mode
from scheduler.messages import ErrorCode


class Viewer:
    """Takes chunks as fast as they come; every chunk must be the next one."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.next_seq = 0
        self.next_pts_ms = 0.0
        self.taken: list[Chunk] = []
        """Every chunk so far."""
        self._chunks = aiter(session)

    async def take(self, count: int) -> list[Chunk]:
        """The next chunks, their frames decoded."""
        taken = []
        for _ in range(count):
            chunk = await anext(self._chunks)
            assert chunk.seq == self.next_seq, f"chunk {chunk.seq} came where {self.next_seq} was due"
            assert abs(chunk.pts_ms - self.next_pts_ms) < 1e-3, f"media time jumps at chunk {chunk.seq}"
            assert chunk.codec == self.session.info.codec
            assert len(list(chunk.frames())) == chunk.num_frames
            self.next_seq += 1
            self.next_pts_ms = chunk.pts_ms + chunk.duration_ms
            taken.append(chunk)
            self.taken.append(chunk)
        return taken

    async def take_to(self, seq: int) -> None:
        """Take chunks until that one was taken: some may have come that were not."""
        while self.next_seq <= seq:
            await self.take(1)

    async def take_until_engine(self, engine: str | None = None, *, other_than: str | None = None) -> Chunk:
        """The first chunk that is of `engine`, or not of `other_than`."""
        while True:
            (chunk,) = await self.take(1)
            if chunk.engine == engine or (other_than is not None and chunk.engine != other_than):
                return chunk


@asynccontextmanager
async def watching(
    url: str, prompt: str = "a red ball", seed: int = 1, *, mode: Mode = "recorder", codec: str = "h264"
) -> AsyncIterator[Viewer]:
    """A session from its start to its stop. A "viewer" takes chunks at the pace at which they play."""
    async with connect(url) as client:
        session = await _started(client, prompt, seed, mode, codec)
        yield Viewer(session)
        await session.stop()


async def _started(client: Client, prompt: str, seed: int, mode: Mode, codec: str) -> Session:
    """Who comes while Redis stands still for 2 s is told when to come again, and does so once."""
    try:
        return await client.start(prompt, seed=seed, mode=mode, accept=(codec,))
    except ServerError as exc:
        if exc.code != ErrorCode.UNAVAILABLE.value or exc.retry_after_ms is None:
            raise
        await asyncio.sleep(exc.retry_after_ms / 1000)
    return await client.start(prompt, seed=seed, mode=mode, accept=(codec,))
