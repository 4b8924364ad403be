"""`turboserve evaluate`: run what has not been run, in parallel, and write the tables.

Each simulation's result is a file of its own in DIR/runs, so that an evaluation that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from launch.evaluation import report
from launch.evaluation.grid import (
    ABLATIONS,
    BASELINES,
    OURS,
    Case,
    Job,
    Numbers,
    Search,
    Verdict,
    cases,
    conclude,
    equal_cost_job,
    ours_job,
    run_job,
)
from launch.settings import SettingsError
from launch.supervisor import StartError
from scheduler.sim.generate import FAMILIES
from scheduler.sim.profile import PROFILES

__all__ = ["main"]

DAY_S = 86_400.0


class Runs:
    """Results by job name: read from files, or made."""

    def __init__(self, folder: Path, pool: ProcessPoolExecutor) -> None:
        self._folder, self._pool = folder, pool
        self.results: dict[str, Numbers] = {}
        self._began_s = time.monotonic()

    def make(self, what: str, jobs: Iterable[Job]) -> None:
        """Have the results of these jobs."""
        wanted = {job.name: job for job in jobs if job.name not in self.results}
        missing = []
        for name, job in wanted.items():
            path = self._folder / f"{name}.json"
            if path.exists():
                self.results[name] = json.loads(path.read_text(encoding="utf-8"))
            else:
                missing.append(job)
        futures = {self._pool.submit(run_job, job): job for job in missing}
        for done, future in enumerate(as_completed(futures), start=1):
            job = futures[future]
            self.results[job.name] = numbers = future.result()
            _replace(self._folder / f"{job.name}.json", json.dumps(numbers) + "\n")
            took_s = time.monotonic() - self._began_s
            print(f"\r{what}: {done} of {len(missing)}, {took_s:.0f} s", end="", file=sys.stderr, flush=True)
        if missing:
            print(file=sys.stderr)


def evaluate(grid: Sequence[Case], runs: Runs) -> list[Verdict]:
    """Everything that the tables need."""
    runs.make("ours", (ours_job(case, ours) for case in grid for ours in (*OURS, *ABLATIONS)))
    runs.make(
        "without scaling",
        (Job(case=case, policy=ours, low=case.size, high=case.size) for case in grid for ours in OURS),
    )
    trials = [(case, ours, baseline) for case in grid for ours in OURS for baseline in BASELINES]
    mine = {(case, ours): runs.results[ours_job(case, ours).name] for case, ours, _ in trials}
    runs.make("equal cost", (equal_cost_job(case, base, mine[case, ours]) for case, ours, base in trials))
    searches = [
        (ours, Search(case=case, policy=base, limit_ms=float(mine[case, ours]["worst_chunk_ms"] or 0)))
        for case, ours, base in trials
    ]
    while jobs := [(search, job) for _, search in searches if (job := search.job) is not None]:
        runs.make("equal latency", (job for _, job in jobs))
        for search, job in jobs:
            search.tell(float(runs.results[job.name]["worst_chunk_ms"] or 0))
    return conclude(searches, runs.results)


def main(arguments: Sequence[str]) -> int:
    """Run and write.

    Raises:
        SettingsError: an argument can't be used.
        StartError: a file can't be written.
    """
    options = _parser().parse_args(arguments)
    for kind, names, known in (("trace", options.traces, FAMILIES), ("profile", options.profiles, PROFILES)):
        for name in names:
            if name not in known:
                raise SettingsError(f"{kind} {name!r} does not exist; available: {', '.join(known)}")
    if min(*options.sizes, options.seeds, options.workers) < 1 or not 10 <= options.duration_s <= DAY_S:
        raise SettingsError("sizes, seeds and workers must be at least 1, and duration-s 10 to 86400")
    folder = Path(options.dir)
    grid = cases(options.traces, options.sizes, options.profiles, options.seeds, options.duration_s)
    try:
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(options.workers) as pool:
            runs = Runs(folder / "runs", pool)
            verdicts = evaluate(grid, runs)
        tables = report.tables(grid, verdicts, runs.results)
        _replace(folder / "evaluation.md", report.markdown(tables))
        _replace(folder / "evaluation.html", report.page(tables))
    except OSError as exc:
        raise StartError(f"{folder} can't be written: {exc}") from exc
    print(report.markdown(tables[:2]))
    print(f"{len(runs.results)} simulations; everything is in {folder}/evaluation.html and .md")
    return 0


def _replace(path: Path, text: str) -> None:
    """Whole or not at all: who is stopped leaves no half result."""
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="turboserve evaluate",
        description="Run every policy over traces, sizes and profiles, and compare as the paper does.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--dir", required=True, metavar="DIR", help="results; one that exists is gone on with"
    )
    parser.add_argument("--traces", nargs="+", default=list(FAMILIES), metavar="FAMILY")
    parser.add_argument("--sizes", nargs="+", type=int, default=[8, 16, 32, 64], metavar="N")
    parser.add_argument("--profiles", nargs="+", default=["paper"], metavar="NAME")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="traces drawn of each family")
    parser.add_argument("--duration-s", type=float, default=1_800.0, metavar="X", help="of a trace")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes")
    return parser
