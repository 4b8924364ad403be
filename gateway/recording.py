"""Chunks to an MP4 file without encoding again: the access units go in as they came."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
from av.container import OutputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from gateway.client_chunks import Chunk
from gateway.client_errors import BadServer

__all__ = ["Mp4Writer", "write_mp4"]

IVF_NAMES = {"vp9": b"VP90", "av1": b"AV01"}


class Mp4Writer:
    """Writes chunks to `path` as they come; the file is complete after `close`. Needs at least one chunk.

    Presentation times are frame indices: exactly one sample per access unit. Chunks that are missing (a
    `gap`) leave their time open: the picture before them stands still. One that begins before the last has
    ended is put right behind it: times are estimated if a session lost its engine and its gateway at once.
    """

    def __init__(self, path: Path, fps: int, *, index_first: bool = False) -> None:
        """`index_first`: the file can be played while it is still being fetched."""
        self.num_frames = 0
        self._fps = fps
        options = {"movflags": "+faststart"} if index_first else {}
        self._container: OutputContainer = av.open(str(path), "w", format="mp4", options=options)
        self._stream: VideoStream | None = None
        self._last_seq = -1
        self._first_index = 0
        self._next_index = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, chunk: Chunk) -> None:
        """Append one chunk. Raises ValueError when it does not come after the one written last."""
        if chunk.seq <= self._last_seq:
            raise ValueError(f"chunk {chunk.seq} comes after a later one")
        index = round(chunk.pts_ms * self._fps / 1000)
        if self._stream is None:
            self._stream = _add_stream(self._container, chunk.units[0], self._fps, chunk.codec)
            self._first_index = self._next_index = index
        index = max(index, self._next_index)
        for offset, unit in enumerate(chunk.units):
            self._mux(unit, index + offset - self._first_index, is_key=offset == 0 or chunk.codec == "mjpeg")
        self._last_seq = chunk.seq
        self._next_index = index + len(chunk.units)
        self.num_frames += len(chunk.units)

    def close(self) -> None:
        """Write the index of the file. Nothing can be added afterwards."""
        self._container.close()

    def _mux(self, unit: bytes, index: int, *, is_key: bool) -> None:
        assert self._stream is not None
        packet = Packet(unit)
        packet.stream = self._stream
        packet.time_base = Fraction(1, self._fps)
        packet.pts = packet.dts = index
        packet.duration = 1
        packet.is_keyframe = is_key
        self._container.mux_one(packet)


def write_mp4(path: Path, chunks: Iterable[Chunk], fps: int) -> int:
    """Write chunks, oldest first, as an MP4. Returns the number of frames, 0 when there were no chunks."""
    with Mp4Writer(path, fps) as writer:
        for chunk in chunks:
            writer.add(chunk)
    return writer.num_frames


def _add_stream(container: OutputContainer, unit: bytes, fps: int, codec: str) -> VideoStream:
    """A video stream whose size and headers are those of a key frame's access unit."""
    # The demuxer is only asked what it finds in the headers; PyAV offers no other way to the extradata.
    framing, data = _framed(unit, codec)
    try:
        with av.open(io.BytesIO(data), "r", format=framing) as template:
            stream = container.add_stream_from_template(template.streams.video[0], opaque=True)
    except (av.error.FFmpegError, IndexError) as exc:
        raise BadServer(f"the first access unit is not {codec} with its headers") from exc
    stream.time_base = Fraction(1, fps)
    return stream


def _framed(unit: bytes, codec: str) -> tuple[str, bytes]:
    """(a demuxer, the access unit as it wants it). VP9 and AV1 have no stream format of their own: IVF."""
    if codec not in IVF_NAMES:
        return {"mjpeg": "mjpeg"}.get(codec, "h264"), unit
    head = struct.pack("<4sHH4sHHIII4x", b"DKIF", 0, 32, IVF_NAMES[codec], 0, 0, 1, 1, 1)
    return "ivf", head + struct.pack("<IQ", len(unit), 0) + unit
