"""`turboserve evaluate`: run what has not been run, in parallel, and write the tables.

Each simulation's result is a file of its own in DIR/runs/<digest of the sources that decide results>: an
evaluation that was stopped goes on, and results of other code are never among them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import track

import launch
from engine.process import die_with
from launch.evaluation import grid as grid_module
from launch.evaluation import report
from launch.evaluation.findings import Findings
from launch.evaluation.grid import (
    ABLATED_WORLDS,
    ABLATIONS,
    BASELINES,
    CUTS,
    FILL,
    OURS,
    REACH,
    WATCHED_WORLDS,
    WORLDS,
    Case,
    Job,
    Numbers,
    Search,
    cases,
    conclude,
    cuts_of,
    equal_cost_job,
    full_job,
    ours_job,
    run_job,
    run_moments,
)
from launch.evaluation.inputs import MAX_S, MIN_S, load_profile, load_trace
from launch.evaluation.page import page
from launch.evaluation.sources import digest_of
from launch.settings import SettingsError
from launch.supervisor import StartError
from scheduler.sim.generate import FAMILIES, MAX_SESSIONS, describe
from scheduler.sim.profile import PROFILES

__all__ = ["main"]

T = TypeVar("T")
MAX_ENGINES = 4_096
"""Of a simulation."""
GOES_ON = "goes on with what is missing"


class Runs:
    """Results by job name: read from files, or made."""

    def __init__(self, folder: Path, pool: ProcessPoolExecutor) -> None:
        self._folder, self._pool = folder, pool
        self.jobs: dict[str, Job] = {}
        self.results: dict[str, Numbers] = {}
        self.moments: dict[str, Sequence[Sequence[float]]] = {}
        self._console = Console(stderr=True)

    def make(self, what: str, jobs: Iterable[Job]) -> None:
        """Have the results of these jobs."""
        wanted = {job.name: job for job in jobs}
        self._make(what, wanted, run_job, self.results, ".json")
        self.jobs |= wanted

    def watch(self, what: str, jobs: Iterable[Job]) -> None:
        """Have what every tick of these jobs saw."""
        self._make(what, {job.name: job for job in jobs}, run_moments, self.moments, ".moments.json")

    def _make(
        self, what: str, jobs: Mapping[str, Job], run: Callable[[Job], T], found: dict[str, T], suffix: str
    ) -> None:
        missing = []
        for name, job in jobs.items():
            if name not in found:
                with contextlib.suppress(FileNotFoundError, ValueError):  # of a power cut: half a file
                    found[name] = json.loads((self._folder / f"{name}{suffix}").read_bytes())
            if name not in found:
                missing.append(job)
        with _undisturbed():
            futures = {self._pool.submit(run, job): job for job in missing}
        done = as_completed(futures)
        for future in track(done, what, len(missing), console=self._console, disable=not missing):
            name = futures[future].name
            found[name] = future.result()
            _replace(self._folder / f"{name}{suffix}", json.dumps(found[name]) + "\n")


def evaluate(grid: Sequence[Case], runs: Runs, cuts: Sequence[int], worlds: Sequence[str]) -> Findings:
    """Everything that the tables need. cuts: settings of baselines to try. worlds: names in WORLDS."""
    pairs = [(case, ours) for case in grid for ours in OURS]
    ablated = [world for world in ABLATED_WORLDS if not world or world in worlds]
    tried = [(case, world) for case in grid for world in ablated]
    runs.make("ours", (ours_job(case, ours, world) for case, world in tried for ours in (*OURS, *ABLATIONS)))
    empty = [case.name for case in grid if not runs.results[ours_job(case, OURS[0]).name]["sessions"]]
    if empty:
        raise SettingsError(f"there is nobody in {', '.join(empty)}: traces must last longer")
    runs.make("without scaling", (full_job(case, ours, world) for case, world in tried for ours in OURS))
    watched = [world for world in WATCHED_WORLDS if not world or world in worlds]
    runs.watch("moment by moment", (ours_job(case, ours, world) for case, ours in pairs for world in watched))
    runs.make("other worlds", (ours_job(case, ours, world) for case, ours in pairs for world in worlds))
    runs.make("other worlds", (full_job(case, "fixed", world) for case in grid for world in worlds))
    trials = [
        (case, ours, baseline, cut)
        for case, ours in pairs
        for baseline in BASELINES
        for cut in cuts_of(case, cuts)
    ]
    mine = {(case, ours): runs.results[ours_job(case, ours).name] for case, ours in pairs}
    runs.make(
        "equal cost", (equal_cost_job(case, base, mine[case, ours], cut) for case, ours, base, cut in trials)
    )
    searches = [
        (
            ours,
            Search(case=case, policy=base, cut=cut, limit_ms=float(mine[case, ours]["worst_chunk_ms"] or 0)),
        )
        for case, ours, base, cut in trials
    ]
    while jobs := [(search, job) for _, search in searches if (job := search.job) is not None]:
        runs.make("equal latency", (job for _, job in jobs))
        for search, job in jobs:
            search.tell(float(runs.results[job.name]["worst_chunk_ms"] or 0))
    return Findings.of(grid, conclude(searches, runs.results), runs.jobs, runs.results, runs.moments)


def main(arguments: Sequence[str]) -> int:
    """Run and write.

    Raises:
        SettingsError: an argument can't be used.
        StartError: a file can't be written.
    """
    options = _parser().parse_args(arguments)
    _check(options)
    folder, grid = Path(options.dir), _grid(options)
    try:
        kept = _folder_of_runs(folder / "runs")
        with _workers(options.workers) as pool:
            runs = Runs(kept, pool)
            findings = evaluate(grid, runs, options.cuts, options.worlds)
        parts = [report.tables(part) for part in findings.by_profile()]
        tables = [table for part in parts for table in part]
        _replace(folder / "evaluation.md", report.markdown(tables))
        _replace(folder / "evaluation.html", page(findings, tables))
    except OSError as exc:
        raise StartError(f"{folder} can't be written: {exc}") from exc
    except BrokenProcessPool as exc:
        raise StartError(f"a process was killed; the same command {GOES_ON}") from exc
    except KeyboardInterrupt:
        print(f"stopped; the same command {GOES_ON}", file=sys.stderr)
        raise
    print(report.markdown([table for part in parts for table in part[:4]]))
    print(f"{len(runs.results)} simulations; everything is in {folder}/evaluation.html and .md")
    return 0


def _check(options: argparse.Namespace) -> None:
    """Raises SettingsError."""
    for name in options.traces:
        if name not in FAMILIES:
            raise SettingsError(f"trace {name!r} does not exist; available: {', '.join(FAMILIES)}")
    if not options.traces and not options.trace:
        raise SettingsError("there is no trace: name a family with --traces, or a file with --trace")
    if 0 not in options.cuts or min(options.cuts) < 0:
        raise SettingsError("cuts must not be negative, and 0 must be among them")
    if options.first_seed < 0:
        raise SettingsError(f"first-seed must not be negative, got {options.first_seed}")
    if min(*options.sizes, options.seeds, options.workers) < 1 or not MIN_S <= options.duration_s <= MAX_S:
        raise SettingsError("sizes, seeds and workers must be at least 1, and duration-s 10 to 86400")
    if max(options.sizes) * REACH > MAX_ENGINES:
        raise SettingsError(f"sizes must be at most {MAX_ENGINES // REACH}, as twice that is tried")


def _grid(options: argparse.Namespace) -> list[Case]:
    """Raises SettingsError: a file can't be used."""
    kinds = {kind.name: kind for kind in map(load_profile, options.profiles)}
    given = dict(map(load_trace, options.trace))
    slots = FILL * max(options.sizes) * max(kind.capacity for kind in kinds.values())
    for name, trace in given.items():
        found = describe(trace)
        if not found["peak_active"]:
            raise SettingsError(f"the trace {name} can't be used: nobody in it is active")
        if (number := found["sessions"] * slots / found["peak_active"]) > MAX_SESSIONS:
            raise SettingsError(
                f"the trace {name} can't be used: it would take {number:,.0f} sessions to fill that size"
            )
    return cases(
        options.traces,
        options.sizes,
        list(kinds),
        options.first_seed,
        options.seeds,
        options.duration_s,
        given=given,
        kinds=kinds,
    )


