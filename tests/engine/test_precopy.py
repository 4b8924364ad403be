"""What was sent ahead counts only as long as nothing wrote it."""

from __future__ import annotations

import random

import pytest

from engine.migration_cost import LinkCost, Sizes, is_rebuild_cheaper
from engine.precopy import Look, Precopy, Ring

RINGS = [Ring(chunk=3, window=12, sink=0), Ring(chunk=3, window=21, sink=3), Ring(chunk=2, window=4, sink=1)]


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("seed", range(20))
def test_the_target_ends_with_what_the_source_has(ring: Ring, seed: int) -> None:
    """A model of both slabs: contents are the chunk that wrote them; reads may tear while a chunk is made."""
    rng = random.Random(seed)
    source: dict[int, object] = {}
    target: dict[int, object] = {}
    precopy, index, resets = Precopy(ring), 0, 0

    def make_chunk() -> None:
        nonlocal index, resets
        if rng.random() < 0.1:
            source.clear()
            index, resets = 0, resets + 1
        for frame in ring.written(index):
            source[frame] = (resets, index)
        index += 1

    for _ in range(rng.randrange(12)):
        make_chunk()
    for _ in range(rng.randrange(4)):
        look = Look(place=(0, resets), index=index)
        frames = precopy.wanted(look)
        at = rng.randrange(len(frames) + 1)
        target |= {frame: source[frame] for frame in frames[:at]}
        for _ in range(rng.randrange(3)):  # others are read only after more chunks
            make_chunk()
        target |= {frame: source.get(frame, "torn") for frame in frames[at:]}
        precopy.sent(look, frames)
    look = Look(place=(0, resets), index=index)
    dirty = precopy.dirty(look)
    if precopy.is_afresh:
        target.clear()
    target |= {frame: source[frame] for frame in dirty}
    assert {frame: target[frame] for frame in ring.live(index)} == source
    assert set(source) == ring.live(index)


def test_at_a_boundary_only_the_newest_chunk_is_dirty() -> None:
    ring = RINGS[1]
    precopy = Precopy(ring)
    look = Look(place=(0, 0), index=20)
    precopy.sent(look, precopy.wanted(look))
    assert set(precopy.dirty(Look(place=(0, 0), index=21))) == ring.written(20)


@pytest.mark.parametrize(
    ("bytes_per_ms", "rebuild_ms", "is_cheaper"),
    [(1e7, 250.0, False), (1e5, 250.0, True), (1e5, 1e5, False), (1e2, 1e9, True)],
)
def test_the_way_follows_from_the_costs(bytes_per_ms: float, rebuild_ms: float, is_cheaper: bool) -> None:
    """A fast link carries K/V, a slow one doesn't; a slow rebuild is worth a wait within the limit."""
    link = LinkCost(alpha_ms=1.0, bytes_per_ms=bytes_per_ms)
    sizes = Sizes(slab=400_000_000, dirty=100_000_000, rest=1_000_000)
    assert is_rebuild_cheaper(sizes, link, rebuild_ms=rebuild_ms, limit_ms=20_000) == is_cheaper


def test_the_link_is_learned_from_what_was_sent() -> None:
    link = LinkCost(alpha_ms=1.0, bytes_per_ms=1e6)
    for _ in range(20):
        link = link.observed(1_000_000, 101.0)
    assert link.bytes_per_ms == pytest.approx(1e4, rel=0.01)
