"""Simulations against times computed by hand, and against what must hold in any."""

from __future__ import annotations

from dataclasses import replace
from heapq import heappop

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.domain import Residence
from scheduler.messages import EngineId, SessionId
from scheduler.policy.base import DrainEngine, Place
from scheduler.policy.registry import ALL
from scheduler.sim.cluster import OPENED, START_MS, SimCluster
from scheduler.sim.failures import draw_failures
from scheduler.sim.generate import generate
from scheduler.sim.profile import PROFILES, Profile
from scheduler.sim.simulate import Result, Scenario, Simulation, simulate
from scheduler.trace import EventKind, Trace, TraceEvent

MIB = 1 << 20
PROFILE = replace(
    PROFILES["paper"],
    model=replace(PROFILES["paper"].model, fps=10, chunk_frames=10),
    costs=replace(PROFILES["paper"].costs, pass_ms=((100.0, 120.0),), move_ms=10.0, link_bytes_per_ms=MIB),
    capacity=2,
    state_bytes=90 * MIB,
    lead_ms=1_000.0,
)
"""Chunks of a second: 500 ms alone, 600 ms in twos; a migration stops a session for 100 ms."""
PLACED_MS = 1 + 1 + 5
"""An arrival is heard, planned, and opened by its engine."""


def trace(*events: tuple[float, str, str]) -> Trace:
    """Of (seconds, session, event)."""
    return Trace(tuple(TraceEvent(t=t, session=s, event=EventKind(e)) for t, s, e in events))


def run(
    trace: Trace, policy: str, engines: tuple[int, int], profile: Profile = PROFILE, **changes: object
) -> Result:
    """Simulate."""
    low, high = engines
    scenario = Scenario(policy=ALL[policy], profile=profile, min_engines=low, max_engines=high)
    return simulate(trace, replace(scenario, **changes))  # type: ignore[arg-type]


def latencies(result: Result) -> list[float]:
    return [round(ms, 3) for ms in result.figures.latency_ms]


def test_one_engine_two_sessions() -> None:
    """Both run together from the first pass; chunks follow each other without a stall."""
    result = run(trace((0, "a", "arrive"), (0, "b", "arrive"), (3, "a", "depart")), "fixed", (1, 1))
    # There at 607; the second pair at 1207, due again at 1607, there at 2207; due at 2607, too late for 3000.
    assert latencies(result) == [607.0, 607.0, 600.0, 600.0, 600.0, 600.0]
    assert list(result.figures.ttfc_ms) == [607.0, 607.0]
    assert result.cpr == [1.0, 1.0] and result.suffering == 0
    assert result.engine_s == 3.0


def test_a_full_cluster_makes_the_third_wait() -> None:
    """Until somebody leaves; the wait is part of the latency of its first chunk."""
    events = [(0.0, s, "arrive") for s in "abc"] + [(2.0, "a", "depart"), (3.0, "b", "depart")]
    result = run(trace(*events), "fixed", (1, 1))
    (waited_ms,) = [ms for ms in latencies(result) if ms > 1_000]
    assert waited_ms == result.figures.ttfc_ms[-1]
    # c is there at 2007 and joins at 2087, the fourth boundary since 1607, where b has one pass left: 120 for
    # both, then four of 100 alone, because b's next chunk is not due before 2607.
    assert waited_ms == 2_607.0


def test_ticks_look_at_the_cluster() -> None:
    """Two run in 600 ms, the third has waited; chunks count in the half second in which they are there."""
    events = [(0.0, s, "arrive") for s in "abc"] + [(1.8, "a", "depart"), (1.8, "b", "depart")]
    seen = run(trace(*events), "fixed", (1, 1)).moments
    assert [(m.at_s, m.active, m.engines) for m in seen] == [(0, 0, 1), (0.5, 3, 1), (1, 3, 1), (1.5, 3, 1)]
    assert [m.latency_ms for m in seen] == [0, 500 + 500, 1_000 + 500, 1_500 + 500]
    assert [round(m.worst_ms) for m in seen] == [0, 0, 607, 600]


def test_a_session_that_never_got_an_engine_counts() -> None:
    """Its wait is in the worst latency though no chunk was delivered."""
    result = run(trace((0, "a", "arrive"), (5, "a", "depart")), "fixed", (0, 0))
    assert result.unserved == 1 and result.worst_ms == 5_000.0
    assert (result.figures.due, result.figures.delivered, result.figures.abandoned) == (1, 0, 1)