@contextlib.contextmanager
def _workers(number: int) -> Iterator[ProcessPoolExecutor]:
    """Processes to simulate in. None is left, however this one ends."""
    with ProcessPoolExecutor(number, initializer=die_with, initargs=(os.getpid(),)) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.kill()
            raise


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C waits: half a pool could not be ended. Processes and threads that begin here never get one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _folder_of_runs(runs: Path) -> Path:
    """Where results of this code are kept. Says so if there are only others."""
    folder = runs / digest_of(Path(launch.__file__).parent.parent, grid_module.__name__)
    others = sum(1 for _ in runs.rglob("*.json"))
    if others and not folder.exists():
        print(f"the code has changed since {others} results in {runs}: they are not used", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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
    parser.add_argument(
        "--traces", nargs="*", default=list(FAMILIES), metavar="FAMILY", help="generated; without a name none"
    )
    parser.add_argument(
        "--trace", nargs="+", default=[], metavar="FILE", help="others besides, whole, resized to each size"
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[8, 16, 32, 64], metavar="N")
    parser.add_argument(
        "--profiles",
        nargs="+",
        default=["paper"],
        metavar="NAME",
        help=f"a .json of `turboserve profile`, or {', '.join(PROFILES)}",
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="traces drawn of each family")
    parser.add_argument("--first-seed", type=int, default=0, metavar="N", help="of those traces")
    parser.add_argument(
        "--cuts",
        nargs="+",
        type=int,
        default=list(CUTS),
        metavar="N",
        help="settings of baselines: slots that they leave unused on each engine; the best counts",
    )
    parser.add_argument(
        "--worlds",
        nargs="*",
        default=[name for name in WORLDS if name],
        choices=[name for name in WORLDS if name],
        help="what else ours run in",
    )
    parser.add_argument("--duration-s", type=float, default=1_800.0, metavar="X", help="of a generated trace")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes")
    return parser
