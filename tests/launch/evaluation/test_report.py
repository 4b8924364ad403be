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


@pytest.mark.parametrize("lives_s", [(2.0,), (2.0, 60.0)])
def test_a_bound_of_nothing_has_no_share_above_it(lives_s: tuple[float, ...]) -> None:
    """Where the worst chunk took longer than any session stayed, none was owed. Means are of the others."""
    profile = PROFILES["paper"]
    cases = [
        Case(family="steady", size=n + 1, profile="paper", seed=0, duration_s=s)
        for n, s in enumerate(lives_s)
    ]
    numbers = {"worst_chunk_ms": 3_000, "cost_engine_s": 40, "floor_engine_s": 20}
    found = Findings(
        cases=cases,
        verdicts=[],
        jobs={},
        results={ours_job(case, ours).name: numbers for case in cases for ours in OURS},
        moments={},
        fluids={case: Fluid.of(staying(case.duration_s), profile) for case in cases},
        gaps={},
    )
    rows = _bounds(found)[3]
    assert rows[0][6:] == ["20", rows[0][7], "-", "+100.0 %"]
    assert rows[-1][8] == (rows[-3][8] if len(lives_s) > 1 else "-")