def test_waits_of_those_who_left_in_vain_count() -> None:
    """Without their pauses, from a fair wait on, as in load tests. Without a chunk: b leaves after 3.2 s, 1 s
    of it paused; c has waited for 1.9 s; d is there to the end, and has wanted none since 2.5 s.
    """
    events = [(0.0, s, "arrive") for s in "abcd"]
    events += [(1.0, "b", "idle"), (1.9, "c", "depart"), (2.0, "b", "active"), (2.5, "d", "idle")]
    profile = replace(PROFILE, capacity=1)
    found = run(trace(*events, (3.2, "b", "depart"), (4.0, "a", "depart")), "fixed", (1, 1), profile)
    assert found.vain_ms == [1_900.0, 2_200.0, 2_500.0] and list(found.figures.ttfc_ms) == [507.0]
    results = found.results()
    assert (results["unserved"], results["left_waiting"]) == (3, 2)
    assert results["waited_ms"] == {"p50": 2_200.0, "p95": 2_500.0, "p99": 2_500.0, "max": 2_500.0}


def test_a_migration_off_a_full_engine() -> None:
    """When the neighbour's sessions have left, one of two moves there, and both are alone from then on."""
    events = [(0.0, s, "arrive") for s in "abcd"] + [(1.05, "b", "depart"), (1.05, "d", "depart")]
    result = run(trace(*events, (6.0, "a", "depart")), "turboserve", (2, 2))
    stays = run(trace(*events, (6.0, "a", "depart")), "fixed", (2, 2))
    # a and c share the first engine: the second chunk, due at 607, is there at 1207. Then one of them stops
    # for 10 + 90 ms, which is over before the next chunks are due at 1607, one on each engine.
    assert latencies(stays)[-6:] == [600.0] * 6
    assert result.migrations == 1 and latencies(result)[-6:] == [500.0] * 6
    assert result.stalled_s == 0.0


def test_idle_sessions_hold_their_video() -> None:
    """Who pauses for long and returns goes on from what the player held: nothing stalls."""
    events = trace((0, "a", "arrive"), (3, "a", "idle"), (60, "a", "active"), (63, "a", "depart"))
    result = run(events, "fixed", (1, 1))
    assert result.stalled_s == 0.0 and result.rebuilds == 0
    # It was offloaded after 30 s, and a copy of 20 ms brings it back before its next chunk is due.
    assert max(latencies(result)) == 507.0


def test_who_paused_again_has_been_idle_since_then() -> None:
    """What was to take it out after its first pause does not end its second one early."""
    cluster, id = SimCluster(replace(PROFILE, offload_after_ms=30_000.0)), SessionId("s")
    cluster.start(EngineId("e_1"), start_ms=0.0)
    cluster.arrive(id)
    cluster.apply([Place(session=id, engine=EngineId("e_1"), expect_epoch=0, why="")])
    cluster.pause(id)
    for at_ms, change in ((10_000, cluster.resume), (29_000, cluster.pause)):
        pass_time(cluster, until_ms=START_MS + at_ms)
        change(id)
    pass_time(cluster, until_ms=START_MS + 58_999)
    assert cluster.sessions[id].record.residence is Residence.RESIDENT
    pass_time(cluster, until_ms=START_MS + 59_000)
    assert cluster.sessions[id].record.residence is Residence.LEAVING


def pass_time(cluster: SimCluster, until_ms: float) -> None:
    """What is not about chunks happens."""
    heap = cluster.agenda.heap
    while heap and heap[0][0] <= until_ms:
        cluster.now_ms, _, kind, subject, token = heappop(heap)
        if kind >= OPENED:
            cluster.handle(kind, subject, token)
    cluster.now_ms = until_ms


def test_a_dead_engine_is_noticed_and_its_session_rebuilt() -> None:
    """Detected at the first tick more than 2 s after its last heartbeat; the other engine makes it again."""
    events = trace((0, "a", "arrive"), (10, "a", "depart"))
    result = run(events, "fixed", (2, 2), failures_s=((1.2, 0),))
    assert result.rebuilds == 1
    # Heard last at 1000, silent for more than 2000 at the tick of 3500. Its second chunk was there at 1007
    # and runs dry at 2507; the third, due at 1507, comes after a plan that loses the engine and one that
    # places, (3500 + 1 + 1) + (1 + 1) + 5 = 3509, five passes of rebuilding and five of its own.
    assert max(latencies(result)) == 3_509.0 + 1_000.0 - 1_507.0
    assert result.stalled_s == pytest.approx((4_509.0 - 2_507.0) / 1000)
    # The dead engine costs until it is given up, its replacement from two plans later on.
    assert result.engine_s == pytest.approx(10.0 + 3.502 + (10.0 - 3.504))


