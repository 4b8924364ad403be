"""The report of a load test: one HTML page that needs nothing else. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from launch.loadtest.svg import STYLE, Curve, plot
from scheduler.results import flat

__all__ = ["PHASE_COLUMNS", "figure_rows", "page", "report"]

_CSS: Final = """
:root { color-scheme: light dark; --back: #f6f7f9; --card: #ffffff; --text: #16191f; --dim: #5c6470;
  --line: #dfe3e8; --good: #0f7b3f; --bad: #c4291c;
  --c0: #2563eb; --c1: #d97706; --c2: #0d9488; --c3: #a21caf; --c4: #65a30d; --c5: #6b7280; }
@media (prefers-color-scheme: dark) { :root {
  --back: #101318; --card: #181c23; --text: #e8ebf0; --dim: #9aa4b2;
  --line: #2b313b; --good: #4ade80; --bad: #f87171; --c0: #6ea8fe; --c1: #fbbf24; --c2: #2dd4bf;
  --c3: #e879f9; --c4: #a3e635; --c5: #9ca3af; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 28px 20px 48px; max-width: 1240px; background: var(--back);
  color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 24px; margin: 0; } h2 { font-size: 17px; margin: 30px 0 10px; }
.sub { color: var(--dim); margin: 4px 0 18px; }
.verdict { font-weight: 600; } .held { color: var(--good); } .broken { color: var(--bad); }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; margin: 0 0 18px; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 8px 16px; }
.tiles b { display: block; font-size: 22px; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--dim); font-size: 13px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 14px; }
.tables { display: flex; flex-wrap: wrap; gap: 0 40px; align-items: flex-start; }
table { display: block; max-width: 100%; overflow-x: auto; border-collapse: collapse;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 4px 18px 4px 0; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; } th { color: var(--dim); font-weight: 500; }
ul.plain { padding-left: 18px; }
"""

_NAMES: Final[Mapping[str, str]] = {
    "sessions": "sessions",
    "chunks": "chunks",
    "chunk_latency_ms": "chunk latency, ms",
    "ttfc_ms": "time to first chunk, ms",
    "waited_ms": "the same, those who left waiting included, ms",
    "prompt_to_chunk_ms": "prompt to chunk, ms",
    "prompt_to_picture_ms": "prompt to picture, ms",
    "prompts_in_vain": "prompts that never reached the picture",
    "cpr": "continuous play ratio",
    "stalls": "stalls",
    "cost_engine_s": "engine-seconds",
    "migrations": "moves between engines",
    "gaps": "chunks missing in gaps",
    "refused": "refused sessions",
    "refused_inputs": "refused inputs",
    "unserved": "left before their first chunk",
    "left_waiting": "of them after a fair wait",
    "lost": "lost sessions",
    "faults": "faults of streams",
    "reconnects": "connections cut on purpose",
    "slow_clients": "slow clients",
    "planning_ms": "planning, ms",
    "client_lag_ms": "lateness of the clients themselves, ms",
    "machine_busy": "share of the machine's cores in use",
}
"""Results in the order in which people read them."""


_SESSION_COLUMNS: Final = {
    "cpr": "CPR",
    "stalls": "stalls",
    "longest_stall_ms": "longest, ms",
    "moves": "moves",
    "chunks": "chunks",
}


PHASE_COLUMNS: Final = {
    "sessions": "sessions at most",
    "engines": "engines at most",
    "engines_gone": "engines gone",
    "cost_engine_s": "engine-seconds",
    "chunk_latency_ms.p50": "chunk latency p50, ms",
    "chunk_latency_ms.p99": "p99, ms",
    "chunk_latency_ms.max": "worst, ms",
    "stalls": "stalls",
    "stalled_s": "stalled, s",
    "gaps": "chunks in gaps",
    "repeats": "chunks repeated",
}
"""Of a phase's figures, by their dotted names."""


def figure_rows(result: Mapping[str, Any]) -> list[tuple[str, str, float | None]]:
    """(figure, its statistic or "", value) of every number that has a name here."""
    rows: list[tuple[str, str, float | None]] = []
    for key, name in _NAMES.items():
        value = result.get(key)
        if key == "refused" and "plans" in result:
            continue  # of a simulation: actions, no sessions
        if isinstance(value, Mapping):
            rows += [(name, part, number) for part, number in value.items()]
        elif key in result:
            rows.append((name, "", value))
    return rows


