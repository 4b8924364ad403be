"""The evaluation as one HTML page that needs nothing else. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from launch.evaluation.findings import Findings
from launch.evaluation.grid import BASELINES, OURS, Case, ours_job
from launch.evaluation.plots import Series, chart
from launch.evaluation.report import Table

__all__ = ["page"]

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#667;--edge:#8883;--card:#f6f7f9;--page:#fff}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8eb;--soft:#9aa3ad;--card:#1b1f25;--page:#121519}}
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:76rem;padding:0 1.2rem;color:var(--ink);
background:var(--page)}
h1{margin-bottom:.2rem}h2{margin:2.4rem 0 .2rem}p{color:var(--soft);max-width:52rem;margin:.3rem 0 .8rem}
nav a{margin-right:1rem;color:inherit}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:4px 14px 4px 0;text-align:right;border-bottom:1px solid var(--edge);white-space:nowrap}
th{font-weight:600;color:var(--soft)}th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){text-align:left}
tbody tr:hover{background:var(--card)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(21rem,1fr));gap:1rem}
figure{margin:0;background:var(--card);border-radius:8px;padding:.7rem}
figcaption{font-size:13px}figcaption b,figcaption span{margin-right:.8rem;white-space:nowrap}
figcaption i{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.3em;
background:currentColor}
svg{width:100%;height:auto;display:block}text{font-size:11px;fill:var(--soft)}.grid{stroke:var(--edge)}
polyline{fill:none;stroke:currentColor;stroke-width:1.4}circle{fill:currentColor;fill-opacity:.75}
.c0{color:#d9480f}.c1{color:#1c7ed6}.c2{color:#868e96}.c3{color:#2f9e44}.c4{color:#ae3ec9}.c5{color:#f08c00}
.c6{color:#0c8599}
"""
BOUND_STEPS = 40
ACROSS = 300
"""Points of a line over time; each shows the largest value of its stretch."""


def page(found: Findings, tables: Sequence[Table]) -> str:
    """Key tables, then charts for each case, then the rest."""
    head, rest = tables[:4], tables[4:]
    links = "".join(f'<a href="#{_id(title)}">{escape(title)}</a>' for title, *_ in tables)
    charts = "".join(_charts(found, case) for case in found.cases)
    lengths = sorted({f"{case.duration_s:.0f}" for case in found.cases}, key=int)
    lasting = " to ".join(dict.fromkeys((lengths[0], lengths[-1])))
    about = (
        f"{len(found.cases)} traces and sizes, {len(found.results)} simulations of {lasting} s of "
        "trace with the policies that the scheduler runs. Simulated, not measured: see docs/evaluation.md."
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>Evaluation of policies</title><style>{STYLE}</style><h1>Evaluation of policies</h1>"
        f"<p>{escape(about)}</p><nav>{links}</nav>"
        + "".join(map(_table, head))
        + f"<h2>Case by case</h2>{charts}"
        + "".join(map(_table, rest))
    )


def _id(title: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower())


def _table(table: Table) -> str:
    title, note, columns, rows = table
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return (
        f'<h2 id="{_id(title)}">{escape(title)}</h2><p>{escape(note)}</p><div class=scroll><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _charts(found: Findings, case: Case) -> str:
    moments = {ours: found.moments[ours_job(case, ours).name] for ours in OURS}
    demand = [(m[0], m[1] / found.fluids[case].profile.capacity) for m in next(iter(moments.values()))]
    engines = [Series(name="demand, in full engines", points=_thin(demand), colour=2, is_line=True)]
    latency = []
    for colour, (ours, seen) in enumerate(moments.items()):
        points = _thin([(m[0], m[2]) for m in seen])
        engines.append(Series(name=ours, points=points, colour=colour, is_line=True))
        points = _thin([(m[0], m[4]) for m in seen if m[4]])
        latency.append(Series(name=ours, points=points, colour=colour, is_line=True))
    figures = (
        chart(_pareto(found, case), "engine-seconds", "worst chunk, ms", log_y=True),
        chart(engines, "s", "engines that cost"),
        chart(latency, "s", "slowest chunk, ms", log_y=True),
    )
    title = f"{case.family}, {case.size} engines, profile {case.profile}, seed {case.seed}"
    return (
        f"<h3>{escape(title)}</h3><div class=charts>"
        + "".join(f"<figure>{f}</figure>" for f in figures)
        + "</div>"
    )


def _pareto(found: Findings, case: Case) -> list[Series]:
    dots: dict[str, list[tuple[float, float, str]]] = {}
    for name, job in found.jobs.items():
        if job.case == case and not job.world and job.policy in (*OURS, *BASELINES):
            numbers = found.results[name]
            spent_s, worst_ms = (float(numbers[key] or 0) for key in ("cost_engine_s", "worst_chunk_ms"))
            title = f"{job.policy} {job.low}:{job.high}" + f", {job.cut} slots unused" * bool(job.cut)
            dots.setdefault(job.policy, []).append((spent_s, worst_ms, title))
    most_s = max((spent_s for own in dots.values() for spent_s, *_ in own), default=0.0)
    fluid = found.fluids[case]
    spread_s = [most_s * n / BOUND_STEPS for n in range(1, BOUND_STEPS + 1)]
    bound = [(spent_s, fluid.least_worst_ms(spent_s)) for spent_s in spread_s]
    series = [Series(name="fluid lower bound", points=bound, colour=2, is_line=True)]
    for colour, policy in enumerate((*OURS, *BASELINES)):
        own = dots.get(policy, [])
        series.append(
            Series(
                name=policy,
                points=[(spent_s, worst_ms) for spent_s, worst_ms, _ in own],
                colour=colour + (colour >= 2),
                titles=[title for *_, title in own],
                radius=5.0 if policy in OURS else 3.0,
            )
        )
    return [series[0], *series[3:], *series[1:3]]  # ours on top


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    stride = max(1, len(points) // ACROSS)
    chunks = [points[at : at + stride] for at in range(0, len(points), stride)]
    return [(chunk[0][0], max(y for _, y in chunk)) for chunk in chunks]
