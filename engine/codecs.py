"""How each codec is encoded: the encoders to try, best first, and their settings.

All make one packet per frame and keep none back, begin a chunk with a key frame when told to, and take one
thread; what they cost at 96×96: `bench/results/codecs_cpu2_2026-11-26.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["CODECS", "H264", "Coder", "coders_of", "find_coder", "hardware_coders"]

H264, VP9, AV1, MJPEG = "h264", "vp9", "av1", "mjpeg"

_X264_PARAMS = (
    "keyint=infinite:scenecut=0:stitchable=1:"  # stitchable: the headers do not depend on `crf`
    "colorprim=smpte170m:transfer=smpte170m:colormatrix=smpte170m:fullrange=off"
)
_SVT_PARAMS = "pred-struct=1:lookahead=0:lp=1:rc=0:keyint=-1:scd=0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Coder:
    """One encoder of FFmpeg."""

    name: str
    options: Callable[[int], dict[str, str]]
    """From the setting `crf`."""
    low_step: int = 10
    """What the lower rung adds to `crf`: a quarter of the bitrate, Motion JPEG half of it."""
    pix_fmt: str = "yuv420p"
    only_keys: bool = False
    """Is every frame a key frame?"""
    is_hardware: bool = False
    apart: bool = False
    """Does each session's encoder run in a process of its own? SVT-AV1 4.1 in low-delay mode waits for itself
    for ever once in some ten thousand short sessions, in C code that nothing but a kill ends.
    """


def _nvenc(crf: int) -> dict[str, str]:
    rate = {"rc": "vbr", "cq": str(max(1, crf)), "b": "0"}  # cq 0: as it likes
    return {
        "preset": "p3",
        "tune": "ull",
        "zerolatency": "1",
        "delay": "0",
        "bf": "0",
        "forced-idr": "1",
    } | rate


CODECS: Mapping[str, tuple[Coder, ...]] = {
    H264: (
        Coder(name="h264_nvenc", options=_nvenc, is_hardware=True),
        Coder(
            name="libx264",
            options=lambda crf: {
                "preset": "ultrafast",
                "tune": "zerolatency",
                "crf": str(crf),
                "x264-params": _X264_PARAMS,
            },
        ),
    ),
    VP9: (
        Coder(
            name="libvpx-vp9",
            options=lambda crf: {
                "deadline": "realtime",
                "cpu-used": "8",
                "lag-in-frames": "0",
                "auto-alt-ref": "0",
                "crf": str(crf),
                "b": "0",
            },
            low_step=16,
        ),
    ),
    AV1: (
        Coder(name="av1_nvenc", options=_nvenc, is_hardware=True),
        Coder(
            name="libsvtav1",
            options=lambda crf: {"preset": "12", "crf": str(crf), "svtav1-params": _SVT_PARAMS},
            low_step=16,
            apart=True,
        ),
    ),
    MJPEG: (
        Coder(
            name="mjpeg",
            options=lambda crf: dict.fromkeys(("qmin", "qmax"), str(max(2, crf // 6))),
            low_step=28,
            pix_fmt="yuvj420p",
            only_keys=True,
        ),
    ),
}
"""By the name that the protocol has for it."""


def coders_of(codec: str, hardware: frozenset[str]) -> tuple[Coder, ...]:
    """Who may encode this codec here, best first. `hardware`: names of those that work on this machine.

    Raises ValueError for a codec that there is no encoder for.
    """
    if codec not in CODECS:
        raise ValueError(f"there is no encoder for {codec!r}")
    return tuple(coder for coder in CODECS[codec] if not coder.is_hardware or coder.name in hardware)


def find_coder(name: str) -> Coder:
    """The one that FFmpeg calls so. Raises KeyError where we use none of that name."""
    return {coder.name: coder for coders in CODECS.values() for coder in coders}[name]


def hardware_coders() -> tuple[tuple[str, Coder], ...]:
    """(codec, coder) of all that need hardware: whether they work here must be tried."""
    return tuple((codec, coder) for codec, coders in CODECS.items() for coder in coders if coder.is_hardware)
