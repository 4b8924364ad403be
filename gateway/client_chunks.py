"""Chunks at the receiving end: putting parts together, and decoding access units to pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np
from av.codec.context import CodecContext
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from gateway.client_errors import BadServer
from gateway.protocol import ChunkHeader

__all__ = ["Chunk", "ChunkAssembler", "ChunkDecoder"]


DECODERS = {"h264": "h264", "vp9": "vp9", "av1": "libdav1d", "mjpeg": "mjpeg"}
"""Codec → FFmpeg's decoder."""


class ChunkDecoder:
    """Access units to RGB pictures, one chunk at a time, in any order: each begins with a key frame."""

    def __init__(self, codec: str = "h264") -> None:
        """Raises BadServer for a codec that is not known here."""
        if codec not in DECODERS:
            raise BadServer(f"the video is in {codec!r}, which can't be decoded here")
        context = CodecContext.create(DECODERS[codec], "r")
        assert isinstance(context, VideoCodecContext)
        # Frame threads would hold pictures back, and can hang the process when the decoder is dropped.
        context.thread_count = 1
        self._context = context
        self._reformatter = VideoReformatter()

    def decode(self, units: Sequence[bytes]) -> list[NDArray[np.uint8]]:
        """One picture per access unit, RGB uint8 [height, width, 3]. Raises BadServer for damaged data."""
        try:
            frames = [frame for unit in units for frame in self._context.decode(Packet(unit))]
            if len(frames) < len(units):  # the stream allows reordering: drain, then make ready for the next
                frames += self._context.decode(None)
                self._context.flush_buffers()
        except av.error.FFmpegError as exc:
            self._context.flush_buffers()
            raise BadServer(f"a chunk does not decode: {exc}") from exc
        if len(frames) != len(units):
            raise BadServer(f"a chunk of {len(units)} frames decodes to {len(frames)}")
        return [self._to_rgb(frame) for frame in frames]

    def _to_rgb(self, frame: VideoFrame) -> NDArray[np.uint8]:
        picture: NDArray[Any] = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        return picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One complete chunk. It decodes on its own."""

    session: str
    seq: int
    rev: int
    """Prompt revision that it was made with."""
    pts_ms: float
    """Media time of the first frame since the session's start."""
    duration_ms: float
    engine: str
    gen_ms: float | None
    """What it took to make."""
    units: tuple[bytes, ...]
    """Access units, one per frame, H.264 in Annex-B form; the first is a key frame."""
    codec: str
    decoder: ChunkDecoder = field(repr=False, compare=False)

    @property
    def num_frames(self) -> int:
        return len(self.units)

    @property
    def end_ms(self) -> float:
        return self.pts_ms + self.duration_ms

    def frames(self) -> list[NDArray[np.uint8]]:
        """The decoded pictures, RGB uint8 [height, width, 3] each. Raises BadServer for a damaged chunk."""
        return self.decoder.decode(self.units)


def make_chunk(parts: Sequence[tuple[ChunkHeader, memoryview]], decoder: ChunkDecoder) -> Chunk:
    """A chunk from all its parts, in order."""
    first, last = parts[0][0], parts[-1][0]
    return Chunk(
        session=first.session,
        seq=first.seq,
        rev=first.rev,
        pts_ms=first.pts_ms,
        duration_ms=sum(header.duration_ms for header, _ in parts),
        engine=first.engine,
        gen_ms=last.gen_ms,
        units=tuple(unit for header, payload in parts for unit in _split(payload, header.sizes)),
        codec=first.codec,
        decoder=decoder,
    )


def _split(payload: memoryview, sizes: Iterable[int]) -> Iterable[bytes]:
    offset = 0
    for size in sizes:
        yield bytes(payload[offset : offset + size])
        offset += size


class ChunkAssembler:
    """Puts parts together. `next_seq` is the first chunk not held completely: where an `attach` continues."""

    def __init__(self, next_seq: int = 0) -> None:
        self.next_seq = next_seq
        self._parts: list[tuple[ChunkHeader, memoryview]] = []
        self._decoder: ChunkDecoder | None = None

    def add(self, header: ChunkHeader, payload: memoryview) -> Chunk | None:
        """Take one part; returns the chunk that it completes. A repeated part 0 replaces what is held.

        Raises BadServer when a chunk or part is skipped without a `gap`.
        """
        if header.seq < self.next_seq:
            return None
        if header.part == 0 and header.key:
            self._parts.clear()
        if header.seq != self.next_seq or header.part != len(self._parts):
            raise BadServer(
                f"chunk {self.next_seq} part {len(self._parts)} should come next, "
                f"not chunk {header.seq} part {header.part}"
            )
        self._parts.append((header, payload))
        if len(self._parts) < header.parts:
            return None
        self._decoder = self._decoder or ChunkDecoder(header.codec)
        chunk = make_chunk(self._parts, self._decoder)
        self._parts.clear()
        self.next_seq += 1
        return chunk

    def skip(self, to_seq: int) -> None:
        """The server will not send chunks up to and including `to_seq`."""
        if to_seq >= self.next_seq:
            self.next_seq = to_seq + 1
            self._parts.clear()
