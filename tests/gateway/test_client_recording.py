"""Chunks to MP4 without encoding again."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from gateway.client_chunks import ChunkDecoder
from gateway.client_errors import BadServer
from gateway.recording import write_mp4
from scheduler.messages import CODECS
from tests.browser.stream_server import CHUNK_FRAMES, FPS, Encoder
from tests.gateway.test_client_chunks import encode, make


def read(path: Path) -> tuple[list[int], list[object]]:
    """Frame indices and pictures of a file."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [round(frame.time * FPS) for frame in frames], [
        frame.to_ndarray(format="rgb24") for frame in frames
    ]


@pytest.mark.parametrize("codec", CODECS)
def test_file_has_exactly_the_frames_of_the_chunks(tmp_path: Path, codec: str) -> None:
    """Every access unit is one frame of the file, at its index, decoding to the same picture."""
    encoder = Encoder(codec)
    chunks = [make(seq, encode(seq, encoder=encoder), codec) for seq in range(4)]
    path = tmp_path / "a.mp4"
    assert write_mp4(path, chunks, FPS) == 4 * CHUNK_FRAMES
    indices, pictures = read(path)
    assert indices == list(range(4 * CHUNK_FRAMES))
    expected = ChunkDecoder(codec).decode(chunks[3].units)
    assert np.array_equal(np.asarray(pictures[-1]), expected[-1])


def test_recording_that_begins_late_begins_at_zero(tmp_path: Path) -> None:
    """The first chunk written defines time 0; a missing chunk leaves its time open."""
    chunks = [make(seq, encode(seq)) for seq in (7, 9)]
    path = tmp_path / "a.mp4"
    assert write_mp4(path, chunks, FPS) == 2 * CHUNK_FRAMES
    indices, _ = read(path)
    assert indices == [*range(12), *range(24, 36)]


def test_order_is_checked(tmp_path: Path) -> None:
    """Chunks out of order are the caller's mistake."""
    chunks = [make(seq, encode(seq)) for seq in (1, 0)]
    with pytest.raises(ValueError, match="comes after a later one"):
        write_mp4(tmp_path / "a.mp4", chunks, FPS)


def test_no_chunks_is_no_frames(tmp_path: Path) -> None:
    """Nothing to write is not an error."""
    assert write_mp4(tmp_path / "a.mp4", [], FPS) == 0


def test_garbage_is_refused(tmp_path: Path) -> None:
    """A first access unit without parameter sets cannot begin a file."""
    with pytest.raises(BadServer):
        write_mp4(tmp_path / "a.mp4", [make(0, [bytes(100)] * 12)], FPS)
