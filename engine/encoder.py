"""Video encoding: one encoder per session, each kept on one thread of a small pool.

Every chunk starts with a key frame, so it decodes alone; H.264 is Annex B, with SPS and PPS before each IDR.
Colours are converted to BT.601 and tagged so: browsers take untagged video for BT.709, with wrong colours.
Hardware is used where it was seen to work (`probe_hardware`), and a session that it can't take goes without.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import av
import numpy as np
import numpy.typing as npt
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from engine.codecs import H264, Coder, coders_of, hardware_coders

__all__ = [
    "EncodedPart",
    "EncoderPool",
    "Encoders",
    "Encoding",
    "Lane",
    "SessionEncoder",
    "part_lengths",
    "probe_hardware",
]

_log = logging.getLogger("turboserve.engine.encoder")

MAX_WHOLE_CHUNK_PIXELS = 256 * 256
"""Up to this frame size a chunk travels in one part."""
MAX_PART_FRAMES = 4
MAX_GOP = 1 << 20
"""Key frames come when they are asked for, and not before."""
BT601 = 6
"""SMPTE 170M, as colour primaries, transfer and matrix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPart:
    """Consecutive frames of one chunk."""

    part: int
    parts: int
    frames: int
    sizes: tuple[int, ...]
    """Bytes of each access unit; one per frame; they sum to the payload."""
    payload: bytes

    @property
    def is_last(self) -> bool:
        return self.part + 1 == self.parts


