"""Recordings on disk: segments, their limits, and MP4 files of them."""

from __future__ import annotations

import itertools
import os
import resource
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from engine.codecs import CODECS
from engine.encoder import SessionEncoder
from engine.encoder_child import ChildEncoder
from gateway.protocol import ChunkHeader
from gateway.segments import SegmentWriter, download_path, make_mp4, read_chunks, remove, take_stock
from scheduler.messages import Rung
from tests.browser.stream_server import CHUNK_FRAMES, FPS, Encoder, draw
from tests.gateway.test_client_chunks import encode, part

NAMES = ("s_000000000000000a", "s_000000000000000b")
LIMIT = 1 << 20


def parts_of(seq: int, encoder: Encoder | None = None, parts: int = 1) -> list[tuple[ChunkHeader, bytes]]:
    units = encode(seq, encoder=encoder)
    made = (part(seq, number, parts, units) for number in range(parts))
    return [(header, bytes(payload)) for header, payload in made]


def numbers_in(path: Path) -> list[tuple[int, int]]:
    """(position, the number drawn in the picture) of each frame, decoded from start to end."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    weights = 1 << np.arange(12)
    found = []
    for frame in frames:
        bits = frame.to_ndarray(format="gray")[3, 4::8] > 127
        found.append((round(frame.time * FPS), int(bits @ weights)))
    return found


def duration_s(path: Path) -> float:
    with av.open(str(path)) as container:
        assert container.duration is not None
        return container.duration / 1_000_000


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_file_is_what_was_recorded(tmp_path: Path) -> None:
    """Chunks of several writers and encoders, one of them in parts, some twice, are one video."""
    folder = tmp_path / NAMES[0]
    first, second, encoder = SegmentWriter(folder, LIMIT), SegmentWriter(folder, LIMIT), Encoder()
    for seq in range(4):
        first.append(parts_of(seq, encoder, parts=1 + seq % 3))
    other = Encoder()
    for seq in range(2, 6):  # its client attached elsewhere and had not got 2 and 3
        second.append(parts_of(seq, other))
    path = tmp_path / "out.mp4"
    assert make_mp4(folder, path) == 6 * CHUNK_FRAMES
    assert numbers_in(path) == [(n, n) for n in range(6 * CHUNK_FRAMES)]
    assert duration_s(path) == pytest.approx(6 * CHUNK_FRAMES / FPS, abs=0.01)


def test_writer_goes_on_behind_another(tmp_path: Path) -> None:
    """A client that came back from another gateway: nothing of what was written there is lost."""
    folder = tmp_path / NAMES[0]
    here, there = SegmentWriter(folder, LIMIT), SegmentWriter(folder, LIMIT)
    for writer, seqs in ((here, (0, 1)), (there, (1, 2, 3)), (here, (3, 4))):
        for seq in seqs:
            writer.append(parts_of(seq))
    assert [chunk.seq for chunk in read_chunks(folder)] == [0, 1, 2, 3, 4]


def test_nothing_is_added_behind_what_the_disk_did_not_take(tmp_path: Path) -> None:
    """A write that fails amid a chunk costs that chunk, not those that come later."""
    folder, encoder = tmp_path / NAMES[0], Encoder()
    writer = SegmentWriter(folder, LIMIT)
    written = writer.append(parts_of(0, encoder))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (written + 100, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            writer.append(parts_of(1, encoder))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert size_of(folder) == written
    writer.append(parts_of(2, encoder))
    assert [chunk.seq for chunk in read_chunks(folder)] == [0, 2]


def test_a_full_disk_does_not_fill_with_files(tmp_path: Path) -> None:
    """Each chunk begins a segment behind one that is missing; of those that fail nothing stays."""
    folder = tmp_path / NAMES[0]
    writer = SegmentWriter(folder, LIMIT)
    writer.append(parts_of(0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        for seq in range(1, 4):
            with pytest.raises(OSError, match="File too large"):
                writer.append(parts_of(seq))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(list(folder.iterdir())) == 1
    writer.append(parts_of(4))
    assert [chunk.seq for chunk in read_chunks(folder)] == [0, 4]


def test_half_a_record_is_not_there(tmp_path: Path) -> None:
    """What a killed gateway had begun to write spoils nothing, and others go on behind it."""
    folder = tmp_path / NAMES[0]
    writer = SegmentWriter(folder, LIMIT)
    for seq in range(3):
        writer.append(parts_of(seq))
    (segment,) = folder.iterdir()
    os.truncate(segment, segment.stat().st_size - 10)
    SegmentWriter(folder, LIMIT).append(parts_of(2))
    assert [chunk.seq for chunk in read_chunks(folder)] == [0, 1, 2]


def test_missing_chunk_leaves_its_time_open(tmp_path: Path) -> None:
    """The picture before it stands still for as long."""
    folder, path = tmp_path / NAMES[0], tmp_path / "out.mp4"
    writer = SegmentWriter(folder, LIMIT)
    for seq in (3, 5):
        writer.append(parts_of(seq))
    assert make_mp4(folder, path) == 2 * CHUNK_FRAMES
    assert [at for at, _ in numbers_in(path)] == [*range(12), *range(24, 36)]


def test_chunks_that_overlap_are_put_one_behind_the_other(tmp_path: Path) -> None:
    """Behind a short chunk an engine that took over estimated its times too early: no frame is lost."""
    folder, path = tmp_path / NAMES[0], tmp_path / "out.mp4"
    writer = SegmentWriter(folder, LIMIT)
    writer.append(parts_of(0))
    for seq in (1, 2):
        early = [(replace(head, pts_ms=head.pts_ms - 3000 / FPS), data) for head, data in parts_of(seq)]
        writer.append(early)
    assert make_mp4(folder, path) == 3 * CHUNK_FRAMES
    assert numbers_in(path) == [(n, n) for n in range(3 * CHUNK_FRAMES)]


def test_nothing_recorded_makes_no_file(tmp_path: Path) -> None:
    """A session without a chunk has no recording."""
    path = tmp_path / "out.mp4"
    assert make_mp4(tmp_path / NAMES[0], path) == 0
    assert not path.exists()


def test_session_keeps_its_newest_video(tmp_path: Path) -> None:
    """Beyond the limit the oldest segments go; what is left plays from its first chunk."""
    folder, path = tmp_path / NAMES[0], tmp_path / "out.mp4"
    one = SegmentWriter(tmp_path / NAMES[1], LIMIT).append(parts_of(0))
    limit = 8 * 3 * one
    writer = SegmentWriter(folder, limit)
    chunks = [parts_of(seq) for seq in range(60)]
    for chunk in chunks:
        writer.append(chunk)
        assert size_of(folder) <= limit
    kept = [chunk.seq for chunk in read_chunks(folder)]
    assert kept == list(range(kept[0], 60)) and 0 < kept[0] < 50
    make_mp4(folder, path)
    assert numbers_in(path)[0] == (0, kept[0] * CHUNK_FRAMES)


def test_all_together_are_limited(tmp_path: Path) -> None:
    """The oldest video goes first, whoever's it is; what is not a recording is left alone."""
    for name, changed_s in zip(NAMES, (100, 200), strict=True):
        SegmentWriter(tmp_path / name, LIMIT).append(parts_of(0))
        for path in (tmp_path / name).iterdir():
            os.utime(path, (changed_s, changed_s))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.chunks").write_bytes(bytes(100_000))
    (tmp_path / "film.mp4").write_bytes(bytes(100_000))
    old, half_made = download_path(tmp_path / NAMES[1]), download_path(tmp_path / NAMES[1])
    for path, changed_s in ((old, 100), (half_made, 10_000)):
        path.write_bytes(b"x")
        os.utime(path, (changed_s, changed_s))
    limit = size_of(tmp_path / NAMES[1]) - 2
    stock = take_stock(tmp_path, limit_bytes=limit, now_s=10_000, rest_s=600)
    assert stock.num_bytes == limit and stock.rested == NAMES
    assert [len(list((tmp_path / name).glob("*.chunks"))) for name in NAMES] == [0, 1]
    assert (tmp_path / "photos" / "1.chunks").exists() and (tmp_path / "film.mp4").exists()
    assert half_made.exists() and not old.exists()
    remove(tmp_path / NAMES[0])
    assert not (tmp_path / NAMES[0]).exists()
    assert take_stock(tmp_path, limit_bytes=limit, now_s=700, rest_s=600).rested == ()


