"""The pass planner: what it promises, against schedules run to their end and against the best of all."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cost_table import CostTable
from engine.planner import ReadyRow, plan
from scheduler.messages import SessionId
from tests.engine.schedules import (
    EPSILON_MS,
    best_lateness_ms,
    finish,
    lateness_ms,
    missed,
    one_at_a_time,
)

FREE = CostTable.flat(10.0, 10.1, 10.2, 10.3)
USELESS = CostTable.flat(10.0, 20.0, 30.0, 40.0)


def row(
    name: str, deadline_ms: float = 1e6, passes_left: int = 1, *, fresh: bool = False, kv_frames: int = 1
) -> ReadyRow:
    return ReadyRow(
        session=SessionId(name),
        kv_frames=kv_frames,
        passes_left=passes_left,
        deadline_ms=deadline_ms,
        fresh=fresh,
    )


def names(ready: list[ReadyRow], costs: CostTable, now_ms: float = 0.0) -> list[str]:
    return [str(chosen.session) for chosen in plan(ready, costs, now_ms).rows]


def sets_of_rows(*, most: int = 8, passes: int = 9, fresh: bool = False) -> st.SearchStrategy[list[ReadyRow]]:
    return st.lists(
        st.builds(
            row,
            st.text("abcdef", min_size=1, max_size=3),
            st.floats(-100, 500),
            st.integers(1, passes),
            fresh=st.booleans() if fresh else st.just(False),
            kv_frames=st.sampled_from((3, 6, 12)),
        ),
        max_size=most,
        unique_by=lambda r: r.session,
    )


rising = st.lists(st.floats(0.1, 30), min_size=1, max_size=6).map(sorted)
tables = st.builds(
    lambda short, long, decode_ms: CostTable(
        buckets=(3, 12),
        ms=(tuple(short), tuple(a + b for a, b in zip(short, (long * 6)[: len(short)], strict=True))),
        decode_ms=decode_ms,
    ),
    rising,
    rising,
    st.floats(0, 10),
)


# --- cases -------------------------------------------------------------------------------------------


def test_nothing_ready_gives_an_empty_batch() -> None:
    """An idle engine plans nothing."""
    assert names([], FREE) == []


@pytest.mark.parametrize(
    ("ready", "costs", "expected"),
    [
        ([row("b", 50), row("a", 90)], USELESS, ["b"]),
        ([row("b", 50), row("a", 50)], USELESS, ["a"]),
        ([row("b", 50), row("a", 90)], FREE, ["b", "a"]),
        ([row(n) for n in "edcba"], FREE, ["a", "b", "c", "d"]),
        ([row("a", 20.05, 2), row("b", 500)], FREE, ["a"]),
        ([row("a", -5), row("b", 500)], FREE, ["a"]),
        ([row("a", -5), row("b", 10.15)], FREE, ["a", "b"]),
        ([row("a", 5, 3), row("b", fresh=True)], USELESS, ["b"]),
        ([row("a", 5, 3), row("b", fresh=True)], FREE, ["b", "a"]),
    ],
    ids=[
        "earliest-first",
        "ties-by-id",
        "coalesce",
        "cap",
        "tight-deadline-stays-alone",
        "a-late-one-is-not-held-up-for-those-with-time",
        "overload-counts-work",
        "fresh-before-the-earliest-deadline",
        "fresh-joins-the-batch",
    ],
)
def test_table(ready: list[ReadyRow], costs: CostTable, expected: list[str]) -> None:
    """Which rows run, by case."""
    assert names(ready, costs) == expected


def test_it_grows_past_a_size_that_does_not_pay() -> None:
    """Two rows gain nothing here, four do."""
    assert len(names([row(n) for n in "abcd"], CostTable.flat(10.0, 20.0, 25.0, 26.0))) == 4


def test_a_longer_kv_makes_a_batch_dearer() -> None:
    """Short rows go together; with one whose KV is so long that it takes all the gain, they do not."""
    costs = CostTable(buckets=(3, 12), ms=((10.0, 15.0), (12.0, 24.0)))
    short = row("a", kv_frames=3)
    assert names([short, row("b", kv_frames=3)], costs) == ["a", "b"]
    assert names([short, row("b", kv_frames=12)], costs) == ["a"]


def test_a_size_whose_cost_was_overestimated_is_found_out() -> None:
    """Always-batching would run at half the cost; the wrong cell is tried, learnt, and then used."""
    costs, truth, counts = CostTable.flat(10.0, 19.9), CostTable.flat(10.0, 11.0), [0, 0]
    for _ in range(1500):
        size = len(plan([row("a"), row("b")], costs, 0.0).rows)
        counts[size - 1] += 1
        costs = costs.observed(size, 1, truth.pass_ms(size, 1))
    assert counts[1] > 1400


def test_a_size_that_does_not_pay_is_seldom_tried() -> None:
    """What looking again costs is bounded."""
    costs, tried = CostTable.flat(10.0, 22.0), 0
    for _ in range(2000):
        size = len(plan([row("a"), row("b")], costs, 0.0).rows)
        tried += size == 2
        costs = costs.observed(size, 1, (10.0, 22.0)[size - 1])
    assert 1 <= tried <= 16


# --- promises ----------------------------------------------------------------------------------------


@given(sets_of_rows(fresh=True), tables, st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(
    ready: list[ReadyRow], costs: CostTable, random: object
) -> None:
    """Every rank gets the same batch from the same rows."""
    shuffled = list(ready)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert plan(ready, costs, 0.0) == plan(shuffled, costs, 0.0)


@given(sets_of_rows(fresh=True), tables)
def test_fresh_rows_run_first_and_then_the_most_urgent(ready: list[ReadyRow], costs: CostTable) -> None:
    """The batch is a prefix of that order, never empty while something is ready, never above the cap.

    So a session's first pass waits for the pass at hand and for first passes of those before it, only.
    """
    batch = plan(ready, costs, 0.0).rows
    order = sorted(ready, key=lambda r: (not r.fresh, r.deadline_ms, r.session))
    assert list(batch) == order[: len(batch)]
    assert min(1, len(ready)) <= len(batch) <= costs.largest


@given(sets_of_rows(), tables)
def test_nobody_misses_a_deadline_that_one_at_a_time_would_meet(
    ready: list[ReadyRow], costs: CostTable
) -> None:
    """Over the whole schedule, batch after batch, decodes included."""
    alone = missed(ready, finish(ready, costs, one_at_a_time))
    assert missed(ready, finish(ready, costs)) <= alone


@given(sets_of_rows(), tables)
def test_without_overload_the_late_become_no_later(ready: list[ReadyRow], costs: CostTable) -> None:
    """Coalescing for throughput waits until somebody needs throughput."""
    alone = finish(ready, costs, one_at_a_time)
    work_ms = {r.session: r.passes_left * costs.pass_ms(1, r.kv_frames) + costs.decode_ms for r in ready}
    late = missed(ready, alone)
    if any(r.session in late and work_ms[r.session] <= r.deadline_ms for r in ready):
        return
    ends = finish(ready, costs)
    assert all(ends[r.session] <= max(r.deadline_ms, alone[r.session]) + EPSILON_MS for r in ready)


@given(sets_of_rows(), tables)
def test_the_work_is_never_done_later_than_one_at_a_time(ready: list[ReadyRow], costs: CostTable) -> None:
    """A batch that runs has a gain, so throughput is at least that of one at a time."""
    if ready:
        assert max(finish(ready, costs).values()) <= (
            max(finish(ready, costs, one_at_a_time).values()) + EPSILON_MS
        )


@given(sets_of_rows(most=3, passes=2), st.floats(1, 30))
def test_where_coalescing_never_pays_the_largest_lateness_is_the_least_possible(
    ready: list[ReadyRow], t1_ms: float
) -> None:
    """Against every schedule: with t(B) = B·t(1) nothing beats earliest deadline first."""
    costs = CostTable.flat(t1_ms, 2 * t1_ms, 3 * t1_ms)
    if ready:
        best = best_lateness_ms(ready, costs)
        assert lateness_ms(ready, finish(ready, costs)) == pytest.approx(best, abs=1e-5)


@given(sets_of_rows(most=3, passes=3), st.floats(1, 30))
def test_where_coalescing_is_free_everybody_is_as_early_as_alone(ready: list[ReadyRow], t1_ms: float) -> None:
    """With t(B) = t(1) all go together, and no schedule can be better for anybody."""
    ends = finish(ready, CostTable.flat(t1_ms, t1_ms, t1_ms))
    assert all(ends[r.session] == pytest.approx(r.passes_left * t1_ms) for r in ready)


def test_of_sets_that_some_schedule_keeps_in_time_it_loses_few() -> None:
    """In between it is a heuristic: against a search over all schedules it loses 6 % of tight small sets."""
    dice, possible, lost, lost_alone = random.Random(1), 0, 0, 0
    for _ in range(900):
        share = dice.choice((0.05, 0.3, 0.6))
        costs = CostTable.flat(10.0, 10 * (1 + share), 10 * (1 + 2 * share))
        passes = [dice.randint(1, 3) for _ in range(3)]
        due_ms = [dice.uniform(0, 12.0 * sum(passes)) for _ in passes]
        ready = [row(str(i), d, p) for i, (d, p) in enumerate(zip(due_ms, passes, strict=True))]
        if best_lateness_ms(ready, costs) > 0:
            continue
        possible += 1
        lost += bool(missed(ready, finish(ready, costs)))
        lost_alone += bool(missed(ready, finish(ready, costs, one_at_a_time)))
    assert (possible, lost_alone) == (262, 112)
    assert lost <= 0.06 * possible


@given(st.integers(2, 6), tables, st.integers(0, 2**16), st.floats(0, 1))
def test_nobody_starves(count: int, costs: CostTable, seed: int, pause_share: float) -> None:
    """However overloaded the engine: a chunk waits only for passes of chunks that were due before it."""
    dice, now_ms, lead_ms = random.Random(seed), 0.0, 100.0
    due_ms = {SessionId(str(n)): 0.0 for n in range(count)}
    waiting: dict[SessionId, ReadyRow] = {}
    may_wait: dict[SessionId, int] = {}
    for _ in range(60):
        for session in [s for s, due in due_ms.items() if due <= now_ms or not waiting]:
            del due_ms[session]
            waiting[session] = row(session, now_ms + lead_ms, dice.randint(1, 4))
        for session in waiting.keys() - may_wait.keys():
            may_wait[session] = sum(r.passes_left for s, r in waiting.items() if s != session)
        batch = plan(waiting.values(), costs, now_ms)
        now_ms += costs.pass_ms(len(batch.rows), batch.kv_frames)
        for session in waiting.keys() - {r.session for r in batch.rows}:
            may_wait[session] -= 1
            assert may_wait[session] >= 0
        for r in batch.rows:
            waiting[r.session] = replace(r, passes_left=r.passes_left - 1)
            if r.passes_left == 1:
                del waiting[r.session], may_wait[r.session]
                due_ms[r.session] = now_ms + (200.0 if dice.random() < pause_share else 0.0)
