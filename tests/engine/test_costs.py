"""Measuring t(B)."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from engine.costs import engine_costs, measure_costs, rehearse
from engine.kv_pool import SlabPool
from engine.migration_cost import LinkCost, MoveCost
from engine.models.pool_attention import GRAPH, SLICES, ChosenAttention
from engine.passes import Passes
from tests.engine.harness import RecordingModel


def test_sizes_are_measured_in_turn_on_short_and_full_windows_and_the_pool_is_left_empty() -> None:
    """Sizes 1, 2, 4 and the capacity; what lies between the two windows is interpolated."""
    model = RecordingModel()
    pool = SlabPool(model, slots=5)
    ticks = itertools.count(step=2.0)
    table = measure_costs(model, pool, lambda: next(ticks)).costs
    assert table.buckets == (3, 6, 9, 12)
    assert table.ms == ((2.0,) * 5,) * 4 and table.decode_ms == 2.0
    order = [(len(b.rows), b.rows[0].num_valid, b.attention.name) for b in model.batches if b.attention]
    ways = ("slices", "grouped", "padded")
    sizes = (1, 2, 4, 5)
    assert order[:60] == 5 * [(size, 12, way) for size in sizes for way in ways]
    assert order[60:] == 5 * [(size, 3, "slices") for size in sizes]
    assert pool.num_free == 5


def test_a_large_pool_is_not_measured_beyond_sixteen_rows() -> None:
    """The cap of a batch."""
    model = RecordingModel()
    assert (
        measure_costs(model, SlabPool(model, slots=20), itertools.count(step=1.0).__next__).costs.largest
        == 16
    )


def test_a_slow_model_is_measured_less_often() -> None:
    """A warm-up and one measurement, when these take longer than the time for it."""
    model = RecordingModel()
    measure_costs(model, SlabPool(model, slots=2), itertools.count(step=900.0).__next__)
    assert len(model.batches) == 2 * 2 * (3 + 1)


def test_graphs_are_captured_before_sessions_come() -> None:
    """Every number of rows that replays one, over full and short windows, the largest first: their memory is
    shared. The pool is empty again."""
    model = RecordingModel()
    pool = SlabPool(model, slots=3)
    attention = ChosenAttention((SLICES, GRAPH, GRAPH, GRAPH))
    rehearse(model, pool, Passes(model, pool, attention=attention), attention, every_shape=False)
    assert run_by(model) == [(3, 12), (3, 3), (2, 12), (2, 3)]
    assert pool.num_free == 3
    rehearse(model, pool, Passes(model, pool), SLICES, every_shape=False)
    assert len(model.batches) == 4


def test_on_a_gpu_every_shape_is_run_before_sessions_come() -> None:
    """Each number of rows, a window that grows, one that is written again for a new prompt, and a decode."""
    model = RecordingModel()
    model.spec = replace(model.spec, recaches_prompts=True)
    pool = SlabPool(model, slots=3)
    rehearse(model, pool, Passes(model, pool), SLICES, every_shape=True)
    assert run_by(model)[:-1] == [(3, 12), (2, 12), (1, 12), (1, 3), (1, 6), (1, 9)]
    again = model.batches[-1]
    assert (again.x.shape[1], again.rows[0].num_valid) == (12, 12) and not again.sigma.any()
    assert [len(latents) for latents in model.latents] == [3] and pool.num_free == 3


def run_by(model: RecordingModel) -> list[tuple[int, int]]:
    """Rows and K/V length of each pass."""
    return [(len(batch.rows), batch.rows[0].num_valid) for batch in model.batches]


@pytest.mark.parametrize(("pass_ms", "expected"), [(1.0, 4), (40.0, 0)])
def test_graphs_are_measured_where_passes_are_short(
    pass_ms: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the warm-up, with one replay beforehand that captures; a long pass gains nothing from a graph."""
    monkeypatch.setattr("engine.costs.can_replay", lambda model: True)
    model = RecordingModel()
    measured = measure_costs(model, SlabPool(model, slots=1), itertools.count(step=pass_ms).__next__)
    graphs = [batch for batch in model.batches if batch.attention and batch.attention.name == "graph"]
    assert len(graphs) == (expected + 1 if expected else 0)
    assert measured.attention.name == "slices"  # equally fast, and plainer


