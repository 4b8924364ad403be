"""Somebody else's session in the Python client: its video, and nothing to steer."""

from __future__ import annotations

from gateway.client_chunks import ChunkAssembler
from gateway.client_stream import Dial, Stream
from gateway.protocol import Accepted, Applied, ChunkHeader, Error, Watch

__all__ = ["Viewer"]


class Viewer(Stream):
    """Iterate over it for chunks; make one with `Client.watch`.

    Begins with the next chunk that is made. One that takes its chunks slowly misses some, a lost connection
    those that were made meanwhile: `seq` and `pts_ms` of the chunks tell. At the session's end the iteration
    raises SessionEnded.
    """

    def __init__(self, dial: Dial, opening: Watch, *, give_up_s: float) -> None:
        super().__init__(dial, ChunkAssembler(), give_up_s=give_up_s)
        self._opening = opening
        self._has_begun = False

    async def stop(self) -> None:
        """Look no longer. Chunks already received can still be iterated over."""
        self._is_stopping = True
        await self.close()

    def _next_opening(self) -> Watch:
        self._has_begun = False
        return self._opening

    def _take_answer(self, message: Accepted | Applied | Error) -> None:
        pass

    async def _take_part(self, header: ChunkHeader, payload: memoryview) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._assembler.skip(header.seq - 1)
        chunk = self._assembler.add(header, payload)
        if chunk is not None and not self._is_stopping:
            await self._keep(chunk)