def part_lengths(num_frames: int, *, pixels: int) -> tuple[int, ...]:
    """Frames of each part of a chunk: one part for small frames, else 3 or 4 so the first leaves early."""
    parts = 1 if pixels <= MAX_WHOLE_CHUNK_PIXELS else -(-num_frames // MAX_PART_FRAMES)
    short, longer = divmod(num_frames, parts)
    return tuple(short + 1 if part < longer else short for part in range(parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How an engine encodes."""

    crf: int = 23
    """x264 quality, which the other codecs follow."""
    hardware: frozenset[str] = frozenset()
    """Encoders that `probe_hardware` has seen to work."""


class SessionEncoder:
    """Encodes the chunks of one session. Not thread-safe."""

    def __init__(
        self, *, width: int, height: int, fps: int, encoding: Encoding | None = None, codec: str = H264
    ) -> None:
        """Raises ValueError for a codec that there is no encoder for."""
        self._size, self._fps, self._encoding = (width, height), fps, encoding or Encoding()
        self._coders = coders_of(codec, self._encoding.hardware)
        self._coder = self._coders[-1]
        self._context: VideoCodecContext | None = None
        # Kept, with one thread: frame.reformat() would build a scaler and start threads at each call.
        self._reformatter = VideoReformatter()
        self._next_pts = 0

    def try_out(self, coder: Coder) -> None:
        """Encode a few frames with this encoder and no other. Raises what is wrong with it."""
        self._coders = (coder,)
        width, height = self._size
        for _ in range(2):
            for _part in self.encode(np.zeros((3, height, width, 3), np.uint8)):
                pass

    @property
    def name(self) -> str:
        """The encoder at work, once there was a frame."""
        return self._coder.name

    def encode(self, frames: npt.NDArray[np.uint8]) -> Iterator[EncodedPart]:
        """RGB uint8 [frames, height, width, 3] → parts, each as soon as it is ready."""
        lengths = part_lengths(len(frames), pixels=self._size[0] * self._size[1])
        first = 0
        for part, length in enumerate(lengths):
            units = [self._encode_frame(frames[i], key=i == 0) for i in range(first, first + length)]
            first += length
            yield EncodedPart(
                part=part,
                parts=len(lengths),
                frames=length,
                sizes=tuple(map(len, units)),
                payload=b"".join(units),
            )

    def _encode_frame(self, rgb: npt.NDArray[np.uint8], *, key: bool) -> bytes:
        context = self._context or self._open()
        coder = self._coder
        frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
        yuv = self._reformatter.reformat(
            frame,
            format=coder.pix_fmt,
            dst_colorspace=Colorspace.ITU601,
            dst_color_range=ColorRange.JPEG if coder.pix_fmt == "yuvj420p" else ColorRange.MPEG,
            threads=1,
        )
        yuv.pts, self._next_pts = self._next_pts, self._next_pts + 1
        yuv.pict_type = PictureType.I if key or coder.only_keys else PictureType.NONE
        packets = context.encode(yuv)
        assert len(packets) == 1, f"{coder.name} returned {len(packets)} packets for one frame"
        return bytes(packets[0])

    def _open(self) -> VideoCodecContext:
        """The best encoder that can be had now: hardware takes so many sessions and no more."""
        for coder in self._coders:
            context = self._make_context(coder)
            try:
                context.open()
                _leave_realtime()
            except av.error.FFmpegError as exc:
                if coder is self._coders[-1]:
                    raise
                _log.warning("%s can't take another session: %s", coder.name, exc)
                continue
            self._context, self._coder = context, coder
            return context
        raise AssertionError("every codec has an encoder")

    def _make_context(self, coder: Coder) -> VideoCodecContext:
        context = av.CodecContext.create(coder.name, "w")
        assert isinstance(context, VideoCodecContext)
        context.width, context.height = self._size
        context.pix_fmt = coder.pix_fmt
        context.time_base, context.framerate = Fraction(1, self._fps), Fraction(self._fps)
        # One thread: frame threads would keep the last frames of a chunk back until the next one.
        context.thread_count = 1
        if not coder.only_keys:
            context.gop_size = MAX_GOP
        context.color_primaries = context.color_trc = context.colorspace = BT601
        context.color_range = ColorRange.JPEG if coder.pix_fmt == "yuvj420p" else ColorRange.MPEG
        context.options = coder.options(self._encoding.crf)
        return context


def _leave_realtime() -> None:
    """Make real-time threads of this process ordinary again.

    SVT-AV1 that runs as root gives its own threads, and the one that opens it, the highest priority there is:
    nothing else would run on their cores.
    """
    with suppress(OSError):  # no /proc: not Linux, where SVT-AV1 does not do it
        for thread in map(int, os.listdir("/proc/self/task")):
            with suppress(OSError):  # it has ended meanwhile
                if os.sched_getscheduler(thread) == os.SCHED_FIFO:
                    os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def probe_hardware(*, width: int, height: int, fps: int, crf: int) -> frozenset[str]:
    """Which hardware encoders make video of this size on this machine. Tries each."""
    found = []
    for codec, coder in hardware_coders():
        encoding = Encoding(crf=crf, hardware=frozenset({coder.name}))
        encoder = SessionEncoder(width=width, height=height, fps=fps, encoding=encoding, codec=codec)
        try:
            encoder.try_out(coder)
        except (av.error.FFmpegError, ValueError, AssertionError) as exc:
            _log.info("%s does not work here: %s", coder.name, exc)
        else:
            found.append(coder.name)
    return frozenset(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """A session's encoder and the thread that it stays on."""

    encoder: SessionEncoder
    thread: int


class Encoders(Protocol):
    """Where the frames of sessions go."""

    def open_lane(self, encoder: SessionEncoder) -> Lane:
        """A session begins."""

    def close_lane(self, lane: Lane) -> None:
        """It has ended."""

    def submit(
        self,
        lane: Lane,
        frames: npt.NDArray[np.uint8],
        on_part: Callable[[EncodedPart], None],
        on_error: Callable[[Exception], None],
    ) -> Future[None]:
        """Encode a chunk; the callbacks run before the future is done."""


class EncoderPool:
    """A fixed number of threads; chunks of one session never overtake each other.

    Its queue is bounded from outside: a session starts no chunk while two of its chunks are not encoded
    (`engine.credit.MAX_UNENCODED_CHUNKS`).
    """

    def __init__(self, *, threads: int) -> None:
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix=f"encoder-{i}") for i in range(threads)]
        self._lanes = [0] * threads

    def open_lane(self, encoder: SessionEncoder) -> Lane:
        """Take a session to the thread that has the fewest."""
        thread = self._lanes.index(min(self._lanes))
        self._lanes[thread] += 1
        return Lane(encoder=encoder, thread=thread)

    def close_lane(self, lane: Lane) -> None:
        self._lanes[lane.thread] -= 1

    def submit(
        self,
        lane: Lane,
        frames: npt.NDArray[np.uint8],
        on_part: Callable[[EncodedPart], None],
        on_error: Callable[[Exception], None],
    ) -> Future[None]:
        """Encode a chunk; the callbacks run on the encoder's thread, before the future is done."""
        return self._threads[lane.thread].submit(_encode, lane.encoder, frames, on_part, on_error)

    def close(self) -> None:
        """Finish what was submitted, then end the threads. Blocks."""
        for thread in self._threads:
            thread.shutdown(wait=True)


def _encode(
    encoder: SessionEncoder,
    frames: npt.NDArray[np.uint8],
    on_part: Callable[[EncodedPart], None],
    on_error: Callable[[Exception], None],
) -> None:
    try:
        for part in encoder.encode(frames):
            on_part(part)
    except Exception as exc:  # one session's failure must not end the pool's thread
        on_error(exc)
