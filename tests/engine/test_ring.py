"""Ring positions of latent frames."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.ring import num_valid, slot_of_frame, write_slots


@st.composite
def rings(draw: st.DrawFn) -> tuple[int, int, int]:
    """(chunk, window, sink) as ModelSpec allows."""
    chunk = draw(st.integers(1, 6))
    sink = draw(st.integers(0, 6))
    return chunk, chunk + sink + draw(st.integers(0, 12)), sink


def contents(index: int, chunk: int, window: int, sink: int) -> dict[int, int]:
    """Slot → newest frame in it, after chunk `index`."""
    return {slot_of_frame(f, window=window, sink=sink): f for f in range((index + 1) * chunk)}


@given(rings(), st.integers(0, 50))
def test_a_chunk_writes_distinct_slots_below_num_valid(ring: tuple[int, int, int], index: int) -> None:
    """The frames of a chunk never collide and are attended to."""
    chunk, window, sink = ring
    slots = write_slots(index, chunk=chunk, window=window, sink=sink)
    assert len(set(slots)) == chunk
    assert max(slots) < num_valid(index, chunk=chunk, window=window) <= window


@given(rings(), st.integers(0, 50))
def test_the_slab_holds_the_sinks_and_the_newest_frames(ring: tuple[int, int, int], index: int) -> None:
    """After any chunk the valid slots hold the first `sink` frames and the newest of the others."""
    chunk, window, sink = ring
    frames = (index + 1) * chunk
    held = contents(index, chunk, window, sink)
    newest = range(max(sink, frames - (window - sink)), frames)
    assert set(held.values()) == {*range(min(sink, frames)), *newest}
    assert set(held) == set(range(num_valid(index, chunk=chunk, window=window)))


def test_the_ring_wraps_behind_the_sinks() -> None:
    """The picture in the module's docstring."""
    assert [slot_of_frame(f, window=6, sink=2) for f in range(10)] == [0, 1, 2, 3, 4, 5, 2, 3, 4, 5]
