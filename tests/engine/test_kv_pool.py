"""Slab pools."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.kv_pool import PoolFull, SlabPool
from engine.models.shapes.model import TINY, ShapesModel

MODEL = ShapesModel.random(0, config=TINY)


def test_slots_are_zeroed_when_allocated_again() -> None:
    """Nothing of the former session is left, not even a NaN."""
    pool = SlabPool(MODEL, slots=1)
    slot = pool.allocate()
    for slab in (pool.kv, pool.prompt_kv, pool.decoder):
        slab[slot].fill_(float("nan"))
    pool.free(slot)
    assert pool.allocate() == slot
    assert not pool.kv[slot].any() and not pool.prompt_kv[slot].any()
    assert torch.equal(pool.decoder[slot], MODEL.initial_decoder_state())


def test_clear_keeps_the_prompt_and_the_neighbours() -> None:
    """A reset forgets the past of one session only."""
    pool = SlabPool(MODEL, slots=2)
    a, b = pool.allocate(), pool.allocate()
    for slab in (pool.kv, pool.prompt_kv):
        slab.fill_(1.0)
    pool.clear(a)
    assert not pool.kv[a].any() and bool(pool.kv[b].all()) and bool(pool.prompt_kv[a].all())


def test_a_full_pool_refuses() -> None:
    """PoolFull names the number of slots."""
    pool = SlabPool(MODEL, slots=1)
    pool.allocate()
    with pytest.raises(PoolFull, match="all 1 slots"):
        pool.allocate()


@given(st.lists(st.booleans(), max_size=40))
def test_free_and_held_always_add_up(takes: list[bool]) -> None:
    """Whatever the order of allocate and free."""
    pool, held = SlabPool(MODEL, slots=3), []
    for take in takes:
        if take and pool.num_free:
            held.append(pool.allocate())
        elif not take and held:
            pool.free(held.pop(0))
        pool.check_integrity()
    assert pool.num_free == 3 - len(held)


def test_integrity_check_finds_a_double_free() -> None:
    """The audit fails on a planted bug."""
    pool = SlabPool(MODEL, slots=2)
    slot = pool.allocate()
    pool.free(slot)
    pool._free.append(slot)
    with pytest.raises(AssertionError, match="freed twice"):
        pool.check_integrity()
