"""Oracles against exhaustive search, where that is small enough."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise, product

import pytest

from launch.evaluation import oracle
from launch.evaluation.oracle import Task, demand_at, future, gap, present
from scheduler.domain import EngineId
from scheduler.latency import round_ms
from scheduler.sim.profile import PROFILES, Profile
from scheduler.sim.record import new_engine
from scheduler.trace import EventKind, Trace, TraceEvent

AT_ONCE = PROFILES["paper"]
SLOW = replace(AT_ONCE, start_ms=1_500.0, stop_ms=500.0)
TASK = Task(demand=(1, 4, 9, 0, 6, 2), step_s=1.0, profile=SLOW, least=1, most=3)


def total(task: Task, weight: float, point: tuple[float, float]) -> float:
    """What an oracle minimises, of what it found."""
    busy = sum(demand > 0 for demand in task.demand)
    return point[1] + weight * point[0] * busy * task.step_s / task.profile.play_ms


@pytest.mark.parametrize("engines", [1, 2, 3])
@pytest.mark.parametrize("sessions", [1, 2, 3, 4, 5])
def test_no_placement_is_better_than_an_even_one(engines: int, sessions: int) -> None:
    """Of all that there are."""
    curve = round_ms(new_engine(EngineId("e_0"), AT_ONCE, 0))
    best_ms = min(
        max(curve[placed.count(engine)] for engine in range(engines))
        for placed in product(range(engines), repeat=sessions)
    )
    task = Task(demand=(sessions,), step_s=1.0, profile=AT_ONCE, least=1, most=engines)
    assert task.latency_ms()[0, -1] == best_ms == oracle.best_ms(AT_ONCE, sessions, engines)


@pytest.mark.parametrize("weight", [0.1, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("profile", [AT_ONCE, SLOW])
def test_the_one_that_knows_the_future_is_exact(weight: float, profile: object) -> None:
    """All 729 sequences of one to three engines, each change at its price."""
    task = replace(TASK, profile=profile)
    latency_ms = task.latency_ms()

    def cost(engines: tuple[int, ...]) -> float:
        felt_ms = sum(latency_ms[moment, number - 1] for moment, number in enumerate(engines))
        steps = list(pairwise((task.least, *engines)))
        change_s = sum(max(0, b - a) * task.profile.start_ms for a, b in steps) / 1000
        change_s += sum(max(0, a - b) * task.profile.stop_ms for a, b in steps) / 1000
        return sum(engines) * task.step_s + change_s + weight * felt_ms * task.step_s / task.profile.play_ms

    best = min(map(cost, product((1, 2, 3), repeat=len(task.demand))))
    assert total(task, weight, future(task, weight)) == pytest.approx(best)


@pytest.mark.parametrize("weight", [0.1, 1.0, 3.0, 10.0])
def test_without_delays_there_is_nothing_to_foresee(weight: float) -> None:
    """Both find the same."""
    task = replace(TASK, profile=AT_ONCE)
    assert present(task, weight) == pytest.approx(future(task, weight))


def test_who_does_not_foresee_waits_for_engines() -> None:
    """Demand for three engines from 2 s on, ready at 4 s: two moments' wait, while they cost."""
    task = replace(TASK, demand=(1, 1, 12, 12, 12, 12), profile=replace(SLOW, start_ms=2_000.0))
    mean_ms, engine_s = present(task, 0.01)
    assert engine_s == 1 + 1 + 4 * 3
    assert mean_ms == pytest.approx((800 + 800 + 1_800 + 2_800 + 1_500 + 1_500) / 6)


def test_gaps() -> None:
    """None of its own, a tenth for a tenth more, level beyond its slowest, and none where it never is."""
    task = replace(TASK, profile=AT_ONCE)
    mean_ms, engine_s = future(task, 1.0)
    assert gap(task, future, mean_ms, engine_s) == pytest.approx(0.0)
    assert gap(task, future, mean_ms, 1.1 * engine_s) == pytest.approx(0.1)
    assert gap(task, future, 9_999.0, 1 + 1 + 3 + 1 + 2 + 1) == pytest.approx(0.0, abs=1e-6)
    assert gap(task, future, 700.0, 9.0) is None


@pytest.mark.parametrize("profile", [AT_ONCE, SLOW])
def test_a_gap_is_never_told_too_small(profile: Profile) -> None:
    """Also between two corners of the hull: each of the 729 sequences is at least as dear as what it is held
    against."""
    task = replace(TASK, profile=profile)
    latency_ms, busy = task.latency_ms(), sum(demand > 0 for demand in task.demand)
    found = 0
    for engines in product((1, 2, 3), repeat=len(task.demand)):
        felt_ms = sum(latency_ms[moment, number - 1] for moment, number in enumerate(engines))
        steps = list(pairwise((task.least, *engines)))
        change_s = sum(max(0, b - a) * profile.start_ms for a, b in steps) / 1000
        change_s += sum(max(0, a - b) * profile.stop_ms for a, b in steps) / 1000
        if math.isfinite(felt_ms):
            above = gap(task, future, felt_ms / busy, sum(engines) * task.step_s + change_s)
            assert above is None or above >= -1e-9
            found += above is not None
    assert found > 20


def test_demand_is_counted_at_moments() -> None:
    """From its beginning on, to just before its end."""
    events = [(0.0, "a", "arrive"), (0.5, "b", "arrive"), (1.0, "a", "idle"), (1.6, "b", "depart")]
    trace = Trace(tuple(TraceEvent(t=t, session=s, event=EventKind(e)) for t, s, e in events))
    assert demand_at(trace, 0.5, 5) == (1, 2, 1, 1, 0)
