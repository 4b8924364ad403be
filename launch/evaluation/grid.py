"""What is run, and what is concluded from it. Pure.

Ours choose their number of engines from 1 to the size; a baseline has a fixed budget N.

    equal cost       the smallest N whose engine-seconds are at least ours; compare the worst chunk latency
    equal latency    the smallest N whose worst chunk latency is at most ours; compare engine-seconds

The worst chunk latency counts waits without an engine, also of chunks that were never made. The search for N
takes for granted that more engines do not make the worst chunk slower, and ends at twice the size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from scheduler.policy.base import Policy
from scheduler.policy.registry import ALL
from scheduler.policy.slack import Slack
from scheduler.policy.turboserve import Turboserve
from scheduler.results import flat
from scheduler.sim.generate import describe, generate
from scheduler.sim.profile import find_profile
from scheduler.sim.simulate import Scenario, simulate
from scheduler.trace import Trace

__all__ = ["BASELINES", "OURS", "VARIANTS", "Case", "Job", "Search", "Verdict", "run_job", "trace_of"]

Numbers = Mapping[str, float | int | None]
OURS: Final = ("turboserve", "slack")
BASELINES: Final = ("fixed", "round_robin", "greedy_load", "greedy_memory")
ABLATIONS: Final[Mapping[str, Policy]] = {
    "turboserve-still": Turboserve(name="turboserve-still", min_gain_ms=math.inf),
    "slack-still": Slack(name="slack-still", migrates=False),
    "slack-blind": Slack(name="slack-blind", forecasts=False),
}
"""Without migration, without the forecast. Without autoscaling is a budget of the size."""
VARIANTS: Final[Mapping[str, Policy]] = {**ALL, **ABLATIONS}
REACH: Final = 2
"""Largest N that is tried, in sizes."""
FILL: Final = 0.9
"""Share of all slots of a cluster of the size that the trace's peak takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One trace for one size of cluster."""

    family: str
    size: int
    """Most engines that ours may use."""
    profile: str
    seed: int
    duration_s: float

    @property
    def name(self) -> str:
        return f"{self.family}_{self.size}_{self.profile}_{self.seed}_{self.duration_s:.0f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One simulation."""

    case: Case
    policy: str
    low: int
    high: int

    @property
    def name(self) -> str:
        """Unique, and fit for a file's name."""
        return f"{self.case.name}_{self.policy}_{self.low}-{self.high}"


@lru_cache(maxsize=4)
def trace_of(case: Case) -> Trace:
    """The case's trace, its intensity such that its peak fits the size."""
    wanted = FILL * case.size * find_profile(case.profile).capacity
    intensity = 1.0
    for _ in range(4):
        trace = generate(case.family, seed=case.seed, duration_s=case.duration_s, intensity=intensity)
        peak = describe(trace)["peak_active"]
        if abs(peak - wanted) <= 0.02 * wanted:
            break
        intensity *= wanted / max(1.0, peak)
    return trace


def floor_engine_s(case: Case) -> float:
    """Engine-seconds below which no policy can go that gives every active session a slot at once."""
    capacity = find_profile(case.profile).capacity
    lives = trace_of(case).lives()
    changes = sorted(
        change for life in lives for span in life.active_s for change in ((span[0], 1), (span[1], -1))
    )
    total_s = at_s = 0.0
    number = 0
    for t, by in changes:
        total_s += math.ceil(number / capacity) * (t - at_s)
        at_s, number = t, number + by
    return total_s


def run_job(job: Job) -> dict[str, float | int | None]:
    """Simulate: every number of the result, and the floor of the cost."""
    scenario = Scenario(
        policy=VARIANTS[job.policy],
        profile=find_profile(job.case.profile),
        min_engines=job.low,
        max_engines=job.high,
    )
    result = simulate(trace_of(job.case), scenario)
    return {
        **flat(result.results()),
        "duration_s": result.duration_s,
        "floor_engine_s": round(floor_engine_s(job.case), 1),
    }


@dataclass(slots=True, kw_only=True)
class Search:
    """For the smallest budget of a baseline with at most a latency: `job`, then `tell`, until it is None."""

    case: Case
    policy: str
    limit_ms: float
    low: int = 1
    high: int = 0
    """The smallest N is in low … high; high is one more than what is tried."""
    best: int | None = None

    def __post_init__(self) -> None:
        self.high = REACH * self.case.size + 1

    @property
    def job(self) -> Job | None:
        if self.low >= self.high:
            return None
        number = (self.low + self.high) // 2
        return Job(case=self.case, policy=self.policy, low=number, high=number)

    def tell(self, worst_ms: float) -> None:
        """What `job` gave."""
        number = (self.low + self.high) // 2
        if worst_ms <= self.limit_ms:
            self.high, self.best = number, number
        else:
            self.low = number + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Ours against one baseline in one case."""

    case: Case
    ours: str
    baseline: str
    ours_ms: float
    ours_s: float
    cost_n: int
    """N at equal cost."""
    cost_ms: float
    """Its worst latency."""
    latency_n: int | None
    """N at equal latency; None: more than was tried."""
    duration_s: float

    @property
    def latency_change(self) -> float:
        """Of the worst chunk latency at equal cost; −0.4: ours is 40 % lower."""
        return self.ours_ms / self.cost_ms - 1.0

    @property
    def cost_change(self) -> float:
        """Of engine-seconds at equal latency; where no N does, against the largest that was tried."""
        number = self.latency_n if self.latency_n is not None else REACH * self.case.size
        return self.ours_s / (number * self.duration_s) - 1.0


def ours_job(case: Case, policy: str) -> Job:
    return Job(case=case, policy=policy, low=1, high=case.size)


def equal_cost_job(case: Case, baseline: str, ours: Numbers) -> Job:
    """The baseline at the smallest N that costs at least as much as ours."""
    number = max(1, math.ceil(_number(ours, "cost_engine_s") / _number(ours, "duration_s") - 1e-9))
    return Job(case=case, policy=baseline, low=number, high=number)


def conclude(searches: Iterable[tuple[str, Search]], results: Mapping[str, Numbers]) -> list[Verdict]:
    """(ours, finished search) → verdicts."""
    verdicts = []
    for ours, search in searches:
        mine = results[ours_job(search.case, ours).name]
        cost = equal_cost_job(search.case, search.policy, mine)
        verdicts.append(
            Verdict(
                case=search.case,
                ours=ours,
                baseline=search.policy,
                ours_ms=_number(mine, "worst_chunk_ms"),
                ours_s=_number(mine, "cost_engine_s"),
                cost_n=cost.low,
                cost_ms=_number(results[cost.name], "worst_chunk_ms"),
                latency_n=search.best,
                duration_s=_number(mine, "duration_s"),
            )
        )
    return verdicts


def cases(
    families: Sequence[str], sizes: Sequence[int], profiles: Sequence[str], seeds: int, duration_s: float
) -> list[Case]:
    """All of them."""
    base = Case(family="", size=1, profile="", seed=0, duration_s=duration_s)
    return [
        replace(base, family=family, size=size, profile=profile, seed=seed)
        for profile in profiles
        for size in sizes
        for family in families
        for seed in range(seeds)
    ]


def _number(numbers: Numbers, name: str) -> float:
    value = numbers[name]
    assert value is not None
    return float(value)
