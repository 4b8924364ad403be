"""The cost table."""

from __future__ import annotations

import pytest

from engine.cost_table import GUESSED_AGE, HOPE_PER_PASS, MAX_RATIO, MEASURED_AGE, CostTable

TABLE = CostTable(buckets=(3, 12), ms=((10.0, 12.0), (20.0, 30.0)), decode_ms=5.0)


def test_a_pass_counts_in_the_next_larger_bucket() -> None:
    """Below the first it is the first, beyond the last the last."""
    assert [TABLE.pass_ms(1, frames) for frames in (1, 3, 4, 12, 99)] == [10.0, 10.0, 20.0, 20.0, 20.0]
    assert TABLE.pass_ms(2, 12) == 30.0 and TABLE.largest == 2


def test_from_samples_interpolates_and_never_falls() -> None:
    """Measured 1, 2 and 4 give 1 to 4; a dip by noise is levelled."""
    table = CostTable.from_samples({6: {1: 10.0, 2: 12.0, 4: 16.0}, 3: {1: 10.0, 2: 8.0, 4: 8.0}})
    assert table.buckets == (3, 6)
    assert table.ms == ((10.0, 10.0, 10.0, 10.0), (10.0, 12.0, 14.0, 16.0))


def test_an_outlier_moves_the_table_a_little_and_a_lasting_change_moves_it_there() -> None:
    """Also the cells that were not observed follow what is common to all."""
    assert TABLE.observed(1, 3, 1e6).pass_ms(1, 3) <= 10.0 * MAX_RATIO**0.11
    table = TABLE
    for _ in range(200):
        table = table.observed(1, 3, 15.0)
    assert table.pass_ms(1, 3) == pytest.approx(15.0, rel=0.01)
    assert table.pass_ms(2, 12) == pytest.approx(30.0 * 1.5**0.5, rel=0.02)


def test_a_wrong_cell_is_corrected_while_the_others_stay() -> None:
    """Observed in turn, each cell goes to its own truth."""
    table = CostTable.flat(10.0, 40.0)
    for _ in range(400):
        table = table.observed(1, 1, 10.0).observed(2, 1, 12.0)
    assert table.pass_ms(1, 1) == pytest.approx(10.0, rel=0.02)
    assert table.pass_ms(2, 1) == pytest.approx(12.0, rel=0.02)


def test_a_cell_that_was_not_observed_is_hoped_to_be_cheaper_until_it_is() -> None:
    """The estimate itself stays what it is."""
    table = CostTable.flat(10.0, 18.0)
    assert table.hoped_ms(2, 1) == table.pass_ms(2, 1) == 18.0
    for _ in range(400):
        table = table.observed(1, 1, 10.0)
    assert table.pass_ms(2, 1) == pytest.approx(18.0)
    assert table.hoped_ms(2, 1) == pytest.approx(18.0 * (1 - 400 * HOPE_PER_PASS))
    table = table.observed(2, 1, 12.0)
    assert table.hoped_ms(2, 1) == table.pass_ms(2, 1) == pytest.approx((12.0 * 18.0) ** 0.5)
    assert table.pass_ms(1, 1) == pytest.approx(10.0), "a stale cell says nothing about the machine"


def test_interpolated_cells_are_hoped_to_be_better_than_measured_ones() -> None:
    """They are tried first."""
    table = CostTable.from_samples({3: {1: 10.0, 2: 18.0, 4: 34.0}})
    assert table.ages == ((MEASURED_AGE, MEASURED_AGE, GUESSED_AGE, MEASURED_AGE),)
    assert table.hoped_ms(3, 3) / table.pass_ms(3, 3) < table.hoped_ms(2, 3) / table.pass_ms(2, 3)


def test_decode_time_follows_its_observations() -> None:
    """An average that forgets."""
    table = TABLE
    for _ in range(60):
        table = table.decoded(9.0)
    assert table.decode_ms == pytest.approx(9.0, rel=0.01)


def test_a_limited_table_has_smaller_batches_only() -> None:
    """After running out of memory."""
    assert TABLE.limited(1).ms == ((10.0,), (20.0,))


@pytest.mark.parametrize(
    ("buckets", "ms"),
    [((), ()), ((3,), ((),)), ((3,), ((0.0,),)), ((3, 3), ((1.0,), (1.0,))), ((3, 6), ((1.0,), (1.0, 2.0)))],
)
def test_nonsense_is_refused(buckets: tuple[int, ...], ms: tuple[tuple[float, ...], ...]) -> None:
    """At construction."""
    with pytest.raises(ValueError, match="cost table"):
        CostTable(buckets=buckets, ms=ms)
