"""What holds for every policy, on random clusters."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.keys import MAX_FAILED_MOVES
from scheduler.messages import (
    DesiredEngine,
    EngineId,
    EngineRecord,
    EngineState,
    Phase,
    Residence,
    SessionId,
    SessionRecord,
)
from scheduler.policy.base import (
    Action,
    Activate,
    Changes,
    Drain,
    Memory,
    Migrate,
    Place,
    Policy,
    Requeue,
    Sample,
    SetDesired,
    StopDrained,
    Suspend,
    decode_memory,
    encode_memory,
)
from scheduler.policy.registry import ALL, MIGRATING
from scheduler.table import build_table
from scheduler.view import HOLDING_A_SLOT, NEVER_MS, View
from tests.scheduler.policy.worlds import CHANGES, CONFIG, MEMORY, NOW_MS, Cluster, engine, session, world

POLICIES = pytest.mark.parametrize("policy", ALL.values(), ids=ALL)
CAPACITY = 3
AUTOSCALED = replace(CONFIG, engines=1, max_engines=6)
STATES = (EngineState.READY, EngineState.READY, EngineState.READY, EngineState.DRAINING, EngineState.STARTING)
Records = tuple[list[EngineRecord], list[SessionRecord]]


def random_cluster(draw: random.Random) -> Records:
    """Engines in all states with two models; sessions in all conditions, never more residents than slots."""
    engines = [
        engine(
            f"e_{n}",
            draw.choice(STATES),
            capacity=CAPACITY,
            model=draw.choice(("shapes", "shapes", "wan")),
            drain_ordered=draw.random() < 0.1,
        )
        for n in range(draw.randint(0, 6))
    ]
    hosts = [e for e in engines if e.state is not EngineState.STARTING]
    slots = Counter({e.id: CAPACITY for e in hosts})
    return engines, [random_session(draw, n, hosts, slots) for n in range(draw.randint(0, 24))]


def random_session(
    draw: random.Random, n: int, hosts: list[EngineRecord], slots: Counter[EngineId]
) -> SessionRecord:
    """Queued, or on a host, which may take one of these slots, or two while it migrates."""
    more = {
        "active": draw.random() < 0.7,
        "left_ms": draw.choice((None, None, NOW_MS - 10_000)),
        "moved_ms": draw.choice((0, NOW_MS - 5_000)),
        "slack_ms": draw.choice((0, 500)),
        "order": draw.choice((n + 1, n - 1_000)),
        "opened": draw.random() < 0.8,
    }
    host = draw.choice([None, *hosts, *hosts])
    if host is None:
        return session(f"s_{n}", model=draw.choice(("shapes", "wan")), **more)
    residence = draw.choice(tuple(Residence)) if slots[host.id] > 0 else Residence.OFFLOADED
    slots[host.id] -= residence in (Residence.RESIDENT, Residence.LEAVING)
    to = [e.id for e in hosts if e is not host and e.model_name == host.model_name and slots[e.id] > 0]
    target = draw.choice([None, None, None, *to])
    if target is not None:
        slots[target] -= 1
    return session(f"s_{n}", host.id, to=target, model=host.model_name, residence=residence, **more)


def random_memory(draw: random.Random) -> Memory:
    """Of a cluster that may be shrinking, or have ordered drains that take too long."""
    closing = tuple(EngineId(f"e_{n}") for n in sorted(draw.sample(range(6), draw.randint(0, 2))))
    demands = [draw.randint(0, 20) for _ in range(draw.randint(0, 5))]
    late = [EngineId(f"e_{n}") for n in range(6) if draw.random() < 0.5]
    return Memory(
        closing=closing,
        drains=tuple(Drain(engine=id, ordered_ms=0, since_ms=0) for id in late),
        surplus_ms=NOW_MS - 60_000 if closing else 0,
        window=tuple(
            Sample(at_s=NOW_MS // 1000 - len(demands) + n, demand=demand, arrivals=1)
            for n, demand in enumerate(demands)
        ),
    )


# Clusters are drawn from a seed: hypothesis would take longer to draw one than policies take to plan for it.
clusters = st.integers(0, 2**32 - 1).map(lambda seed: random_cluster(random.Random(seed)))
memories = st.integers(0, 2**32 - 1).map(lambda seed: random_memory(random.Random(seed)))


def view_of(records: Records) -> View:
    """With every engine desired and just heard."""
    engines, sessions = records
    table = build_table(engines, sessions, [DesiredEngine(id=e.id, model=e.model_name) for e in engines])
    table.read_ms = NOW_MS
    return table.view()


def plan(policy: Policy, view: View, memory: Memory) -> tuple[tuple[Action, ...], Memory]:
    """One plan with six fresh ids."""
    changes = Changes(fresh_ids=tuple(EngineId(f"e_f{n}") for n in range(6)), arrivals=1, ages_ms=(9_000,))
    return policy.plan(view, changes, memory, NOW_MS, AUTOSCALED)


def slots_taken(view: View, actions: tuple[Action, ...]) -> Counter[str]:
    """By engine: residents, migrations under way to it, and what these actions add."""
    s = view.sessions
    taken: Counter[str] = Counter()
    for row, id in enumerate(view.engines.ids):
        taken[id] = int(view.engines["residents"][row] + view.engines["incoming"][row])
    for action in actions:
        match action:
            case Place():
                row = s.rows[action.session]
                taken[action.engine] += bool(s["active"][row])
            case Migrate():
                taken[action.target] += 1
            case Activate():
                taken[view.engines.ids[s["engine"][s.rows[action.session]]]] += 1
            case _:
                pass
    return taken


@POLICIES
@settings(deadline=None, max_examples=60)
@given(records=clusters, memory=memories)
def test_no_engine_gets_more_than_it_has_slots(policy: Policy, records: Records, memory: Memory) -> None:
    """Migrations under way count at their target, and at their source until they end."""
    view = view_of(records)
    actions, _ = plan(policy, view, memory)
    assert max(slots_taken(view, actions).values(), default=0) <= CAPACITY


@POLICIES
@settings(deadline=None, max_examples=60)
@given(records=clusters, memory=memories)
def test_everybody_who_wants_chunks_has_a_place_while_there_is_room(
    policy: Policy, records: Records, memory: Memory
) -> None:
    """Who is left out found every engine of its model full."""
    view = view_of(records)
    actions, after = plan(policy, view, memory)
    seated = {a.session for a in actions if isinstance(a, Place | Activate)}
    s, taken = view.sessions, slots_taken(view, actions)
    closed = {*memory.closing, *after.closing}
    for row in [*view.queued, *view.wanting]:
        wants = s["active"][row] and not s["in_flight"][row]
        if not wants or s.ids[row] in seated or (row in view.queued and s["left_ms"][row] != NEVER_MS):
            continue
        fitting = np.flatnonzero(
            view.is_state(EngineState.READY)
            & ~view.engines["drain_ordered"]
            & (view.engines["model"] == s["model"][row])
        )
        drained = {a.engine for a in actions if type(a).__name__ == "DrainEngine"}
        ids = {view.engines.ids[e] for e in fitting} - closed - drained
        assert all(taken[id] >= CAPACITY for id in ids)


@POLICIES
@settings(deadline=None, max_examples=60)
@given(records=clusters, memory=memories)
def test_sessions_get_one_action_and_none_in_flight(policy: Policy, records: Records, memory: Memory) -> None:
    """But every action is legal for the session that it is about."""
    view = view_of(records)
    actions, _ = plan(policy, view, memory)
    s = view.sessions
    acted = [a for a in actions if isinstance(a, Place | Migrate | Requeue | Suspend | Activate)]
    assert max(Counter(a.session for a in acted).values(), default=0) <= 1
    for action in acted:
        row = s.rows[action.session]
        assert not s["in_flight"][row]
        assert action.expect_epoch == s["epoch"][row]
        own = view.engines.ids[s["engine"][row]] if s["engine"][row] >= 0 else None
        holds = own is not None and s["residence"][row] in HOLDING_A_SLOT
        match action:
            case Place():
                assert action.engine != own
            case Migrate():
                target = view.engines.rows[action.target]
                assert action.source == own != action.target and s["movable"][row]
                assert view.is_state(EngineState.READY)[target]
                assert view.engines["model"][target] == s["model"][row]
            case Activate():
                assert s["active"][row] and own is not None and not holds
            case Suspend():
                assert holds


@POLICIES
@settings(deadline=None, max_examples=40)
@given(records=clusters, memory=memories, seed=st.integers())
def test_a_plan_does_not_depend_on_how_the_view_came_about(
    policy: Policy, records: Records, memory: Memory, seed: int
) -> None:
    """Records in any order, others in between: the same actions in the same order, and the same memory."""
    engines, sessions = list(records[0]), list(records[1])
    draw = random.Random(seed)
    draw.shuffle(engines)
    draw.shuffle(sessions)
    desired = [DesiredEngine(id=e.id, model=e.model_name) for e in records[0]]
    table = build_table(engines, [session("s_x"), *sessions], desired)
    table.put_session(replace(session("s_x"), phase=Phase.CLOSED))
    table.read_ms = NOW_MS
    assert plan(policy, table.view(), memory) == plan(policy, view_of(records), memory)


@POLICIES
@settings(deadline=None, max_examples=20)
@given(records=clusters, memory=memories)
def test_the_next_leader_reads_the_memory(policy: Policy, records: Records, memory: Memory) -> None:
    """All of it, and in much less than the store takes."""
    _, after = plan(policy, view_of(records), memory)
    assert decode_memory(encode_memory(after)) == after
    assert len(encode_memory(after)) < 64 * 1024


@settings(deadline=None, max_examples=60)
@given(records=clusters, memory=memories)
def test_a_moved_session_rests(records: Records, memory: Memory) -> None:
    """`slack` moves it again before only when its engine goes."""
    view = view_of(records)
    actions, after = plan(ALL["slack"], view, memory)
    draining = {view.engines.ids[row] for row in np.flatnonzero(view.is_state(EngineState.DRAINING))}
    for action in actions:
        if isinstance(action, Migrate) and action.source not in draining | {*memory.closing}:
            assert view.sessions["moved_ms"][view.sessions.rows[action.session]] <= NOW_MS - 10_000
    assert not {*after.closing} & draining


@pytest.mark.parametrize("policy", MIGRATING, ids=lambda policy: policy.name)
def test_the_first_session_of_an_empty_cluster_gets_an_engine(policy: Policy) -> None:
    """Where the number may be zero, one who comes starts one; while nobody comes, none is started."""
    config = replace(CONFIG, engines=0, max_engines=2)
    cluster = Cluster()
    assert cluster.step(policy, config) == []
    changes = cluster.start("s_1")
    (action,) = cluster.step(policy, config, changes)
    assert isinstance(action, SetDesired) and len(action.engines) == 1


@pytest.mark.parametrize("policy", MIGRATING, ids=lambda policy: policy.name)
@pytest.mark.parametrize(
    ("start_ms", "failures", "waits"), [(500.0, 0, True), (60_000.0, 0, False), (500.0, 1, False)]
)
def test_who_returns_keeps_its_state_for_an_engine_that_is_soon_there(
    policy: Policy, start_ms: float, failures: int, waits: bool
) -> None:
    """All slots are taken, and an engine is asked for: if that takes long, or the last one died young, it
    waits in the queue.
    """
    config = replace(CONFIG, engines=1, max_engines=2)
    cluster = Cluster(
        engine("e_1", capacity=2),
        *(session(f"s_{n}", "e_1") for n in range(2)),
        session("s_back", "e_1", residence=Residence.OFFLOADED),
    )
    cluster.memory = replace(cluster.memory, start_ms=start_ms, failures=failures, retry_ms=NOW_MS)
    actions = cluster.step(policy, config)
    assert any(isinstance(action, SetDesired) for action in actions)
    assert any(isinstance(action, Requeue) for action in actions) is not waits


@pytest.mark.parametrize("policy", MIGRATING, ids=lambda policy: policy.name)
@pytest.mark.parametrize(
    ("failed_moves", "transfer", "others", "action"),
    [
        pytest.param(0, "-", "-", Migrate, id="it migrates"),
        pytest.param(MAX_FAILED_MOVES, "-", "-", Place, id="its migrations failed before"),
        pytest.param(0, "", "-", Place, id="its engine can't migrate sessions"),
        pytest.param(0, "-", "", Place, id="no other engine can"),
    ],
)
def test_who_can_not_migrate_leaves_by_its_checkpoint(
    policy: Policy, failed_moves: int, transfer: str, others: str, action: type[Action]
) -> None:
    """Else a draining engine would wait for it for ever."""
    cluster = Cluster(
        engine("e_1", EngineState.DRAINING, transfer=transfer),
        engine("e_2", transfer=others),
        session("s_a", "e_1", failed_moves=failed_moves),
    )
    moved = [a for a in cluster.step(policy, CONFIG) if isinstance(a, Migrate | Place)]
    assert [type(a) for a in moved] == [action]


@POLICIES
@pytest.mark.parametrize("start_ms", [500.0, 60_000.0])
def test_who_streams_on_a_draining_engine_stays_until_there_is_room(policy: Policy, start_ms: float) -> None:
    """However long that takes nobody stops. An idle session gives up its slot for it, and the engine goes."""
    cluster = Cluster(engine("e_1", EngineState.DRAINING), engine("e_2"))
    cluster.sessions |= {
        (it := session(id, on)).id: it for id, on in (("a", "e_1"), ("b", "e_2"), ("c", "e_2"))
    }
    cluster.memory = replace(cluster.memory, start_ms=start_ms)
    config = replace(CONFIG, engines=1)
    for _ in range(30):
        cluster.now_ms += 1_000
        assert cluster.step(policy, config) == []
    cluster.sessions[SessionId("b")] = replace(cluster.sessions[SessionId("b")], active=False)
    acted = [action for _ in range(3) for action in cluster.step(policy, config)]
    assert [type(action) for action in acted if not isinstance(action, SetDesired)] == [
        Suspend,
        Migrate if policy in MIGRATING else Place,
        StopDrained,
    ]


@pytest.mark.parametrize("policy", MIGRATING, ids=lambda policy: policy.name)
def test_nobody_is_moved_for_balance_by_checkpoint(policy: Policy) -> None:
    """Engines that can't migrate sessions keep them."""
    crowded = [session(f"s_{n}", "e_1") for n in range(4)]
    engines = [engine(f"e_{n}", capacity=4, transfer="") for n in (1, 2)]
    assert Cluster(*engines, *crowded).step(policy, CONFIG) == []


