"""The replay window travels with the state."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.replay import Replay
from engine.replay_state import add_replay, replay_of
from engine.state_format import StateFormatError, describe, pack, unpack
from scheduler.messages import Applied
from tests.engine.edges import S1
from tests.engine.test_state_format import HEADER

EMPTY = describe(replace(HEADER, replay=()), {}, checked=True)


def window(chunks: int) -> Replay:
    """Chunks 3, 4, …, the last one incomplete."""
    replay = Replay(next_seq=3, start_ms=30.0)
    for seq in range(3, 3 + chunks):
        applied = (Applied(session=S1, epoch=1, rev=seq, seq=seq, id="p"),) if seq % 2 else ()
        replay.begin(start_ms=10.0 * seq, end_ms=10.0 * seq + 10, applied=applied)
        replay.add(b"a" * seq, last=False)
        if seq < 2 + chunks:
            replay.add(b"b", last=True)
    return replay


@pytest.mark.parametrize("chunks", [1, 4, 40])
def test_a_replay_window_survives_its_bytes(chunks: int) -> None:
    """Every complete chunk with its parts, times and what was applied; the incomplete one is left behind."""
    replay = window(chunks)
    there = replay_of(unpack(pack(add_replay(EMPTY, replay))), next_seq=replay.next_seq, end_ms=replay.end_ms)
    assert (there.next_seq, there.end_ms) == (replay.next_seq, replay.end_ms)
    complete = [chunk for chunk in replay.since(0) if chunk.complete]
    assert there.since(0) == complete


def test_without_a_window_it_goes_on_empty() -> None:
    """As after a rebuild."""
    there = replay_of(EMPTY, next_seq=7, end_ms=84.0)
    assert (there.next_seq, there.oldest_seq, there.end_ms) == (7, 7, 84.0)


@pytest.mark.parametrize("next_seq", [4, 8])
def test_a_window_that_ends_elsewhere_is_refused(next_seq: int) -> None:
    """It would repeat a chunk, or leave one out."""
    exported = add_replay(EMPTY, window(4))
    with pytest.raises(StateFormatError):
        replay_of(exported, next_seq=next_seq, end_ms=0.0)
