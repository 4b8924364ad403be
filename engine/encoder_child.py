"""An encoder in a process of its own, which is killed and started again when it hangs.

The child's standard input takes frames: a byte of flags, then the frame's RGB bytes, whose number both sides
know. Its standard output says READY once, then answers each frame with a length and an access unit. It ends
with its input, also while the encoder hangs: nothing is left of an engine that was killed.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable
from contextlib import suppress
from typing import BinaryIO

import av
import numpy as np
import numpy.typing as npt

from engine.codecs import Coder, find_coder
from engine.frame_encoder import FrameEncoder

__all__ = ["ChildEncoder", "EncoderLost"]

_log = logging.getLogger("turboserve.engine.encoder_child")

READY = b"R"
KEY, ANEW = 1, 2
"""Flags of a frame: it shall be a key frame; a new encoder shall begin with it."""
LENGTH = struct.Struct("<I")
MIN_UNIT_LIMIT_BYTES = 1 << 16
"""Headers need some room; beyond it no access unit is larger than its frame was."""

START_LIMIT_S = 30.0
"""Python and FFmpeg are loaded in a fifth of a second; so long only on a machine that hardly moves."""
FRAME_LIMIT_S, FRAME_LIMIT_S_PER_MEGAPIXEL = 3.0, 3.0
"""A frame takes some milliseconds, and a hundred times that on a busy machine. All sessions of the encoder's
thread wait meanwhile."""


class EncoderLost(Exception):
    """An encoder's process has ended, or it hung and was ended."""


# --- the parent's end ------------------------------------------------------------------------------------


class ChildEncoder:
    """One session's encoder, in a child of this process. Not thread-safe; `close` ends the child."""

    def __init__(
        self, coder: Coder, *, width: int, height: int, fps: int, crf: int, limit_s: float | None = None
    ) -> None:
        """Starts the child and does not wait for it. `limit_s`: what a frame may take.

        Raises OSError when there can be no more processes.
        """
        self._arguments = (coder.name, *map(str, (width, height, fps, crf)))
        self._shape = (height, width, 3)
        scaled_s = FRAME_LIMIT_S + FRAME_LIMIT_S_PER_MEGAPIXEL * width * height / 1e6
        self._limit_s = limit_s if limit_s is not None else scaled_s
        self._child: _Child | None = _Child(self._arguments)
        self._anew = False

    @property
    def pid(self) -> int | None:
        """The child that is at work."""
        return self._child.pid if self._child is not None else None

    def encode(self, frames: npt.NDArray[np.uint8], *, key: bool) -> list[bytes]:
        """RGB uint8 [frames, height, width, 3] → access units. `key`: the first is a key frame.

        It is one too, without having been asked for, when the child was lost and a fresh one did the work.

        Raises:
            ValueError: the frames are not of the encoder's size.
            EncoderLost: a second child could not do it either. The next call begins with another one.
        """
        if frames.shape[1:] != self._shape or frames.dtype != np.uint8:
            raise ValueError(f"frames are {self._shape} uint8 here, not {frames.shape[1:]} {frames.dtype}")
        flags = KEY * key | ANEW * self._anew
        try:
            units = self._try(frames, flags)
        except EncoderLost as exc:
            _log.warning("%s: %s; a fresh one encodes its frames again", self._arguments[0], exc)
            units = self._try(frames, KEY)  # it knows nothing of the frames before
        self._anew = False
        return units

    def renew(self) -> None:
        """What is encoded next owes nothing to what was encoded before."""
        self._anew = True

    def close(self) -> None:
        """End the child. Blocks until it is gone, some milliseconds."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _try(self, frames: npt.NDArray[np.uint8], flags: int) -> list[bytes]:
        child = self._child = self._child or _Child(self._arguments)
        try:
            child.wait_until_ready()
            return [
                child.encode(rgb, flags if i == 0 else 0, limit_s=self._limit_s)
                for i, rgb in enumerate(frames)
            ]
        except BaseException:  # what it would answer next, nobody knows
            self.close()
            raise


class _Child:
    """A process and its pipes."""

    def __init__(self, arguments: Iterable[str]) -> None:
        # It finds what we find: PYTHONPATH has our whole path, and -P keeps its folder out.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        defaults = {"SVT_LOG": "0"}  # SVT-AV1 writes pages about itself otherwise
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "engine.encoder_child", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=defaults | os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
        )
        self.end = weakref.finalize(self, _end, self._process)
        """Whoever forgets the object ends the child as well, and so does the end of this process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._answers = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._requests, False)  # a child that hangs does not read
        self._is_ready = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Raises EncoderLost, as all here do."""
        if not self._is_ready:
            self._receive(len(READY), time.monotonic() + START_LIMIT_S)
            self._is_ready = True

    def encode(self, rgb: npt.NDArray[np.uint8], flags: int, *, limit_s: float) -> bytes:
        """One frame's access unit."""
        deadline_s = time.monotonic() + limit_s
        self._send(bytes((flags,)), deadline_s)
        self._send(np.ascontiguousarray(rgb).data.cast("B"), deadline_s)
        (length,) = LENGTH.unpack(self._receive(LENGTH.size, deadline_s))
        if length > max(rgb.nbytes, MIN_UNIT_LIMIT_BYTES):
            raise EncoderLost(f"process {self.pid} announced {length} bytes for a frame of {rgb.nbytes}")
        return self._receive(length, deadline_s)

    def _send(self, data: bytes | memoryview, deadline_s: float) -> None:
        rest = memoryview(data)
        while rest:
            self._wait(self._requests, select.POLLOUT, deadline_s)
            try:
                rest = rest[os.write(self._requests, rest) :]
            except BrokenPipeError as exc:
                raise EncoderLost(f"process {self.pid} has ended") from exc

    def _receive(self, num_bytes: int, deadline_s: float) -> bytes:
        data = bytearray()
        while len(data) < num_bytes:
            self._wait(self._answers, select.POLLIN, deadline_s)
            piece = os.read(self._answers, num_bytes - len(data))
            if not piece:
                raise EncoderLost(f"process {self.pid} has ended")
            data += piece
        return bytes(data)

    def _wait(self, pipe: int, event: int, deadline_s: float) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        if not poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000):
            raise EncoderLost(f"process {self.pid} hangs")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill it (one that hangs hears nothing else) and wait until it is gone."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


