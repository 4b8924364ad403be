"""The simulator against real engines: the runs of bench.pareto, and the same trace simulated.

Policy and budget of a run are in its file's name. Costs and state come from a file of `turboserve profile`;
how long an engine takes to start is what the runs saw on average. What a profile can't know, how long opening
a session and encoding a chunk take, comes from a run of its own: sessions one after another on one engine
(DIR/alone, made here if it is not there), less what the simulator takes for that. A simulated figure holds if
it is off by at most its limit (of the real one), or by twice the spread of the runs that were repeated.

Run: .venv/bin/python -m bench.simulated --dir DIR --profile FILE [--model paced] [--capacity 4]
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
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
    def kind(self) -> Run:
        """The same of runs that repeat each other."""
        return replace(self.run, repeat=0)

    @property
    def figures(self) -> Figures:
        return flat({name: value for name, value in self.results.items() if name not in ("load", "points")})


def read_runs(folder: Path) -> list[Seen]:
    """Those that bench.pareto finished."""
    return [
        Seen(run=Run.named(path.stem), results=json.loads(path.read_text(encoding="utf-8")))
        for path in sorted((folder / "runs").glob("*.json"))
    ]


def mean_start_ms(runs: Iterable[Seen]) -> float:
    """From wanting an engine to its being ready, on average over all that started under load."""
    total_s = starts = 0.0
    for run in runs:
        series = run.results["cluster_series"]
        samples = list(zip(series["t"], series["starting"], strict=True))
        for (t, starting), (next_t, then) in pairwise(samples):
            total_s += starting * (next_t - t)
            starts += max(0.0, then - starting)
    return 1000.0 * total_s / starts if starts else 0.0


def spreads(runs: Sequence[Seen]) -> dict[str, float]:
    """By how much each figure differed between runs that repeat each other, at most."""
    kinds = defaultdict(list)
    for run in runs:
        kinds[run.kind].append(run.figures)
    return {
        name: max(
            max(f[name] or 0.0 for f in group) - min(f[name] or 0.0 for f in group)
            for group in kinds.values()
        )
        for name in LIMITS
    }


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


def compare(seen: Seen, simulated: Figures, allowed: Mapping[str, float]) -> list[list[object]]:
    """Rows of the table: what was seen, what was simulated, the error, and whether it is within its limit."""
    rows = list[list[object]]()
    for name in (*LIMITS, *SHOWN):
        real, ours = seen.figures[name], simulated[name]
        if not real or ours is None:
            continue
        error, verdict = ours / real - 1.0, ""
        if name in LIMITS:
            holds = abs(error) <= LIMITS[name] or abs(ours - real) <= 2.0 * allowed[name]
            verdict = "holds" if holds else "off"
        rows.append([seen.kind.name, name, real, ours, f"{error:+.1%}", verdict])
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
    trace, start_ms = load_trace(str(trace_path)), mean_start_ms(runs)
    profile = replace(
        load_profile(options.profile), capacity=options.capacity, start_ms=start_ms, stop_ms=STOP_MS
    )
    profile = with_delays(profile, options.dir / "alone", options.model)
    print(f"machine: {machine()}; {len(runs)} runs; an engine took {start_ms:.0f} ms to start,")
    print(f"opening a session {profile.open_ms:.1f} ms, encoding a chunk {profile.encode_ms:.1f} ms")
    allowed, rows = spreads(runs), list[list[object]]()
    for run, seen in {seen.kind: seen for seen in reversed(runs)}.items():
        policy = find_policy(run.policy)
        scenario = Scenario(policy=policy, profile=profile, min_engines=run.low, max_engines=run.high)
        rows += compare(seen, flat(simulate(trace, scenario).results()), allowed)
    print_table(["run", "figure", "real", "simulated", "off by", ""], rows)
    held = sum(row[-1] == "holds" for row in rows)
    judged = sum(row[-1] != "" for row in rows)
    print_json(
        {
            "bench": "simulated",
            "runs": len(runs),
            "start_ms": round(start_ms),
            "open_ms": round(profile.open_ms, 1),
            "encode_ms": round(profile.encode_ms, 1),
            "held": f"{held}/{judged}",
        }
    )


if __name__ == "__main__":
    main()
