"""The evaluation's tables where figures are missing."""

from __future__ import annotations

import pytest

from launch.evaluation.bounds import Fluid
from launch.evaluation.findings import Findings
from launch.evaluation.grid import OURS, Case, ours_job
from launch.evaluation.report import _bounds
from scheduler.sim.profile import PROFILES
from scheduler.trace import EventKind, Trace, TraceEvent


def staying(seconds: float) -> Trace:
    """One session, active all the time."""
    ends = ((0.0, EventKind.ARRIVE), (seconds, EventKind.DEPART))
    return Trace(tuple(TraceEvent(t=t, session="s", event=event) for t, event in ends))


def findings(cases: list[Case]) -> Findings:
    """One session stays for the whole of each trace."""
    numbers = {"worst_chunk_ms": 3_000, "cost_engine_s": 40, "floor_engine_s": 20}
    return Findings(
        cases=cases,
        verdicts=[],
        jobs={},
        results={ours_job(case, ours).name: numbers for case in cases for ours in OURS},
        moments={},
        fluids={case: Fluid.of(staying(case.duration_s), PROFILES[case.profile]) for case in cases},
        gaps={},
    )


def test_profiles_stand_apart() -> None:
    """And so do seeds: a mean over engines of different kinds says nothing."""
    one, other = (
        [Case(family="demo", size=8, profile=profile, seed=seed, duration_s=60.0) for seed in (1, 2)]
        for profile in ("paper", "analytic")
    )
    parts = findings([*one, *other]).by_profile()
    assert [part.cases for part in parts] == [one, other]
    rows = [row[0] for row in _bounds(parts[1])[3]]
    assert rows == [*("demo.1 8", "demo.1 8", "demo.2 8", "demo.2 8"), "mean", "mean"]


@pytest.mark.parametrize("lives_s", [(2.0,), (2.0, 60.0)])
def test_a_bound_of_nothing_has_no_share_above_it(lives_s: tuple[float, ...]) -> None:
    """Where the worst chunk took longer than any session stayed, none was owed. Means are of the others."""
    cases = [
        Case(family="steady", size=n + 1, profile="paper", seed=0, duration_s=s)
        for n, s in enumerate(lives_s)
    ]
    rows = _bounds(findings(cases))[3]
    assert rows[0][6:] == ["20", rows[0][7], "-", "+100.0 %"]
    assert rows[-1][8] == (rows[-3][8] if len(lives_s) > 1 else "-")
