"""An encoder in a process of its own."""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from engine.codecs import find_coder
from engine.encoder_child import ChildEncoder, EncoderLost
from gateway.client_chunks import ChunkDecoder
from gateway.client_errors import BadServer
from tests.patience import PATIENCE_S

SVT = find_coder("libsvtav1")


def make(side: int = 96) -> ChildEncoder:
    """No child counts as one that hangs because the machine stood still."""
    return ChildEncoder(SVT, width=side, height=side, fps=16, crf=23, limit_s=PATIENCE_S)


def lose_soon(encoder: ChildEncoder) -> None:
    """The child at work now has half a second for a frame, the next one as long as any."""
    encoder._limit_s = 0.5
    attempt = encoder._try

    def attempt_once(frames: npt.NDArray[np.uint8], flags: int) -> list[bytes]:
        try:
            return attempt(frames, flags)
        finally:
            encoder._limit_s, encoder._try = PATIENCE_S, attempt  # type: ignore[method-assign]

    encoder._try = attempt_once  # type: ignore[method-assign]


def bars(first: int, frames: int) -> npt.NDArray[np.uint8]:
    """Frame i of the session has its white bar at column 8 * i."""
    video = np.zeros((frames, 96, 96, 3), dtype=np.uint8)
    for i in range(frames):
        video[i, :, 8 * (first + i) : 8 * (first + i + 1)] = 255
    return video


def columns(units: list[bytes]) -> list[int]:
    """Where the bars are, by a client's decoder."""
    return [
        int(picture[:, :, 0].astype(int).sum(0).argmax()) // 8
        for picture in ChunkDecoder("av1").decode(units)
    ]


def is_gone(pid: int) -> bool:
    """Ended, and waited for."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


@pytest.fixture
def encoder() -> Iterator[ChildEncoder]:
    encoder = make()
    yield encoder
    encoder.close()


def test_a_chunk_arrives_although_its_encoder_hangs_or_dies(encoder: ChildEncoder) -> None:
    """A fresh one goes on in the midst of the chunk; a client decodes every frame of it in one go."""
    units = encoder.encode(bars(0, 4), key=True)
    for first, number in ((4, signal.SIGSTOP), (8, signal.SIGKILL)):
        pid = encoder.pid
        assert pid is not None
        os.kill(pid, number)
        lose_soon(encoder)
        units += encoder.encode(bars(first, 4), key=False)
        assert encoder.pid != pid and is_gone(pid)
    assert len(units) == 12 and columns(units) == list(range(12))


def test_renewed_it_encodes_as_a_new_one(encoder: ChildEncoder) -> None:
    """In the same process, which need not start again."""
    pid = encoder.pid
    encoder.encode(bars(0, 4), key=True)
    with pytest.raises(BadServer):
        columns(encoder.encode(bars(4, 4), key=False))
    encoder.renew()
    assert columns(encoder.encode(bars(4, 4), key=False)) == [4, 5, 6, 7]
    assert encoder.pid == pid


def test_frames_of_another_size_are_refused(encoder: ChildEncoder) -> None:
    """And nothing of them is sent: the next ones are encoded."""
    with pytest.raises(ValueError, match="not"):
        encoder.encode(np.zeros((1, 96, 64, 3), dtype=np.uint8), key=True)
    assert len(encoder.encode(bars(0, 1), key=True)) == 1


def test_what_no_child_can_encode_is_an_error() -> None:
    """After two have tried; nothing is left of either."""
    encoder = make(side=1)
    with pytest.raises(EncoderLost, match="has ended"):
        encoder.encode(np.zeros((1, 1, 1, 3), dtype=np.uint8), key=True)
    assert encoder.pid is None


def test_the_child_ends_with_its_input() -> None:
    """As when this process is killed. The input ends within a frame here."""
    encoder = make()
    encoder.encode(bars(0, 1), key=True)
    assert encoder._child is not None
    process = encoder._child._process
    assert process.stdin is not None
    process.stdin.write(struct.pack("<B100x", 1))
    process.stdin.close()
    assert process.wait(PATIENCE_S) == 0


def test_a_forgotten_encoder_takes_its_child_along() -> None:
    """Nobody has to close what he drops."""
    encoder = make()
    pid = encoder.pid
    assert pid is not None and not is_gone(pid)
    del encoder
    assert is_gone(pid)
