"""Small charts as SVG. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Series", "chart"]

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 12, 38


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line, or one kind of dots."""

    name: str
    points: Points
    colour: int
    """Class `c0`, `c1` … of the page's style."""
    is_line: bool = False
    radius: float = 3.0
    """Of a dot."""
    titles: Sequence[str] = ()
    """What a pointer over a dot shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    low: float
    high: float
    is_log: bool
    start: float
    end: float
    """Pixels."""

    def at(self, value: float) -> float:
        low, high, x = self.low, self.high, min(self.high, max(self.low, value))
        if self.is_log:
            low, high, x = math.log(low), math.log(high), math.log(x)
        return round(self.start + (self.end - self.start) * (x - low) / (high - low), 1)

    def ticks(self) -> list[float]:
        if self.is_log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if self.high > 5 * self.low else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
            found = [step * 10.0**power for power in powers for step in steps]
        else:
            step = 10.0 ** math.floor(math.log10(self.high - self.low))
            step *= next(s for s in (0.2, 0.5, 1, 2) if (self.high - self.low) / (step * s) <= 6)
            found = [step * n for n in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return [tick for tick in found if self.low <= tick <= self.high]


def chart(series: Sequence[Series], x_name: str, y_name: str, *, log_y: bool = False) -> str:
    """One chart with its legend. Infinite points are left out; a log axis needs values above 0."""
    finite = [
        (s, [p for p in s.points if math.isfinite(p[0]) and math.isfinite(p[1]) and (p[1] > 0 or not log_y)])
        for s in series
    ]
    points = [point for _, own in finite for point in own]
    if not points:
        return ""
    x = _axis([p[0] for p in points], LEFT, WIDTH - RIGHT, is_log=False)
    y = _axis([p[1] for p in points], HEIGHT - BOTTOM, TOP, is_log=log_y)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    for tick in y.ticks():
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y.at(tick)}" y2="{y.at(tick)}"/>'
        )
        parts.append(f'<text x="{LEFT - 6}" y="{y.at(tick) + 4}" text-anchor="end">{_label(tick)}</text>')
    for tick in x.ticks():
        text = f'<text x="{x.at(tick)}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_label(tick)}</text>'
        parts.append(text)
    parts.append(
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_name)}</text>'
    )
    for one, own in finite:
        parts.append(_line(one, own, x, y) if one.is_line else _dots(one, own, x, y))
    legend = "".join(f'<span><i class="c{s.colour}"></i>{escape(s.name)}</span>' for s, own in finite if own)
    return f"<figcaption><b>{escape(y_name)}</b>{legend}</figcaption>{''.join(parts)}</svg>"


def _axis(values: Sequence[float], start: float, end: float, *, is_log: bool) -> _Axis:
    low, high = min(values), max(values)
    if is_log:
        return _Axis(low=low / 1.1, high=high * 1.1, is_log=True, start=start, end=end)
    low = min(0.0, low)
    return _Axis(low=low, high=max(high * 1.05, low + 1.0), is_log=False, start=start, end=end)


def _line(series: Series, points: Points, x: _Axis, y: _Axis) -> str:
    path = " ".join(f"{x.at(a)},{y.at(b)}" for a, b in points)
    return f'<polyline class="c{series.colour}" points="{path}"/>'


def _dots(series: Series, points: Points, x: _Axis, y: _Axis) -> str:
    titles = series.titles or [""] * len(points)
    mark = f'<circle class="c{series.colour}" r="{series.radius}"'
    return "".join(
        f'{mark} cx="{x.at(a)}" cy="{y.at(b)}"><title>{escape(title)}</title></circle>'
        for (a, b), title in zip(points, titles, strict=False)
    )


def _label(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"
