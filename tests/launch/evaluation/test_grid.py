"""What an evaluation runs, and what it concludes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launch.evaluation.grid import (
    Case,
    Job,
    Search,
    Verdict,
    cases,
    conclude,
    equal_cost_job,
    floor_engine_s,
    ours_job,
    profile_of,
    run_job,
    scenario_of,
    trace_of,
)
from scheduler.sim.generate import describe, generate
from scheduler.sim.profile import PROFILES

CASE = Case(family="steady", size=2, profile="paper", seed=1, duration_s=60.0)


def test_a_trace_fits_its_cluster() -> None:
    """At its peak nine in ten slots are taken, as near as a few sessions allow."""
    case = Case(family="demo", size=32, profile="paper", seed=1, duration_s=600.0)
    assert describe(trace_of(case))["peak_active"] == pytest.approx(0.9 * 32 * 4, rel=0.1)


def test_a_given_trace_is_resized_to_its_cluster() -> None:
    """Both ways, as long as it was; seeds choose whom to leave out or repeat. A profile may be given too."""
    given = generate("steady", seed=1, duration_s=600.0)
    (small, again), (large, _) = (
        cases([], [size], ["own"], 0, 2, 60.0, given={"mine": given}, kinds={"own": PROFILES["shapes-cpu"]})
        for size in (2, 16)
    )
    assert small.name.startswith("mine_2_own_0_") and small.duration_s == given.duration_s
    assert profile_of(small) is PROFILES["shapes-cpu"]
    assert describe(trace_of(small))["peak_active"] == pytest.approx(0.9 * 2 * 4, abs=1)
    assert describe(trace_of(large))["peak_active"] == pytest.approx(0.9 * 16 * 4, rel=0.1)
    assert trace_of(small) != trace_of(again)


def test_names_of_jobs_differ() -> None:
    """Also where traces differ in length by less than a second; each case is there once."""
    found = cases(["steady", "steady"], [2], ["paper"], 0, 1, 60.0)
    assert len(found) == 1
    assert replace(found[0], duration_s=60.4).name != found[0].name == "steady_2_paper_0_60"


def test_equal_cost_is_the_smallest_budget_that_costs_as_much() -> None:
    """110 engine-seconds in 60 are less than two engines, 120 are two."""
    for engine_s, number in ((110.0, 2), (120.0, 2), (120.1, 3), (10.0, 1)):
        job = equal_cost_job(CASE, "fixed", {"cost_engine_s": engine_s, "duration_s": 60.0})
        assert job == Job(case=CASE, policy="fixed", low=number, high=number)


@pytest.mark.parametrize("enough", [1, 2, 3, 4, 5])
def test_the_search_finds_the_smallest_budget(enough: int) -> None:
    """Up to twice the size; beyond that there is none."""
    search = Search(case=CASE, policy="fixed", limit_ms=1_000.0)
    asked = []
    while (job := search.job) is not None:
        asked.append(job.low)
        search.tell(1_000.0 if job.low >= enough else 1_001.0)
    assert search.best == (enough if enough <= 4 else None)
    assert len(asked) <= 3 and set(asked) <= {1, 2, 3, 4}


def test_verdicts() -> None:
    """Ours at 90 s and 1.2 s against 2 s of the same cost, and three engines of the same latency."""
    verdict = Verdict(
        case=CASE,
        ours="slack",
        baseline="fixed",
        ours_ms=1_200.0,
        ours_s=90.0,
        cost_n=2,
        cost_ms=2_000.0,
        latency_n=3,
        duration_s=60.0,
    )
    assert verdict.latency_change == pytest.approx(-0.4)
    assert verdict.cost_change == pytest.approx(-0.5)


def test_a_baseline_counts_with_its_best_setting() -> None:
    """For each question on its own."""
    ours = {"worst_chunk_ms": 1_500.0, "cost_engine_s": 100.0, "duration_s": 60.0}
    results = {ours_job(CASE, "slack").name: ours}
    searches = []
    for cut, cost_ms, best in ((0, 3_000.0, None), (1, 2_000.0, 4), (2, 2_500.0, 3)):
        results[equal_cost_job(CASE, "fixed", ours, cut).name] = {"worst_chunk_ms": cost_ms}
        searches.append(Search(case=CASE, policy="fixed", limit_ms=1_500.0, cut=cut, best=best))
    (verdict,) = conclude([("slack", search) for search in searches], results)
    assert (verdict.cost_ms, verdict.cost_cut) == (2_000.0, 1)
    assert (verdict.latency_n, verdict.latency_cut) == (3, 2)


def test_worlds_and_settings_are_simulated() -> None:
    """An unused slot, a slow start, deaths, slow engines."""
    job = Job(case=replace(CASE, duration_s=600.0), policy="fixed", low=2, high=2)
    assert scenario_of(replace(job, cut=1)).profile.capacity == scenario_of(job).profile.capacity - 1
    assert scenario_of(replace(job, world="start-up")).profile.start_ms == 10_000.0
    assert scenario_of(replace(job, world="failures")).failures_s and not scenario_of(job).failures_s
    assert 0.5 in scenario_of(replace(job, world="mixed")).speeds
    assert len({replace(job, cut=cut, world=world).name for cut in (0, 1) for world in ("", "mixed")}) == 4


def test_a_job_gives_the_numbers_that_tables_need() -> None:
    """And nobody is cheaper than the floor while everybody is served at once."""
    numbers = run_job(Job(case=CASE, policy="slack", low=1, high=4))
    assert numbers["duration_s"] == trace_of(CASE).duration_s
    assert numbers["chunk_latency_ms.p99"] is not None
    assert 0 < floor_engine_s(CASE) <= float(numbers["cost_engine_s"] or 0)
