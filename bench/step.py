"""A step of load on real engines: how fast does a cluster grow and shrink, and what do viewers see of it?

A fifth of --viewers for a third of the time, all of them for a third, a fifth again (`turboserve loadtest
--shape step`), on a cluster that chooses from 1 to --engines engines. Passes of the model `paced` wait for
their declared cost instead of computing (bench/paced), so that the engines fit on two cores; gateway,
scheduler, Redis, engines and clients are real.

Prints a row per phase and ends with one JSON line. DIR/step.html shows engines and chunk latency over time,
DIR/step.json has every figure, DIR/logs what the processes said. The exit status is 1 if any stream had a
gap, a repeat or another fault, or a session was lost.
Run: .venv/bin/python -m bench.step --dir DIR [--engines 6] [--viewers 18] [--seconds 180] [--policy slack]
     [--seed 1]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.cluster import running_cluster
from bench.plugin import PACED, plugged_in
from bench.stats import machine, print_json, print_table
from launch.loadtest.report import PHASE_COLUMNS
from scheduler.results import flat

CAPACITY = 4
"""Sessions of an engine: as many as `paced` holds in real time."""
LIFE_S = 60.0
"""How long a session stays, on average."""
BROKEN = ("gaps", "faults", "lost")
"""Figures that must be 0; a repeated chunk is a fault."""
FIGURES = (
    "sessions",
    "chunks",
    "ttfc_ms.p99",
    "cpr.mean",
    "unserved",
    "refused",
    "migrations",
    "machine_busy",
)


def play(options: argparse.Namespace) -> dict[str, Any]:
    """The results of the load test.

    Raises:
        RuntimeError: the cluster did not get ready, or the load could not be played.
    """
    out = options.dir / "step.json"
    out.unlink(missing_ok=True)
    arguments = ["--model", "paced", "--policy", options.policy, "--max-engines", str(options.engines)]
    with plugged_in(PACED), running_cluster(*arguments, engines=1, capacity=CAPACITY) as cluster:
        command = [sys.executable, "-m", "launch", "loadtest", "--url", cluster.url, "--shape", "step"]
        command += ["--viewers", str(options.viewers), "--seconds", str(options.seconds)]
        command += ["--life-s", str(LIFE_S), "--idle-share", "0", "--seed", str(options.seed)]
        command += ["--json", str(out), "--html", str(options.dir / "step.html")]
        status = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
        shutil.copytree(cluster.folder / "logs", options.dir / "logs", dirs_exist_ok=True)
    if not out.exists():
        raise RuntimeError(f"the load test ended with status {status} and no results")
    results: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return results


def are_whole(figures: Mapping[str, float | None]) -> bool:
    """Had no stream a gap, a repeat or another fault, and was no session lost?"""
    return not any(figures[name] for name in BROKEN)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--engines", type=int, default=6)
    parser.add_argument("--viewers", type=float, default=18.0)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--policy", default="slack")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.dir.mkdir(parents=True, exist_ok=True)
    print(f"machine: {machine()}", flush=True)
    results = play(options)
    phases = {phase["name"]: flat(phase) for phase in results["phases"]}
    rows = [[name, *(figures[key] for key in PHASE_COLUMNS)] for name, figures in phases.items()]
    print_table(["phase", *PHASE_COLUMNS.values()], rows)
    for problem in results["problems"]:
        print(problem)
    figures = flat(results)
    is_whole = are_whole(figures)
    print(f"report: {options.dir / 'step.html'}; {'every stream was whole' if is_whole else 'STREAMS BROKE'}")
    head = {"bench": "step", "policy": options.policy, "engines": options.engines, "seed": options.seed}
    print_json({**head, "whole": is_whole, **{n: figures[n] for n in (*BROKEN, *FIGURES)}, "phases": phases})
    return 0 if is_whole else 1


if __name__ == "__main__":
    sys.exit(main())
