"""What an evaluation found, for those who show it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from launch.evaluation.bounds import Fluid
from launch.evaluation.grid import (
    OURS,
    WATCHED_WORLDS,
    Case,
    Job,
    Numbers,
    Verdict,
    ours_job,
    profile_of,
    scenario_of,
    trace_of,
)
from launch.evaluation.oracle import Task, best_ms, demand_at, future, gap, present

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
    gaps: Mapping[str, Gap]
    """By name of the job, where there are moments of it."""

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
        fluids = {case: Fluid.of(trace_of(case), profile_of(case)) for case in cases}
        watched = [ours_job(case, ours, world) for case in cases for ours in OURS for world in WATCHED_WORLDS]
        gaps = {job.name: find_gap(job, moments[job.name]) for job in watched if job.name in moments}
        return cls(
            cases=cases,
            verdicts=verdicts,
            jobs=jobs,
            results=results,
            moments=moments,
            fluids=fluids,
            gaps=gaps,
        )

    def by_profile(self) -> list[Findings]:
        """Apart, in the order of the cases: a mean over engines of different kinds says nothing."""
        names = dict.fromkeys(case.profile for case in self.cases)
        return [
            replace(
                self,
                cases=[case for case in self.cases if case.profile == name],
                verdicts=[verdict for verdict in self.verdicts if verdict.case.profile == name],
            )
            for name in names
        ]

    def ours(self, case: Case, policy: str) -> Numbers:
        """The result of one of ours."""
        return self.results[ours_job(case, policy).name]


def find_gap(job: Job, moments: Sequence[Sequence[float]]) -> Gap:
    """Compare what ticks saw with the oracles."""
    profile = scenario_of(job).profile
    step_s = moments[1][0] - moments[0][0]
    task = Task(
        demand=demand_at(trace_of(job.case), step_s, len(moments)),
        step_s=step_s,
        profile=profile,
        least=job.low,
        most=job.high,
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
