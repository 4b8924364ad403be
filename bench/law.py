"""With engines that start slowly, what is it worth to know the law of the traffic, but not its chance?

`law` knows how many sessions are active at each moment on average over DRAWS other draws of the family, and
only the number of engines follows from that: enough for mean + z·√mean sessions, asked for a start before
they are needed, the first of them ready when the trace begins, as a fixed budget's are. All else is `slack`,
which has to learn the traffic from itself and begins with one engine. Both against `fixed`, compared as
`turboserve evaluate` does (launch/evaluation/grid.py); of `law` the best z in hindsight, for each question of
each case on its own.

Run: .venv/bin/python -m bench.law [--sizes 8] [--profiles wan-h200 paper-start] [--first-seed 1]
     [--seeds 2] [--seconds 600] [--workers 2]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import fmean

import numpy as np

from bench.stats import print_json, print_table
from launch.evaluation.grid import (
    REACH,
    Case,
    Job,
    Verdict,
    cases,
    cuts_of,
    equal_cost_job,
    ours_job,
    profile_of,
    scenario_of,
    trace_of,
)
from launch.evaluation.oracle import demand_at
from scheduler.config import SchedulerConfig
from scheduler.policy.base import Memory
from scheduler.policy.board import Board
from scheduler.policy.forecast import Churn
from scheduler.policy.slack import Slack
from scheduler.sim.cluster import START_MS
from scheduler.sim.generate import FAMILIES
from scheduler.sim.profile import PROFILES
from scheduler.sim.simulate import Scenario, simulate

DRAWS, FIRST_DRAW = 24, 1_000
MARGINS = (-0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
"""z."""
Point = tuple[float, float]
"""(worst chunk latency in ms, engine-seconds)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Law(Slack):
    """`slack` with as many engines as are written down, second by second."""

    name: str = "law"
    engines: tuple[int, ...]

    def _target(self, board: Board, memory: Memory, rates: Churn, config: SchedulerConfig) -> int:
        # The view is of a moment that memory has just noted.
        at_s = memory.window[-1].at_s - int(START_MS / 1000)
        return self.engines[min(max(at_s, 0), len(self.engines) - 1)]


def usual_demand(case: Case) -> list[float]:
    """Active sessions on average, second by second."""
    draws = (replace(case, seed=FIRST_DRAW + number) for number in range(DRAWS))
    seconds = math.ceil(case.duration_s)
    means: list[float] = np.mean([demand_at(trace_of(draw), 1.0, seconds) for draw in draws], axis=0).tolist()
    return means


def law_scenario(case: Case, demand: Sequence[float], z: float) -> Scenario:
    profile = profile_of(case)
    needed = [mean + z * math.sqrt(mean) for mean in demand]
    wanted = [min(case.size, max(1, math.ceil(sessions / profile.capacity))) for sessions in needed]
    start_s = math.ceil(profile.start_ms / 1000)
    asked = tuple(max(wanted[at_s : at_s + start_s + 1]) for at_s in range(len(wanted)))
    return replace(scenario_of(ours_job(case, "slack")), policy=Law(engines=asked), first_engines=asked[0])


def play(case: Case, scenario: Scenario) -> Point:
    result = simulate(trace_of(case), scenario)
    return result.worst_ms, result.engine_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What came of one case."""

    case: Case
    fixed: tuple[float, ...]
    """Worst chunk latency with 1, 2 … engines in ms, each the best of its settings."""
    slack: Point
    law: tuple[Point, ...]
    """For each of MARGINS."""

    def changes(self, point: Point) -> Point:
        """(worst chunk latency at equal cost, engine-seconds at equal latency), against `fixed`, − 1."""
        worst_ms, engine_s = point
        seconds = self.case.duration_s
        ours = {"cost_engine_s": engine_s, "duration_s": seconds}
        cost_n = min(equal_cost_job(self.case, "fixed", ours).low, len(self.fixed))
        verdict = Verdict(
            case=self.case,
            ours="",
            baseline="fixed",
            ours_ms=worst_ms,
            ours_s=engine_s,
            cost_n=cost_n,
            cost_ms=self.fixed[cost_n - 1],
            latency_n=next((n for n, ms in enumerate(self.fixed, start=1) if ms <= worst_ms), None),
            duration_s=seconds,
        )
        return verdict.latency_change, verdict.cost_change

    def best(self) -> Point:
        """Of `law`."""
        latency, cost = zip(*map(self.changes, self.law), strict=True)
        return min(latency), min(cost)


def run_case(case: Case) -> Found:
    fixed = tuple(
        min(
            play(case, scenario_of(Job(case=case, policy="fixed", low=n, high=n, cut=cut)))[0]
            for cut in cuts_of(case)
        )
        for n in range(1, REACH * case.size + 1)
    )
    demand = usual_demand(case)
    return Found(
        case=case,
        fixed=fixed,
        slack=play(case, scenario_of(ours_job(case, "slack"))),
        law=tuple(play(case, law_scenario(case, demand, z)) for z in MARGINS),
    )


def lines(found: Sequence[Found]) -> list[list[object]]:
    """Of the cases of one load: a line for each family, and their means."""
    rows: list[list[object]] = []
    changes: list[tuple[float, ...]] = []
    for family, group in groupby(found, key=lambda of: of.case.family):
        each = [(*of.changes(of.slack), *of.best()) for of in group]
        changes.append(tuple(fmean(column) for column in zip(*each, strict=True)))
        rows.append([family, *map("{:+.1%}".format, changes[-1])])
    return [*rows, ["mean", *(f"{fmean(column):+.1%}" for column in zip(*changes, strict=True))]]


def by_margin(found: Sequence[Found]) -> list[list[object]]:
    """A line for each z: means over cases."""
    rows: list[list[object]] = []
    for number, z in enumerate(MARGINS):
        latency, cost = zip(*(of.changes(of.law[number]) for of in found), strict=True)
        rows.append([z, f"{fmean(latency):+.1%}", f"{fmean(cost):+.1%}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[8])
    parser.add_argument("--profiles", nargs="+", choices=PROFILES, default=["wan-h200", "paper-start"])
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    wanted = cases(
        list(FAMILIES), options.sizes, options.profiles, options.first_seed, options.seeds, options.seconds
    )
    with ProcessPoolExecutor(options.workers) as pool:
        found = list(pool.map(run_case, wanted))
    questions = ["worst chunk at equal cost", "cost at equal latency"]
    head = [
        *(f"`slack`: {question}" for question in questions),
        *(f"`law`, best z: {question}" for question in questions),
    ]
    for (profile, size), group in groupby(found, key=lambda of: (of.case.profile, of.case.size)):
        members = list(group)
        rows = lines(members)
        print_table([f"`{profile}`, size {size}", *head], rows)
        print_table(["`law`, z", *questions], by_margin(members))
        print_json({"bench": "law", "profile": profile, "size": size, "lines": rows})


if __name__ == "__main__":
    main()
