"""Is a stream what docs/protocol.md promises? Order, repeats, parts, media time. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.protocol import ChunkHeader

__all__ = ["CAME_AGAIN", "StreamCheck"]

CAME_AGAIN = "came again after it was complete"
"""In the words for a repeated chunk."""
_SAME_MS = 1e-3


class StreamCheck:
    """Give it every part's header, in order, and every gap, at any time; it says in words what is wrong."""

    def __init__(self) -> None:
        self.num_chunks = 0
        """Complete ones."""
        self.gaps: set[int] = set()
        """Chunks that the server said will not come."""
        self._skipped: set[int] = set()
        self._seq = 0
        self._part = 0  # the one that should come next
        self._parts = 0
        self._pts_ms = 0.0  # media time at which the next part should begin
        self._begin_ms = 0.0  # and at which its chunk begins

    def part(self, header: ChunkHeader) -> Iterator[str]:
        """Faults of one part. An incomplete chunk may begin again, in other parts."""
        if header.seq < self._seq:
            yield f"chunk {header.seq} {CAME_AGAIN}"
            return
        if header.seq > self._seq:
            self._skipped |= set(range(self._seq, header.seq))
            if header.pts_ms <= self._begin_ms:
                yield f"chunk {header.seq}: media time does not advance over the chunks before it"
            self._begin(header.seq, header.pts_ms)
        elif header.part == 0:
            self._begin(header.seq, self._begin_ms)
        if header.part != self._part or (header.part and header.parts != self._parts):
            yield (
                f"chunk {header.seq}: part {header.part} of {header.parts} came where "
                f"part {self._part} was due"
            )
        if abs(header.pts_ms - self._pts_ms) > _SAME_MS:
            yield f"chunk {header.seq}: media time is {header.pts_ms:.3f} ms, not {self._pts_ms:.3f}"
        if header.part == 0 and not header.key:
            yield f"chunk {header.seq} does not begin with a key frame"
        self._part, self._parts = header.part + 1, header.parts
        self._pts_ms = header.pts_ms + header.duration_ms
        if self._part == header.parts:
            self.num_chunks += 1
            self._begin(header.seq + 1, self._pts_ms)

    def gap(self, from_seq: int, to_seq: int) -> None:
        """The server says that these chunks, both ends included, will not come."""
        self.gaps |= set(range(from_seq, to_seq + 1))

    def finish(self) -> Iterator[str]:
        """Faults that only the end shows."""
        for seq in sorted(self._skipped - self.gaps):
            yield f"chunk {seq} never came, and no gap was said"
        for seq in sorted(seq for seq in self.gaps - self._skipped if seq < self._seq):
            yield f"a gap was said of chunk {seq}, which came"

    def _begin(self, seq: int, pts_ms: float) -> None:
        self._seq, self._part, self._parts = seq, 0, 0
        self._begin_ms = self._pts_ms = pts_ms
