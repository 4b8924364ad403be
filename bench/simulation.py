"""How fast the simulator is: chunk events per second, with a policy that has nothing to do and one that has.

    still     64 full engines whose sessions stay from the beginning to the end: the chunk loop, and plans at
              ticks only
    steady    the family `steady`, its peak at nine in ten slots of 64 engines, with `fixed` on 64 engines and
              with `slack` on 1 to 64: a plan after every event
    demo      the family `demo` with `slack`, likewise; 30 minutes unless told otherwise

Chunk events: a chunk is due, a chunk is there. Agenda: these and everything else that happens. Profile
`paper`. Bounded by one core's interpreter. Seconds are processor time, so that other work on the machine
counts less: of everything, and of plans; wall time beside them.
Run: .venv/bin/python -m bench.simulation [--engines 64] [--seconds 1800] [--only still steady demo]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from typing import Any

from bench.stats import machine, percentile, print_json, print_table
from launch.evaluation.grid import Case, trace_of
from scheduler.policy.registry import ALL
from scheduler.sim.profile import PROFILES
from scheduler.sim.simulate import Scenario, simulate
from scheduler.trace import EventKind, Trace, TraceEvent

PROFILE = PROFILES["paper"]
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


def measure(name: str, trace: Trace, policy: str, low: int, high: int) -> dict[str, Any]:
    """One simulation."""
    scenario = Scenario(
        policy=ALL[policy],
        profile=PROFILE,
        min_engines=low,
        max_engines=high,
        stopwatch_ms=lambda: time.process_time_ns() / 1e6,
    )
    began_s, began_wall_s = time.process_time(), time.perf_counter()
    result = simulate(trace, scenario)
    took_s, wall_s = time.process_time() - began_s, time.perf_counter() - began_wall_s
    chunks = result.figures.delivered
    return {
        "load": name,
        "policy": policy,
        "sessions": result.sessions,
        "chunks": chunks,
        "plans": result.plans,
        "seconds": round(took_s, 2),
        "in plans": round(sum(result.planning_ms) / 1000, 2),
        "wall": round(wall_s, 2),
        "chunk events/s": round((result.figures.due + chunks) / took_s),
        "agenda/s": round(result.events / took_s),
        "plan p50 ms": round(percentile(result.planning_ms, 0.5), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engines", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=1_800.0, help="of a trace")
    parser.add_argument("--only", nargs="+", choices=("still", "steady", "demo"))
    options = parser.parse_args()
    rows = [
        measure(name, trace, policy, low, options.engines)
        for name, trace, policy, low in loads(options.engines, options.seconds)
        if name in (options.only or (name,))
    ]
    load = os.getloadavg()[1]
    print(f"machine: {machine()}, load average {load:.1f}; {options.engines} engines, {options.seconds:g} s")
    columns = list(rows[0])
    print_table(columns, [[row[column] for column in columns] for row in rows])
    print_json({"bench": "simulation", "wanted_per_s": round(WANTED_PER_S), "rows": rows})


if __name__ == "__main__":
    main()
