"""The replay window."""

from __future__ import annotations

import pytest

from engine.replay import Replay
from scheduler.messages import REPLAY_CHUNKS


def filled(chunks: int, parts: int = 2) -> Replay:
    """A window after so many chunks of 100 ms."""
    replay = Replay()
    for seq in range(chunks):
        replay.begin(start_ms=seq * 100.0, end_ms=(seq + 1) * 100.0)
        for part in range(parts):
            replay.add(f"{seq}.{part}".encode(), last=part + 1 == parts)
    return replay


def test_it_keeps_the_newest_chunks() -> None:
    """Sixteen stay; older ones are gone."""
    replay = filled(REPLAY_CHUNKS + 3)
    assert (replay.oldest_seq, replay.next_seq) == (3, REPLAY_CHUNKS + 3)
    assert [chunk.seq for chunk in replay.since(0)] == list(range(3, REPLAY_CHUNKS + 3))


def test_an_incomplete_chunk_is_sent_but_not_counted() -> None:
    """A new subscriber gets the parts so far; next_seq stays."""
    replay = filled(1)
    replay.begin(start_ms=100.0, end_ms=200.0)
    replay.add(b"1.0", last=False)
    assert [chunk.parts for chunk in replay.since(1)] == [[b"1.0"]]
    assert (replay.next_seq, replay.end_ms) == (1, 100.0)


def test_media_positions_of_known_and_unknown_chunks() -> None:
    """Known chunks give their bounds, others the nearest known one."""
    replay = filled(3)
    assert [replay.start_of_ms(seq) for seq in range(4)] == [0.0, 100.0, 200.0, 300.0]
    assert [replay.end_of_ms(seq) for seq in (-1, 0, 2, 9)] == [0.0, 100.0, 300.0, 300.0]


def test_an_empty_window_starts_where_it_is_told() -> None:
    """After a recovery the first chunk here is not chunk 0."""
    replay = Replay(next_seq=7, start_ms=5250.0)
    assert (replay.oldest_seq, replay.next_seq, replay.end_ms) == (7, 7, 5250.0)
    assert replay.since(7) == []


def test_parts_out_of_place_are_our_bug() -> None:
    """A chunk begins after the last one is complete, and ends once."""
    replay = filled(1)
    with pytest.raises(AssertionError):
        replay.add(b"late", last=True)
    replay.begin(start_ms=100.0, end_ms=200.0)
    with pytest.raises(AssertionError):
        replay.begin(start_ms=200.0, end_ms=300.0)
