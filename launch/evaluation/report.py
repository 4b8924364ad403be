"""The evaluation's tables, and their form in Markdown. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from launch.evaluation.findings import Findings
from launch.evaluation.grid import (
    ABLATED_WORLDS,
    ABLATIONS,
    BASELINES,
    OURS,
    WATCHED_WORLDS,
    WORLDS,
    Case,
    Job,
    Numbers,
    Verdict,
    full_job,
    ours_job,
)

__all__ = ["Table", "markdown", "tables"]

Table = tuple[str, str, Sequence[str], Sequence[Sequence[str]]]
"""(title, note, columns, rows)"""
PAPER = {"latency": -0.375, "cost": -0.372, "oracle": 0.036}


def tables(found: Findings) -> list[Table]:
    """Everything that is shown of one profile, what matters most first."""
    all_ = [
        _summary(found),
        _direct(found.cases, found.results),
        _bounds(found),
        _oracle(found),
        _ablations(found.cases, found.results),
        _worlds(found),
        _ours(found.cases, found.results),
        *(_detail(ours, found) for ours in OURS),
    ]
    profile = found.cases[0].profile
    return [(f"{title}, profile {profile}", note, columns, rows) for title, note, columns, rows in all_]


def markdown(tables: Sequence[Table]) -> str:
    """As Markdown."""
    parts = []
    for title, note, columns, rows in tables:
        lines = [f"## {title}", "", note, "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        parts.append("\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]))
    return "\n\n".join(parts) + "\n"


def _summary(found: Findings) -> Table:
    rows = []
    for ours in OURS:
        for baseline in (*BASELINES, None):
            those = [v for v in found.verdicts if v.ours == ours and baseline in (v.baseline, None)]
            if those:
                latency, cost = [v.latency_change for v in those], [v.cost_change for v in those]
                bounds = [_bound_changes(found, v) for v in those]
                rows.append(
                    [
                        ours,
                        baseline or "all four",
                        _percent(fmean(latency)),
                        _percent(max(latency)),
                        _percent(fmean(bound for bound, _ in bounds)),
                        _percent(fmean(cost)),
                        _percent(max(cost)),
                        _percent(fmean(bound for _, bound in bounds)),
                        str(sum(v.latency_n is None for v in those)),
                    ]
                )
    paper = [_percent(PAPER["latency"]), "", "", _percent(PAPER["cost"]), "", "", ""]
    rows.append(["paper", "all four", *paper])
    note = (
        "Worst chunk latency at equal cost and engine-seconds at equal latency, against baselines with a "
        "fixed budget and their best setting; means over all traces and sizes. Least: the case where ours "
        "gains least. Bound: what no policy could have gained more than (fluid lower bound). Open: cases in "
        "which no budget up to twice the size reached ours; there the change counts as against that. Traces "
        "are named by family and seed."
    )
    columns = ("ours", "baseline", "latency", "least", "bound", "cost", "least", "bound", "open")
    return "Against the paper's baselines", note, columns, rows


def _bound_changes(found: Findings, v: Verdict) -> tuple[float, float]:
    """Of latency at our cost, and of cost at our latency: the most that any policy could have gained."""
    fluid = found.fluids[v.case]
    return (
        fluid.least_worst_ms(v.ours_s) / v.cost_ms - 1.0,
        fluid.least_engine_s(v.ours_ms) / v.baseline_s - 1.0,
    )


def _bounds(found: Findings) -> Table:
    rows = []
    gaps: dict[str, list[tuple[float, float, float]]] = {ours: [] for ours in OURS}
    for case in found.cases:
        for ours in OURS:
            numbers, fluid = found.ours(case, ours), found.fluids[case]
            worst_ms, engine_s = (float(numbers[name] or 0) for name in ("worst_chunk_ms", "cost_engine_s"))
            least_ms, least_s = fluid.least_worst_ms(engine_s), fluid.least_engine_s(worst_ms)
            floor_s = float(numbers["floor_engine_s"] or 0)
            gap = (_above(worst_ms, least_ms), _above(engine_s, least_s), _above(engine_s, floor_s))
            gaps[ours].append(gap)
            figures = (worst_ms, least_ms, engine_s, least_s, floor_s)
            rows.append(
                [
                    f"{_trace(case)} {case.size}",
                    ours,
                    *map(_cell, figures),
                    *(_percent(share) for share in gap),
                ]
            )
    rows += [
        ["mean", ours, *[""] * 5, *(_percent(_mean(shares)) for shares in zip(*gaps[ours], strict=True))]
        for ours in OURS
    ]
    note = (
        "Fluid: no policy at all, knowing the future and starting engines in no time, has a lower worst "
        "chunk latency for these engine-seconds, or fewer engine-seconds with no chunk later than this. "
        "Slots: engine-seconds of a policy that gives every active session a slot at once, without a margin."
    )
    columns = (
        *("case", "policy", "worst ms", "fluid ms", "engine-s", "fluid engine-s", "slots engine-s"),
        *("above fluid ms", "above fluid engine-s", "above slots"),
    )
    return "Lower bounds", note, columns, rows


def _above(value: float, bound: float) -> float:
    """As a share; infinite where the bound is nothing: sessions too short to be owed a chunk."""
    return value / bound - 1.0 if bound else math.inf


def _mean(shares: Sequence[float]) -> float:
    """Of those that are finite; infinite if none is."""
    known = [share for share in shares if math.isfinite(share)]
    return fmean(known) if known else math.inf


def _oracle(found: Findings) -> Table:
    rows = []
    for world in WATCHED_WORLDS:
        shares: dict[str, list[tuple[float | None, ...]]] = {ours: [] for ours in OURS}
        for case in found.cases:
            for ours in OURS:
                gap = found.gaps.get(ours_job(case, ours, world).name)
                if gap is not None:
                    shares[ours].append((gap.placement, gap.present, gap.future))
                    mean = (_cell(gap.engine_s), _cell(gap.mean_ms))
                    name = f"{_trace(case)} {case.size} {world}".strip()
                    rows.append([name, ours, *mean, *map(_share, shares[ours][-1])])
        for ours in OURS:
            if shares[ours]:
                means = [
                    fmean(known) if (known := [share for share in column if share is not None]) else None
                    for column in zip(*shares[ours], strict=True)
                ]
                rows.append([f"mean {world}".strip(), ours, "", "", *map(_share, means)])
    rows.append(["paper", "", "", "", _percent(PAPER["oracle"]), "", ""])
    note = (
        "In the model in which the paper states its problem (launch/evaluation/oracle.py): latency of the "
        "fullest engine above that of the best placement on the same engines, mean over moments, and "
        "engine-seconds above those of an exact oracle with the same mean latency. Both oracles re-place "
        "everybody at every moment for nothing and start engines as the profile says. One knows the present "
        "only, which bounds nobody where engines take time to start, one the whole trace. Where they need "
        "none both are the same. The paper does not say which of its gaps its figure is."
    )
    columns = (
        *("case", "policy", "engine-s", "mean latency ms", "latency above best placement"),
        *("cost above present", "cost above future"),
    )
    return "Gap to the oracle", note, columns, rows


def _worlds(found: Findings) -> Table:
    names = (
        *("worst_chunk_ms", "waited_ms.p99", "left_waiting", "cpr.mean", "cpr.min", "suffering"),
        *("stalled_s", "deaths"),
    )
    rows = []
    for world in WORLDS:
        for policy in (*OURS, "fixed"):
            jobs = [
                full_job(case, policy, world) if policy == "fixed" else ours_job(case, policy, world)
                for case in found.cases
            ]
            numbers = [found.results[job.name] for job in jobs if job.name in found.results]
            if numbers and (world or policy != "fixed"):
                means = [fmean(float(n[name] or 0) for n in numbers) for name in ("cost_engine_s", *names)]
                rows.append([world or "as in the paper", policy, str(len(numbers)), *map(_cell, means)])
    note = (
        "Means over cases. Start-up: engines take 10 s to be ready and 1 s to stop. Failures: they live 10 "
        "minutes on average. Mixed: every third computes half as fast. fixed has as many engines as the size."
    )
    return "What the paper leaves out", note, ("world", "policy", "cases", "engine-s", *names), rows


def _direct(cases: Sequence[Case], results: Mapping[str, Numbers]) -> Table:
    rows = []
    pairs: list[tuple[float, float]] = []
    for case in cases:
        old, new = (results[ours_job(case, ours).name] for ours in OURS)
        latency = _ratio(new, old, "worst_chunk_ms")
        cost = _ratio(new, old, "cost_engine_s")
        pairs.append((latency, cost))
        cells = [
            _pair(old, new, name)
            for name in ("worst_chunk_ms", "cost_engine_s", "cpr.mean", "waited_ms.p99", "suffering")
        ]
        rows.append([_trace(case), str(case.size), _percent(latency), _percent(cost), *cells])
    rows.append(["mean", "", *(_percent(fmean(values)) for values in zip(*pairs, strict=True)), *[""] * 5])
    columns = (
        *("trace", "size", "latency", "cost", "worst ms", "engine-s", "CPR mean"),
        *("wait p99 ms", "suffering"),
    )
    note = (
        "Both free on the same range of engines; turboserve / slack. Wait: for the first chunk, as waited_ms."
    )
    return "slack against turboserve", note, columns, rows


def _detail(ours: str, found: Findings) -> Table:
    rows = []
    for v in found.verdicts:
        if v.ours == ours:
            bound_ms, bound_s = _bound_changes(found, v)
            rows.append(
                [
                    _trace(v.case),
                    str(v.case.size),
                    v.baseline,
                    f"{v.ours_ms:,.0f}",
                    f"{v.ours_s:,.0f}",
                    f"{v.cost_n} (−{v.cost_cut})",
                    f"{v.cost_ms:,.0f}",
                    _percent(v.latency_change),
                    _percent(bound_ms),
                    f"{v.latency_n} (−{v.latency_cut})" if v.latency_n is not None else "none",
                    _percent(v.cost_change),
                    _percent(bound_s),
                ]
            )
    columns = (
        *("trace", "size", "baseline", "ours worst ms", "ours engine-s", "N equal cost", "its worst ms"),
        *("latency", "bound", "N equal latency", "cost", "bound"),
    )
    note = "In parentheses the baseline's best setting: slots that it leaves unused on each engine."
    return f"{ours}, case by case", note, columns, rows


def _ours(cases: Sequence[Case], results: Mapping[str, Numbers]) -> Table:
    names = (
        *("worst_chunk_ms", "chunk_latency_ms.p99", "waited_ms.p99", "left_waiting", "cpr.mean", "cpr.min"),
        "suffering",
        *("cost_engine_s", "floor_engine_s", "max_engines", "migrations", "rebuilds"),
    )
    rows = []
    for case in cases:
        for ours in OURS:
            numbers = results[ours_job(case, ours).name]
            rows.append([f"{_trace(case)} {case.size}", ours, *(_cell(numbers[name]) for name in names)])
    note = (
        "waited_ms: for the first chunk, with the waits of those who left without one after 2 s or more "
        "(left_waiting). floor_engine_s: what any policy pays that gives every active session a slot at once."
    )
    return "What sessions saw", note, ("case", "policy", *names), rows


def _ablations(cases: Sequence[Case], results: Mapping[str, Numbers]) -> Table:
    rows = []
    for world in ABLATED_WORLDS:
        if any(ours_job(case, whole, world).name not in results for case in cases for whole in OURS):
            continue
        named = world or "as in the paper"
        for part in ABLATIONS:
            jobs = [ours_job(case, part, world) for case in cases]
            rows.append([named, part, *_against(jobs, part.partition("-")[0], results)])
        for whole in OURS:
            jobs = [full_job(case, whole, world) for case in cases]
            rows.append([named, f"{whole} without scaling", *_against(jobs, whole, results)])
    note = (
        "Change when a part is taken away, mean over cases. Start-up: engines take 10 s to be ready and 1 s "
        "to stop; where they are ready at once there is nothing to forecast. Paper: cost +15.0 % without "
        "migration, +42.9 % without autoscaling, both at equal latency, which these are not."
    )
    columns = ("world", "policy", "worst chunk latency", "engine-seconds", "stalled s")
    return "Ablations", note, columns, rows


def _against(jobs: Sequence[Job], whole: str, results: Mapping[str, Numbers]) -> list[str]:
    changes: dict[str, list[float]] = {"worst_chunk_ms": [], "cost_engine_s": []}
    stalls: list[tuple[float, float]] = []
    for job in jobs:
        part, all_ = results.get(job.name), results[ours_job(job.case, whole, job.world).name]
        if part is None:
            return ["-", "-", "-"]
        for column, found in changes.items():
            found.append(_ratio(part, all_, column))
        stalls.append((float(all_["stalled_s"] or 0), float(part["stalled_s"] or 0)))
    before, after = (fmean(values) for values in zip(*stalls, strict=True))
    return [*(_percent(fmean(found)) for found in changes.values()), f"{before:.0f} → {after:.0f}"]


def _trace(case: Case) -> str:
    return f"{case.family}.{case.seed}"


def _ratio(new: Numbers, old: Numbers, name: str) -> float:
    return float(new[name] or 0) / max(1e-9, float(old[name] or 0)) - 1.0


def _pair(old: Numbers, new: Numbers, name: str) -> str:
    return f"{_cell(old[name])} / {_cell(new[name])}"


def _cell(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if 0 < value < 2 and isinstance(value, float) else f"{value:,.0f}"


def _share(share: float | None) -> str:
    return "never so fast" if share is None else _percent(share)


def _percent(share: float) -> str:
    if not math.isfinite(share):
        return "-"
    return f"{100 * share:+.1f} %".replace("-", "−")
