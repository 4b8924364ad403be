"""The replay window travels with the state."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.replay import Replay
from engine.replay_state import add_replay, chunks_of, replay_of
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
    complete = [chunk for chunk in replay.since(0) if chunk.complete]
    exported = add_replay(EMPTY, replay.complete_since(0))
    exported = unpack(pack(describe(exported.header, exported.buffers, checked=True)))
    there = replay_of(chunks_of(exported), next_seq=replay.next_seq, end_ms=replay.end_ms)
    assert (there.next_seq, there.since(0)) == (replay.next_seq, complete)
    assert there.end_ms == (complete[-1].end_ms if complete else replay.end_ms)


def test_a_replay_window_survives_in_two_halves() -> None:
    """What went ahead, and what was made since."""
    replay = window(9)
    halves = [replay.complete_since(0)[:5], replay.complete_since(8)]
    there = [chunk for half in halves for chunk in chunks_of(add_replay(EMPTY, half))]
    assert replay_of(there, next_seq=replay.next_seq, end_ms=0.0).since(0) == replay.complete_since(0)
    with pytest.raises(StateFormatError):
        replay_of([*there[:5], *there[6:]], next_seq=replay.next_seq, end_ms=0.0)


def test_without_a_window_it_goes_on_empty() -> None:
    """As after a rebuild."""
    there = replay_of(chunks_of(EMPTY), next_seq=7, end_ms=84.0)
    assert (there.next_seq, there.oldest_seq, there.end_ms) == (7, 7, 84.0)


@pytest.mark.parametrize("next_seq", [4, 8])
def test_a_window_that_ends_elsewhere_is_refused(next_seq: int) -> None:
    """It would repeat a chunk, or leave one out."""
    chunks = chunks_of(add_replay(EMPTY, window(4).complete_since(0)))
    with pytest.raises(StateFormatError):
        replay_of(chunks, next_seq=next_seq, end_ms=0.0)


def test_lengths_that_do_not_fit_are_refused() -> None:
    exported = add_replay(EMPTY, window(4).complete_since(0))
    with pytest.raises(StateFormatError):
        chunks_of(replace(exported, buffers={"replay": exported.buffers["replay"][1:]}))
