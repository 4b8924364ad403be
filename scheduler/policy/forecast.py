"""How many sessions will want chunks when an engine that is asked for now is ready. Pure.

Arrivals come at a rate Λ, and each active session stops wanting chunks (idle or gone) at a rate μ, both read
from the window. So of N sessions N·e^(−μh) still want chunks after h, and Λ/μ·(1 − e^(−μh)) new ones do.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import pairwise
from typing import NamedTuple, ParamSpec, TypeVar

from scheduler.policy.base import Sample

Asked = ParamSpec("Asked")
Found = TypeVar("Found")

RECENT_S = 10
"""What the rate of arrivals is read from at least: so many seconds, in which a burst counts at once."""
SPANS = 4
"""Horizons that it is read from if they are more: who looks further ahead is misled by chance for longer."""
SURPRISE = 2.0
"""Standard deviations by which the last RECENT_S differ from those if that is no chance: they count alone."""
MIN_SPAN_S = 5
"""One arrival in the first second of a window does not make a rate of one a second."""
PRIOR_ACTIVE_S = 30.0
"""Mean time for which a session wants chunks, with the weight of one session, before any has stopped."""


class Forecast(NamedTuple):
    """Demand at a moment to come."""

    mean: float
    staying: float
    """Those of now who are expected to be among them."""
    deviation: float
    """Standard deviation, of arrivals and stops that are each on their own."""


class Churn(NamedTuple):
    """How fast those who want chunks change."""

    arrivals: float
    """Λ: a second."""
    stops: float
    """μ: per active session and second."""

    def evens_out_s(self, active: int, engines: int) -> float:
        """Expected time until an engine with so many active sessions loses one, or the one with least to do,
        of `engines` in all, gets a newcomer."""
        return 1.0 / max(1e-6, active * self.stops + self.arrivals / max(1, engines))


def latest(compute: Callable[Asked, Found]) -> Callable[Asked, Found]:
    """Keeps what a function said last, for who asks it the same again. There is a plan after each event, and
    of its window only the last second differs from that of the plan before. To compare the others is quick,
    as they are the same objects; to hash them is not."""
    last: tuple[object, Found] | None = None

    @wraps(compute)
    def ask(*args: Asked.args, **kwargs: Asked.kwargs) -> Found:
        nonlocal last
        asked = args, kwargs
        if last is None or last[0] != asked:
            last = asked, compute(*args, **kwargs)
        return last[1]

    return ask


@latest
def churn(window: Sequence[Sample], now_s: int, horizon_s: float = 0.0) -> Churn:
    """What the window shows about the next horizon_s."""
    return Churn(arrivals=arrival_rate(window, now_s, horizon_s), stops=stop_rate(window))


def arrival_rate(window: Sequence[Sample], now_s: int, horizon_s: float = 0.0) -> float:
    """Λ: sessions a second."""
    if not window:
        return 0.0
    known_s = now_s - window[0].at_s + 1
    recent_s, long_s = min(known_s, RECENT_S), min(known_s, max(RECENT_S, SPANS * horizon_s))
    recent, long = _arrivals(window[:-1], now_s - recent_s, now_s - long_s)
    last = window[-1]
    recent += last.arrivals if last.at_s > now_s - recent_s else 0
    long += last.arrivals if last.at_s > now_s - long_s else 0
    rate = long / max(MIN_SPAN_S, long_s)
    usual = rate * recent_s
    if abs(recent - usual) > SURPRISE * math.sqrt(max(1.0, usual)):
        return recent / max(MIN_SPAN_S, recent_s)
    return rate


@latest
def _arrivals(window: Sequence[Sample], *after_s: float) -> tuple[int, ...]:
    """Those later than each of these moments."""
    firsts = (bisect_right(window, at_s, key=lambda sample: sample.at_s) for at_s in after_s)
    return tuple(sum(sample.arrivals for sample in window[first:]) for first in firsts)


def stop_rate(window: Sequence[Sample]) -> float:
    """μ: stops per active session and second."""
    past, now = _past_stops(window[:-1]), _stops(window[-2:])
    return (1.0 + past[0] + now[0]) / (PRIOR_ACTIVE_S + past[1] + now[1])


def _stops(window: Sequence[Sample]) -> tuple[int, int]:
    """(sessions that stopped, seconds for which sessions were active)"""
    stops, active_s = 0, 0
    for before, after in pairwise(window):
        demand = before.demand
        stopped = demand + after.arrivals - after.demand
        if stopped > 0:
            stops += stopped
        active_s += demand * (after.at_s - before.at_s)
    return stops, active_s


_past_stops = latest(_stops)


def forecast(rates: Churn, demand: int, horizon_s: float) -> Forecast:
    """Demand in horizon_s, given what it is now."""
    stay = math.exp(-rates.stops * horizon_s)
    newcomers = rates.arrivals / rates.stops * (1.0 - stay)
    return Forecast(
        mean=demand * stay + newcomers,
        staying=demand * stay,
        deviation=math.sqrt(demand * stay * (1.0 - stay) + newcomers),
    )
