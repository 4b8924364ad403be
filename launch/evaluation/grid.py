"""What is run, and what is concluded from it. Pure.

Ours choose their number of engines from 1 to the size; a baseline has a fixed budget N.

    equal cost       the smallest N whose engine-seconds are at least ours; compare the worst chunk latency
    equal latency    the smallest N whose worst chunk latency is at most ours; compare engine-seconds

Every baseline runs with each of its settings, the slots per engine that it leaves unused (`CUTS`), and the
best one counts, for each question on its own. The worst chunk latency counts waits without an engine, also of
chunks that were never made. The search for N takes for granted that more engines do not make the worst chunk
slower, and ends at twice the size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final

from scheduler.policy.base import Policy
from scheduler.policy.registry import ALL
from scheduler.policy.relief import MoveRules
from scheduler.policy.slack import Slack
from scheduler.policy.turboserve import LEVELS, Turboserve
from scheduler.results import flat
from scheduler.sim.failures import draw_failures
from scheduler.sim.generate import describe, generate, resize
from scheduler.sim.profile import Profile, find_profile
from scheduler.sim.simulate import Scenario, simulate
from scheduler.trace import Trace

__all__ = [
    "BASELINES",
    "CUTS",
    "OURS",
    "SETTINGS",
    "VARIANTS",
    "WORLDS",
    "Case",
    "Job",
    "Search",
    "Verdict",
    "run_job",
    "run_moments",
    "trace_of",
]

Numbers = Mapping[str, float | int | None]
OURS: Final = ("turboserve", "slack")
BASELINES: Final = ("fixed", "round_robin", "greedy_load", "greedy_memory")
ABLATIONS: Final[Mapping[str, Policy]] = {
    "turboserve-still": Turboserve(name="turboserve-still", min_gain_ms=math.inf),
    "slack-still": Slack(name="slack-still", migrates=False),
    "slack-blind": Slack(name="slack-blind", forecasts=False),
    "slack-unaware": Slack(
        name="slack-unaware", heeds_players=False, moves=replace(MoveRules(), stall_price=0.0, dry=math.inf)
    ),
}
"""Without migration, without the forecast, without playout slack. Without scaling: a budget of the size."""
SETTINGS: Final[Mapping[str, Policy]] = {
    name: Turboserve(
        name=name,
        levels=tuple(replace(level, utilisation=min(1.0, level.utilisation + more)) for level in LEVELS),
        hold_ms=2_000,
    )
    for name, more in (("turboserve-tight", 0.1), ("turboserve-full", 0.3))
}
"""Of `turboserve`, whose levels the paper does not publish: fuller engines, kept for less long."""
VARIANTS: Final[Mapping[str, Policy]] = {**ALL, **ABLATIONS, **SETTINGS}
CUTS: Final = (0, 1, 2)
"""The published grid of the baselines' one setting: slots that they leave unused on each engine, so that
chunks are faster and sessions wait sooner. What else they have is N, which is searched."""
WORLDS: Final[Mapping[str, Mapping[str, Any]]] = {
    "": {},
    "start-up": {"start_ms": 10_000.0, "stop_ms": 1_000.0},
    "failures": {"mtbf_s": 600.0},
    "mixed": {"speeds": (1.0, 1.0, 0.5)},
}
"""What the paper leaves out: engines that take 10 s to start, that live 10 minutes on average, of which every
third computes half as fast."""
ABLATED_WORLDS: Final = ("", "start-up")
"""Those in which ablations run: where engines are ready at once, a forecast is for nothing."""
WATCHED_WORLDS: Final = ("", "start-up")
"""Those for which the oracles have a model: engines are alike and live on."""
REACH: Final = 2
"""Largest N that is tried, in sizes."""
FILL: Final = 0.9
"""Share of all slots of a cluster of the size that the trace's peak takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One trace for one size of cluster."""

    family: str
    """Of generated traces, or the name of `given`."""
    size: int
    """Most engines that ours may use."""
    profile: str
    seed: int
    duration_s: float
    given: Trace | None = field(default=None, compare=False, repr=False)
    """A trace whose name no other has, to be resized; None: one of the family."""
    kind: Profile | None = field(default=None, compare=False, repr=False)
    """A profile whose name no other has; None: the named one."""

    @property
    def name(self) -> str:
        """Unique, and fit for a file's name."""
        return f"{self.family}_{self.size}_{self.profile}_{self.seed}_{self.duration_s:.10g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One simulation."""

    case: Case
    policy: str
    low: int
    high: int
    cut: int = 0
    """Slots left unused on each engine."""
    world: str = ""
    """One of WORLDS."""

    @property
    def name(self) -> str:
        """Unique, and fit for a file's name."""
        cut, world = f"_cut{self.cut}" * bool(self.cut), f"_{self.world}" * bool(self.world)
        return f"{self.case.name}_{self.policy}_{self.low}-{self.high}{cut}{world}"