def test_a_death_in_an_empty_slot_kills_nobody() -> None:
    """The second of one engine."""
    events = trace((0, "a", "arrive"), (10, "a", "depart"))
    assert [run(events, "fixed", (1, 1), failures_s=((1.2, slot),)).deaths for slot in (0, 1)] == [1, 0]


def test_whoever_has_fewer_engines_has_as_many_deaths_per_engine_second() -> None:
    """Engines that live 40 s, with as many of eight as `slack` wants, and with all."""
    load = generate("steady", seed=1, duration_s=1_200.0, intensity=0.2)
    rates, engine_s = [], []
    for policy, low in (("fixed", 8), ("slack", 1)):
        drawn = [draw_failures(seed, 40.0, 1_200.0, 8) for seed in (0, 1)]
        results = [run(load, policy, (low, 8), PROFILES["paper"], failures_s=failures) for failures in drawn]
        engine_s.append(sum(result.engine_s for result in results))
        rates.append(sum(result.deaths for result in results) / engine_s[-1])
    assert engine_s[1] < 0.5 * engine_s[0]
    assert rates[1] == pytest.approx(rates[0], rel=0.15)


def test_deaths_are_drawn_by_slot() -> None:
    """The same seed gives the same, another another, and more slots only add theirs."""
    few, many = (draw_failures(5, 100.0, 1_000.0, slots) for slots in (4, 8))
    assert few == draw_failures(5, 100.0, 1_000.0, 4) != draw_failures(6, 100.0, 1_000.0, 4)
    assert few == tuple(death for death in many if death[1] < 4)
    assert draw_failures(5, None, 1_000.0, 4) == ()


def test_an_engine_that_drains_is_still_heard() -> None:
    """Long after it became ready: its last heartbeat is what it was, or the next plan would call it lost."""
    cluster, id = SimCluster(PROFILE), EngineId("e_1")
    cluster.start(id)
    cluster.now_ms += 60_000
    cluster.hear()
    cluster.apply([DrainEngine(engine=id, why="")])
    assert cluster.table.view().engines["heartbeat_ms"].tolist() == [cluster.now_ms]


def test_start_up_delay_is_paid_and_waited_for() -> None:
    """Without a warm engine the first chunk waits for one to start."""
    slow = replace(PROFILE, start_ms=4_000.0)
    result = run(trace((0, "a", "arrive"), (8, "a", "depart")), "slack", (0, 1), slow)
    assert list(result.figures.ttfc_ms) == [2 + 4_000 + PLACED_MS + 500]
    assert result.engine_s == pytest.approx(8.0 - 0.002)


def test_a_faster_engine_is_faster() -> None:
    """Engines may differ."""
    result = run(trace((0, "a", "arrive"), (0.3, "a", "depart")), "fixed", (1, 1), speeds=(2.0,))
    assert latencies(result) == [257.0]


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Some sessions that come, rest and go."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    events: list[TraceEvent] = []
    for number in range(draw(st.integers(1, 25))):
        t, kind = float(rng.uniform(0, 30)), EventKind.ARRIVE
        end = t + float(rng.exponential(40))
        while t < end:
            events.append(TraceEvent(t=t, session=f"s{number}", event=kind))
            t += float(rng.exponential(10))
            kind = EventKind.ACTIVE if kind is EventKind.IDLE else EventKind.IDLE
        events.append(TraceEvent(t=end, session=f"s{number}", event=EventKind.DEPART))
    return Trace(tuple(sorted(events, key=lambda event: event.t)))


@settings(max_examples=12, deadline=None)
@given(
    trace=traces(),
    policy=st.sampled_from(sorted(ALL)),
    low=st.integers(0, 3),
    start_ms=st.sampled_from([0.0, 3_000.0]),
    precopy=st.sampled_from([0.0, 0.8]),
    failures=st.lists(st.tuples(st.floats(1, 60), st.integers(0, 3)), max_size=2),
)
def test_what_always_holds(
    trace: Trace,
    policy: str,
    low: int,
    start_ms: float,
    precopy: float,
    failures: list[tuple[float, int]],
) -> None:
    """Chunks are conserved, engines are paid for while they are in the budget, runs repeat."""
    profile = replace(PROFILE, start_ms=start_ms, precopy=precopy, offload_after_ms=5_000.0)
    first, second = (run(trace, policy, (low, 4), profile, failures_s=tuple(failures)) for _ in range(2))
    figures = first.figures
    assert figures.due == figures.delivered + figures.abandoned
    assert figures.delivered == len(figures.latency_ms) and min(figures.latency_ms, default=1.0) > 0
    assert len(first.cpr) + first.unserved <= first.sessions and all(0 < ratio <= 1 for ratio in first.cpr)
    paid_s, at_s, number = 0.0, 0.0, 0
    for change_s, now in first.budget:
        end_s = min(change_s, first.duration_s)
        paid_s += number * max(0.0, end_s - at_s)
        at_s, number = max(at_s, end_s), now
    paid_s += number * (first.duration_s - at_s)
    assert first.engine_s == pytest.approx(paid_s, abs=1e-3)
    assert max((n for _, n in first.budget), default=0) <= 8
    assert first.results() == second.results() and first.figures.latency_ms == second.figures.latency_ms


