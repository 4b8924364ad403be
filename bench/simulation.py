"""How fast the simulator is: chunk events per second, with a policy that has nothing to do and one that has.

    still     64 full engines whose sessions stay from the beginning to the end: the chunk loop, and plans at
              ticks only
    steady    the family `steady`, its peak at nine in ten slots of 64 engines, with `fixed` on 64 engines and
              with `slack` on 1 to 64: a plan after every event
    demo      the family `demo` with `slack`, likewise; 30 minutes unless told otherwise
    crowd     40,000 sessions on up to 4,096 engines of sixteen slots, four times as fast, at the end of 90 s
              in which they pile up: `slack` with all engines, and with as many as it wants. Only if asked for

Chunk events: a chunk is due, a chunk is there. Agenda: these and everything else that happens. Profile
`paper`. Bounded by one core's interpreter. Seconds are processor time, so that other work on the machine
counts less: of everything, and of plans; wall time beside them.
Run: .venv/bin/python -m bench.simulation [--engines 64] [--seconds 1800] [--only still steady demo crowd]
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from bench.stats import machine, percentile, print_json, print_table
from launch.evaluation.grid import Case, trace_of
from scheduler.__main__ import collect_rarely
from scheduler.policy.registry import ALL
from scheduler.sim.generate import describe, generate
from scheduler.sim.profile import PROFILES, Profile, scaled
from scheduler.sim.simulate import Scenario, simulate
from scheduler.trace import EventKind, Trace, TraceEvent

PROFILE = PROFILES["paper"]
CROWD_ENGINES, CROWD_SLOTS = 4_096, 16
CROWD_S, CROWD_INTENSITY = 90.0, 690.0
"""Of the family `steady`: 690 arrivals a second, lives of 94 s on average."""
WANTED_PER_S = 10_000_000 / 60
"""Chunk events."""


def still(sessions: int, seconds: float) -> Trace:
    """So many sessions, active all the time."""
    events = [TraceEvent(t=0.0, session=f"s{n}", event=EventKind.ARRIVE) for n in range(sessions)]
    return Trace((*events, TraceEvent(t=seconds, session="s0", event=EventKind.DEPART)))


def loads(engines: int, seconds: float) -> Iterator[tuple[str, Trace, str, int]]:
    """(name, trace, policy, fewest engines)"""
    yield "still", still(engines * PROFILE.capacity, seconds), "fixed", engines
    for family, policy, low in (
        ("steady", "fixed", engines),
        ("steady", "slack", 1),
        ("demo", "slack", 1),
    ):
        case = Case(family=family, size=engines, profile=PROFILE.name, seed=0, duration_s=seconds)
        yield family, trace_of(case), policy, low


def crowded(profile: Profile) -> Profile:
    """With more slots; each row after the fourth costs what the fourth added."""
    (table,) = profile.costs.pass_ms
    more = tuple(table[-1] + n * (table[-1] - table[-2]) for n in range(1, CROWD_SLOTS - len(table) + 1))
    costs = replace(profile.costs, pass_ms=((*table, *more),))
    return scaled(replace(profile, costs=costs, capacity=CROWD_SLOTS), 4.0)


def measure(
    name: str, trace: Trace, policy: str, low: int, high: int, profile: Profile = PROFILE
) -> dict[str, Any]:
    """One simulation."""
    scenario = Scenario(
        policy=ALL[policy],
        profile=profile,
        min_engines=low,
        max_engines=high,
        stopwatch_ms=lambda: time.process_time_ns() / 1e6,
    )
    gc.collect()
    collect_rarely()  # as the scheduler does
    began_s, began_wall_s = time.process_time(), time.perf_counter()
    result = simulate(trace, scenario)
    took_s, wall_s = time.process_time() - began_s, time.perf_counter() - began_wall_s
    chunks = result.figures.delivered
    return {
        "load": name,
        "policy": policy,
        "engines": max(moment.engines for moment in result.moments),
        "sessions": result.sessions,
        "at once": describe(trace)["peak_present"],
        "chunks": chunks,
        "plans": result.plans,
        "seconds": round(took_s, 2),
        "in plans": round(sum(result.planning_ms) / 1000, 2),
        "wall": round(wall_s, 2),
        "chunk events/s": round((result.figures.due + chunks) / took_s),
        "agenda/s": round(result.events / took_s),
        **{f"plan p{p} ms": round(percentile(result.planning_ms, p / 100), 3) for p in (50, 99)},
        "plan most ms": round(max(result.planning_ms), 2),
        "moved": result.migrations,
        "unserved": result.unserved,
        "CPR": round(sum(result.cpr) / max(1, len(result.cpr)), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engines", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=1_800.0, help="of a trace")
    parser.add_argument("--only", nargs="+", choices=("still", "steady", "demo", "crowd"))
    options = parser.parse_args()
    rows = [
        measure(name, trace, policy, low, options.engines)
        for name, trace, policy, low in loads(options.engines, options.seconds)
        if name in (options.only or (name,))
    ]
    if "crowd" in (options.only or ()):
        trace = generate("steady", seed=0, duration_s=CROWD_S, intensity=CROWD_INTENSITY)
        kind = crowded(PROFILE)
        rows += [measure("crowd", trace, "slack", low, CROWD_ENGINES, kind) for low in (CROWD_ENGINES, 1)]
    load = os.getloadavg()[1]
    print(f"machine: {machine()}, load average {load:.1f}; {options.engines} engines, {options.seconds:g} s")
    columns = list(rows[0])
    print_table(columns, [[row[column] for column in columns] for row in rows])
    print_json({"bench": "simulation", "wanted_per_s": round(WANTED_PER_S), "rows": rows})


if __name__ == "__main__":
    main()