@lru_cache(maxsize=4)
def trace_of(case: Case) -> Trace:
    """The case's trace, its intensity or number of sessions such that its peak fits the size."""
    wanted = FILL * case.size * profile_of(case).capacity
    factor = 1.0
    for _ in range(4):
        trace = _draw(case, factor)
        peak = describe(trace)["peak_active"]
        if abs(peak - wanted) <= 0.02 * wanted:
            break
        factor *= wanted / max(1.0, peak)
    return trace


def _draw(case: Case, factor: float) -> Trace:
    if case.given is not None:
        return resize(case.given, factor, seed=case.seed)
    return generate(case.family, seed=case.seed, duration_s=case.duration_s, intensity=factor)


def profile_of(case: Case) -> Profile:
    """What the case's engines cost."""
    return case.kind or find_profile(case.profile)


def floor_engine_s(case: Case) -> float:
    """Engine-seconds below which no policy can go that gives every active session a slot at once."""
    capacity = profile_of(case).capacity
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
    result = simulate(trace_of(job.case), scenario_of(job))
    return {
        **flat(result.results()),
        "duration_s": result.duration_s,
        "floor_engine_s": round(floor_engine_s(job.case), 1),
    }


def run_moments(job: Job) -> list[list[float]]:
    """Simulate: [s, active sessions, engines, predicted latency in ms, worst chunk in ms] of every tick."""
    moments = simulate(trace_of(job.case), scenario_of(job)).moments
    return [[m.at_s, m.active, m.engines, round(m.latency_ms, 1), round(m.worst_ms, 1)] for m in moments]


def scenario_of(job: Job) -> Scenario:
    """What a job simulates."""
    world, profile = WORLDS[job.world], profile_of(job.case)
    delays = {name: world[name] for name in ("start_ms", "stop_ms") if name in world}
    return Scenario(
        policy=VARIANTS[job.policy],
        profile=replace(profile, capacity=profile.capacity - job.cut, **delays),
        min_engines=job.low,
        max_engines=job.high,
        speeds=world.get("speeds", (1.0,)),
        failures_s=draw_failures(job.case.seed, world.get("mtbf_s"), job.case.duration_s, job.high),
    )


def cuts_of(case: Case, wanted: Sequence[int] = CUTS) -> tuple[int, ...]:
    """The settings that leave an engine a slot."""
    return tuple(cut for cut in wanted if cut < profile_of(case).capacity)


