"""Traces made to order: the published statistics of the public demo trace, and families around them. Pure.

`demo` is what is known of that trace: arrivals by piecewise rates; active times, idle times and lives
exponential. The other families change one thing each. The same call gives the same trace.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from scheduler.trace import MAX_SESSION_CHARS, EventKind, Trace, TraceEvent

__all__ = ["FAMILIES", "MAX_SESSIONS", "Shape", "describe", "generate", "resize"]

MAX_SESSIONS: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How sessions come and what they do. Times in seconds."""

    rate: Callable[[float], float]
    """Sessions a second, by share of the duration gone, 0 to 1."""
    most: float
    """No rate is above it."""
    life_s: Callable[[np.random.Generator], float] = lambda rng: float(rng.exponential(94.0))
    active_s: float = 15.4
    idle_s: float = 22.5
    """Means of exponential times."""
    resume_at: tuple[float, ...] = ()
    """Shares of the duration at which everybody who is idle becomes active."""


_DEMO_RATES: Final = ((110, 2.0), (459, 0.3), (920, 1.85), (1_417, 0.2), (1_540, 1.5), (1_800, 1.0))
"""(until s of 1,800, sessions a second)."""


def _demo_rate(share: float) -> float:
    return next((rate for until, rate in _DEMO_RATES if share * 1_800 < until), 1.0)


def _bounded_pareto_s(rng: np.random.Generator) -> float:
    """Most live for seconds, some for an hour."""
    return float(min(3_600.0, 12.0 * (1.0 + rng.pareto(1.15))))


def _flash(share: float) -> float:
    return 6.0 if 0.5 <= share < 0.53 else 0.6


FAMILIES: Final[Mapping[str, Shape]] = {
    "demo": Shape(rate=_demo_rate, most=2.0),
    "steady": Shape(rate=lambda share: 1.0, most=1.0),
    "diurnal": Shape(rate=lambda share: 1.0 - 0.85 * math.cos(2 * math.pi * share), most=1.85),
    "flash": Shape(rate=_flash, most=6.0),
    "heavy-tailed": Shape(rate=lambda share: 1.0, most=1.0, life_s=_bounded_pareto_s),
    "long-idle": Shape(
        rate=lambda share: 0.6, most=0.6, idle_s=180.0, life_s=lambda rng: float(rng.exponential(600.0))
    ),
    "thundering": Shape(
        rate=lambda share: 0.5,
        most=0.5,
        idle_s=120.0,
        life_s=lambda rng: float(rng.exponential(400.0)),
        resume_at=(0.4, 0.7),
    ),
    "bursts": Shape(rate=lambda share: 3.0 if int(share * 30) % 5 == 0 else 0.3, most=3.0),
}
"""By name."""


def generate(family: str, *, seed: int, duration_s: float = 1_800.0, intensity: float = 1.0) -> Trace:
    """A trace. intensity: factor on all rates of arrival.

    Raises:
        ValueError: there is no such family, or a number is out of its range.
    """
    shape = FAMILIES.get(family)
    if shape is None:
        raise ValueError(f"family {family!r} does not exist; available: {', '.join(FAMILIES)}")
    if not (0 < duration_s and 0 < intensity and shape.most * intensity * duration_s <= MAX_SESSIONS):
        raise ValueError("duration and intensity must be above 0, and give at most a million sessions")
    rng = np.random.default_rng(seed)
    events: list[TraceEvent] = []
    t, number = 0.0, 0
    while (t := t + float(rng.exponential(1.0 / (shape.most * intensity)))) < duration_s:
        if rng.random() < shape.rate(t / duration_s) / shape.most:
            number += 1
            events += _life(f"s{number:06}", t, shape, rng, duration_s)
    return Trace(tuple(sorted(events, key=lambda event: event.t)))


