"""The pass planner."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.planner import CostTable, ReadyRow, plan
from scheduler.messages import SessionId

FREE = CostTable(ms=(10.0, 10.1, 10.2, 10.3))
USELESS = CostTable(ms=(10.0, 20.0, 30.0, 40.0))


def row(name: str, deadline_ms: float = 1e6, passes_left: int = 1) -> ReadyRow:
    return ReadyRow(
        session=SessionId(name), step=0, index=0, passes_left=passes_left, deadline_ms=deadline_ms
    )


def names(ready: list[ReadyRow], costs: CostTable, now_ms: float = 0.0) -> list[str]:
    return [str(chosen.session) for chosen in plan(ready, costs, now_ms).rows]


rows = st.lists(
    st.builds(
        row,
        st.text("abcdef", min_size=1, max_size=3),
        st.floats(-100, 500),
        st.integers(1, 9),
    ),
    max_size=10,
    unique_by=lambda r: r.session,
)
tables = st.lists(st.floats(0.1, 30), min_size=1, max_size=8).map(lambda c: CostTable(ms=tuple(sorted(c))))


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
        ([row("a", -5), row("b", 500)], FREE, ["a", "b"]),
    ],
    ids=["earliest-first", "ties-by-id", "coalesce", "cap", "tight-deadline-stays-alone", "late-anyway"],
)
def test_table(ready: list[ReadyRow], costs: CostTable, expected: list[str]) -> None:
    """Which rows run, by case."""
    assert names(ready, costs) == expected


def test_it_grows_past_a_size_that_does_not_pay() -> None:
    """Two rows gain nothing here, four do."""
    assert len(names([row(n) for n in "abcd"], CostTable(ms=(10.0, 20.0, 25.0, 26.0)))) == 4


@given(rows, tables, st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(
    ready: list[ReadyRow], costs: CostTable, random: object
) -> None:
    """Every rank gets the same batch from the same rows."""
    shuffled = list(ready)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert plan(ready, costs, 0.0) == plan(shuffled, costs, 0.0)


@given(rows, tables)
def test_the_most_urgent_rows_run_within_the_cap(ready: list[ReadyRow], costs: CostTable) -> None:
    """The batch is a prefix of the deadline order, never empty while something is ready."""
    batch = plan(ready, costs, 0.0).rows
    order = sorted(ready, key=lambda r: (r.deadline_ms, r.session))
    assert list(batch) == order[: len(batch)]
    assert min(1, len(ready)) <= len(batch) <= costs.largest


@given(rows, tables)
def test_no_deadline_breaks_that_a_batch_of_one_keeps(ready: list[ReadyRow], costs: CostTable) -> None:
    """Whoever is in time next to a batch of one is in time next to the chosen batch."""
    batch = plan(ready, costs, 0.0).rows
    order = sorted(ready, key=lambda r: (r.deadline_ms, r.session))
    for place, r in enumerate(order):
        alone = costs.pass_ms(1) * (1 + r.passes_left - (place < 1))
        chosen = costs.pass_ms(len(batch)) + costs.pass_ms(1) * (r.passes_left - (place < len(batch)))
        assert not (alone <= r.deadline_ms < chosen)


def test_from_samples_interpolates_and_never_falls() -> None:
    """Measured 1, 2 and 4 give 1 to 4; a dip by noise is levelled."""
    assert CostTable.from_samples({1: 10.0, 2: 12.0, 4: 16.0}).ms == (10.0, 12.0, 14.0, 16.0)
    assert CostTable.from_samples({1: 10.0, 2: 8.0}).ms == (10.0, 10.0)


def test_observe_follows_the_machine_slowly() -> None:
    """One outlier moves the table a little, a lasting change moves it there."""
    assert FREE.observe(1, 1_000.0).pass_ms(1) <= 12.5
    table = FREE
    for _ in range(200):
        table = table.observe(2, 20.2)
    assert table.pass_ms(1) == pytest.approx(20.0, rel=0.01)


def test_a_cost_table_needs_positive_numbers() -> None:
    """Nonsense is refused at construction."""
    for ms in ((), (0.0,), (1.0, -1.0)):
        with pytest.raises(ValueError, match="positive"):
            CostTable(ms=ms)
