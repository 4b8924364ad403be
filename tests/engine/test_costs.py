"""Measuring t(B)."""

from __future__ import annotations

import itertools

from engine.costs import measure_costs
from engine.kv_pool import SlabPool
from tests.engine.harness import RecordingModel


def test_each_batch_size_is_measured_and_the_pool_is_left_empty() -> None:
    """Sizes 1, 2, 4 and the capacity, in turn, on full windows; every slot is free again."""
    model = RecordingModel()
    pool = SlabPool(model, slots=5)
    ticks = itertools.count(step=2.0)
    table = measure_costs(model, pool, lambda: next(ticks))
    assert table.ms == (2.0,) * 5
    assert [len(batch.rows) for batch in model.batches][:8] == [1, 2, 4, 5, 1, 2, 4, 5]
    assert {row.num_valid for batch in model.batches for row in batch.rows} == {model.spec.window_frames}
    assert pool.num_free == 5


def test_a_large_pool_is_not_measured_beyond_eight_rows() -> None:
    """The cap of a batch."""
    model = RecordingModel()
    assert measure_costs(model, SlabPool(model, slots=12), itertools.count(step=1.0).__next__).largest == 8
