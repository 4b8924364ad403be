"""Figures of samples."""

from __future__ import annotations

import math

from scheduler.results import FAIR_WAIT_MS, common_results, flat, percentile, play_ratio, spread, waits_ms


def test_percentiles_are_samples() -> None:
    """Nearest rank: never between two of them."""
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, share) for share in (0.01, 0.2, 0.21, 0.5, 0.99, 1.0)] == [1, 1, 2, 3, 5, 5]
    assert math.isnan(percentile([], 0.5))


def test_spread_names_its_figures() -> None:
    """None where there are no samples."""
    assert spread([1.0, 2.0, 6.0], "min", "mean", "p50", "max") == {"min": 1, "mean": 3, "p50": 2, "max": 6}
    assert spread([], "p99") == {"p99": None}


def test_results_have_the_common_keys() -> None:
    """With and without timed plans; flat for comparing."""
    results = common_results(
        sessions=2,
        chunks=3,
        chunk_latency_ms=[10.0, 20.0],
        ttfc_ms=[],
        waited_ms=[2_500.0],
        unserved=2,
        left_waiting=1,
        cpr=[0.5, 1.0],
        cost_engine_s=12.34,
        migrations=1,
        gaps=0,
        planning_ms=[0.5],
    )
    assert flat(results) == {
        "sessions": 2,
        "chunks": 3,
        "chunk_latency_ms.p50": 10.0,
        "chunk_latency_ms.p95": 20.0,
        "chunk_latency_ms.p99": 20.0,
        "chunk_latency_ms.max": 20.0,
        "ttfc_ms.p50": None,
        "ttfc_ms.p99": None,
        "waited_ms.p50": 2_500.0,
        "waited_ms.p95": 2_500.0,
        "waited_ms.p99": 2_500.0,
        "waited_ms.max": 2_500.0,
        "unserved": 2,
        "left_waiting": 1,
        "cpr.mean": 0.75,
        "cpr.p5": 0.5,
        "cpr.min": 0.5,
        "cost_engine_s": 12.3,
        "migrations": 1,
        "gaps": 0,
        "planning_ms.p50": 0.5,
        "planning_ms.p99": 0.5,
        "planning_ms.max": 0.5,
    }


def test_waits_know_who_left_in_vain() -> None:
    """After a fair wait; who left sooner says nothing of how long it takes."""
    assert waits_ms([300.0], [FAIR_WAIT_MS - 1, FAIR_WAIT_MS]) == [300.0, FAIR_WAIT_MS]
    assert waits_ms([300.0], [40.0, 50.0], fair_wait_ms=50.0) == [300.0, 50.0]


def test_play_ratio() -> None:
    """Of time in which there was something to play."""
    assert play_ratio(3.0, 1.0) == 0.75 and play_ratio(5.0, 0.0) == 1.0 and play_ratio(0.0, 0.0) is None
