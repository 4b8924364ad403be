"""The evaluation's tables, as Markdown and as one HTML page. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean

from launch.evaluation.grid import ABLATIONS, BASELINES, OURS, Case, Job, Numbers, Verdict, ours_job

__all__ = ["page", "tables"]

Table = tuple[str, str, Sequence[str], Sequence[Sequence[str]]]
"""(title, note, columns, rows)"""
PAPER = {"latency": -0.375, "cost": -0.372}


def tables(cases: Sequence[Case], verdicts: Sequence[Verdict], results: Mapping[str, Numbers]) -> list[Table]:
    """Everything that is shown."""
    return [
        _summary(verdicts),
        _direct(cases, results),
        *(_detail(ours, verdicts) for ours in OURS),
        _ours(cases, results),
        _ablations(cases, results),
    ]


def markdown(tables: Sequence[Table]) -> str:
    """As Markdown."""
    parts = []
    for title, note, columns, rows in tables:
        lines = [f"## {title}", "", note, "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        parts.append("\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]))
    return "\n\n".join(parts) + "\n"


def page(tables: Sequence[Table]) -> str:
    """As one HTML page that needs nothing else."""
    body = []
    for title, note, columns, rows in tables:
        head = "".join(f"<th>{escape(column)}</th>" for column in columns)
        lines = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
        body.append(
            f"<h2>{escape(title)}</h2><p>{escape(note)}</p><div><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{lines}</tbody></table></div>"
        )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Evaluation of policies</title><style>"
        "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;"
        "color-scheme:light dark}table{border-collapse:collapse;font-size:14px}div{overflow-x:auto}"
        "th,td{padding:3px 12px 3px 0;text-align:right;border-bottom:1px solid #8884}"
        "th:first-child,td:first-child{text-align:left}</style><h1>Evaluation of policies</h1>"
        + "".join(body)
    )


def _summary(verdicts: Sequence[Verdict]) -> Table:
    rows = []
    for ours in OURS:
        for baseline in (*BASELINES, None):
            found = [v for v in verdicts if v.ours == ours and baseline in (v.baseline, None)]
            if found:
                latency, cost = [v.latency_change for v in found], [v.cost_change for v in found]
                open_ = sum(v.latency_n is None for v in found)
                rows.append(
                    [
                        ours,
                        baseline or "all four",
                        _percent(fmean(latency)),
                        _percent(max(latency)),
                        _percent(fmean(cost)),
                        _percent(max(cost)),
                        str(open_),
                    ]
                )
    rows.append(["paper", "all four", _percent(PAPER["latency"]), "", _percent(PAPER["cost"]), "", ""])
    note = (
        "Worst chunk latency at equal cost and engine-seconds at equal latency, against baselines with a "
        "fixed budget; means over all traces and sizes. Least: the case where ours gains least. Open: cases "
        "in which no budget up to twice the size reached ours; there the change counts as against that."
    )
    columns = ("ours", "baseline", "latency", "least", "cost", "least", "open")
    return "Against the paper's baselines", note, columns, rows


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
            for name in ("worst_chunk_ms", "cost_engine_s", "cpr.mean", "ttfc_ms.p99", "suffering")
        ]
        rows.append([case.family, str(case.size), _percent(latency), _percent(cost), *cells])
    rows.append(["mean", "", *(_percent(fmean(values)) for values in zip(*pairs, strict=True)), *[""] * 5])
    columns = (
        *("trace", "size", "latency", "cost", "worst ms", "engine-s", "CPR mean"),
        *("TTFC p99 ms", "suffering"),
    )
    note = "Both free on the same range of engines; turboserve / slack."
    return "slack against turboserve", note, columns, rows


def _detail(ours: str, verdicts: Sequence[Verdict]) -> Table:
    rows = [
        [
            v.case.family,
            str(v.case.size),
            v.baseline,
            f"{v.ours_ms:,.0f}",
            f"{v.ours_s:,.0f}",
            str(v.cost_n),
            f"{v.cost_ms:,.0f}",
            _percent(v.latency_change),
            str(v.latency_n) if v.latency_n is not None else "none",
            _percent(v.cost_change),
        ]
        for v in verdicts
        if v.ours == ours
    ]
    columns = (
        *("trace", "size", "baseline", "ours worst ms", "ours engine-s", "N equal cost", "its worst ms"),
        *("latency", "N equal latency", "cost"),
    )
    return f"{ours}, case by case", "", columns, rows


def _ours(cases: Sequence[Case], results: Mapping[str, Numbers]) -> Table:
    names = (
        *("worst_chunk_ms", "chunk_latency_ms.p99", "ttfc_ms.p99", "cpr.mean", "cpr.min", "suffering"),
        *("cost_engine_s", "floor_engine_s", "max_engines", "migrations", "rebuilds"),
    )
    rows = []
    for case in cases:
        for ours in OURS:
            numbers = results[ours_job(case, ours).name]
            rows.append([f"{case.family} {case.size}", ours, *(_cell(numbers[name]) for name in names)])
    note = "floor_engine_s: what any policy pays that gives every active session a slot at once."
    return "What sessions saw", note, ("case", "policy", *names), rows


def _ablations(cases: Sequence[Case], results: Mapping[str, Numbers]) -> Table:
    rows = []
    for name in ABLATIONS:
        whole = name.partition("-")[0]
        rows.append([name, *_against(cases, results, name, whole, is_fixed=False)])
    rows += [
        [f"{whole} without scaling", *_against(cases, results, whole, whole, is_fixed=True)] for whole in OURS
    ]
    note = (
        "Change when a part is taken away, mean over cases. Paper: cost +15.0 % without migration, +42.9 % "
        "without autoscaling, both at equal latency, which these are not."
    )
    return "Ablations", note, ("policy", "worst chunk latency", "engine-seconds", "stalled s"), rows


def _against(
    cases: Sequence[Case], results: Mapping[str, Numbers], name: str, whole: str, *, is_fixed: bool
) -> list[str]:
    changes: dict[str, list[float]] = {"worst_chunk_ms": [], "cost_engine_s": []}
    stalls: list[tuple[float, float]] = []
    for case in cases:
        job = Job(case=case, policy=name, low=case.size if is_fixed else 1, high=case.size)
        part, all_ = results.get(job.name), results[ours_job(case, whole).name]
        if part is None:
            return ["-", "-", "-"]
        for column, found in changes.items():
            found.append(_ratio(part, all_, column))
        stalls.append((float(all_["stalled_s"] or 0), float(part["stalled_s"] or 0)))
    before, after = (fmean(values) for values in zip(*stalls, strict=True))
    return [*(_percent(fmean(found)) for found in changes.values()), f"{before:.0f} → {after:.0f}"]


def _ratio(new: Numbers, old: Numbers, name: str) -> float:
    return float(new[name] or 0) / max(1e-9, float(old[name] or 0)) - 1.0


def _pair(old: Numbers, new: Numbers, name: str) -> str:
    return f"{_cell(old[name])} / {_cell(new[name])}"


def _cell(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if 0 < value < 2 and isinstance(value, float) else f"{value:,.0f}"


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %".replace("-", "−")
