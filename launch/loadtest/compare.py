"""Two results side by side, of load tests or of the simulator. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from launch.loadtest.report import figure_rows, page
from launch.loadtest.svg import Curve, plot

__all__ = ["comparison", "text_table"]

Row = tuple[str, str, str, str]


def rows(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Row]:
    """(figure, before, after, change): whether objectives held, then each figure that either has."""
    first = {(name, part): value for name, part, value in figure_rows(before)}
    second = {(name, part): value for name, part, value in figure_rows(after)}
    verdicts = [("objectives", _verdict(before), _verdict(after), "")] if "held" in {*before, *after} else []
    return verdicts + [
        (
            f"{key[0]} {key[1].replace('_', ' ')}".strip(),
            _show(first.get(key)),
            _show(second.get(key)),
            _change(first.get(key), second.get(key)),
        )
        for key in dict.fromkeys([*first, *second])
    ]


def text_table(before: Mapping[str, Any], after: Mapping[str, Any], names: tuple[str, str]) -> str:
    """For a terminal."""
    lines: list[Row] = [("", *names, "change"), ("", label(before), label(after), ""), *rows(before, after)]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def comparison(before: Mapping[str, Any], after: Mapping[str, Any], names: tuple[str, str]) -> str:
    """A page with both."""
    head = "".join(
        f'<th class="n">{escape(name)}<br>{escape(label(result))}</th>'
        for name, result in zip(names, (before, after), strict=True)
    )
    table = "".join(
        f"<tr><td>{escape(name)}</td>" + "".join(f'<td class="n">{cell}</td>' for cell in cells) + "</tr>"
        for name, *cells in rows(before, after)
    )
    title = f"{names[0]} and {names[1]}"
    return page(
        title,
        f'<h1>{escape(title)}</h1><div class="plots" style="margin-top: 18px">'
        f"{''.join(_plots(before, after, names))}</div>"
        f'<h2>Figures</h2><table><tr><th></th>{head}<th class="n">change</th></tr>{table}</table>',
    )


def label(result: Mapping[str, Any]) -> str:
    """What a result is of: model and policy, as far as it says so."""
    models = result.get("models") or [result.get("model")]
    return ", ".join(str(word) for word in (*models, result.get("policy")) if word)


_CURVES = (
    ("Worst chunk latency, ms", "series", "latency_max_ms"),
    ("Chunk latency p99, ms", "series", "latency_p99_ms"),
    ("Players standing still, seconds", "series", "stalled_s"),
    ("Engines ready", "cluster_series", "ready"),
    ("Engine-seconds so far", "cluster_series", "engine_s"),
    ("Sessions that want chunks", "cluster_series", "active"),
)


def _plots(before: Mapping[str, Any], after: Mapping[str, Any], names: tuple[str, str]) -> list[str]:
    plots = []
    for title, group, key in _CURVES:
        curves = [
            Curve(
                name=name,
                points=list(zip(result[group]["t"], result[group][key], strict=True)),
                colour=colour,
                is_step=group == "cluster_series",
            )
            for colour, (name, result) in enumerate(zip(names, (before, after), strict=True))
            if key in result.get(group, {})
        ]
        if curves:
            plots.append(plot(title, curves, x_label="seconds"))
    return plots


def _verdict(result: Mapping[str, Any]) -> str:
    return ("held" if result["held"] else "NOT HELD") if "held" in result else "–"


def _show(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _change(before: float | None, after: float | None) -> str:
    if before is None or after is None or before == after:
        return ""
    if before == 0:
        return f"{after - before:+.4g}"
    return f"{100.0 * (after - before) / abs(before):+.1f} %"