def report(result: Mapping[str, Any]) -> str:
    """The page of one result (what `loadtest` writes as JSON)."""
    held = bool(result["held"])
    verdict = "All objectives held." if held else "Not all objectives held."
    body = [
        f"<h1>Load test: {escape(', '.join(result['models']) or 'no model')}, "
        f"policy {escape(result['policy'] or 'unknown')}</h1>",
        f'<p class="sub">{escape(_subtitle(result))}</p>',
        f'<p class="verdict {"held" if held else "broken"}">{verdict}</p>',
        _tiles(result),
        _objectives(result["objectives"]),
        _unserved(result),
        '<h2>Over time</h2><div class="plots">',
        *_plots(result),
        "</div>",
        _phases(result.get("phases", [])),
        "<h2>Figures</h2>",
        _figures(result),
        _problems(result["problems"]),
        _sessions(result["worst_sessions"]),
    ]
    return page(f"Load test of {', '.join(result['models'])}", "\n".join(body))


def page(title: str, body: str) -> str:
    """A whole document. `body` is HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_CSS}{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _subtitle(result: Mapping[str, Any]) -> str:
    load = result["load"]
    return (
        f"{result['date']} · {load['source']}, {load['seconds']:g} s at time scale {load['time_scale']:g}, "
        f"{load['clients']} clients in {load['processes']} processes, seed {load['seed']} · "
        f"at {result['url']} · {result['machine']}"
    )


_TILES: Final = {
    "chunk_latency_ms.p99": "chunk latency p99, ms",
    "chunk_latency_ms.max": "worst chunk latency, ms",
    "cpr.mean": "mean CPR",
    "stalls.count": "stalls",
    "ttfc_ms.p50": "time to first chunk p50, ms",
    "cost_engine_s": "engine-seconds",
    "sessions": "sessions",
}


def _tiles(result: Mapping[str, Any]) -> str:
    """What people look for first."""
    values = flat(result)
    tiles = (f"<div><b>{_show(values.get(key))}</b><span>{name}</span></div>" for key, name in _TILES.items())
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _objectives(objectives: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for item in objectives:
        sign = "≥" if item["at_least"] else "≤"
        mark = '<td class="held">held</td>' if item["held"] else '<td class="broken">not held</td>'
        rows.append(
            f'<tr><td>{escape(item["name"])}</td><td class="n">{_show(item["value"])}</td>'
            f"<td>{sign} {_show(item['limit'])}</td>{mark}</tr>"
        )
    head = '<tr><th>objective</th><th class="n">measured</th><th>limit</th><th></th></tr>'
    return f"<table>{head}{''.join(rows)}</table>"


def _unserved(result: Mapping[str, Any]) -> str:
    """How the sessions without a chunk were judged, where there were any."""
    if not result.get("unserved"):
        return ""
    return (
        f'<p class="sub">Sessions that left before their first chunk: {result["unserved"]}, of them after '
        f"a wait of {result['fair_wait_ms']:g} ms or longer: {result['left_waiting']}. An objective for the "
        "time to the first chunk counts these with their wait: it would have taken at least that.</p>"
    )


def _plots(result: Mapping[str, Any]) -> list[str]:
    limits = {item["name"]: item["limit"] for item in result["objectives"]}
    return [*_cluster_plots(result), *_chunk_plots(result, limits), *_client_plots(result, limits)]


def _cluster_plots(result: Mapping[str, Any]) -> list[str]:
    return [
        _over_time(result, "cluster_series", "Sessions", active="want chunks", queue="wait for a place"),
        _over_time(
            result, "cluster_series", "Engines", ready="ready", starting="starting", draining="draining"
        ),
        _over_time(
            result, "cluster_series", "Engine-seconds so far", is_step=False, engine_s="engine-seconds"
        ),
    ]


def _chunk_plots(result: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
    series, bin_s = result["series"], _bin_s(result["series"])
    curves = {"latency_max_ms": "worst", "latency_p50_ms": "p50"}
    if series["latency_p99_ms"] != series["latency_max_ms"]:  # with few chunks per bin they are the same
        curves["latency_p99_ms"] = "p99"
    return [
        _over_time(
            result,
            "series",
            "Chunk latency, ms",
            is_step=False,
            limit=limits.get("chunk latency p99, ms"),
            note=f"From due to handed to the gateway, per {bin_s:g} s. A chunk plays for "
            f"{result['points']['chunk_ms']:g} ms. The limit is on the p99 of all.",
            **curves,
        ),
        _over_time(
            result,
            "series",
            f"Players standing still, in seconds per {bin_s:g} s",
            note="Of all clients that read as fast as they can, added up; counted when a stall ends.",
            stalled_s="stalled",
        ),
    ]


def _client_plots(result: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
    points = result["points"]
    cprs = points["cpr"]
    ratio = [(100.0 * number / len(cprs), value) for number, value in enumerate([*cprs, *cprs[-1:]])]
    return [
        plot(
            "First chunks and prompt changes, ms",
            [
                Curve(name="start to first chunk", points=points["ttfc"], colour=0, is_dots=True),
                Curve(name="prompt to picture", points=points["prompt"], colour=1, is_dots=True),
                Curve(name="left before its first chunk", points=points["unserved"], colour=3, is_dots=True),
            ],
            x_label="seconds",
            x_max=result["load"]["seconds"],
            note="Of more than 2,000 the longest of each few neighbours.",
        ),
        plot(
            "Continuous play ratio, sessions from worst to best",
            [Curve(name="CPR", points=ratio, colour=2, is_step=True)],
            x_label="% of sessions",
            x_max=100.0,
            y_max=1.0,
            y_min=min([0.9, *cprs]),
            limit=limits.get("mean CPR"),
            note="Played / (played + stalled). A limit is on the mean.",
        ),
    ]


def _over_time(
    result: Mapping[str, Any],
    group: str,
    title: str,
    *,
    is_step: bool = True,
    limit: float | None = None,
    note: str = "",
    **curves: str,
) -> str:
    """One plot of some curves of a group of series: key → name."""
    series = result[group]
    colours = (0, 1, 3) if group == "cluster_series" else (1, 0, 3)
    return plot(
        title,
        [
            Curve(
                name=name, points=list(zip(series["t"], series[key], strict=True)), colour=c, is_step=is_step
            )
            for (key, name), c in zip(curves.items(), colours, strict=False)
        ],
        x_label="seconds",
        x_max=result["load"]["seconds"],
        note=note,
        limit=limit,
    )


def _bin_s(series: Mapping[str, Any]) -> float:
    """Width of a bin of the curves over time."""
    times = series["t"]
    return float(times[1] - times[0]) if len(times) > 1 else 1.0


def _figures(result: Mapping[str, Any]) -> str:
    spreads, counts = [], []
    columns = ("p50", "p95", "p99", "max")
    for key, name in _NAMES.items():
        value = result.get(key)
        if isinstance(value, Mapping) and {"p50", "p99"} <= value.keys():
            cells = "".join(f'<td class="n">{_show(value.get(column))}</td>' for column in columns)
            spreads.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
        elif isinstance(value, Mapping):
            text = ", ".join(_named(part, number) for part, number in value.items())
            counts.append(f'<tr><td>{escape(name)}</td><td class="n">{text}</td></tr>')
        elif key in result:
            counts.append(f'<tr><td>{escape(name)}</td><td class="n">{_show(value)}</td></tr>')
    head = "".join(f'<th class="n">{column}</th>' for column in columns)
    return (
        f'<div class="tables"><table><tr><th></th>{head}</tr>{"".join(spreads)}</table>'
        f"<table>{''.join(counts)}</table></div>"
    )


def _phases(phases: Sequence[Mapping[str, Any]]) -> str:
    if not phases:
        return ""
    head = "".join(f'<th class="n">{name}</th>' for name in PHASE_COLUMNS.values())
    rows = []
    for phase in phases:
        values = flat(phase)
        cells = "".join(f'<td class="n">{_show(values[key])}</td>' for key in PHASE_COLUMNS)
        span = f"{phase['begin_s']:g} to {phase['end_s']:g} s"
        rows.append(f"<tr><td>{escape(phase['name'])}, {span}</td>{cells}</tr>")
    return f"<h2>Phases</h2><table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def _named(part: str, number: object) -> str:
    """`longest_ms`, 5 → longest 5 ms"""
    name, _, unit = part.rpartition("_")
    return f"{name} {_show(number)} {unit}" if unit in ("ms", "s") and name else f"{part} {_show(number)}"


def _problems(problems: Sequence[str]) -> str:
    if not problems:
        return ""
    items = "".join(f"<li>{escape(problem)}</li>" for problem in problems)
    return f'<h2 class="broken">What went wrong</h2><ul class="plain">{items}</ul>'


def _sessions(sessions: Sequence[Mapping[str, Any]]) -> str:
    if not sessions:
        return ""
    rows = "".join(
        f"<tr><td>{item['client']}</td><td>{escape(item['session'])}</td>"
        + "".join(f'<td class="n">{_show(item[key])}</td>' for key in _SESSION_COLUMNS)
        + "</tr>"
        for item in sessions
    )
    head = "".join(f'<th class="n">{name}</th>' for name in _SESSION_COLUMNS.values())
    head = f"<tr><th>client</th><th>session</th>{head}</tr>"
    return f"<h2>The least continuous sessions</h2><table>{head}{rows}</table>"


def _show(value: object) -> str:
    if value is None:
        return "–"
    assert isinstance(value, int | float)
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
