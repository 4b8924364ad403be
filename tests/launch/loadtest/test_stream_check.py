"""What a sound stream is, and that each fault is named."""

from __future__ import annotations

import pytest

from gateway.protocol import ChunkHeader
from launch.loadtest.stream_check import StreamCheck


def header(
    seq: int, part: int = 0, parts: int = 1, *, pts_ms: float | None = None, key: bool = True
) -> ChunkHeader:
    """A part of a chunk that plays for 300 ms."""
    return ChunkHeader(
        session="s",
        seq=seq,
        part=part,
        parts=parts,
        key=key,
        frames=1,
        sizes=(1,),
        pts_ms=300.0 * seq + 300.0 * part / parts if pts_ms is None else pts_ms,
        duration_ms=300.0 / parts,
        codec="h264",
        rev=0,
        engine="e",
    )


def faults(*headers: ChunkHeader) -> list[str]:
    """Of a stream without gaps."""
    check = StreamCheck()
    return [fault for one in headers for fault in check.part(one)] + list(check.finish())


def test_sound_streams_have_no_faults() -> None:
    """In one part or several; a chunk that was not complete may begin again in other parts."""
    assert not faults(header(0), header(1), header(2))
    assert not faults(header(0, 0, 2), header(0, 1, 2), header(1, 0, 3), header(1, 1, 3), header(1, 0, 1))


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ([header(0), header(0)], "chunk 0 came again"),
        ([header(0), header(2)], "chunk 1 never came"),
        ([header(1)], "chunk 0 never came"),
        ([header(0, 1, 2)], "part 1 of 2 came where part 0 was due"),
        ([header(0, 0, 3), header(0, 2, 3)], "part 2 of 3 came where part 1 was due"),
        ([header(0, 0, 2), header(0, 1, 3, pts_ms=150.0)], "part 1 of 3"),
        ([header(0), header(1, pts_ms=250.0)], "media time is 250.000 ms, not 300.000"),
        ([header(0), header(1, pts_ms=900.0)], "media time"),
        ([header(0, key=False)], "key frame"),
        ([header(0), header(3, pts_ms=100.0)], "does not advance"),
    ],
)
def test_each_fault_is_named(headers: list[ChunkHeader], words: str) -> None:
    """One sentence for each."""
    assert any(words in fault for fault in faults(*headers)), faults(*headers)


@pytest.mark.parametrize("is_said_first", [True, False])
def test_a_gap_that_was_said_is_no_fault(is_said_first: bool) -> None:
    """Whether it is heard before or after the chunk that follows it."""
    check = StreamCheck()
    found = list(check.part(header(0)))
    if is_said_first:
        check.gap(1, 2)
    found += check.part(header(3))
    if not is_said_first:
        check.gap(1, 2)
    assert not [*found, *check.finish()] and check.gaps == {1, 2} and check.num_chunks == 2


def test_a_gap_of_chunks_that_came_is_a_fault() -> None:
    """It said too much."""
    check = StreamCheck()
    found = [*check.part(header(0)), *check.part(header(1))]
    check.gap(1, 1)
    assert not found and list(check.finish()) == ["a gap was said of chunk 1, which came"]
