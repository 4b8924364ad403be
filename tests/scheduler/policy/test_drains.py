"""An ordered drain ends in time; one of the policy's own accord cuts nobody."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.messages import EngineId, EngineRecord, EngineState, Residence, SessionId, SessionRecord
from scheduler.policy.base import (
    Action,
    Drain,
    Migrate,
    Place,
    Policy,
    Requeue,
    StopDrained,
    decode_memory,
    encode_memory,
)
from scheduler.policy.drains import MAX_DRAINS, note_drains
from scheduler.policy.registry import ALL, MIGRATING
from tests.scheduler.policy.worlds import CHANGES, CONFIG, MEMORY, NOW_MS, Cluster, engine, session, world

POLICIES = pytest.mark.parametrize("policy", ALL.values(), ids=ALL)
E1 = EngineId("e_1")
# No engine is asked for in place of the one that goes.
TIGHT = replace(CONFIG, engines=1, max_engines=1, drain_timeout_s=10, start_timeout_ms=30_000)


def leaving(*more: EngineRecord | SessionRecord, ordered: bool = True, capacity: int = 2) -> Cluster:
    """e_1 drains with two who generate, one who is idle and one who waits for a slot."""
    return Cluster(
        engine("e_1", EngineState.DRAINING, drain_ordered=ordered, capacity=capacity),
        session("s_a", "e_1"),
        session("s_b", "e_1"),
        session("s_idle", "e_1", active=False, residence=Residence.OFFLOADED),
        *more,
    )


def full(id: str = "e_2") -> tuple[EngineRecord | SessionRecord, ...]:
    """An engine without room."""
    return engine(id, capacity=1), session(f"s_on_{id}", id)


def run(cluster: Cluster, policy: Policy, seconds: int) -> list[Action]:
    """What is done in so many seconds, with a plan in each."""
    found: list[Action] = []
    for _ in range(seconds):
        found += cluster.step(policy, TIGHT)
        cluster.now_ms += 1_000
    return found


def requeued(actions: list[Action]) -> list[str]:
    """Sessions that lost their place because their engine goes."""
    return [a.session for a in actions if isinstance(a, Requeue) and a.why == "engine_drained"]


@POLICIES
def test_who_finds_no_slot_in_time_waits_in_front_of_the_queue(policy: Policy) -> None:
    """And the engine goes. Idle sessions went to the other engine already: they need no slot."""
    cluster = leaving(*full())
    assert requeued(run(cluster, policy, 10)) == []
    assert cluster.sessions[SessionId("s_idle")].engine == "e_2"
    actions = run(cluster, policy, 2)
    assert requeued(actions) == ["s_a", "s_b"]
    assert [a.engine for a in actions if isinstance(a, StopDrained)] == [E1]
    assert cluster.sessions[SessionId("s_on_e_2")].engine == "e_2"


@POLICIES
def test_idle_sessions_too_where_there_is_no_other_engine(policy: Policy) -> None:
    """Else an engine whose user sleeps would never end."""
    cluster = leaving()
    config = replace(TIGHT, engines=0, max_engines=0)
    found: list[Action] = []
    for _ in range(12):
        found += cluster.step(policy, config)
        cluster.now_ms += 1_000
    assert requeued(found) == ["s_a", "s_b", "s_idle"]
    assert E1 not in cluster.engines


@POLICIES
def test_a_drain_of_its_own_accord_cuts_nobody(policy: Policy) -> None:
    """However long others are full: nobody stops so that there are fewer engines."""
    cluster = leaving(*full(), ordered=False)
    run(cluster, policy, 100)
    assert {cluster.sessions[SessionId(id)].engine for id in ("s_a", "s_b")} == {E1}
    assert cluster.memory.drains == ()


@POLICIES
def test_the_time_counts_from_the_order(policy: Policy) -> None:
    """Also where the engine drained before, because fewer do."""
    cluster = leaving(*full(), ordered=False)
    run(cluster, policy, 100)
    cluster.engines[E1] = replace(cluster.engines[E1], drain_ordered=True)
    assert requeued(run(cluster, policy, 10)) == []
    assert requeued(run(cluster, policy, 1)) == ["s_a", "s_b"]


@POLICIES
def test_the_next_leader_goes_on_counting(policy: Policy) -> None:
    """It has the times in its memory."""
    cluster = leaving(*full())
    run(cluster, policy, 6)
    cluster.memory = decode_memory(encode_memory(cluster.memory))
    assert requeued(run(cluster, policy, 5)) == ["s_a", "s_b"]


@POLICIES
def test_an_engine_that_starts_is_waited_for(policy: Policy) -> None:
    """Its slots are what the sessions wait for: they get the whole time again once it is ready."""
    cluster = leaving(engine("e_3", EngineState.STARTING))
    assert requeued(run(cluster, policy, 20)) == []
    cluster.make_ready()
    actions = run(cluster, policy, 3)
    assert requeued(actions) == []
    assert {a.session for a in actions if isinstance(a, Migrate | Place)} == {"s_a", "s_b", "s_idle"}
    assert E1 not in cluster.engines


@POLICIES
@pytest.mark.parametrize(
    ("starting", "seconds"),
    [
        pytest.param(engine("e_3", EngineState.STARTING), 40, id="one that never is ready"),
        pytest.param(engine("e_3", EngineState.STARTING, model="wan"), 10, id="one of another model"),
    ],
)
def test_but_not_for_ever(policy: Policy, starting: EngineRecord, seconds: int) -> None:
    """No longer than a start may take, and not where its slots are of no use."""
    cluster = leaving(starting)
    assert requeued(run(cluster, policy, seconds)) == []
    assert {"s_a", "s_b"} <= {*requeued(run(cluster, policy, 1))}


@pytest.mark.parametrize("policy", MIGRATING, ids=lambda policy: policy.name)
def test_who_moves_when_the_time_is_over_may_end_it(policy: Policy) -> None:
    """Who migrates now, or from this plan on, keeps its state; the others do not wait for their turn."""
    cluster = Cluster(
        engine("e_1", EngineState.DRAINING, drain_ordered=True, capacity=4),
        engine("e_2", capacity=8),
        session("s_a", "e_1", to="e_2"),
        *(session(f"s_{n}", "e_1") for n in range(4)),
    )
    cluster.memory = replace(MEMORY, drains=(Drain(engine=E1, ordered_ms=0, since_ms=0),))
    actions = cluster.step(policy, TIGHT)
    assert [a.session for a in actions if isinstance(a, Migrate)] == ["s_0"]
    assert requeued(actions) == ["s_1", "s_2", "s_3"]
    acted = [a.session for a in actions if isinstance(a, Migrate | Place | Requeue)]
    assert len(acted) == len({*acted})


@POLICIES
def test_a_lost_engine_is_lost_once(policy: Policy) -> None:
    """Its sessions are queued again by that."""
    late = replace(MEMORY, drains=(Drain(engine=E1, ordered_ms=0, since_ms=0),))
    silent = engine("e_1", EngineState.DRAINING, drain_ordered=True, heartbeat_ms=0)
    actions, _ = policy.plan(world(silent, *full(), session("s_a", "e_1")), CHANGES, late, NOW_MS, TIGHT)
    assert requeued(list(actions)) == []


def test_the_memory_of_a_drain() -> None:
    """It begins with the order, follows Redis time back, and ends with the engine."""
    ordered = engine("e_1", drain_ordered=True)
    view = world(ordered, engine("e_2"))
    memory = note_drains(view, MEMORY, NOW_MS, TIGHT)
    assert memory.drains == (Drain(engine=E1, ordered_ms=NOW_MS, since_ms=NOW_MS),)
    assert note_drains(view, memory, NOW_MS + 5_000, TIGHT) == memory
    back_ms = NOW_MS - 3_600_000
    assert note_drains(view, memory, back_ms, TIGHT).drains == (
        Drain(engine=E1, ordered_ms=back_ms, since_ms=back_ms),
    )
    assert note_drains(world(engine("e_2")), memory, NOW_MS, TIGHT).drains == ()
    assert note_drains(world(engine("e_1")), MEMORY, NOW_MS, TIGHT) is MEMORY


def test_drains_of_thousands_fit_the_memory() -> None:
    """All engines of the largest cluster at once."""
    view = world(*(engine(f"e_{n:08x}", drain_ordered=True) for n in range(4_096)))
    memory = note_drains(view, MEMORY, 2**41, TIGHT)
    assert len(memory.drains) == MAX_DRAINS
    assert len(encode_memory(memory)) < 128 * 1024


@pytest.mark.parametrize("seconds", [0, -1, 86_401])
def test_a_time_that_is_none_is_refused(seconds: int) -> None:
    with pytest.raises(ValueError, match="drain_timeout_s must be between 1 and 86400"):
        replace(CONFIG, drain_timeout_s=seconds)
