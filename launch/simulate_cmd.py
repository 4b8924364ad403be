"""`turboserve simulate`: a policy over a trace, on engines that cost what a profile says."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launch import simulate_serve
from launch.outputs import check_writable
from launch.profile_file import read_json
from launch.settings import SettingsError
from launch.supervisor import StartError
from launch.trace_file import load_trace
from scheduler.policy.registry import find_policy
from scheduler.results import flat
from scheduler.sim.failures import draw_failures
from scheduler.sim.profile import PROFILES, Profile, by_chunk, find_profile, read_profile
from scheduler.sim.simulate import Scenario, simulate
from scheduler.trace import Trace

__all__ = ["load_profile", "main", "parse_range"]

SHOWN = (
    "worst_chunk_ms",
    "chunk_latency_ms.p50",
    "chunk_latency_ms.p99",
    "ttfc_ms.p50",
    "ttfc_ms.p99",
    "waited_ms.p99",
    "cpr.mean",
    "cpr.min",
    "suffering",
    "stalled_s",
    "unserved",
    "left_waiting",
    "cost_engine_s",
    "max_engines",
    "migrations",
    "deaths",
    "rebuilds",
    "chunks",
    "plans",
    "planning_ms.p50",
    "planning_ms.p99",
)
MAX_DEATHS = 1_000_000
MAX_SPEED = 1_000.0
"""Faster, and a pass may take no time at all, as floats go: nothing would ever be done."""


def main(arguments: Sequence[str]) -> int:
    """Run, print a table, write JSON.

    Raises:
        SettingsError: an argument can't be used.
        StartError: the result can't be written.
    """
    options = _parser().parse_args(arguments)
    _check(options)
    low, high = parse_range(options.engines)
    try:
        profile = load_profile(options.profile)
        changes = {"start_ms": options.start_s, "capacity": options.capacity}
        scaled = {name: value for name, value in changes.items() if value is not None}
        if "start_ms" in scaled:
            scaled["start_ms"] *= 1000
        profile = replace(profile, **scaled)
        policy = find_policy(options.policy)
    except ValueError as exc:
        raise SettingsError(str(exc)) from exc
    trace = load_trace(options.trace)
    if options.mtbf_s is not None and trace.duration_s * high / options.mtbf_s > MAX_DEATHS:
        raise SettingsError(f"--mtbf-s {options.mtbf_s:g} is more than {MAX_DEATHS:,} deaths")
    if options.json is not None:
        check_writable(options.json)
    scenario = Scenario(
        policy=policy,
        profile=by_chunk(profile) if options.by_chunk else profile,
        min_engines=low,
        max_engines=high,
        speeds=tuple(options.speeds),
        failures_s=draw_failures(options.seed, options.mtbf_s, trace.duration_s, high),
        stopwatch_ms=lambda: time.perf_counter_ns() / 1e6,
        is_real_time=options.real_planning,
    )
    if options.serve is not None:
        return _serve(trace, scenario, options)
    began_s = time.perf_counter()
    results = simulate(trace, scenario).results()
    took_s = time.perf_counter() - began_s
    results |= {
        "policy": policy.name,
        "profile": scenario.profile.name,
        "engines": options.engines,
        "trace": options.trace,
        "seed": options.seed,
        "took_s": round(took_s, 2),
    }
    numbers = flat(results)
    for name in SHOWN:
        value = numbers.get(name)
        print(f"{name:24} {'-' if value is None else f'{value:,}'}")
    print(f"{trace.duration_s:.0f} s of {len(trace.lives())} sessions in {took_s:.1f} s")
    if options.json is not None:
        try:
            Path(options.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        except OSError as exc:
            raise StartError(f"the result can't be written: {exc}") from exc
    return 0


def _serve(trace: Trace, scenario: Scenario, options: argparse.Namespace) -> int:
    try:
        asyncio.run(simulate_serve.serve(trace, scenario, port=options.serve, speed=options.speed))
    except OSError as exc:
        raise StartError(f"port {options.serve} can't be used: {exc.strerror or exc}") from exc
    return 0


def _check(options: argparse.Namespace) -> None:
    positive = [("--speeds", speed) for speed in options.speeds]
    positive.append(("--speed", options.speed))
    positive += [] if options.mtbf_s is None else [("--mtbf-s", options.mtbf_s)]
    for flag, value in positive:
        if not 0 < value < math.inf:
            raise SettingsError(f"{flag} must be above 0, got {value:g}")
    if max(options.speeds) > MAX_SPEED:
        raise SettingsError(f"--speeds must be at most {MAX_SPEED:g}, got {max(options.speeds):g}")
    if options.start_s is not None and not 0 <= options.start_s < math.inf:
        raise SettingsError(f"--start-s must not be negative, got {options.start_s:g}")
    if options.serve is not None and not 0 <= options.serve <= 65_535:
        raise SettingsError(f"--serve must be a port, 0 to 65535, got {options.serve}")
    if options.seed < 0:
        raise SettingsError(f"--seed must not be negative, got {options.seed}")


def parse_range(text: str) -> tuple[int, int]:
    """MIN:MAX, or one number for a fixed budget. Raises SettingsError."""
    low, _, high = text.partition(":")
    try:
        found = int(low), int(high or low)
    except ValueError:
        raise SettingsError(f"--engines must be MIN:MAX, not {text!r}") from None
    if not 0 <= found[0] <= found[1] <= 4_096 or found[1] < 1:
        raise SettingsError(f"--engines must be within 0:1 and 4096:4096, MIN not above MAX, not {text!r}")
    return found


def load_profile(name: str) -> Profile:
    """A named profile, or a file that `turboserve profile` wrote. Raises SettingsError, ValueError."""
    if not name.endswith(".json"):
        return find_profile(name)
    _, data = read_json(name)
    return read_profile(Path(name).stem, data)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="turboserve simulate",
        description="Run a policy over a trace, on engines that cost what a profile says.",
        allow_abbrev=False,
    )
    parser.add_argument("--trace", required=True, metavar="FILE", help="see `turboserve trace`")
    parser.add_argument("--policy", default="slack", metavar="NAME", help="as for `turboserve up`")
    parser.add_argument("--engines", default="1:8", metavar="MIN:MAX", help="N:N is a fixed budget")
    parser.add_argument(
        "--profile",
        default="paper",
        metavar="NAME",
        help=f"a .json of `turboserve profile`, or {', '.join(PROFILES)}",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of failures")
    parser.add_argument("--json", metavar="OUT", help="file for the results")
    parser.add_argument("--start-s", type=float, metavar="X", help="start-up delay instead of the profile's")
    parser.add_argument("--capacity", type=int, metavar="K", help="slots per engine instead of the profile's")
    parser.add_argument(
        "--speeds", type=float, nargs="+", default=[1.0], metavar="X", help="of engines in the order of start"
    )
    parser.add_argument("--mtbf-s", type=float, metavar="X", help="mean life of an engine that fails")
    parser.add_argument("--by-chunk", action="store_true", help="coalesce whole chunks instead of passes")
    parser.add_argument(
        "--real-planning", action="store_true", help="delay each plan by what it takes here (not repeatable)"
    )
    parser.add_argument(
        "--serve", type=int, metavar="PORT", help="play it on the cluster page instead, over and over"
    )
    parser.add_argument("--speed", type=float, default=1.0, metavar="X", help="of --serve")
    return parser