@dataclass(slots=True, kw_only=True)
class Search:
    """For the smallest budget of a baseline with at most a latency: `job`, then `tell`, until it is None."""

    case: Case
    policy: str
    limit_ms: float
    cut: int = 0
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
        return Job(case=self.case, policy=self.policy, low=number, high=number, cut=self.cut)

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
    cost_cut: int = 0
    latency_cut: int = 0
    """Its best setting for each question."""

    @property
    def latency_change(self) -> float:
        """Of the worst chunk latency at equal cost; −0.4: ours is 40 % lower."""
        return self.ours_ms / self.cost_ms - 1.0

    @property
    def cost_change(self) -> float:
        """Of engine-seconds at equal latency; where no N does, against the largest that was tried."""
        return self.ours_s / self.baseline_s - 1.0

    @property
    def baseline_s(self) -> float:
        """Its engine-seconds at equal latency, or of the largest N that was tried."""
        number = self.latency_n if self.latency_n is not None else REACH * self.case.size
        return number * self.duration_s


def ours_job(case: Case, policy: str, world: str = "") -> Job:
    """One of ours with its range of engines."""
    return Job(case=case, policy=policy, low=1, high=case.size, world=world)


def full_job(case: Case, policy: str, world: str = "") -> Job:
    """A policy with as many engines as the size all the time."""
    return Job(case=case, policy=policy, low=case.size, high=case.size, world=world)


def equal_cost_job(case: Case, baseline: str, ours: Numbers, cut: int = 0) -> Job:
    """The baseline at the smallest N that costs at least as much as ours."""
    number = max(1, math.ceil(_number(ours, "cost_engine_s") / _number(ours, "duration_s") - 1e-9))
    return Job(case=case, policy=baseline, low=number, high=number, cut=cut)


def conclude(searches: Iterable[tuple[str, Search]], results: Mapping[str, Numbers]) -> list[Verdict]:
    """(ours, finished search) → verdicts: of the searches for one baseline, the best counts."""
    groups: dict[tuple[str, Case, str], list[Search]] = {}
    for ours, search in searches:
        groups.setdefault((ours, search.case, search.policy), []).append(search)
    return [_verdict(ours, found, results) for (ours, _, _), found in groups.items()]


def _verdict(ours: str, found: Sequence[Search], results: Mapping[str, Numbers]) -> Verdict:
    case, baseline = found[0].case, found[0].policy
    mine = results[ours_job(case, ours).name]
    costs = {s.cut: equal_cost_job(case, baseline, mine, s.cut) for s in found}
    cost_ms = {cut: _number(results[job.name], "worst_chunk_ms") for cut, job in costs.items()}
    cost_cut = min(cost_ms, key=lambda cut: (cost_ms[cut], cut))
    best = min(found, key=lambda s: (s.best if s.best is not None else math.inf, s.cut))
    return Verdict(
        case=case,
        ours=ours,
        baseline=baseline,
        ours_ms=_number(mine, "worst_chunk_ms"),
        ours_s=_number(mine, "cost_engine_s"),
        cost_n=costs[cost_cut].low,
        cost_ms=cost_ms[cost_cut],
        latency_n=best.best,
        duration_s=_number(mine, "duration_s"),
        cost_cut=cost_cut,
        latency_cut=best.cut,
    )


def cases(
    families: Sequence[str],
    sizes: Sequence[int],
    profiles: Sequence[str],
    first_seed: int,
    seeds: int,
    duration_s: float,
    given: Mapping[str, Trace] | None = None,
    kinds: Mapping[str, Profile] | None = None,
) -> list[Case]:
    """All of them, each once. given: traces besides the families, whole. kinds: those of `profiles` that are
    not named ones."""
    base = Case(family="", size=1, profile="", seed=0, duration_s=duration_s)
    drawn = [replace(base, family=family) for family in families]
    taken = [
        replace(base, family=name, duration_s=trace.duration_s, given=trace)
        for name, trace in (given or {}).items()
    ]
    found = (
        replace(of, size=size, profile=profile, kind=(kinds or {}).get(profile), seed=seed)
        for profile in profiles
        for size in sizes
        for of in (*drawn, *taken)
        for seed in range(first_seed, first_seed + seeds)
    )
    return list(dict.fromkeys(found))


def _number(numbers: Numbers, name: str) -> float:
    value = numbers[name]
    assert value is not None
    return float(value)
