"""Fluid lower bounds: by hand, and never above what a simulation reaches."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from launch.evaluation.bounds import Fluid, clean_ms_per_chunk, engine_ms_per_chunk
from launch.evaluation.grid import VARIANTS
from scheduler.sim.generate import generate
from scheduler.sim.profile import PROFILES
from scheduler.sim.simulate import Scenario, simulate
from scheduler.trace import EventKind, Trace, TraceEvent

PAPER = PROFILES["paper"]


def together(sessions: int, seconds: float) -> Trace:
    """So many sessions, active all the time."""
    events = [TraceEvent(t=0.0, session=f"s{n}", event=EventKind.ARRIVE) for n in range(sessions)]
    return Trace((*events, TraceEvent(t=seconds, session="s0", event=EventKind.DEPART)))


@pytest.mark.parametrize(
    ("limit_ms", "each_ms"),
    [
        (799.0, math.inf),
        (800.0, 800.0),
        (916.5, 658.25),  # as many passes alone as in twos
        (1_500.0, 375.0),
        (9_000.0, 375.0),
    ],
)
def test_engine_time_of_a_chunk(limit_ms: float, each_ms: float) -> None:
    """Chunks of 800, 1,033, 1,267 and 1,500 ms with one to four sessions; between them a mix of batches."""
    assert engine_ms_per_chunk(PAPER, limit_ms) == pytest.approx(each_ms)


def test_a_clean_pass_need_not_be_in_time() -> None:
    """Four passes of 160 ms to the frames; the fifth costs the least share, that of four together."""
    profile = replace(PAPER, clean_passes=1)
    assert engine_ms_per_chunk(profile, 639.0) == math.inf
    assert engine_ms_per_chunk(profile, 640.0) == pytest.approx(640.0)
    assert clean_ms_per_chunk(profile) == pytest.approx(75.0)
    fluid = Fluid.of(together(4, 33.5), profile)
    assert fluid.least_engine_s(1_500.0) == pytest.approx(4 * (20 * 0.300 + 19 * 0.075))


def test_by_hand() -> None:
    """Four sessions of 33.5 s in chunks that play 1.6 s: 20 each if the last may be cut off after 1.5 s."""
    fluid = Fluid.of(together(4, 33.5), PAPER)
    assert fluid.least_engine_s(1_500.0) == pytest.approx(4 * 20 * 0.375)
    assert fluid.least_worst_ms(4 * 20 * 0.375) == pytest.approx(1_500.0)
    assert fluid.least_worst_ms(4 * 21 * 0.8) == pytest.approx(800.0)
    assert fluid.least_engine_s(799.0) == math.inf


@pytest.mark.parametrize("sessions", [1, 2, 3, 4])
def test_no_fewer_chunks_would_do(sessions: int) -> None:
    """An engine that is in time makes at most one chunk a session more than the bound counts."""
    trace = together(sessions, 40.0)
    result = simulate(trace, Scenario(policy=VARIANTS["fixed"], profile=PAPER, min_engines=1, max_engines=1))
    limit_ms = result.worst_ms
    counted = Fluid.of(trace, PAPER).least_engine_s(limit_ms) * 1000 / engine_ms_per_chunk(PAPER, limit_ms)
    assert result.figures.delivered - sessions <= counted <= result.figures.delivered


@pytest.mark.parametrize("profile", ["paper", "shapes-cpu", "wan-h200"])
@pytest.mark.parametrize("policy", ["slack", "round_robin"])
@pytest.mark.parametrize("budget", [(1, 1), (1, 4), (4, 4)])
def test_nobody_is_below_the_bound(profile: str, policy: str, budget: tuple[int, int]) -> None:
    """Overloaded, scaled or idle, on a trace with short active times."""
    trace = generate("bursts", seed=3, duration_s=90.0, intensity=0.5)
    kind = PROFILES[profile]
    scenario = Scenario(policy=VARIANTS[policy], profile=kind, min_engines=budget[0], max_engines=budget[1])
    result, fluid = simulate(trace, scenario), Fluid.of(trace, kind)
    assert 0 < fluid.least_engine_s(result.worst_ms) <= result.engine_s
    assert 0 < fluid.least_worst_ms(result.engine_s) <= result.worst_ms


def test_first_chunks_are_cheaper_than_those_over_a_full_window() -> None:
    """Passes of 80, 160 and then 240 ms. Of a session that is owed one chunk only the first counts."""
    costs = replace(PAPER.costs, buckets=(3, 6, 9), pass_ms=((80.0,), (160.0,), (240.0,)))
    profile = replace(PAPER, costs=costs, capacity=1)
    assert [engine_ms_per_chunk(profile, 1_600.0, window) for window in range(3)] == [400.0, 800.0, 1_200.0]
    for seconds, chunks_s in ((3.0, 0.4), (4.0, 1.2), (6.0, 2.4), (8.0, 3.6)):
        assert Fluid.of(together(1, seconds), profile).least_engine_s(1_600.0) == pytest.approx(chunks_s)
    assert Fluid.of(together(1, 0.7), profile).least_worst_ms(1.0) == pytest.approx(400.0)
    cleaned = replace(profile, clean_passes=1)
    assert Fluid.of(together(1, 4.0), cleaned).least_engine_s(1_600.0) == pytest.approx(1.2 - 0.16)
