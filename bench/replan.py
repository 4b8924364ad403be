"""What planning costs, from one event to a re-plan of everything, and how it grows with the cluster.

    delta     one session's record into the table, and a view of it
    event     a session starts: its record goes in, the policy plans (upkeep, placement, scaling, moves), and
              the record comes back placed. On a balanced cluster
    re-plan   the policy plans for a cluster whose sessions lie at random, after a minute in which nobody came
              or went, and moves as many as it may in one plan, the most work that one plan ever has. `slack`
              takes the costs to be exact here: else it makes no moves that bring less than they may be wrong
    many      the same with up to 128 moves, the most rounds of the paper's code; two per engine are the limit
    rebuild   the table from all records: at a change of leader, and at each resync

One core, pure Python and numpy; bounded by the interpreter for small clusters, by memory for large ones. The
garbage collector is off while the clock runs, as `timeit` does it. Processor time of the thread, so that
other work on the machine counts less. Microseconds, p50 / p99.
Run: .venv/bin/python -m bench.replan [--repeats 200]
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bench.stats import machine, percentile, print_json, print_table
from scheduler.config import SchedulerConfig
from scheduler.messages import (
    DesiredEngine,
    EngineCosts,
    EngineId,
    EngineRecord,
    EngineState,
    Phase,
    Residence,
    SessionId,
)
from scheduler.policy.autoscale import WINDOW_S
from scheduler.policy.base import Changes, Memory, Migrate, Place, Policy, Sample
from scheduler.policy.registry import ALL
from scheduler.policy.relief import MoveRules
from scheduler.policy.slack import Slack
from scheduler.sim.record import SimRecord, new_session
from scheduler.table import ClusterTable, build_table

SIZES = ((4, 32), (16, 125), (64, 500), (256, 2_000), (1_024, 10_000), (4_096, 40_000))
"""Engines, sessions."""
POLICIES = ("greedy_load", "turboserve", "slack")
NOW_MS = 10_000_000
CAPACITY = 16
COSTS = EngineCosts(
    buckets=(12,),
    pass_ms=(tuple(4.0 + 5.0 * rows for rows in range(1, 17)),),
    decode_ms=10.0,
    chunk_passes=5,
    first_chunk_passes=9,
)
LIMITS_US = {(64, 500): 1_000.0, (4_096, 40_000): 15_000.0}


def engine(number: int) -> EngineRecord:
    """A ready engine."""
    return EngineRecord(
        id=EngineId(f"e_{number:08x}"),
        state=EngineState.READY,
        url="",
        model=None,
        capacity=CAPACITY,
        sessions=0,
        load=0.5,
        chunk_ms=0.0,
        started_ms=0,
        heartbeat_ms=NOW_MS,
        model_name="shapes",
        costs=COSTS,
        transfer="-",
    )


def session(number: int, on: EngineId | None, draw: random.Random, active: bool | None = None) -> SimRecord:
    """A session: three in four are active, of the others half are out of their slot."""
    active = draw.random() < 0.75 if active is None else active
    return replace(
        new_session(SessionId(f"s_{draw.getrandbits(64):016x}"), "shapes", NOW_MS, number),
        phase=Phase.PLACED if on else Phase.QUEUED,
        epoch=1,
        engine=on,
        opened=on is not None,
        active=active or on is None,
        slack_ms=draw.randrange(2_000),
        created_ms=NOW_MS - draw.randrange(600_000),
        active_ms=NOW_MS - draw.randrange(60_000),
        residence=Residence.RESIDENT if active or draw.random() < 0.5 else Residence.OFFLOADED,
        state_bytes=draw.randrange(2**20, 2**30),
    )


def records(
    engines: int, sessions: int, draw: random.Random, *, balanced: bool
) -> tuple[list[EngineRecord], list[SimRecord]]:
    """A cluster with its sessions dealt out in turn, or at random as far as slots go."""
    hosts = [engine(number) for number in range(engines)]
    slots = [host.id for host in hosts for _ in range(CAPACITY)]
    draw.shuffle(slots)
    if balanced:
        return hosts, [
            session(n, hosts[n % engines].id, draw, n // engines % 4 != 3) for n in range(sessions)
        ]
    return hosts, [session(n, owner, draw) for n, owner in enumerate(slots[:sessions])]


def times_us(action: Callable[[], object], repeats: int) -> tuple[float, float]:
    """(p50, p99) of its run time; the first tenth is warm-up."""
    taken = []
    gc.disable()
    for _ in range(repeats + repeats // 10 + 1):
        began = time.thread_time_ns()
        action()
        taken.append((time.thread_time_ns() - began) / 1_000)
    gc.enable()
    kept = taken[-repeats:]
    return percentile(kept, 0.5), percentile(kept, 0.99)


def make_table(hosts: list[EngineRecord], clients: list[SimRecord]) -> ClusterTable:
    """The table of a cluster that wants just the engines it has."""
    table = build_table(hosts, clients, [DesiredEngine(id=host.id, model="shapes") for host in hosts])
    table.read_ms = NOW_MS
    return table


def measure_event(policy: Policy, table: ClusterTable, config: SchedulerConfig, repeats: int) -> list[float]:
    """A session starts, is placed, and stops again; only the first two are timed."""
    draw = random.Random(2)
    newcomer = session(0, None, draw)
    memory = Memory()
    taken = []
    gc.disable()
    for number in range(repeats + repeats // 10 + 1):
        began = time.thread_time_ns()
        table.put_session(newcomer)
        actions, memory = policy.plan(table.view(), Changes(arrivals=1), memory, NOW_MS + 10 * number, config)
        places = [action for action in actions if isinstance(action, Place)]
        assert len(places) == 1
        table.put_session(replace(newcomer, phase=Phase.PLACED, engine=places[0].engine))
        taken.append((time.thread_time_ns() - began) / 1_000)
        table.drop_session(newcomer.id)
    gc.enable()
    kept = taken[-repeats:]
    return [percentile(kept, 0.5), percentile(kept, 0.99)]


def measure_replan(
    policy: Policy, table: ClusterTable, config: SchedulerConfig, repeats: int
) -> tuple[list[float], int]:
    """([p50, p99], moves) of a plan of the whole cluster."""
    moves = 0
    demand = table.view().demand[0]
    window = tuple(
        Sample(at_s=NOW_MS // 1_000 - WINDOW_S + n, demand=demand, arrivals=0) for n in range(WINDOW_S)
    )
    memory = Memory(window=window)  # nobody stops and nobody comes: load does not even out by itself

    def replan() -> None:
        nonlocal moves
        actions, _ = policy.plan(table.view(), Changes(), memory, NOW_MS, config)
        moves = sum(isinstance(action, Migrate) for action in actions)

    return list(times_us(replan, repeats)), moves


def measure(engines: int, sessions: int, repeats: int) -> dict[str, Any]:
    """One size of cluster."""
    config = SchedulerConfig(redis="unix:///none", engines=engines, max_engines=min(4_096, 2 * engines))
    draw = random.Random(1)
    hosts, clients = records(engines, sessions, draw, balanced=True)
    table, victim = make_table(hosts, clients), clients[len(clients) // 2]

    def delta() -> None:
        table.put_session(victim)
        table.view()

    found: dict[str, Any] = {"engines": engines, "sessions": sessions, "delta": times_us(delta, repeats)}
    found["rebuild"] = times_us(lambda: build_table(hosts, clients, ()), 3)
    tilted = make_table(*records(engines, sessions, draw, balanced=False))
    for name in POLICIES:
        found[f"{name} event"] = measure_event(ALL[name], table, config, repeats)
        policy = Slack(moves=MoveRules(noise=0.0)) if name == "slack" else ALL[name]
        found[f"{name} re-plan"], found[f"{name} moves"] = measure_replan(policy, tilted, config, repeats)
    eager = Slack(moves=MoveRules(noise=0.0, most=128))
    found["slack many"], found["slack many moves"] = measure_replan(
        eager, tilted, config, max(10, repeats // 5)
    )
    return found


def is_within(rows: list[dict[str, Any]], which: int) -> bool:
    """Are all re-plans that have a limit under it? which: 0 the median, 1 the 99th percentile."""
    return all(
        row[f"{name} {kind}"][which] < LIMITS_US[row["engines"], row["sessions"]]
        for row in rows
        if (row["engines"], row["sessions"]) in LIMITS_US
        for name, kind in [*((name, "re-plan") for name in POLICIES), ("slack", "many")]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    rows = [measure(engines, sessions, options.repeats) for engines, sessions in SIZES]
    load = os.getloadavg()[0]
    print(f"machine: {machine()}, load average {load:.1f}; microseconds of one core, p50 / p99")
    columns = list(rows[0])
    print_table(columns, [[cell(row[column]) for column in columns] for row in rows])
    print_json(
        {"bench": "replan", "p50_within": is_within(rows, 0), "p99_within": is_within(rows, 1), "sizes": rows}
    )


def cell(value: object) -> object:
    return " / ".join(f"{part:.0f}" for part in value) if isinstance(value, list | tuple) else value


if __name__ == "__main__":
    main()
