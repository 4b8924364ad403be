"""The simulator against real engines: the runs of bench.pareto, and the same trace simulated.

Policy and budget of a run are in its file's name. Costs and state come from a file of `turboserve profile`;
how long an engine takes to start is what the logs of a policy's runs say, on average. What a profile can't
know, how long opening a session and encoding a chunk take, comes from a run of its own: sessions one after
another on one engine (DIR/alone, made here if it is not there), less what the simulator takes for that. Runs
that repeat each other stand in one line, with their mean. A simulated figure holds if it is off by at most
its limit (of the real one), or by twice what such runs differ by at most.

Run: .venv/bin/python -m bench.simulated --dir DIR --profile FILE [--model paced] [--capacity 4]
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.pareto import Bench, Figures, Run
from bench.plugin import PACED, plugged_in
from bench.stats import machine, print_json, print_table
from launch.simulate_cmd import load_profile
from launch.trace_file import load_trace
from scheduler.policy.registry import find_policy
from scheduler.results import flat
from scheduler.sim.profile import Profile
from scheduler.sim.simulate import Scenario, simulate
from scheduler.trace import EventKind, Trace, TraceEvent, write_trace

LIMITS = {
    "chunk_latency_ms.p50": 0.10,
    "ttfc_ms.p50": 0.10,
    "chunk_latency_ms.p99": 0.25,
    "ttfc_ms.p99": 0.25,
    "cost_engine_s": 0.05,
}
"""Share by which a simulated figure may be off."""
ENGINE = re.compile(r"e_[0-9a-f]{8}")
SHOWN = ("chunks", "chunk_latency_ms.max", "cpr.mean", "migrations")
"""Compared, not judged."""
ALONE, ALONE_S = 15, 8.0
"""Sessions that come one after another, and the time of each."""
STOP_MS = 500.0
"""From the order to stop to the end of an engine's cost, when it is empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One load test."""

    run: Run
    results: Mapping[str, Any]

    @property
    def figures(self) -> Figures:
        return flat({name: value for name, value in self.results.items() if name not in ("load", "points")})


def _kind(run: Run) -> Run:
    """The same of runs that repeat each other."""
    return replace(run, repeat=0)


def read_runs(folder: Path) -> list[Seen]:
    """Those that bench.pareto finished."""
    return [
        Seen(run=Run.named(path.stem), results=json.loads(path.read_text(encoding="utf-8")))
        for path in sorted((folder / "runs").glob("*.json"))
    ]


def mean_start_ms(folder: Path, kind: Run) -> float:
    """Over all runs of a kind; 0 where none started."""
    logs = (path for path in (folder / "runs").glob("*.logs") if kind == _kind(Run.named(path.stem)))
    starts_s = [took_s for each in logs for took_s in start_times_s(each)]
    return 1000.0 * fmean(starts_s) if starts_s else 0.0


def start_times_s(logs: Path) -> list[float]:
    """From wanting an engine to its being ready, of all that started under load: of each engine's first
    mention in the scheduler's log, and of what it says itself."""
    wanted: dict[str, float] = {}
    for line in (logs / "scheduler-0.log").read_text(encoding="utf-8").splitlines():
        if "desired engines are" in line:
            for engine in ENGINE.findall(line):
                wanted.setdefault(engine, _at_s(line))
    found = []
    for engine, at_s in wanted.items():
        path = logs / f"engine-{engine}.log"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else ()
        ready = [_at_s(line) for line in lines if f"engine {engine} serves" in line]
        found += [ready[0] - at_s] if ready else []
    return found


def _at_s(line: str) -> float:
    return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()


def by_kind(runs: Iterable[Seen]) -> dict[Run, list[Figures]]:
    """Figures of the runs that repeat each other."""
    kinds = defaultdict(list)
    for run in runs:
        kinds[_kind(run.run)].append(run.figures)
    return kinds


def spread(kinds: Mapping[Run, Sequence[Figures]], name: str) -> float:
    """By how much a figure differed between runs that repeat each other, at most."""
    columns = [[figures[name] or 0.0 for figures in of] for of in kinds.values()]
    return max(max(values) - min(values) for values in columns)