def test_turns_are_worse_than_looking_where_there_is_room() -> None:
    """When the sessions of every other engine have left, dealing in turn fills the full one all the same."""
    four = replace(PROFILE, costs=replace(PROFILE.costs, pass_ms=((100.0, 140.0, 180.0, 220.0),)), capacity=4)
    begin = [(0.0, s, "arrive") for s in "abcdef"] + [(1.05, s, "depart") for s in "ace"]
    events = trace(*begin, (2.0, "g", "arrive"), (2.0, "h", "arrive"), (12.0, "b", "depart"))
    worst_ms = {}
    for policy in ("round_robin", "fixed", "greedy_load", "greedy_memory"):
        result = run(events, policy, (2, 2), four)
        worst_ms[policy] = max(latencies(result)[-12:])
    # In turn, g joins no one and h joins b, d and f: four share an engine, five passes of 220 ms.
    assert worst_ms["round_robin"] >= 1_000.0
    # g and h go to the empty engine: three and two, five passes of 180 ms at most.
    assert max(worst_ms[name] for name in ("fixed", "greedy_load", "greedy_memory")) <= 900.0


def test_who_must_leave_its_slot_finishes_its_chunk() -> None:
    """States move at chunk boundaries: b gets the only slot when the chunk of a, idle since 800, is done."""
    events = trace((0, "a", "arrive"), (0.1, "b", "arrive"), (0.8, "a", "idle"), (1.6, "b", "depart"))
    result = run(events, "fixed", (1, 1), replace(PROFILE, capacity=1))
    # a at 507 and 1007; told to b's engine within 7 ms, five passes of 100 ms: 1514, for b since 100.
    assert latencies(result) == [507.0, 500.0, 1_414.0]


def test_looking_on_the_way_changes_nothing() -> None:
    """Advanced in steps of any length, a simulation comes out as in one go."""
    events = trace(
        (0, "a", "arrive"), (3, "b", "arrive"), (4, "a", "idle"), (9, "a", "active"), (20, "b", "depart")
    )
    scenario = Scenario(policy=ALL["slack"], profile=PROFILE, min_engines=1, max_engines=3)
    simulation = Simulation(events, scenario)
    for at_s in (0.0, 0.1, 3.0, 3.001, 11.0, 99.0):
        simulation.advance(at_s)
        assert simulation.cluster.now_ms - START_MS == min(at_s, 20.0) * 1000
    stepped, whole = simulation.finish(), simulate(events, scenario)
    assert latencies(stepped) == latencies(whole) != []
    assert stepped.results() == whole.results()


@pytest.mark.parametrize(("first", "ready"), [(0, 1), (1, 1), (3, 3)])
def test_engines_ready_when_it_begins(first: int, ready: int) -> None:
    """Never fewer than the least."""
    slow = replace(PROFILE, start_ms=60_000.0)
    events = trace((0, "a", "arrive"), (0, "b", "arrive"), (0, "c", "arrive"), (9, "a", "depart"))
    scenario = Scenario(
        policy=ALL["slack"],
        profile=replace(slow, capacity=1),
        min_engines=1,
        max_engines=3,
        first_engines=first,
    )
    result = simulate(events, scenario)
    assert [number for at_s, number in result.budget if at_s == 0.0] == list(range(1, ready + 1))
    assert len(result.vain_ms) == 3 - ready


def test_who_becomes_idle_after_its_engine_died_goes_on_with_the_next() -> None:
    """It has no slot to give back, however long it rests in the queue."""
    slow = replace(PROFILE, start_ms=60_000.0)
    rests = trace((0, "a", "arrive"), (10, "a", "idle"), (50, "a", "active"), (90, "a", "depart"))
    result = run(rests, "fixed", (1, 1), slow, failures_s=((5.0, 0),))
    assert (result.deaths, result.rebuilds, result.unserved) == (1, 1, 0)
    assert result.stalled_s > 0 and result.figures.delivered > 25
