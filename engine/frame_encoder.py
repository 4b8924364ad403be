"""One encoder of FFmpeg at work for one session: RGB frames in, an access unit for each out."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from engine.codecs import Coder

__all__ = ["FrameEncoder"]

MAX_GOP = 1 << 20
"""Key frames come when they are asked for, and not before."""
BT601 = 6
"""SMPTE 170M, as colour primaries, transfer and matrix."""


class FrameEncoder:
    """Counts frames from 0: x264 wants rising times. Not thread-safe."""

    def __init__(self, coder: Coder, *, width: int, height: int, fps: int, crf: int) -> None:
        """Raises av.error.FFmpegError when the encoder can't be had."""
        self._coder, self._next_pts = coder, 0
        # Kept, with one thread: frame.reformat() would build a scaler and start threads at each call.
        self._reformatter = VideoReformatter()
        self._context = _make_context(coder, width=width, height=height, fps=fps, crf=crf)
        self._context.open()

    def encode(self, frames: npt.NDArray[np.uint8], *, key: bool) -> list[bytes]:
        """RGB uint8 [frames, height, width, 3] → access units. `key`: the first is a key frame."""
        return [self._encode(rgb, key=key and i == 0) for i, rgb in enumerate(frames)]

    def close(self) -> None:
        """There is nothing to end: FFmpeg's memory goes with the object."""

    def _encode(self, rgb: npt.NDArray[np.uint8], *, key: bool) -> bytes:
        coder = self._coder
        frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
        yuv = self._reformatter.reformat(
            frame,
            format=coder.pix_fmt,
            dst_colorspace=Colorspace.ITU601,
            dst_color_range=_range_of(coder),
            threads=1,
        )
        yuv.pts, self._next_pts = self._next_pts, self._next_pts + 1
        yuv.pict_type = PictureType.I if key or coder.only_keys else PictureType.NONE
        packets = self._context.encode(yuv)
        assert len(packets) == 1, f"{coder.name} returned {len(packets)} packets for one frame"
        return bytes(packets[0])


def _make_context(coder: Coder, *, width: int, height: int, fps: int, crf: int) -> VideoCodecContext:
    context = av.CodecContext.create(coder.name, "w")
    assert isinstance(context, VideoCodecContext)
    context.width, context.height = width, height
    context.pix_fmt = coder.pix_fmt
    context.time_base, context.framerate = Fraction(1, fps), Fraction(fps)
    # One thread: frame threads would keep the last frames of a chunk back until the next one.
    context.thread_count = 1
    if not coder.only_keys:
        context.gop_size = MAX_GOP
    context.color_primaries = context.color_trc = context.colorspace = BT601
    context.color_range = _range_of(coder)
    context.options = coder.options(crf)
    return context


def _range_of(coder: Coder) -> ColorRange:
    return ColorRange.JPEG if coder.pix_fmt == "yuvj420p" else ColorRange.MPEG
