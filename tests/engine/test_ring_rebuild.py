"""Which chunks a slab holds, and how it is written again from their latents."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.ring import live_chunks, live_frames, num_valid, plan_rebuild, slot_of_frame, write_slots


@st.composite
def rings(draw: st.DrawFn) -> tuple[int, int, int]:
    """(chunk, window, sink) of a legal model."""
    chunk = draw(st.integers(1, 4))
    window = draw(st.integers(chunk, 16))
    return chunk, window, draw(st.integers(0, window - chunk))


@given(ring=rings(), index=st.integers(0, 24))
def test_live_frames_are_those_that_writing_leaves(ring: tuple[int, int, int], index: int) -> None:
    """Writing chunk after chunk into the ring leaves exactly these frames in it."""
    chunk, window, sink = ring
    held: dict[int, int] = {}
    for number in range(index):
        frames = range(number * chunk, (number + 1) * chunk)
        held |= dict(zip(write_slots(number, chunk=chunk, window=window, sink=sink), frames, strict=True))
    live = live_frames(index, chunk=chunk, window=window, sink=sink)
    assert list(live) == sorted(held.values())
    assert set(live_chunks(index, chunk=chunk, window=window, sink=sink)) == {f // chunk for f in live}


@given(ring=rings(), index=st.integers(0, 24))
def test_a_rebuild_puts_every_live_frame_where_the_ring_has_it(
    ring: tuple[int, int, int], index: int
) -> None:
    """Each pass sees written frames only, and after the moves the slab is as it was."""
    chunk, window, sink = ring
    have = live_chunks(index, chunk=chunk, window=window, sink=sink)
    plan = plan_rebuild(index, have, chunk=chunk, window=window, sink=sink)
    held: dict[int, int] = {}
    for step in plan.passes:
        (number,) = step.indices
        frames = range(number * chunk, (number + 1) * chunk)
        held |= dict(zip(step.write, frames, strict=True))
        assert len(set(step.write)) == chunk and max(step.write) < step.num_valid <= window
        assert set(range(step.num_valid)) <= set(held)
    if plan.moves:
        held = {target: held[source] for source, target in plan.moves}
    live = live_frames(index, chunk=chunk, window=window, sink=sink)
    assert held == {slot_of_frame(frame, window=window, sink=sink): frame for frame in live}


@given(ring=rings(), index=st.integers(0, 24))
def test_while_nothing_was_evicted_a_rebuild_repeats_the_clean_passes(
    ring: tuple[int, int, int], index: int
) -> None:
    """Same frames written, same frames seen, nothing moved: it is exact to the bit."""
    chunk, window, sink = ring
    if index * chunk > window:
        return
    plan = plan_rebuild(index, range(index), chunk=chunk, window=window, sink=sink)
    assert not plan.moves
    assert [(step.write, step.num_valid) for step in plan.passes] == [
        (
            write_slots(number, chunk=chunk, window=window, sink=sink),
            num_valid(number, chunk=chunk, window=window),
        )
        for number in range(index)
    ]


def test_a_chunk_whose_latents_are_lost_leaves_its_frames_out() -> None:
    """The others are written without a hole in what is attended to."""
    plan = plan_rebuild(4, [1, 3], chunk=3, window=12, sink=0)
    assert [(step.indices, step.write, step.num_valid) for step in plan.passes] == [
        ((1,), (0, 1, 2), 3),
        ((3,), (3, 4, 5), 6),
    ]
    assert plan.moves == ((0, 3), (1, 4), (2, 5), (3, 9), (4, 10), (5, 11))
