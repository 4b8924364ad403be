"""Video encoding: one encoder per session and rung, all of a session on one thread of a small pool.

Every chunk starts with a key frame, so it decodes alone; H.264 is Annex B, with SPS and PPS before each IDR.
Colours are converted to BT.601 and tagged so: browsers take untagged video for BT.709, with wrong colours.
Hardware is used where it was seen to work (`probe_hardware`), and a session that it can't take goes without.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import av
import numpy as np
import numpy.typing as npt

from engine.codecs import H264, Coder, coders_of, hardware_coders
from engine.encoder_child import ChildEncoder
from engine.frame_encoder import FrameEncoder
from engine.heap import release_free
from scheduler.messages import Rung

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
MAX_CRF = 51
RELEASE_EVERY_S = 10.0
"""An encoder holds some megabytes; what ended ones held goes back to the system no more often than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPart:
    """Consecutive frames of one chunk."""

    part: int
    parts: int
    frames: int
    sizes: tuple[int, ...]
    """Bytes of each access unit; one per frame; they sum to the payload."""
    payload: bytes
    rung: Rung | None = None
    """Set where the chunk is encoded at both: each LOW part comes right before its FULL one."""

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
    """Encodes the chunks of one session. Not thread-safe; `close` ends what runs for it."""

    def __init__(
        self, *, width: int, height: int, fps: int, encoding: Encoding | None = None, codec: str = H264
    ) -> None:
        """Raises ValueError for a codec that there is no encoder for."""
        self._size, self._fps, self._encoding = (width, height), fps, encoding or Encoding()
        self._coders = coders_of(codec, self._encoding.hardware)
        self._coder = self._coders[-1]
        self._at_work: dict[Rung, FrameEncoder | ChildEncoder] = {}

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

    def prepare(self) -> None:
        """Begin what the first frame would wait for: a process takes a while to start. Raises OSError."""
        if not self._at_work and self._coders[0].apart:
            self._open(Rung.FULL)

    def encode(
        self, frames: npt.NDArray[np.uint8], rungs: Sequence[Rung] = (Rung.FULL,)
    ) -> Iterator[EncodedPart]:
        """RGB uint8 [frames, height, width, 3] → parts, each as soon as it is ready.

        At `rungs` and no others: what encodes at another is ended. A part after the first begins with a key
        frame only where an encoder hung and another went on with it.
        """
        lengths = part_lengths(len(frames), pixels=self._size[0] * self._size[1])
        for rung in set(self._at_work) - set(rungs):
            self._at_work.pop(rung).close()
        first = 0
        for part, length in enumerate(lengths):
            for rung in sorted(rungs, reverse=True):  # LOW, FULL
                at_work = self._at_work.get(rung) or self._open(rung)
                units = at_work.encode(frames[first : first + length], key=part == 0)
                yield EncodedPart(
                    part=part,
                    parts=len(lengths),
                    frames=length,
                    sizes=tuple(map(len, units)),
                    payload=b"".join(units),
                    rung=rung if len(rungs) > 1 else None,
                )
            first += length

    def renew(self) -> None:
        """The next chunk owes nothing to those before, as that of a new SessionEncoder."""
        for rung, at_work in list(self._at_work.items()):
            if isinstance(at_work, ChildEncoder):
                at_work.renew()
            else:
                del self._at_work[rung]

    def close(self) -> None:
        """Blocks until the encoder's process is gone, if it has one. Whoever encodes again gets a new one."""
        while self._at_work:
            self._at_work.popitem()[1].close()

    def _open(self, rung: Rung) -> FrameEncoder | ChildEncoder:
        """The best encoder that can be had now: hardware takes so many sessions and no more."""
        width, height = self._size
        for coder in self._coders:
            make = ChildEncoder if coder.apart else FrameEncoder
            crf = min(MAX_CRF, self._encoding.crf + (coder.low_step if rung is Rung.LOW else 0))
            try:
                at_work = make(coder, width=width, height=height, fps=self._fps, crf=crf)
            except av.error.FFmpegError as exc:
                if coder is self._coders[-1]:
                    raise
                _log.warning("%s can't take another session: %s", coder.name, exc)
                continue
            self._at_work[rung], self._coder = at_work, coder
            return at_work
        raise AssertionError("every codec has an encoder")