# --- the child -------------------------------------------------------------------------------------------


def main() -> None:
    """Encode what comes in, until nothing can come any more. Arguments: those of `FrameEncoder`."""
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # whole process groups get them; chunks in work are finished
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_input, name="end", daemon=True).start()
    name, *numbers = sys.argv[1:]
    width, height, fps, crf = map(int, numbers)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints must not get between them
    try:
        _serve(find_coder(name), sys.stdin.buffer, answers, width=width, height=height, fps=fps, crf=crf)
    except av.error.FFmpegError as exc:
        sys.exit(f"{name}: {exc}")


def _serve(
    coder: Coder, requests: BinaryIO, answers: BinaryIO, *, width: int, height: int, fps: int, crf: int
) -> None:
    def make_encoder() -> FrameEncoder:
        encoder = FrameEncoder(coder, width=width, height=height, fps=fps, crf=crf)
        _schedule_as_batch()
        return encoder

    encoder = make_encoder()
    answers.write(READY)
    shape = (1, height, width, 3)
    num_bytes = 3 * height * width
    while flags := requests.read(1):
        data = requests.read(num_bytes)
        if len(data) < num_bytes:
            break
        if flags[0] & ANEW:
            encoder = make_encoder()
        frames = np.frombuffer(data, np.uint8).reshape(shape)
        (unit,) = encoder.encode(frames, key=bool(flags[0] & KEY))
        answers.write(LENGTH.pack(len(unit)) + unit)


def _end_with_input() -> None:
    """The main thread may hang in the encoder, and would not notice."""
    poll = select.poll()
    poll.register(0, 0)  # tells only that the other end was closed
    poll.poll()
    os._exit(0)


def _schedule_as_batch() -> None:
    """Make all threads of this process batch threads: one that wakes does not interrupt one that runs.

    SVT-AV1 that runs as root gives its own threads, and the one that opens it, the highest real-time priority
    there is: nothing else would run on their cores. As ordinary threads they hang far more often: at once on
    two busy cores, 6 of 64 sessions of 48 frames hung, and 0 of 209 with batch threads.
    """
    with suppress(OSError):  # no /proc: not Linux
        for thread in map(int, os.listdir("/proc/self/task")):
            with suppress(OSError):  # it has ended meanwhile
                os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))


if __name__ == "__main__":
    main()