def _life(
    name: str, start_s: float, shape: Shape, rng: np.random.Generator, duration_s: float
) -> list[TraceEvent]:
    end_s = min(duration_s, start_s + shape.life_s(rng))
    events = [TraceEvent(t=start_s, session=name, event=EventKind.ARRIVE)]
    t, is_active = start_s, True
    while True:
        until_s = t + float(rng.exponential(shape.active_s if is_active else shape.idle_s))
        if not is_active:
            woken_s = [at * duration_s for at in shape.resume_at if t < at * duration_s < until_s]
            until_s = woken_s[0] if woken_s else until_s
        if until_s >= end_s:
            break
        t, is_active = until_s, not is_active
        kind = EventKind.ACTIVE if is_active else EventKind.IDLE
        events.append(TraceEvent(t=t, session=name, event=kind))
    events.append(TraceEvent(t=end_s, session=name, event=EventKind.DEPART))
    return events


def resize(trace: Trace, factor: float, *, seed: int) -> Trace:
    """`factor` times as many sessions: some left out, or repeated up to ten seconds earlier or later.

    Raises:
        ValueError: factor is not above 0, or would give more than a million.
    """
    by_session: dict[str, list[TraceEvent]] = {}
    for event in trace.events:
        by_session.setdefault(event.session, []).append(event)
    if not 0 < factor <= max(1.0, MAX_SESSIONS / max(1, len(by_session))):
        raise ValueError(f"factor must be above 0, and give at most a million sessions; it is {factor:g}")
    rng = np.random.default_rng(seed)
    end_s = trace.duration_s
    names = set(by_session)
    events: list[TraceEvent] = []
    for name, own in by_session.items():
        copies = math.floor(factor) + (rng.random() < factor - math.floor(factor))
        for copy in range(copies):
            shift_s = float(rng.uniform(-10.0, 10.0)) if copy else 0.0
            shift_s = max(-own[0].t, min(shift_s, end_s - own[-1].t))
            new = _name_copy(name, copy, names) if copy else name
            events += [_moved(event, new, shift_s, end_s) for event in own]
    return Trace(tuple(sorted(events, key=lambda event: event.t)))


def _name_copy(name: str, copy: int, taken: set[str]) -> str:
    """One that no other session has."""
    end = f"-{copy}"
    while (new := name[: MAX_SESSION_CHARS - len(end)] + end) in taken:
        end = f"-{end}"
    taken.add(new)
    return new


def _moved(event: TraceEvent, session: str, shift_s: float, end_s: float) -> TraceEvent:
    t = min(end_s, max(0.0, event.t + shift_s))
    return TraceEvent(
        t=t,
        session=session,
        event=event.event,
        prompt=event.prompt,
        seed=event.seed,
        model=event.model,
    )


def describe(trace: Trace) -> dict[str, float]:
    """Its figures: counts, peaks, means."""
    lives = trace.lives()
    spans = [end - begin for life in lives for begin, end in life.active_s]
    rests = [
        after[0] - before[1]
        for life in lives
        for before, after in zip(life.active_s, life.active_s[1:], strict=False)
    ]
    changes = sorted(
        change for life in lives for begin, end in life.active_s for change in ((begin, 1), (end, -1))
    )
    present = sorted(change for life in lives for change in ((life.arrive_s, 1), (life.depart_s, -1)))
    active_s = sum(spans)
    lived_s = sum(life.depart_s - life.arrive_s for life in lives)
    return {
        "duration_s": round(trace.duration_s, 1),
        "sessions": len(lives),
        "events": len(trace.events),
        "active_events": sum(event.event is EventKind.ACTIVE for event in trace.events),
        "idle_events": sum(event.event is EventKind.IDLE for event in trace.events),
        "peak_present": _peak(present),
        "peak_active": _peak(changes),
        "mean_active": round(active_s / max(1e-9, trace.duration_s), 2),
        "active_share": round(active_s / max(1e-9, lived_s), 3),
        "life_mean_s": round(lived_s / max(1, len(lives)), 1),
        "active_mean_s": round(active_s / max(1, len(spans)), 1),
        "idle_mean_s": round(sum(rests) / max(1, len(rests)), 1),
    }


def _peak(changes: list[tuple[float, int]]) -> int:
    number = peak = 0
    for _, by in changes:
        number += by
        peak = max(peak, number)
    return peak