@pytest.mark.parametrize("codec", CODECS)
def test_recording_is_one_video_at_both_rungs(tmp_path: Path, codec: str) -> None:
    """Its client fell to the lower rung and rose again: the file has the headers of its first chunk only."""
    folder, path = tmp_path / NAMES[0], tmp_path / "out.mp4"
    writer, coder = SegmentWriter(folder, LIMIT), Encoder(codec)
    for seq in range(3):
        pictures = [draw("red on blue", seq * CHUNK_FRAMES + k) for k in range(CHUNK_FRAMES)]
        units = coder.encode(pictures, Rung.LOW if seq == 1 else Rung.FULL)
        header, payload = part(seq, 0, 1, units, codec)
        writer.append([(header, bytes(payload))])
    coder.close()
    assert make_mp4(folder, path) == 3 * CHUNK_FRAMES
    assert numbers_in(path) == [(n, n) for n in range(3 * CHUNK_FRAMES)]


def bars(seq: int) -> npt.NDArray[np.uint8]:
    """Frame i of the session, of those of chunk `seq`, has its white bar at column 8 * i."""
    video = np.zeros((CHUNK_FRAMES, 256, 288, 3), np.uint8)
    for k, picture in enumerate(video):
        first = 8 * (seq * CHUNK_FRAMES + k)
        picture[:, first : first + 8] = 255
    return video


def split(payload: bytes, sizes: tuple[int, ...]) -> Iterator[bytes]:
    for end, size in zip(itertools.accumulate(sizes), sizes, strict=True):
        yield payload[end - size : end]


def test_recording_goes_on_over_a_lost_encoder(tmp_path: Path) -> None:
    """AV1 whose encoder was killed amid a chunk: the key frame that no chunk begins with spoils nothing."""
    folder, path = tmp_path / NAMES[0], tmp_path / "out.mp4"
    writer, lost = SegmentWriter(folder, LIMIT), []
    coder = SessionEncoder(width=288, height=256, fps=FPS, codec="av1")
    for seq in range(3):
        units: list[bytes] = []
        for made in coder.encode(bars(seq)):
            units += split(made.payload, made.sizes)
            if (seq, made.part) == (1, 0):
                at_work = coder._at_work[Rung.FULL]
                assert isinstance(at_work, ChildEncoder) and at_work.pid is not None
                lost.append(at_work.pid)
                os.kill(at_work.pid, signal.SIGKILL)
        parts = (part(seq, number, 3, units, "av1") for number in range(3))
        writer.append([(header, bytes(payload)) for header, payload in parts])
    at_work = coder._at_work[Rung.FULL]
    assert isinstance(at_work, ChildEncoder) and at_work.pid not in lost
    coder.close()
    assert make_mp4(folder, path) == 3 * CHUNK_FRAMES
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    found = [int(frame.to_ndarray(format="gray").astype(int).sum(0).argmax()) // 8 for frame in frames]
    assert found == list(range(3 * CHUNK_FRAMES))
    assert [round(frame.time * FPS) for frame in frames] == found
