"""Ours and the baselines under one bursty load on real engines: what does which latency cost?

The load is a trace drawn by --seed whose peak takes nine tenths of all slots of --size engines. Passes of the
model `paced` wait for their declared cost instead of computing (bench/paced), so that 16 engines fit on two
cores; --model shapes --size 2 computes. Gateway, scheduler, Redis, engines are real.

    ours            `slack` and `turboserve`, 1 to --size engines; `slack` twice: what differs is the noise
    equal cost      each baseline with the fewest fixed engines that cost at least what `slack` did
    equal latency   each baseline with the fewest, by bisection, at which it holds what `slack` held: p99 of
                    chunk latency and of the wait for the first chunk, those who left in vain included
                    (TOLERANCE for noise), and as few left waiting

Each run's results, report and logs are files in DIR/runs: what was stopped goes on, a run that was cut begins
anew.
DIR/pareto.html plots engine-seconds against latency and continuity; the last line printed is JSON.
Run: .venv/bin/python -m bench.pareto --dir DIR [--model paced] [--size 16] [--seconds 600] [--seed 1]
     [--baselines ...]
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cluster import running_cluster
from bench.plugin import PACED, plugged_in
from bench.stats import machine, print_json, print_table
from launch.evaluation.grid import BASELINES, Case, trace_of
from launch.loadtest.report import page
from launch.loadtest.svg import Curve, plot
from scheduler.results import flat
from scheduler.trace import write_trace

OURS = ("slack", "turboserve")
CAPACITY = 4
TOLERANCE = 0.1
"""Share by which a baseline may be above what `slack` held."""
LIMITS = ("chunk_latency_ms.p99", "waited_ms.p99")
FIGURES = (
    "cost_engine_s",
    "chunk_latency_ms.p50",
    "chunk_latency_ms.p99",
    "chunk_latency_ms.max",
    "waited_ms.p50",
    "waited_ms.p95",
    "waited_ms.p99",
    "cpr.mean",
    "cpr.min",
    "stalls.count",
    "stalls.sum_s",
    "stalls.longest_ms",
    "unserved",
    "left_waiting",
    "refused",
    "migrations",
    "faults",
    "lost",
    "machine_busy",
)
PLOTS = {
    "Chunk latency p99, ms": "chunk_latency_ms.p99",
    "Worst chunk latency, ms": "chunk_latency_ms.max",
    "Wait for the first chunk p99, ms": "waited_ms.p99",
    "Mean CPR": "cpr.mean",
    "Seconds for which players stood still": "stalls.sum_s",
}


_AGAIN = "_again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One policy with one budget."""

    policy: str
    low: int
    high: int
    repeat: int = 0

    @property
    def name(self) -> str:
        """Unique, and fit for a file's name."""
        again = f"{_AGAIN}{self.repeat}" if self.repeat else ""
        return f"{self.policy}_{self.low}-{self.high}{again}"

    @classmethod
    def named(cls, name: str) -> Run:
        """The one of this `name`."""
        first, _, repeat = name.partition(_AGAIN)
        policy, _, budget = first.rpartition("_")
        low, high = map(int, budget.split("-"))
        return cls(policy=policy, low=low, high=high, repeat=int(repeat or 0))


Figures = Mapping[str, Any]
"""As `flat` gives them."""


def holds(figures: Figures, ours: Figures) -> bool:
    """Did everybody get what ours gave, within the tolerance?"""
    within = all(
        figures[name] is not None and figures[name] <= (1.0 + TOLERANCE) * ours[name] for name in LIMITS
    )
    return within and all(figures[name] <= ours[name] for name in ("left_waiting", "refused"))


def fewest(low: int, high: int, does: Callable[[int], bool]) -> int | None:
    """The smallest number for which `does`, if more never do worse; None: not even high."""
    end = high + 1
    while low < end:
        middle = (low + end) // 2
        if does(middle):
            end = middle
        else:
            low = middle + 1
    return low if low <= high else None


class Bench:
    """Runs by name, made when they are asked for."""

    def __init__(self, folder: Path, trace: Path, model: str) -> None:
        self._runs, self._trace, self._model = folder / "runs", trace, model
        self._runs.mkdir(parents=True, exist_ok=True)
        self.done: dict[str, tuple[Run, Figures]] = {}

    def figures(self, run: Run) -> Figures:
        """What the load test found."""
        if run.name not in self.done:
            path = self._runs / f"{run.name}.json"
            if not path.exists():
                print(f"running {run.name}", flush=True)
                self._make(run, path)
            self.done[run.name] = run, flat(json.loads(path.read_text(encoding="utf-8")))
        return self.done[run.name][1]

    def _make(self, run: Run, path: Path) -> None:
        part = path.with_suffix(".part")
        arguments = ["--model", self._model, "--policy", run.policy, "--max-engines", str(run.high)]
        with running_cluster(*arguments, engines=run.low, capacity=CAPACITY) as cluster:
            command = [sys.executable, "-m", "launch", "loadtest", "--url", cluster.url]
            command += ["--trace", str(self._trace), "--json", str(part)]
            command += ["--html", str(path.with_suffix(".html"))]
            part.unlink(missing_ok=True)
            status = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
            shutil.copytree(cluster.folder / "logs", path.with_suffix(".logs"), dirs_exist_ok=True)
        if not part.exists():
            raise SystemExit(f"the load test of {run.name} ended with status {status} and no results")
        part.replace(path)


