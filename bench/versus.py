"""`slack` against `turboserve` in the simulator, both free on 1 to N engines: means, extremes, seeds apart.

Every family with every seed at every size. Cases in which numbers of `slack` were chosen (TUNED, with seed 0)
stand apart.

    higher, more    cases where `slack` is above `turboserve` by more than TIE in worst chunk, in cost
    both            cases where it is above in neither
    seeds           the means of each seed on its own: what differs between them is noise
    beyond seeds    families at a size where `slack`, on average over the seeds, is above `turboserve`
                    by more than TIE, and by more than what `turboserve` itself differs between seeds
    little gained   those where it is, on average, better by GAIN in neither worst chunk nor cost: both, and
                    by how much the exact oracles are cheaper than `turboserve` at its mean latency, the one
                    that knows the present, and the one that knows the future (launch/evaluation/oracle.py)
    settings        means of `turboserve` with fuller engines too, over cases that no number was chosen in: is
                    `slack` only another point on its curve?

Run: .venv/bin/python -m bench.versus [--sizes 8 16] [--seeds 3] [--profiles paper ...] [--seconds 600]
     [--workers 2]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import groupby
from statistics import fmean
from typing import Any

from bench.stats import machine, print_json, print_table
from launch.evaluation.findings import find_gap
from launch.evaluation.grid import OURS, SETTINGS, Case, cases, ours_job, run_job, run_moments
from scheduler.sim.generate import FAMILIES
from scheduler.sim.profile import PROFILES

TUNED = ("demo", "diurnal", "thundering")
TIE, GAIN = 0.02, 0.1
FIGURES = {"worst chunk": "worst_chunk_ms", "engine-seconds": "cost_engine_s", "TTFC p99": "ttfc_ms.p99"}

Numbers = Mapping[str, float | int | None]
Pair = tuple[Case, Mapping[str, Numbers]]
"""A case and what each of ours did in it."""


def run_case(case: Case) -> Pair:
    return case, {policy: run_job(ours_job(case, policy)) for policy in (*OURS, *SETTINGS)}


def changes(pairs: Sequence[Pair], figure: str) -> list[float]:
    """`slack` over `turboserve` − 1 of each case."""
    return [
        _number(results, "slack", figure) / _number(results, "turboserve", figure) - 1.0
        for _, results in pairs
    ]


def row(name: str, pairs: Sequence[Pair]) -> list[object]:
    """One line of the table."""
    found: dict[str, list[float]] = {label: changes(pairs, figure) for label, figure in FIGURES.items()}
    worst, cost = found["worst chunk"], found["engine-seconds"]
    cells: list[object] = [name, len(pairs)]
    for label, values in found.items():
        cells.append(f"{fmean(values):+.1%} ({min(values):+.1%} … {max(values):+.1%})")
        if label != "TTFC p99":
            cells.append(sum(value > TIE for value in values))
    cells.append(sum(max(pair) <= TIE for pair in zip(worst, cost, strict=True)))
    for figure, mean in (("cpr.mean", fmean), ("suffering", sum)):
        of = [
            mean([_number(results, policy, figure) for _, results in pairs])
            for policy in ("turboserve", "slack")
        ]
        cells.append(" → ".join(f"{value:.4f}" if figure == "cpr.mean" else f"{value:.0f}" for value in of))
    cells.append(f"{min(_number(results, 'slack', 'cpr.mean') for _, results in pairs):.4f}")
    return cells


def worse_beyond_seeds(pairs: Sequence[Pair], figure: str) -> list[str]:
    """Families in which `slack` is above `turboserve` by more than seeds differ, with by how much."""
    found = []
    for family, of in by_family(pairs):
        theirs, ours = (
            [_number(results, policy, figure) for results in of] for policy in ("turboserve", "slack")
        )
        above = fmean(ours) - fmean(theirs)
        if above > max(TIE * fmean(theirs), max(theirs) - min(theirs)):
            found.append(f"{family} {above / fmean(theirs):+.0%}")
    return found


def oracles_save(case: Case) -> tuple[float | None, float | None]:
    """By what share the oracle that knows the present, and the one that knows the future, cost less than
    `turboserve`; None: it is never so fast."""
    job = ours_job(case, "turboserve")
    gap = find_gap(job, run_moments(job))
    present, future = (
        None if above is None else above / (1.0 + above) for above in (gap.present, gap.future)
    )
    return present, future


def little_gained(pairs: Sequence[Pair]) -> dict[str, str]:
    """Families in which `slack` is better by GAIN in nothing, with the change in worst chunk and in cost."""
    found = {}
    for family, of in by_family(pairs):
        theirs, ours = (
            [fmean(_number(r, policy, figure) for r in of) for figure in ("worst_chunk_ms", "cost_engine_s")]
            for policy in ("turboserve", "slack")
        )
        worst, cost = (mine / its - 1.0 for mine, its in zip(ours, theirs, strict=True))
        if min(worst, cost) > -GAIN:
            found[family] = f"{worst:+.0%}, {cost:+.0%}"
    return found


def oracles_beside(name: str, pairs: Sequence[Pair], run: Callable[..., Iterable[Any]]) -> list[list[object]]:
    """A line for each family in which little is gained: the mean share that each oracle saves, and of how
    many of its cases. `run`: a `map`."""
    lines: list[list[object]] = []
    for family, change in little_gained(pairs).items():
        found = list(run(oracles_save, [case for case, _ in pairs if case.family == family]))
        cells = []
        for column in zip(*found, strict=True):
            known = [share for share in column if share is not None]
            cells.append(f"{fmean(known):.0%} ({len(known)} of {len(column)})" if known else "–")
        lines.append([name, family, change, *cells])
    return lines


def settings(name: str, pairs: Sequence[Pair]) -> list[list[object]]:
    """A line for each policy: means over cases."""
    lines: list[list[object]] = []
    for policy in (*OURS, *SETTINGS):
        means = {
            figure: fmean(_number(results, policy, figure) for _, results in pairs)
            for figure in (*FIGURES.values(), "cpr.mean", "suffering")
        }
        cells = [f"{mean:.4f}" if figure == "cpr.mean" else round(mean) for figure, mean in means.items()]
        lines.append([name, policy, *cells])
    return lines


def by_load(pairs: Sequence[Pair]) -> list[tuple[str, list[Pair]]]:
    """By profile and size, with what they are called."""
    groups = groupby(pairs, key=lambda pair: f"`{pair[0].profile}`, size {pair[0].size}")
    return [(name, list(group)) for name, group in groups]


def by_family(pairs: Sequence[Pair]) -> list[tuple[str, list[Mapping[str, Numbers]]]]:
    """Results by the family of their case."""
    families = dict.fromkeys(case.family for case, _ in pairs)
    return [(name, [results for case, results in pairs if case.family == name]) for name in families]


def _number(results: Mapping[str, Numbers], policy: str, figure: str) -> float:
    value = results[policy][figure]
    assert value is not None, f"{policy} served nobody"
    return float(value)


def is_tuned(pair: Pair) -> bool:
    return pair[0].family in TUNED and pair[0].seed == 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--profiles", nargs="+", choices=PROFILES, default=list(PROFILES))
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    wanted = cases(list(FAMILIES), options.sizes, options.profiles, 0, options.seeds, options.seconds)
    with ProcessPoolExecutor(options.workers) as pool:
        pairs = list(pool.map(run_case, wanted))
        little = [line for group in by_load(pairs) for line in oracles_beside(*group, pool.map)]
    rows: list[list[object]] = []
    spread: list[list[object]] = []
    beyond: list[list[object]] = []
    tried: list[list[object]] = []
    summary: dict[str, Any] = {}
    for name, members in by_load(pairs):
        for label, some in (
            ("tuning", [pair for pair in members if is_tuned(pair)]),
            ("test", [pair for pair in members if not is_tuned(pair)]),
        ):
            if some:
                rows.append(row(f"{name}, {label}", some))
        tried += settings(name, [pair for pair in members if not is_tuned(pair)])
        by_seed = [[p for p in members if p[0].seed == seed] for seed in range(options.seeds)]
        means = {label: [fmean(changes(of, figure)) for of in by_seed] for label, figure in FIGURES.items()}
        spread.append([name, *(" / ".join(f"{value:+.1%}" for value in values) for values in means.values())])
        worse = {label: worse_beyond_seeds(members, figure) for label, figure in FIGURES.items()}
        beyond.append([name, *("; ".join(families) or "none" for families in worse.values())])
        summary[name] = {label: [round(value, 4) for value in values] for label, values in means.items()}
    print(f"machine: {machine()}; simulated, load changes no figure")
    head = ["profile", "cases", "worst chunk", "higher", "engine-seconds", "more", "TTFC p99", "both"]
    print_table([*head, "CPR mean", "sessions that stall", "least CPR"], rows)
    print_table(["seeds", *FIGURES], spread)
    print_table(["beyond seeds", *FIGURES], beyond)
    print_table(["little gained", "family", "worst chunk, cost", "oracle saves", "with the future"], little)
    print_table(["settings", "policy", *FIGURES, "CPR mean", "sessions that stall"], tried)
    print_json({"bench": "versus", "seeds": options.seeds, "means_by_seed": summary})


if __name__ == "__main__":
    main()
