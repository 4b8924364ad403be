"""The newest encoded chunks of a session, kept for resume. Pure.

Bounded in chunks; the oldest leaves when a new one begins. Parts are kept as the bytes that the link takes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from scheduler.messages import REPLAY_CHUNKS, Applied

__all__ = ["Replay", "ReplayChunk"]


@dataclass(slots=True, kw_only=True)
class ReplayChunk:
    """One chunk, or the part of it that is encoded already."""

    seq: int
    start_ms: float
    """Media position of its first frame."""
    end_ms: float
    applied: tuple[Applied, ...] = ()
    """To be said before its part 0."""
    parts: list[bytes] = field(default_factory=list)
    complete: bool = False


class Replay:
    """Chunks in contiguous order; only the newest may be incomplete."""

    def __init__(self, *, next_seq: int = 0, start_ms: float = 0.0, chunks: int = REPLAY_CHUNKS) -> None:
        self._chunks: deque[ReplayChunk] = deque(maxlen=chunks)
        self._next_seq = next_seq
        self._end_ms = start_ms

    @property
    def next_seq(self) -> int:
        """First chunk that is not complete."""
        return self._next_seq

    @property
    def end_ms(self) -> float:
        """Media end of the complete chunks."""
        return self._end_ms

    @property
    def oldest_seq(self) -> int:
        """First chunk that can still be sent."""
        return self._chunks[0].seq if self._chunks else self._next_seq

    def begin(self, *, start_ms: float, end_ms: float, applied: tuple[Applied, ...] = ()) -> None:
        """Chunk `next_seq` begins; it spans start_ms to end_ms."""
        assert not self._chunks or self._chunks[-1].complete, "a chunk began before the last one was complete"
        self._chunks.append(
            ReplayChunk(seq=self._next_seq, start_ms=start_ms, end_ms=end_ms, applied=applied)
        )

    def add(self, part: bytes, *, last: bool) -> None:
        """Append the next part of the chunk that began; with `last` it is complete."""
        chunk = self._chunks[-1]
        assert not chunk.complete, "a part came after the last one of its chunk"
        chunk.parts.append(part)
        if last:
            chunk.complete = True
            self._next_seq, self._end_ms = chunk.seq + 1, chunk.end_ms

    def since(self, seq: int) -> list[ReplayChunk]:
        """Chunks from `seq` on that are still here, an incomplete newest one included."""
        return [chunk for chunk in self._chunks if chunk.seq >= seq]

    def complete_since(self, seq: int) -> list[ReplayChunk]:
        """The same without an incomplete one: these change no more."""
        return [chunk for chunk in self.since(seq) if chunk.complete]

    def start_of_ms(self, seq: int) -> float:
        """Media position where chunk `seq` starts; the nearest known one for a chunk that is not here."""
        for chunk in self._chunks:
            if chunk.seq >= seq:
                return chunk.start_ms
        return self._end_ms

    def end_of_ms(self, seq: int) -> float:
        """Media position where chunk `seq` ends; the nearest known one for a chunk that is not here."""
        return self.start_of_ms(seq + 1)