def probe_hardware(*, width: int, height: int, fps: int, crf: int) -> frozenset[str]:
    """Which hardware encoders make video of this size on this machine. Tries each."""
    found = []
    for codec, coder in hardware_coders():
        encoding = Encoding(crf=crf, hardware=frozenset({coder.name}))
        encoder = SessionEncoder(width=width, height=height, fps=fps, encoding=encoding, codec=codec)
        try:
            encoder.try_out(coder)
        except Exception as exc:  # a driver fails in many ways, and in none of them shall an engine
            _log.info("%s does not work here: %r", coder.name, exc)
        else:
            found.append(coder.name)
        encoder.close()
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
        """It has ended; what was submitted is still encoded."""

    def renew_lane(self, lane: Lane) -> None:
        """What is submitted from now on owes nothing to what was before."""

    def submit(
        self,
        lane: Lane,
        frames: npt.NDArray[np.uint8],
        on_part: Callable[[EncodedPart], None],
        on_error: Callable[[Exception], None],
        rungs: Sequence[Rung] = (Rung.FULL,),
    ) -> Future[None]:
        """Encode a chunk; the callbacks run before the future is done."""


class EncoderPool:
    """A fixed number of threads; chunks of one session never overtake each other.

    Its queue is bounded from outside: a session starts no chunk while two of its chunks are not encoded
    (`engine.credit.MAX_UNENCODED_CHUNKS`).
    """

    def __init__(self, *, threads: int) -> None:
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix=f"encoder-{i}") for i in range(threads)]
        self._lanes: list[set[Lane]] = [set() for _ in range(threads)]
        self._released_s = -RELEASE_EVERY_S

    def open_lane(self, encoder: SessionEncoder) -> Lane:
        """Take a session to the thread that has the fewest."""
        thread = min(range(len(self._lanes)), key=lambda thread: len(self._lanes[thread]))
        lane = Lane(encoder=encoder, thread=thread)
        self._lanes[thread].add(lane)
        self._threads[thread].submit(encoder.prepare)  # what it raises, the first chunk raises too
        return lane

    def close_lane(self, lane: Lane) -> None:
        self._lanes[lane.thread].remove(lane)
        self._threads[lane.thread].submit(self._end, lane.encoder)

    def renew_lane(self, lane: Lane) -> None:
        self._threads[lane.thread].submit(lane.encoder.renew)

    def submit(
        self,
        lane: Lane,
        frames: npt.NDArray[np.uint8],
        on_part: Callable[[EncodedPart], None],
        on_error: Callable[[Exception], None],
        rungs: Sequence[Rung] = (Rung.FULL,),
    ) -> Future[None]:
        """Encode a chunk; the callbacks run on the encoder's thread, before the future is done."""
        return self._threads[lane.thread].submit(_encode, lane.encoder, frames, on_part, on_error, rungs)

    def _end(self, encoder: SessionEncoder) -> None:
        encoder.close()
        now_s = time.monotonic()
        if now_s - self._released_s >= RELEASE_EVERY_S:
            self._released_s = now_s
            release_free()

    def close(self) -> None:
        """Finish what was submitted, then end the threads and every encoder. Blocks."""
        for thread in self._threads:
            thread.shutdown(wait=True)
        for lane in set().union(*self._lanes):
            lane.encoder.close()


def _encode(
    encoder: SessionEncoder,
    frames: npt.NDArray[np.uint8],
    on_part: Callable[[EncodedPart], None],
    on_error: Callable[[Exception], None],
    rungs: Sequence[Rung],
) -> None:
    try:
        for part in encoder.encode(frames, rungs):
            on_part(part)
    except Exception as exc:  # one session's failure must not end the pool's thread
        on_error(exc)
