"""Start-up: what is measured decides how much is allocated."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.kv_pool import SlabPool
from engine.loading import prepare
from engine.memory import Room, slot_bytes
from engine.ranks import Alone
from tests.engine.harness import RecordingModel


@dataclass
class Meter:
    """Room for so many slots beside a workspace and a margin of one slot each."""

    per_slot: int
    slots: int
    began: bool = False

    def begin(self) -> None:
        self.began = True

    def room(self, pool_bytes: int) -> Room:
        assert self.began and pool_bytes % self.per_slot == 0
        return Room(
            free_bytes=(self.slots + 2) * self.per_slot + 1,
            workspace_bytes=self.per_slot,
            margin_bytes=self.per_slot,
        )


@pytest.mark.parametrize(("fits", "expected"), [(2, 2), (4, 4), (9, 4)])
def test_the_pool_holds_what_memory_has_room_for_and_no_more_than_wanted(fits: int, expected: int) -> None:
    """After passes of the largest batch were measured; the largest batch is no larger than the pool."""
    model = RecordingModel()
    meter = Meter(per_slot=slot_bytes(model), slots=fits)
    loaded = prepare(model, capacity=4, ranks=Alone(), meter=meter)
    assert max(len(batch.rows) for batch in model.batches) == 4
    assert (loaded.pool.num_slots, loaded.pool.num_free, loaded.costs.largest) == (expected,) * 3


def test_the_trial_pool_is_gone_before_another_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both would not fit, and an engine that serves collects no garbage by itself."""
    model, pools, left = RecordingModel(), list[weakref.ref[SlabPool]](), list[int]()

    def counted(*args: Any, **more: Any) -> SlabPool:
        left.append(sum(pool() is not None for pool in pools))
        pool = SlabPool(*args, **more)
        pools.append(weakref.ref(pool))
        return pool

    monkeypatch.setattr("engine.loading.SlabPool", counted)
    gc.collect()
    gc.disable()
    try:
        prepare(model, capacity=4, ranks=Alone(), meter=Meter(per_slot=slot_bytes(model), slots=2))
    finally:
        gc.enable()
    assert left == [0, 0]


def test_without_room_for_one_session_there_is_no_engine() -> None:
    """It says so, and ends."""
    model = RecordingModel()
    with pytest.raises(MemoryError, match="no memory for one session"):
        prepare(model, capacity=4, ranks=Alone(), meter=Meter(per_slot=slot_bytes(model), slots=0))


def test_a_trial_pool_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it does; then the measurement says how many fit in the end."""
    model, zeros = RecordingModel(), torch.zeros

    def limited(*size: Any, **more: Any) -> Tensor:
        if isinstance(size[0], tuple) and len(size[0]) == 7 and size[0][0] > 2:  # a KV pool
            raise torch.OutOfMemoryError("planted")
        return zeros(*size, **more)

    monkeypatch.setattr(torch, "zeros", limited)
    meter = Meter(per_slot=slot_bytes(model), slots=2)
    assert prepare(model, capacity=8, ranks=Alone(), meter=meter).pool.num_slots == 2