@POLICIES
def test_redis_time_set_back_by_an_hour_delays_no_engine(policy: Policy) -> None:
    """A replacement that was due then comes now, and demand is watched on."""
    cluster = Cluster(engine("e_1"))
    sample = Sample(at_s=NOW_MS // 1000, demand=0, arrivals=0)
    cluster.memory = Memory(retry_ms=NOW_MS, window=(sample,))
    cluster.now_ms -= 3_600_000
    found = cluster.step(policy, replace(CONFIG, engines=2, max_engines=2))
    assert [type(action) for action in found] == [SetDesired]
    if policy in MIGRATING:
        assert [sample.at_s for sample in cluster.memory.window] == [cluster.now_ms // 1000]


@pytest.mark.parametrize("policy", MIGRATING, ids=lambda policy: policy.name)
def test_redis_time_set_back_by_an_hour_keeps_no_surplus(policy: Policy) -> None:
    """The hold of a scale-in begins anew, at the new time."""
    cluster = Cluster(engine("e_1"), engine("e_2"))
    cluster.memory = Memory(surplus_ms=NOW_MS)
    cluster.now_ms -= 3_600_000
    cluster.step(policy, AUTOSCALED)
    assert cluster.memory.surplus_ms == cluster.now_ms


@POLICIES
def test_places_go_to_subjects_in_turn(policy: Policy) -> None:
    """Whoever has many sessions in the line: its second goes after the first of everybody else there."""
    alices = [session(f"s_a{n}", order=n, subject="alice") for n in range(4)]
    others = [session("s_b", order=7, subject="bob"), session("s_n", order=8)]
    view = world(engine("e_1", capacity=3), engine("e_2", capacity=2), *alices, *others)
    actions, _ = policy.plan(view, CHANGES, MEMORY, NOW_MS, CONFIG)
    placed = [action.session for action in actions if isinstance(action, Place)]
    assert placed == ["s_a0", "s_b", "s_n", "s_a1", "s_a2"]
