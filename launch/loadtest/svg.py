"""Plots as inline SVG, coloured by the page's style so that they fit light and dark. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["STYLE", "Curve", "plot"]

_WIDTH, _HEIGHT = 640, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 10, 34
_TICKS = 5

STYLE = """
figure { margin: 0; padding: 14px 16px 10px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; min-width: 0; }
figcaption { font-weight: 600; margin-bottom: 2px; }
figure p { margin: 0 0 6px; color: var(--dim); font-size: 13px; }
figure svg { display: block; width: 100%; height: auto; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 4px 0 6px; font-size: 13px; }
.legend i { display: inline-block; width: 14px; height: 0; border-top: 3px solid; margin-right: 6px;
  vertical-align: 4px; }
.legend i.dot { width: 8px; height: 8px; border: 0; border-radius: 50%; background: currentColor;
  vertical-align: 0; }
svg text { font: 12px system-ui, sans-serif; fill: var(--dim); }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .axis { stroke: var(--dim); stroke-width: 1; }
svg .limit { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 6 4; }
svg .limit-text { fill: var(--bad); }
svg path { fill: none; stroke-width: 2; stroke-linejoin: round; stroke: currentColor; }
svg circle { fill: currentColor; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); } .c3 { color: var(--c3); }
.c4 { color: var(--c4); } .c5 { color: var(--c5); }
"""
"""Needs the variables --card, --line, --dim, --bad and --c0 to --c5 (colours of curves)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line or cloud of points."""

    name: str
    points: Sequence[tuple[float, float | None]]
    """In order of x; None: a hole."""
    colour: int
    """0 to 5."""
    is_step: bool = False
    """Does a value hold until the next one?"""
    is_dots: bool = False
    """Points that are not joined."""


def plot(
    title: str,
    curves: Sequence[Curve],
    *,
    x_label: str,
    note: str = "",
    x_max: float = 0.0,
    y_max: float = 0.0,
    y_min: float = 0.0,
    limit: float | None = None,
) -> str:
    """A figure with its title, legend and axes. `x_max` and `y_max`: at least so far; `limit`: a line across.

    `y_min`: where the y axis begins, if no value is below it.
    """
    values = [y for curve in curves for _, y in curve.points if y is not None]
    ends = [x for curve in curves for x, _ in curve.points]
    frame = _Frame(
        x_max=max([x_max, *ends]) or 1.0,
        y_min=min([y_min, *values]),
        y_ticks=_ticks(min([y_min, *values]), max([y_max, *values, limit or 0.0]) or 1.0),
    )
    parts = [
        *_grid(frame, x_label),
        *(part for curve in curves for part in _curve(frame, curve)),
        *_limit(frame, limit),
    ]
    label = escape(title, quote=True)
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        + (f"<p>{escape(note)}</p>" if note else "")
        + _legend(curves)
        + f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        + "".join(parts)
        + "</svg></figure>"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """From values to places."""

    x_max: float
    y_min: float
    y_ticks: Sequence[float]

    def x(self, value: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * value / self.x_max, 1)

    def y(self, value: float) -> float:
        low, high = min(self.y_min, self.y_ticks[0]), self.y_ticks[-1]
        share = (value - low) / ((high - low) or 1.0)
        return round(_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share, 1)


def _grid(frame: _Frame, x_label: str) -> Iterable[str]:
    for value in frame.y_ticks:
        y = frame.y(value)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
        yield f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{_number(value)}</text>'
    bottom = _HEIGHT - _BOTTOM
    yield f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    for value in _ticks(0.0, frame.x_max):
        if value <= frame.x_max:
            x, anchor = frame.x(value), "end" if frame.x(value) > _WIDTH - _RIGHT - 8 else "middle"
            yield f'<text x="{x}" y="{bottom + 15}" text-anchor="{anchor}">{_number(value)}</text>'
    yield f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">{escape(x_label)}</text>'


def _curve(frame: _Frame, curve: Curve) -> Iterable[str]:
    shown = [(x, y) for x, y in curve.points if y is not None]
    if curve.is_dots:
        for x, y in shown:
            yield (
                f'<circle class="c{curve.colour}" cx="{frame.x(x)}" cy="{frame.y(y)}" r="2.5">'
                f"<title>{_number(x)}: {_number(y)}</title></circle>"
            )
        return
    for run in _runs(curve.points):
        path = _steps(frame, run) if curve.is_step else _joined(frame, run)
        yield f'<path class="c{curve.colour}" d="{path}"/>'


def _runs(points: Sequence[tuple[float, float | None]]) -> Iterable[list[tuple[float, float]]]:
    run: list[tuple[float, float]] = []
    for x, y in points:
        if y is not None:
            run.append((x, y))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _joined(frame: _Frame, run: Sequence[tuple[float, float]]) -> str:
    places = [f"{frame.x(x)} {frame.y(y)}" for x, y in run]
    if len(places) == 1:
        places *= 2  # a point alone is a short dash
        places[1] = f"{frame.x(run[0][0]) + 3} {frame.y(run[0][1])}"
    return "M" + " L".join(places)


def _steps(frame: _Frame, run: Sequence[tuple[float, float]]) -> str:
    path = f"M{frame.x(run[0][0])} {frame.y(run[0][1])}"
    for x, y in run[1:]:
        path += f" H{frame.x(x)} V{frame.y(y)}"
    return path


def _limit(frame: _Frame, limit: float | None) -> Iterable[str]:
    if limit is None:
        return
    y = frame.y(limit)
    yield f'<line class="limit" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
    text_y = y - 4 if y > _TOP + 16 else y + 14
    yield (
        f'<text class="limit-text" x="{_WIDTH - _RIGHT}" y="{text_y}" text-anchor="end">'
        f"limit {_number(limit)}</text>"
    )


def _legend(curves: Sequence[Curve]) -> str:
    items = (
        f'<span><i class="c{curve.colour}{" dot" if curve.is_dots else ""}"></i>{escape(curve.name)}</span>'
        for curve in curves
    )
    return f'<div class="legend">{"".join(items)}</div>' if len(curves) > 1 else ""


def _ticks(low: float, high: float) -> list[float]:
    """Round values from at most `low` to at least `high`, 1, 2 or 5 times a power of ten apart."""
    raw = max(high - low, 1e-9) / _TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _number(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}"