def measure(bench: Bench, size: int, seconds: float, baselines: Sequence[str]) -> dict[str, object]:
    """Every run that the comparison needs; the verdicts."""
    ours = bench.figures(Run(policy="slack", low=1, high=size))
    again = bench.figures(Run(policy="slack", low=1, high=size, repeat=1))
    bench.figures(Run(policy="turboserve", low=1, high=size))
    names = ("cost_engine_s", *LIMITS, "chunk_latency_ms.max")
    verdicts: dict[str, object] = {
        "noise": {name: round(abs(again[name] / ours[name] - 1.0), 3) for name in names if ours[name]}
    }
    for policy in baselines:

        def with_budget(number: int, policy: str = policy) -> Figures:
            # On one engine there is nothing to choose: one run is every baseline's.
            of = policy if number > 1 else baselines[0]
            return bench.figures(Run(policy=of, low=number, high=number))

        number = min(size, math.ceil(ours["cost_engine_s"] / seconds))
        equal = with_budget(number)

        def is_enough(number: int, of: Callable[[int], Figures] = with_budget) -> bool:
            return holds(of(number), ours)

        enough = fewest(1, size, is_enough)
        verdicts[policy] = {
            "equal_cost_engines": number,
            **{f"ours_to_its_{name}": _ratio(ours[name], equal[name]) for name in names},
            "equal_latency_engines": enough,
            "ours_to_its_cost": _ratio(ours["cost_engine_s"], (enough or size) * seconds),
        }
    return verdicts


def _ratio(ours: float | None, its: float | None) -> float | None:
    return None if ours is None or not its else round(ours / its, 3)


def _shown(value: float | None) -> float | None:
    """Without digits that say nothing."""
    return value if value is None or value < 100 else round(value)


def report(done: Mapping[str, tuple[Run, Figures]], title: str) -> str:
    """The page with the Pareto plots."""
    policies = list(dict.fromkeys(run.policy for run, _ in done.values()))
    plots = []
    for name, key in PLOTS.items():
        curves = [
            Curve(
                name=policy,
                points=sorted(
                    (f["cost_engine_s"], f[key]) for run, f in done.values() if run.policy == policy
                ),
                colour=colour,
                is_dots=True,
            )
            for colour, policy in enumerate(policies)
        ]
        is_ratio = key.startswith("cpr")
        plots.append(plot(name, curves, x_label="engine-seconds", y_max=is_ratio * 1.0, y_min=is_ratio * 0.9))
    return page(title, f'<h1>{title}</h1><div class="plots">{"".join(plots)}</div>')


def make_trace(folder: Path, options: argparse.Namespace) -> Path:
    """The load's file, drawn unless it is there."""
    path = folder / f"bursts_{options.size}_{options.seconds:.0f}s_{options.seed}.jsonl"
    if not path.exists():
        # Of the profile only the slots of an engine count here.
        case = Case(
            family="bursts",
            size=options.size,
            profile="shapes-cpu",
            seed=options.seed,
            duration_s=options.seconds,
        )
        path.write_text("".join(write_trace(trace_of(case))), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--model", default="paced")
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--baselines", nargs="*", choices=BASELINES, default=BASELINES)
    options = parser.parse_args()
    print(f"machine: {machine()}", flush=True)
    options.dir.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.dir, make_trace(options.dir, options), options.model)
    is_paced = options.model == "paced"
    with plugged_in(PACED) if is_paced else nullcontext():
        verdicts = measure(bench, options.size, options.seconds, options.baselines)
    rows = [[name, *(_shown(f[n]) for n in FIGURES)] for name, (_, f) in bench.done.items()]
    print_table(["run", *FIGURES], rows)
    title = f"{options.model}: {options.seconds:.0f} s of bursts on up to {options.size} engines"
    (options.dir / "pareto.html").write_text(report(bench.done, title), encoding="utf-8")
    runs = {name: {n: f[n] for n in FIGURES} for name, (_, f) in bench.done.items()}
    head = {"bench": "pareto", "model": options.model, "paced": is_paced, "seed": options.seed}
    print_json({**head, "verdicts": verdicts, "runs": runs})


if __name__ == "__main__":
    main()
