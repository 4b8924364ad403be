"""What an evaluation found, for those who show it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launch.evaluation.bounds import Fluid
from launch.evaluation.grid import OURS, Case, Job, Numbers, Verdict, ours_job, trace_of
from launch.evaluation.oracle import Task, best_ms, demand_at, future, gap, present
from scheduler.sim.profile import find_profile

__all__ = ["Findings", "Gap", "find_gap"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """One of ours beside the oracles, in the model of the paper's problem (`launch/evaluation/oracle.py`)."""

    mean_ms: float
    """Predicted latency of the fullest engine, mean over the moments with demand."""
    engine_s: float
    placement: float
    """Share by which that is above the best placement's on the same engines, mean over moments."""
    present: float | None
    """Share by which it costs more than the oracle that knows this moment; None: that is never so fast."""
    future: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Everything that is shown."""

    cases: Sequence[Case]
    verdicts: Sequence[Verdict]
    jobs: Mapping[str, Job]
    """That have a result, by name."""
    results: Mapping[str, Numbers]
    moments: Mapping[str, Sequence[Sequence[float]]]
    """Of ours, by name of the job: see `run_moments`."""
    fluids: Mapping[Case, Fluid]
    gaps: Mapping[tuple[Case, str], Gap]

    @classmethod
    def of(
        cls,
        cases: Sequence[Case],
        verdicts: Sequence[Verdict],
        jobs: Mapping[str, Job],
        results: Mapping[str, Numbers],
        moments: Mapping[str, Sequence[Sequence[float]]],
    ) -> Findings:
        """With the bounds."""
        fluids = {case: Fluid.of(trace_of(case), find_profile(case.profile)) for case in cases}
        gaps = {
            (case, ours): find_gap(case, moments[ours_job(case, ours).name])
            for case in cases
            for ours in OURS
        }
        return cls(
            cases=cases,
            verdicts=verdicts,
            jobs=jobs,
            results=results,
            moments=moments,
            fluids=fluids,
            gaps=gaps,
        )

    def ours(self, case: Case, policy: str) -> Numbers:
        """The result of one of ours."""
        return self.results[ours_job(case, policy).name]


def find_gap(case: Case, moments: Sequence[Sequence[float]]) -> Gap:
    """Compare what ticks saw with the oracles."""
    profile = find_profile(case.profile)
    step_s = moments[1][0] - moments[0][0]
    task = Task(
        demand=demand_at(trace_of(case), step_s, len(moments)),
        step_s=step_s,
        profile=profile,
        least=1,
        most=case.size,
    )
    busy = [(active, engines, felt_ms) for _, active, engines, felt_ms, _ in moments if active and engines]
    mean_ms = sum(felt_ms for *_, felt_ms in busy) / max(1, len(busy))
    ratios = [felt_ms / best_ms(profile, int(active), int(engines)) for active, engines, felt_ms in busy]
    engine_s = step_s * sum(moment[2] for moment in moments)
    return Gap(
        mean_ms=mean_ms,
        engine_s=engine_s,
        placement=sum(ratios) / max(1, len(ratios)) - 1.0,
        present=gap(task, present, mean_ms, engine_s),
        future=gap(task, future, mean_ms, engine_s),
    )
