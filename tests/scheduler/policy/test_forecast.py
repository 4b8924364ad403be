"""Demand to come, and lives to come, against what can be computed by hand."""

from __future__ import annotations

import math

import pytest

from scheduler.policy.base import Memory, Sample
from scheduler.policy.forecast import PRIOR_ACTIVE_S, RECENT_S, arrival_rate, churn, forecast, stop_rate
from scheduler.policy.lives import EDGES_S, bucket_of, note_lives, remaining_s


def window(*samples: tuple[int, int]) -> tuple[Sample, ...]:
    """One (demand, arrivals) a second."""
    return tuple(Sample(at_s=n, demand=demand, arrivals=new) for n, (demand, new) in enumerate(samples))


def test_nothing_seen_nothing_expected() -> None:
    """An empty cluster stays empty."""
    found = forecast(churn((), 0), 0, 30.0)
    assert (found.mean, found.deviation) == (0.0, 0.0)


def test_the_present_is_certain() -> None:
    """Without a horizon demand is what it is."""
    found = forecast(churn(window((5, 1), (7, 2)), 1), 7, 0.0)
    assert (found.mean, found.deviation) == (7.0, 0.0)


@pytest.mark.parametrize(
    ("arrivals", "rate"),
    [
        ([0] * 30, 0.0),
        ([1] * 30, 1.0),
        ([0] * 20 + [3] * RECENT_S, 3.0),  # a burst counts at once
        ([3] * 20 + [0] * RECENT_S, 0.0),  # and is over when it is
        ([4], 0.8),  # the first second is short
    ],
)
def test_arrival_rate(arrivals: list[int], rate: float) -> None:
    """That of the last seconds."""
    samples = window(*((0, new) for new in arrivals))
    assert arrival_rate(samples, len(arrivals) - 1) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("recent", "horizon_s", "rate"),
    [
        (30, 2.5, 3.0),  # ahead by a quarter of what is looked at in any case
        (23, 10.0, 83 / 40),  # chance, in the mean of 40 s
        (40, 10.0, 4.0),  # a burst
        (0, 10.0, 0.0),  # and its end
        (23, 60.0, 123 / 60),  # no more than is known
    ],
)
def test_who_looks_further_ahead_looks_further_back(recent: int, horizon_s: float, rate: float) -> None:
    """Two arrivals a second for 50 s, then so many in ten seconds, which count alone if that is no chance."""
    spread = [recent * (n + 1) // RECENT_S - recent * n // RECENT_S for n in range(RECENT_S)]
    samples = window(*((0, new) for new in [2] * 50 + spread))
    assert arrival_rate(samples, 59, horizon_s) == pytest.approx(rate)


def test_stops_are_what_arrivals_do_not_explain() -> None:
    """Ten active sessions for 100 s, one stops each second and one starts."""
    rate = stop_rate(window(*[(10, 1)] * 101))
    assert rate == pytest.approx(101 / (1_000 + PRIOR_ACTIVE_S))


def test_demand_goes_to_its_balance() -> None:
    """Far ahead nothing is left of who is here now, and Λ/μ are."""
    samples = window(*[(10, 1)] * 101)
    rates = churn(samples, 100)
    balance = rates.arrivals / rates.stops
    far = forecast(rates, 50, 10_000.0)
    assert far.mean == pytest.approx(balance) and far.deviation == pytest.approx(math.sqrt(balance))
    near = forecast(rates, 50, 5.0)
    assert 50 > near.mean > 50 * math.exp(-5 * rates.stops)


@pytest.mark.parametrize(
    ("age_ms", "bucket"), [(0, 0), (1_999, 0), (2_000, 1), (4_000, 2), (8_191_000, 12), (10**9, 13)]
)
def test_buckets_double(age_ms: int, bucket: int) -> None:
    """Each starts where EDGES_S says."""
    assert bucket_of(age_ms) == bucket
    assert EDGES_S[bucket] <= age_ms / 1000 and (bucket == 13 or age_ms / 1000 < EDGES_S[bucket + 1])


def test_before_any_is_known_age_says_nothing() -> None:
    """The guess is the same at every age."""
    assert remaining_s(Memory()) == pytest.approx((120.0,) * len(EDGES_S))


def test_where_most_die_young_the_old_live_on() -> None:
    """Nine of ten last a second, the tenth 1,000 s: who is older than that second has long to live."""
    memory = Memory()
    for _ in range(50):
        memory = note_lives(memory, [1_000] * 9 + [1_000_000])
    lives = remaining_s(memory)
    assert lives[0] < 250 < 400 < lives[2]
    assert lives[bucket_of(900_000)] < lives[bucket_of(20_000)]


def test_old_lives_fade() -> None:
    """Sessions used to last a minute and now last ten: the estimate follows, and the memory does not grow."""
    memory = note_lives(Memory(), [60_000] * 500)
    before = remaining_s(memory)[0]
    memory = note_lives(memory, [600_000] * 2_000)
    assert 60 < before < 100 and remaining_s(memory)[0] > 500
    assert len(memory.exits) == len(memory.exposure_s) == len(EDGES_S)


@pytest.mark.parametrize("exits", [(1.0,), (1.0,) * 99])
def test_the_memory_of_another_version_is_forgotten(exits: tuple[float, ...]) -> None:
    """Buckets that do not fit count for nothing."""
    other = Memory(exits=exits, exposure_s=exits)
    assert remaining_s(other) == remaining_s(Memory())
    assert note_lives(other, [5_000]) == note_lives(Memory(), [5_000])
