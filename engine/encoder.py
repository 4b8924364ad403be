"""H.264 encoding: one encoder per session, each kept on one thread of a small pool.

Every chunk starts with SPS, PPS and an IDR, so it decodes alone. Access units are Annex B. Colours are
converted to BT.601 limited range and tagged so: browsers take untagged video for BT.709, with wrong colours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import av
import numpy as np
import numpy.typing as npt
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

__all__ = ["EncodedPart", "EncoderPool", "Encoders", "Lane", "SessionEncoder", "part_lengths"]

CODEC = "h264"
MAX_WHOLE_CHUNK_PIXELS = 256 * 256
"""Up to this frame size a chunk travels in one part."""
MAX_PART_FRAMES = 4
_X264_PARAMS = (
    "keyint=infinite:scenecut=0:colorprim=smpte170m:transfer=smpte170m:colormatrix=smpte170m:fullrange=off"
)


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


class SessionEncoder:
    """Encodes the chunks of one session. Not thread-safe."""

    def __init__(self, *, width: int, height: int, fps: int, crf: int) -> None:
        context = av.CodecContext.create("libx264", "w")
        context.width, context.height = width, height
        context.pix_fmt = "yuv420p"
        context.time_base, context.framerate = Fraction(1, fps), Fraction(fps)
        # One thread: frame threads would keep the last frames of a chunk back until the next one.
        context.thread_count = 1
        context.options = {
            "preset": "ultrafast",
            "tune": "zerolatency",
            "crf": str(crf),
            "x264-params": _X264_PARAMS,
        }
        self._context = context
        # Kept, with one thread: frame.reformat() would build a scaler and start threads at each call.
        self._reformatter = VideoReformatter()
        self._pixels = width * height
        self._next_pts = 0

    def encode(self, frames: npt.NDArray[np.uint8]) -> Iterator[EncodedPart]:
        """RGB uint8 [frames, height, width, 3] → parts, each as soon as it is ready."""
        lengths = part_lengths(len(frames), pixels=self._pixels)
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
        frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
        yuv = self._reformatter.reformat(
            frame,
            format="yuv420p",
            dst_colorspace=Colorspace.ITU601,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        yuv.pts, self._next_pts = self._next_pts, self._next_pts + 1
        yuv.pict_type = PictureType.I if key else PictureType.NONE
        packets = self._context.encode(yuv)
        assert len(packets) == 1, f"the encoder returned {len(packets)} packets for one frame"
        return bytes(packets[0])


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
