"""Policies that move nobody, and upkeep, as tables: a view, the changes, the actions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.messages import EngineId, EngineRecord, EngineState, Residence, SessionRecord
from scheduler.policy.base import Changes, GoneEngine, Memory
from scheduler.policy.greedy_memory import GreedyMemory
from scheduler.policy.upkeep import (
    FORGIVE_MS,
    MAX_PAUSE_MS,
    MAX_WAIT_MS,
    RELOAD_GRACE_MS,
    START_GRACE_MS,
    release_wait_ms,
)
from scheduler.view import View
from tests.scheduler.policy.worlds import CONFIG, FRESH, NOW_MS, decide, engine, session, world

POLICY = GreedyMemory(name="least_loaded")
E1, E2 = engine("e_1"), engine("e_2")


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        pytest.param(world(E1, E2), [], id="nothing to do"),
        pytest.param(
            world(E1, E2, session("s_a")), [("place", "s_a", "e_1")], id="ties go to the smaller id"
        ),
        pytest.param(
            world(E1, E2, session("s_a", "e_1"), session("s_b")), [("place", "s_b", "e_2")], id="most room"
        ),
        pytest.param(
            world(E1, E2, session("s_a", order=9), session("s_b", order=2), session("s_c", order=-5)),
            [("place", "s_c", "e_1"), ("place", "s_b", "e_2"), ("place", "s_a", "e_1")],
            id="returners first, then first come first served",
        ),
        pytest.param(
            world(engine("e_1", capacity=1), engine("e_2", capacity=0), session("s_a"), session("s_b")),
            [("place", "s_a", "e_1")],
            id="never above capacity, counting this plan's own placements",
        ),
        pytest.param(
            world(E1, engine("e_2", model="wan"), session("s_a", model="wan"), session("s_b", model="none")),
            [("place", "s_a", "e_2")],
            id="the model must fit; a full model does not block another",
        ),
        pytest.param(
            world(E1, E2, session("s_a", left_ms=NOW_MS - 5)), [], id="nobody watches: wait for the attach"
        ),
        pytest.param(
            world(E1, E2, session("s_a", left_ms=NOW_MS - CONFIG.retain_s * 1000)),
            [("sweep", "s_a")],
            id="nobody came back",
        ),
        pytest.param(
            world(E1, E2, session("s_a", "e_9")), [("requeue", "s_a")], id="its engine has no record"
        ),
    ],
)
def test_placement(view: View, expected: list[tuple[str, ...]]) -> None:
    """Who goes where."""
    assert decide(POLICY, view) == expected


STARTING, DRAINING = EngineState.STARTING, EngineState.DRAINING


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        pytest.param(world(desired=()), [("desired", *FRESH)], id="first plan asks for the budget"),
        pytest.param(world(engine("e_1", STARTING), E2), [], id="starting engines count in the budget"),
        pytest.param(world(E1), [("desired", "e_1", "e_fresh0")], id="a vanished engine is replaced"),
        pytest.param(
            world(E1, E2, desired=("e_1",)), [("desired", "e_1", "e_2")], id="a stray engine is taken in"
        ),
        pytest.param(
            world(E1, engine("e_2", STARTING), engine("e_3")),
            [("desired", "e_1", "e_3")],
            id="too many: the one that starts goes",
        ),
        pytest.param(
            world(E1, E2, engine("e_3"), session("s_a", "e_1"), desired=("e_1", "e_2", "e_3")),
            [("drainengine", "e_2")],
            id="too many: the emptiest drains",
        ),
        pytest.param(
            world(engine("e_1", drain_ordered=True), E2),
            [("drainengine", "e_1"), ("desired", "e_1", "e_2", "e_fresh0")],
            id="an ordered drain brings its replacement at once",
        ),
        pytest.param(
            world(engine("e_1", DRAINING), E2, session("s_a", "e_1"), session("s_b"), desired=("e_1", "e_2")),
            [("desired", "e_1", "e_2", "e_fresh0"), ("place", "s_a", "e_2"), ("place", "s_b", "e_2")],
            id="sessions leave a draining engine before new ones start",
        ),
        pytest.param(
            world(engine("e_1", DRAINING), E2, engine("e_3"), desired=("e_1", "e_2", "e_3")),
            [("stopdrained", "e_1"), ("desired", "e_2", "e_3")],
            id="drained and empty: stop it, once",
        ),
        pytest.param(
            world(engine("e_1", DRAINING), E2, engine("e_3"), desired=("e_2", "e_3")), [], id="stopping"
        ),
    ],
)
def test_sizing(view: View, expected: list[tuple[str, ...]]) -> None:
    """Which engines exist."""
    assert decide(POLICY, view) == expected


HEARD_MS = NOW_MS - 1_000
LATE_MS = NOW_MS - CONFIG.heartbeat_timeout_ms - 1
LIMIT_MS = NOW_MS - CONFIG.start_timeout_ms


@pytest.mark.parametrize(
    ("lost", "expected"),
    [
        pytest.param(engine("e_1", heartbeat_ms=LATE_MS), True, id="silent"),
        pytest.param(engine("e_1", heartbeat_ms=LATE_MS + 1), False, id="just in time"),
        pytest.param(engine("e_1", DRAINING, heartbeat_ms=LATE_MS), True, id="silent while draining"),
        pytest.param(
            engine("e_1", heartbeat_ms=HEARD_MS, deadline_ms=HEARD_MS), True, id="phase over its limit"
        ),
        pytest.param(
            engine("e_1", heartbeat_ms=HEARD_MS, deadline_ms=HEARD_MS + 1),
            False,
            id="not heard since its phase was",
        ),
        pytest.param(engine("e_1", STARTING, heartbeat_ms=0), False, id="starting needs no heartbeat"),
        pytest.param(engine("e_1", STARTING, deadline_ms=NOW_MS - 1), False, id="starting has another limit"),
        pytest.param(
            engine("e_1", STARTING, started_ms=NOW_MS - CONFIG.start_timeout_ms - 1), True, id="never ready"
        ),
    ],
)
def test_death(lost: EngineRecord, expected: bool) -> None:
    """Who is declared gone."""
    assert (("loseengine", "e_1") in decide(POLICY, world(lost, E2))) == expected


def test_nobody_is_declared_gone_right_after_an_outage() -> None:
    """Three heartbeat intervals, and the timeout, of reachable Redis come first."""
    view = world(engine("e_1", heartbeat_ms=0), E2)
    early = Changes(fresh_ids=FRESH, reachable_ms=NOW_MS - CONFIG.heartbeat_timeout_ms + 1)
    late = Changes(fresh_ids=FRESH, reachable_ms=NOW_MS - CONFIG.heartbeat_timeout_ms)
    assert decide(POLICY, view, early) == []
    assert decide(POLICY, view, late) == [("loseengine", "e_1")]


@pytest.mark.parametrize(
    ("started_ms", "breaks"),
    [
        pytest.param(LIMIT_MS - 60_000, ((NOW_MS - 50_000, 60_000),), id="outage"),
        pytest.param(LIMIT_MS - 70_000, ((NOW_MS - 90_000, 60_000), (NOW_MS - 50_000, 10_000)), id="two"),
        pytest.param(LIMIT_MS - 500, ((NOW_MS - 50_000, 500),), id="hiccup"),
        pytest.param(LIMIT_MS - 3_600_000, ((NOW_MS - 50_000, 3_600_000),), id="Redis time set forward"),
        pytest.param(LIMIT_MS, ((LIMIT_MS - 1, 60_000),), id="it began afterwards"),
    ],
)
def test_a_start_across_an_outage_gets_the_time_that_it_lost(
    started_ms: int, breaks: tuple[tuple[int, int], ...]
) -> None:
    """No less, and no more: one that never gets ready is given up however often Redis hangs."""
    changes = Changes(fresh_ids=FRESH, reachable_ms=breaks[-1][0], breaks=breaks)
    view = world(engine("e_1", STARTING, started_ms=started_ms), E2)
    assert decide(POLICY, view, changes) == []
    view = world(engine("e_1", STARTING, started_ms=started_ms - 1), E2)
    assert ("loseengine", "e_1") in decide(POLICY, view, changes)


def test_a_start_in_an_outage_loses_what_is_left_of_it() -> None:
    """Its time begins with the end of the outage."""
    changes = Changes(fresh_ids=FRESH, reachable_ms=LIMIT_MS, breaks=((LIMIT_MS, 60_000),))
    view = world(engine("e_1", STARTING, started_ms=LIMIT_MS - 10_000), E2)
    assert decide(POLICY, view, changes) == []
    changes = replace(changes, reachable_ms=LIMIT_MS - 1, breaks=((LIMIT_MS - 1, 60_000),))
    assert ("loseengine", "e_1") in decide(POLICY, view, changes)


def test_a_start_has_some_time_after_an_outage_of_which_nobody_knows() -> None:
    """The leader is a new one."""
    view = world(engine("e_1", STARTING, started_ms=0), E2)
    reachable_ms = NOW_MS - START_GRACE_MS
    assert decide(POLICY, view, Changes(fresh_ids=FRESH, reachable_ms=reachable_ms)) == []
    late = Changes(fresh_ids=FRESH, reachable_ms=reachable_ms - 1)
    assert ("loseengine", "e_1") in decide(POLICY, view, late)


def test_nothing_is_placed_on_a_lost_engine() -> None:
    """The plan that declares an engine gone does not use it."""
    view = world(engine("e_1", heartbeat_ms=LATE_MS), E2, session("s_a", "e_2"), session("s_b"))
    assert decide(POLICY, view) == [("loseengine", "e_1"), ("place", "s_b", "e_2")]


def test_early_deaths_slow_replacements_down() -> None:
    """The first early death is replaced at once, later ones after pauses that double up to a limit."""
    memory, pauses = Memory(), []
    dead = GoneEngine(id=EngineId("e_1"), state=STARTING, started_ms=NOW_MS)
    for _ in range(9):
        changes = Changes(gone=(dead,), fresh_ids=FRESH)
        _, memory = POLICY.plan(world(E2), changes, memory, NOW_MS, CONFIG)
        pauses.append(memory.retry_ms - NOW_MS)
    assert pauses == [0, 1_000, 2_000, 4_000, 8_000, 16_000, MAX_PAUSE_MS, MAX_PAUSE_MS, MAX_PAUSE_MS]
    assert decide(POLICY, world(E2), memory=memory) == [("desired", "e_2")]
    again = decide(POLICY, world(E2, desired=("e_2",)), memory=memory, now_ms=memory.retry_ms)
    assert again == [("desired", "e_2", "e_fresh0")]
    _, calm = POLICY.plan(world(E1, E2), Changes(), memory, memory.retry_ms + FORGIVE_MS + 1, CONFIG)
    assert calm.failures == 0


@pytest.mark.parametrize(
    "gone",
    [
        GoneEngine(id=EngineId("e_1"), state=EngineState.READY, started_ms=NOW_MS - 60_000),
        GoneEngine(id=EngineId("e_1"), state=DRAINING, started_ms=NOW_MS),
        GoneEngine(id=EngineId("e_9"), state=STARTING, started_ms=NOW_MS),
    ],
    ids=["it lived long", "it was drained", "nobody wanted it"],
)
def test_other_deaths_slow_nothing_down(gone: GoneEngine) -> None:
    """Only early deaths of wanted engines count."""
    _, memory = POLICY.plan(world(E2), Changes(gone=(gone,)), Memory(), NOW_MS, CONFIG)
    assert (memory.failures, memory.retry_ms) in ((0, 0), (0, NOW_MS))


def test_release_interval_is_a_moving_mean() -> None:
    """Places that become free move the published interval."""
    memory = Memory(released_ms=NOW_MS - 10_000)
    _, memory = POLICY.plan(world(E1, E2), Changes(released=1), memory, NOW_MS, CONFIG)
    assert memory == replace(memory, release_interval_ms=26_000.0, released_ms=NOW_MS)


FULL = (session("s_a", "e_1", created_ms=NOW_MS - 300_000), session("s_b", "e_1", created_ms=NOW_MS - 95_500))


@pytest.mark.parametrize(
    ("records", "released_ms", "expected_ms"),
    [
        pytest.param([E1, *FULL, session("s_w")], NOW_MS - 20_000, 30_000, id="one was freed just now"),
        pytest.param([E1, *FULL, session("s_w")], NOW_MS - 70_300, 70_000, id="none for longer than usual"),
        pytest.param([E1, *FULL, session("s_w")], 0, 95_000, id="none at all, since the last was taken"),
        pytest.param([E1, *FULL, session("s_w")], NOW_MS - 200_000, 95_000, id="there were places meanwhile"),
        pytest.param([E1, *FULL], NOW_MS - 70_300, 30_000, id="nobody waits"),
        pytest.param([E1, E2, *FULL, session("s_w")], 0, 30_000, id="there is a place, about to be given"),
        pytest.param(
            [E1, engine("e_2", model="wan"), *FULL, session("s_w")], 0, 95_000, id="that is another model's"
        ),
        pytest.param([session("s_w")], NOW_MS - 900_000, 30_000, id="nobody has a place"),
        pytest.param([E1, *FULL, session("s_w")], NOW_MS + 900_000, 30_000, id="Redis time was set back"),
    ],
)
def test_who_waits_is_told_that_places_stopped_becoming_free(
    records: list[EngineRecord | SessionRecord], released_ms: int, expected_ms: int
) -> None:
    """The mean does not hold for longer than it has been waited for."""
    memory = Memory(released_ms=released_ms, release_interval_ms=30_040.0)
    assert release_wait_ms(world(*records), memory, NOW_MS) == expected_ms


def test_same_input_same_output() -> None:
    """A plan depends on nothing but its arguments."""
    view = world(E1, E2, *(session(f"s_{n}", order=n) for n in range(9)))
    plans = [POLICY.plan(view, Changes(), Memory(), NOW_MS, CONFIG) for _ in range(2)]
    assert plans[0] == plans[1]


LONG_LEFT, JUST_LEFT = NOW_MS - RELOAD_GRACE_MS, NOW_MS - RELOAD_GRACE_MS + 1


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        pytest.param([session("s_a", "e_1", left_ms=LONG_LEFT)], [], id="nobody waits"),
        pytest.param(
            [session("s_a", "e_1", left_ms=LONG_LEFT), session("s_b", "e_1"), session("s_w")],
            [("suspend", "s_a")],
            id="one waits, one is gone",
        ),
        pytest.param(
            [session("s_a", "e_1", left_ms=LONG_LEFT), session("s_b", "e_1", left_ms=5), session("s_w")],
            [("suspend", "s_b")],
            id="longest gone first",
        ),
        pytest.param(
            [session("s_a", "e_1", left_ms=JUST_LEFT), session("s_b", "e_1"), session("s_w")],
            [],
            id="a reload keeps its place",
        ),
        pytest.param(
            [session("s_a", "e_1", left_ms=LONG_LEFT), session("s_w")],
            [("place", "s_w", "e_1")],
            id="room without it",
        ),
        pytest.param(
            [session("s_a", "e_1", left_ms=5), session("s_b", "e_1"), session("s_w", left_ms=LONG_LEFT)],
            [],
            id="who waits is gone too",
        ),
    ],
)
def test_sessions_without_connection_make_room(
    records: list[SessionRecord], expected: list[tuple[str, ...]]
) -> None:
    """While others wait, exactly as many as are needed give up their slot."""
    assert (
        decide(POLICY, world(E1, *records, desired=("e_1",)), config=replace(CONFIG, engines=1)) == expected
    )


OFFLOADED, STORED, LEAVING = Residence.OFFLOADED, Residence.STORED, Residence.LEAVING


def idle(id: str, on: str | None, residence: Residence = Residence.RESIDENT, **more: int) -> SessionRecord:
    """A session whose user wants no chunks now."""
    return session(id, on, active=False, residence=residence, **more)


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        pytest.param(
            [
                idle("s_a", "e_1", OFFLOADED),
                idle("s_b", "e_1", STORED),
                session("s_c", "e_1"),
                session("s_w"),
            ],
            [("place", "s_w", "e_1")],
            id="only residents count in the capacity",
        ),
        pytest.param(
            [session("s_a", "e_1"), idle("s_b", "e_1", LEAVING), session("s_w")],
            [],
            id="who is leaving holds its slot, and nobody else must leave for who waits",
        ),
        pytest.param(
            [session("s_a", "e_1"), session("s_b", "e_1"), idle("s_w", None)],
            [("place", "s_w", "e_1")],
            id="an idle session needs no slot",
        ),
        pytest.param(
            [session("s_a", "e_1"), session("s_b", "e_1", residence=OFFLOADED)],
            [("activate", "s_b")],
            id="active again, with a free slot",
        ),
        pytest.param(
            [session("s_a", "e_1"), session("s_b", "e_1", residence=STORED), session("s_w")],
            [("activate", "s_b")],
            id="active again goes before new starts",
        ),
        pytest.param(
            [session("s_a", "e_1"), session("s_b", "e_1", residence=STORED), session("s_w", order=-1)],
            [("place", "s_w", "e_1"), ("requeue", "s_b")],
            id="but not before those who wait in the queue for longer",
        ),
        pytest.param(
            [session("s_a", "e_1"), session("s_b", "e_1"), session("s_c", "e_1", residence=OFFLOADED)],
            [("requeue", "s_c")],
            id="no slot anywhere: it waits in the queue",
        ),
        pytest.param(
            [session("s_a", "e_1"), idle("s_b", "e_1"), session("s_c", "e_1", residence=OFFLOADED)],
            [("suspend", "s_b")],
            id="an idle session gives up its slot",
        ),
        pytest.param(
            [
                session("s_a", "e_1"),
                idle("s_b", "e_1"),
                session("s_c", "e_1", residence=OFFLOADED, active_ms=NOW_MS - MAX_WAIT_MS - 1),
            ],
            [("suspend", "s_b"), ("requeue", "s_c")],
            id="it waits in front of the queue for a slot that may go to others again",
        ),
        pytest.param(
            [idle("s_a", "e_1", active_ms=9), idle("s_b", "e_1", active_ms=5), session("s_w")],
            [("suspend", "s_b")],
            id="the longest idle first",
        ),
        pytest.param(
            [idle("s_a", "e_1"), session("s_b", "e_1", left_ms=LONG_LEFT), session("s_w")],
            [("suspend", "s_b")],
            id="who left before who is idle",
        ),
        pytest.param(
            [session("s_a", "e_1"), idle("s_b", "e_1")], [], id="nobody waits: an idle session keeps its slot"
        ),
    ],
)
def test_slots(records: list[SessionRecord], expected: list[tuple[str, ...]]) -> None:
    """Idle sessions give room to others, and who is active again gets a slot or waits for one."""
    assert (
        decide(POLICY, world(E1, *records, desired=("e_1",)), config=replace(CONFIG, engines=1)) == expected
    )


def test_active_again_on_another_engine_when_its_own_is_full() -> None:
    """It is placed there, with its checkpoint."""
    records = (session("s_a", "e_1"), session("s_b", "e_1"), session("s_c", "e_1", residence=OFFLOADED))
    assert decide(POLICY, world(E1, E2, *records)) == [("place", "s_c", "e_2")]


def test_idle_sessions_leave_a_draining_engine_for_a_full_one() -> None:
    """They need no slot there."""
    records = (idle("s_a", "e_1", OFFLOADED), session("s_b", "e_2"), session("s_c", "e_2"))
    view = world(engine("e_1", DRAINING), E2, engine("e_3", capacity=0), *records)
    assert ("place", "s_a", "e_2") in decide(POLICY, view) or ("place", "s_a", "e_3") in decide(POLICY, view)