def test_a_size_that_memory_has_no_room_for_is_left_out() -> None:
    """And the engine serves with smaller batches; without room for one row it cannot."""
    model = RecordingModel()
    model.max_rows = 3
    pool = SlabPool(model, slots=8)
    assert measure_costs(model, pool, itertools.count(step=1.0).__next__).costs.largest == 2
    model.max_rows = 0
    with pytest.raises(MemoryError, match="one session"):
        measure_costs(model, pool, itertools.count(step=1.0).__next__)
    assert pool.num_free == 8


def test_the_fastest_way_to_attend_is_chosen_for_each_size_and_slow_ones_are_given_up() -> None:
    """The costs are those with the chosen way."""
    model, now_ms = RecordingModel(), 0.0
    times = {("slices", 1): 1.0, ("slices", 2): 3.0, ("grouped", 1): 2.0, ("grouped", 2): 1.5}

    def clock() -> float:
        nonlocal now_ms
        for batch in model.batches[len(seen) :]:
            assert batch.attention is not None
            seen.append(batch.attention.name)
            now_ms += times.get((batch.attention.name, len(batch.rows)), 4.0)
        return now_ms

    seen: list[str] = []
    measured = measure_costs(model, SlabPool(model, slots=2), clock)
    assert measured.attention.name == "slices/grouped"
    assert measured.costs.ms[-1] == (1.0, 1.5)
    assert seen.count("padded") == 2 * 2  # a warm-up and one measurement of each size
    assert seen.count("grouped") == 2 + 5 + 5  # of one row, of two in the full window, of two in the short


@pytest.mark.parametrize(("num_slow", "expected_ms", "num_again"), [(6, 2.0, 1), (99, 9.0, 3)])
def test_a_size_that_seems_dearer_than_smaller_ones_is_measured_again(
    num_slow: int, expected_ms: float, num_again: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its only measurement, three ways, fell into a bad moment; where it stays dear, that is believed."""
    monkeypatch.setattr("engine.costs.BUDGET_MS", 0.0)
    model, now_ms, seen = RecordingModel(), 0.0, 0

    def pairs() -> int:
        return sum(len(batch.rows) == 2 and batch.rows[0].num_valid == 12 for batch in model.batches)

    def clock() -> float:
        nonlocal now_ms, seen
        for batch in model.batches[seen:]:
            seen += 1
            now_ms += 9.0 if len(batch.rows) == 2 and pairs() <= num_slow else len(batch.rows)
        return now_ms

    table = measure_costs(model, SlabPool(model, slots=2), clock).costs
    assert table.ms[-1] == (1.0, expected_ms)
    assert pairs() == 2 * 3 + num_again


def test_what_is_published_says_how_many_passes_a_chunk_takes() -> None:
    """Clean passes included."""
    model = RecordingModel()
    table = measure_costs(model, SlabPool(model, slots=2), itertools.count(step=1.0).__next__).costs
    costs = engine_costs(table, model.spec)
    assert (costs.chunk_passes, costs.first_chunk_passes) == (5, 9)
    assert costs.pass_ms[-1] == (1.0, 1.0) and costs.buckets[-1] == model.spec.window_frames


def test_what_migrations_took_is_published_once_there_were_some() -> None:
    """Before, the defaults; the pause is smoothed, the link is the newest."""
    model = RecordingModel()
    table = measure_costs(model, SlabPool(model, slots=1), itertools.count(step=1.0).__next__).costs
    slow, fast = (LinkCost(alpha_ms=1.0, bytes_per_ms=rate) for rate in (1e5, 4e5))
    first = MoveCost.after(None, 20.0, slow)
    second = MoveCost.after(first, 10.0, fast)
    none, costs = engine_costs(table, model.spec), engine_costs(table, model.spec, second)
    assert (costs.move_ms, costs.link_bytes_per_ms) == (15.0, 4e5)
    assert replace(costs, move_ms=none.move_ms, link_bytes_per_ms=none.link_bytes_per_ms) == none
