"""The best budgets and placements, found exactly, in the model that the paper's problem is stated in. Pure.

In that model a moment's latency is the predicted one of the fullest engine (`scheduler/latency.py`). Both
oracles re-place every session at every moment for nothing. Engines are alike, so n sessions on m engines are
best spread evenly, ⌈n/m⌉ on the fullest, and only the number of engines is left to choose:

    present   knows the demand of this moment: the m that minimises m + λ·L at once. An engine takes its
              start-up time to be ready and costs meanwhile; until then sessions without a slot wait
    future    knows the whole trace: the sequence of m with the least total, by dynamic programming. It asks
              for engines in time, pays for start-up and stop, and nobody ever waits

With engines ready at once and gone at once there is nothing to foresee, and both are the same. Each λ gives
a pair (mean latency, engine-seconds) than which no other has less of both together, weighed by λ. So of the
one that knows the future each λ bounds the cost of any policy in this model that has a given mean latency,
and the highest of these bounds counts. The one that knows the present is a policy itself: mixtures of its
pairs, for different λ, are what another is held against.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.domain import EngineId
from scheduler.latency import round_ms
from scheduler.sim.profile import Profile
from scheduler.sim.record import new_engine
from scheduler.trace import Trace

__all__ = ["Task", "best_ms", "demand_at", "future", "gap", "present"]

Point = tuple[float, float]
"""(mean latency in ms over the moments with demand, engine-seconds)"""
WEIGHTS = tuple(2.0 ** (n / 2) for n in range(-12, 15))
"""λ: engines that a chunk's play time of latency is worth."""
CHEAPEST = 1e-9
"""λ where latency is worth next to nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Demand to be served."""

    demand: tuple[int, ...]
    """Active sessions, moment by moment."""
    step_s: float
    profile: Profile
    least: int
    most: int
    """Engines; `least` of them are ready when it begins."""

    def latency_ms(self) -> NDArray[np.float64]:
        """f64[moments, engines least … most]; infinite with too few slots, but for the most engines."""
        curve = round_ms(new_engine(EngineId("e_0"), self.profile, 0))
        engines = np.arange(self.least, self.most + 1)
        demand = np.array(self.demand)[:, None]
        full = np.minimum(-(-demand // engines), len(curve) - 1)
        found = np.where(full <= self.profile.capacity, curve[full], np.inf)
        found[:, -1] = curve[full[:, -1]]
        return found


def best_ms(profile: Profile, sessions: int, engines: int) -> float:
    """Least latency of the fullest engine: of an even placement."""
    curve = round_ms(new_engine(EngineId("e_0"), profile, 0))
    return float(curve[min(-(-sessions // engines), len(curve) - 1)])


def demand_at(trace: Trace, step_s: float, moments: int) -> tuple[int, ...]:
    """Active sessions at 0, step_s, 2 · step_s …"""
    at_s = np.arange(moments) * step_s
    spans = [span for life in trace.lives() for span in life.active_s]
    begins, ends = (np.sort([span[n] for span in spans]) for n in (0, 1))
    counts = np.searchsorted(begins, at_s, "right") - np.searchsorted(ends, at_s, "right")
    return tuple(int(count) for count in counts)


def future(task: Task, weight: float) -> Point:
    """See the module."""
    latency_ms, engines = task.latency_ms(), np.arange(task.least, task.most + 1)
    profile = task.profile
    more = np.maximum(engines[None, :] - engines[:, None], 0)
    switch_s = (more * profile.start_ms + more.T * profile.stop_ms) / 1000  # [from, to]
    price = weight / profile.play_ms
    total = np.where(engines == task.least, 0.0, np.inf)
    came_from = np.zeros(latency_ms.shape, dtype=np.intp)
    for moment, row in enumerate(latency_ms):
        paths = total[:, None] + switch_s
        came_from[moment] = paths.argmin(axis=0)
        total = paths.min(axis=0) + task.step_s * (engines + price * row)
    best = int(total.argmin())
    spent_s, felt_ms = 0.0, 0.0
    for moment in reversed(range(len(latency_ms))):
        before = int(came_from[moment, best])
        spent_s += float(switch_s[before, best]) + task.step_s * float(engines[best])
        felt_ms += float(latency_ms[moment, best])
        best = before
    return felt_ms / _busy(task), spent_s


def present(task: Task, weight: float) -> Point:
    """See the module."""
    latency_ms, profile = task.latency_ms(), task.profile
    wanted = latency_ms * (weight / profile.play_ms) + np.arange(task.least, task.most + 1)
    curve = round_ms(new_engine(EngineId("e_0"), profile, 0))
    ready, starting = task.least, list[float]()
    spent_s = felt_ms = short_s = 0.0
    for moment, demand in enumerate(task.demand):
        now_s = moment * task.step_s
        target = task.least + int(wanted[moment].argmin())
        starting += [now_s + profile.start_ms / 1000] * (target - ready - len(starting))
        ready += sum(at_s <= now_s for at_s in starting)
        starting = [at_s for at_s in starting if at_s > now_s]
        starting = starting[: max(0, target - ready)]  # the last to be ready are called off first
        spent_s += max(0, ready - target) * profile.stop_ms / 1000
        ready = min(ready, target)
        spent_s += task.step_s * (ready + len(starting))
        short_s = short_s + task.step_s if demand > ready * profile.capacity else 0.0
        alike = min(-(-demand // max(1, ready)), profile.capacity)
        felt_ms += max(float(curve[alike]), 1000 * short_s + float(curve[1]) if short_s else 0.0)
    return felt_ms / _busy(task), spent_s


def gap(task: Task, oracle: Callable[[Task, float], Point], mean_ms: float, engine_s: float) -> float | None:
    """By what share a policy with that mean latency costs more than the oracle has to there; None if the
    oracle can't have so low a latency."""
    found = {weight: oracle(task, weight) for weight in (CHEAPEST, *WEIGHTS)}
    if min(latency_ms for latency_ms, _ in found.values()) > mean_ms:
        return None
    knows_all = oracle is future or not (task.profile.start_ms or task.profile.stop_ms)
    least_s = _bound_at(task, found, mean_ms) if knows_all else _hull_at(sorted(set(found.values())), mean_ms)
    return engine_s / least_s - 1.0


def _bound_at(task: Task, found: Mapping[float, Point], mean_ms: float) -> float:
    """What each weight's best leaves to any policy with that mean latency; the most of it."""
    ms_costs_s = _busy(task) * task.step_s / task.profile.play_ms
    return max(spent_s + weight * ms_costs_s * (ms - mean_ms) for weight, (ms, spent_s) in found.items())


def _busy(task: Task) -> int:
    return max(1, sum(demand > 0 for demand in task.demand))


def _hull_at(points: Sequence[Point], at: float) -> float:
    """Height of the lower hull of points, sorted, at an abscissa that is not before the first of them; beyond
    the last corner it is level."""
    within = [point for point in points if point[0] <= at]
    best = min(height for _, height in within)
    for x, height in within:
        for far_x, far_height in points:
            if far_x > at:
                best = min(best, height + (at - x) / (far_x - x) * (far_height - height))
    assert math.isfinite(best)
    return best