def alone_trace() -> Trace:
    """Sessions one after another, a pause between them."""
    events = [
        TraceEvent(t=ALONE_S * n + at_s, session=f"s{n}", event=kind)
        for n in range(ALONE)
        for at_s, kind in ((0.5, EventKind.ARRIVE), (ALONE_S - 0.5, EventKind.DEPART))
    ]
    return Trace(tuple(events))


def with_delays(profile: Profile, folder: Path, model: str) -> Profile:
    """The profile with what a session alone on an engine takes beside its passes."""
    folder.mkdir(exist_ok=True)
    path = folder / "alone.jsonl"
    path.write_text("".join(write_trace(alone_trace())), encoding="utf-8")
    run = Run(policy="greedy_load", low=1, high=1)
    with plugged_in(PACED) if model == "paced" else nullcontext():
        real = Bench(folder, path, model).figures(run)
    bare = replace(profile, open_ms=0.0, encode_ms=0.0)
    scenario = Scenario(policy=find_policy(run.policy), profile=bare, min_engines=1, max_engines=1)
    ours = flat(simulate(alone_trace(), scenario).results())

    def missing(name: str) -> float:
        return max(0.0, (real[name] or 0.0) - (ours[name] or 0.0))

    encode_ms = missing("chunk_latency_ms.p50")
    return replace(profile, encode_ms=encode_ms, open_ms=max(0.0, missing("ttfc_ms.p50") - encode_ms))


def compare(
    kind: Run, seen: Sequence[Figures], simulated: Figures, allowed: Mapping[str, float]
) -> list[list[object]]:
    """Rows of the table: what was seen, how far apart, what was simulated, the error, and whether it is
    within its limit."""
    rows = list[list[object]]()
    for name in (*LIMITS, *SHOWN):
        reals = [figures[name] or 0.0 for figures in seen]
        real, ours = fmean(reals), simulated[name]
        if not real or ours is None:
            continue
        error, verdict = ours / real - 1.0, ""
        if name in LIMITS:
            by_limit, by_spread = abs(error) <= LIMITS[name], abs(ours - real) <= 2.0 * allowed[name]
            verdict = "holds" if by_limit else "holds by the spread" if by_spread else "off"
        apart = f"{min(reals):.4g} … {max(reals):.4g}" if len(reals) > 1 else ""
        rows.append([kind.name, name, f"{real:.4g}", apart, f"{ours:.4g}", f"{error:+.1%}", verdict])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--model", default="paced")
    parser.add_argument("--capacity", type=int, default=4)
    options = parser.parse_args()
    runs = read_runs(options.dir)
    (trace_path,) = options.dir.glob("*.jsonl")
    trace, profile = load_trace(str(trace_path)), load_profile(options.profile)
    profile = replace(profile, capacity=options.capacity, stop_ms=STOP_MS)
    profile = with_delays(profile, options.dir / "alone", options.model)
    print(f"machine: {machine()}; {len(runs)} runs; opening a session takes {profile.open_ms:.1f} ms,")
    print(f"encoding a chunk {profile.encode_ms:.1f} ms")
    kinds, rows = by_kind(runs), list[list[object]]()
    allowed = {name: spread(kinds, name) for name in LIMITS}
    start_ms = {kind: mean_start_ms(options.dir, kind) for kind in kinds}
    for kind, seen in kinds.items():
        scenario = Scenario(
            policy=find_policy(kind.policy),
            profile=replace(profile, start_ms=start_ms[kind]),
            min_engines=kind.low,
            max_engines=kind.high,
        )
        rows += compare(kind, seen, flat(simulate(trace, scenario).results()), allowed)
    print_table(["run", "figure", "real", "runs", "simulated", "off by", ""], rows)
    verdicts = Counter(str(row[-1]) for row in rows if row[-1])
    print_json(
        {
            "bench": "simulated",
            "runs": len(runs),
            "start_ms": {kind.name: round(ms) for kind, ms in start_ms.items()},
            "open_ms": round(profile.open_ms, 1),
            "encode_ms": round(profile.encode_ms, 1),
            "verdicts": dict(verdicts),
        }
    )


if __name__ == "__main__":
    main()
