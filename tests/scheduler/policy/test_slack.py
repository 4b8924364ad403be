"""Our policy: where it goes further than the paper's, one rule at a time."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from scheduler.messages import (
    EngineCosts,
    EngineId,
    EngineRecord,
    EngineState,
    Residence,
    SessionId,
    SessionRecord,
)
from scheduler.policy.autoscale import note_demand
from scheduler.policy.base import Changes, DrainEngine, Memory, Migrate, Policy, Sample, SetDesired
from scheduler.policy.registry import ALL
from scheduler.policy.relief import MoveRules
from scheduler.policy.slack import Slack
from scheduler.policy.upkeep import MAX_WAIT_MS
from tests.scheduler.policy.worlds import CONFIG, MEMORY, NOW_MS, Cluster, decide, engine, session, world

POLICY = ALL["slack"]
NOW_S = NOW_MS // 1000
FAST_LINK = EngineCosts(buckets=(1,), pass_ms=((50.0,),), decode_ms=0.0, chunk_passes=5, first_chunk_passes=5)
"""250 ms a chunk for each session, as an engine of four slots without costs has it."""


def cluster(*loads: int) -> list[EngineRecord | SessionRecord]:
    """Engines of four slots with so many active sessions."""
    engines: list[EngineRecord | SessionRecord] = [
        engine(f"e_{n}", capacity=4) for n in range(1, len(loads) + 1)
    ]
    return engines + [session(f"s_{n}{k}", f"e_{n + 1}") for n, load in enumerate(loads) for k in range(load)]


def moves(
    records: list[EngineRecord | SessionRecord], policy: Policy = POLICY, memory: Memory = MEMORY
) -> list[tuple[str, ...]]:
    """Its migrations, with the budget of these engines."""
    engines = [r for r in records if isinstance(r, EngineRecord)]
    config = replace(CONFIG, engines=len(engines))
    view = world(*records, desired=tuple(e.id for e in engines))
    return [a for a in decide(policy, view, memory=memory, config=config) if a[0] == "migrate"]


@pytest.mark.parametrize(
    ("loads", "sources"),
    [
        pytest.param((4, 1), ["e_1"], id="off the worst"),
        pytest.param((3, 2), [], id="nothing to gain"),
        pytest.param(
            (4, 4, 2, 2), ["e_1", "e_2"], id="one move alone would not lower the worst of two, both do"
        ),
        pytest.param((4, 0), ["e_1", "e_1"], id="two moves from an engine at a time"),
        pytest.param((4, 0, 0), ["e_1", "e_1"], id="and not more"),
    ],
)
def test_who_is_relieved(loads: tuple[int, ...], sources: list[str]) -> None:
    """The paper's rule stops where the worst engine is not alone."""
    assert [move[2] for move in moves(cluster(*loads))] == sources


def test_all_engines_on_which_players_run_dry_are_relieved() -> None:
    """Nobody on the worst can be moved, so the largest latency stays; who stalls elsewhere still counts."""
    records = cluster(4, 4, 1)
    stuck = [
        replace(r, opened=False) if isinstance(r, SessionRecord) and r.engine == "e_1" else r for r in records
    ]
    assert [move[2] for move in moves(stuck)] == ["e_2"]
    calm = [r for r in stuck if r.id not in ("s_10", "s_20")]  # e_2 has three of four: no stall there
    assert moves(calm) == []


@pytest.mark.parametrize(
    ("loads", "pass_ms", "number"),
    [
        pytest.param((1, 0), 35.0, 0, id="alone, and a third less elsewhere: it may have measured itself so"),
        pytest.param((1, 0), 20.0, 1, id="less than half: that is other hardware"),
        pytest.param((2, 1), 35.0, 0, id="as uneven afterwards"),
        pytest.param((2, 0), 50.0, 1, id="even afterwards"),
    ],
)
def test_what_seems_faster_gets_nobody_without_need(
    loads: tuple[int, ...], pass_ms: float, number: int
) -> None:
    """Nobody stalls: engines of one machine measure themselves now as this much slower, now as that."""
    records = cluster(*loads)
    records[0] = replace(records[0], costs=FAST_LINK)  # type: ignore[arg-type]
    records[1] = replace(records[1], costs=replace(FAST_LINK, pass_ms=((pass_ms,),)))  # type: ignore[arg-type]
    assert len(moves(records)) == number


def test_what_only_seems_slower_does_not_keep_others_from_relief() -> None:
    """The first measures itself slowest, with one more than the last; the second has two more, and moves."""
    records = cluster(2, 3, 1)
    for row, pass_ms in enumerate((40.0, 25.0, 25.0)):
        costs = replace(FAST_LINK, pass_ms=((pass_ms,),))
        records[row] = replace(records[row], costs=costs)  # type: ignore[arg-type]
    assert [move[2:4] for move in moves(records)] == [("e_2", "e_3")]


@pytest.mark.parametrize(
    ("moved_ms", "number"), [(NOW_MS - 9_999, 0), (NOW_MS - 10_000, 1), (NOW_MS, 0), (NOW_MS + 3_600_000, 1)]
)
def test_a_moved_session_rests(moved_ms: int, number: int) -> None:
    """Whoever moved it; Redis time may have been set back by an hour since."""
    records = [replace(r, moved_ms=moved_ms) if isinstance(r, SessionRecord) else r for r in cluster(4, 1)]
    assert len(moves(records)) == number


def test_the_move_that_disturbs_least() -> None:
    """Not the smallest state, but one that arrives before the player runs dry; of those the smallest."""
    on = [engine("e_1", capacity=4), engine("e_2", capacity=4)]
    state = 2**30  # 40 ms over the default link, 8 of them whatever the size
    heavy = session("s_a", "e_1", state_bytes=2 * state, slack_ms=900)
    light = session("s_b", "e_1", state_bytes=state, slack_ms=30)
    middle = session("s_c", "e_1", state_bytes=state + 1, slack_ms=500)
    assert moves([*on, heavy, light, middle])[0][1] == "s_c"
    assert moves([*on, heavy, light, session("s_d", "e_1", state_bytes=3 * state)])[0][1] == "s_a"


@pytest.mark.parametrize(
    ("state_bytes", "link", "number"),
    [
        pytest.param(2**30, 2.0**25, 1, id="40 ms once for 250 ms a chunk"),
        pytest.param(2**30, 2.0**16, 0, id="16 s once, and a player that stalls for it"),
    ],
)
def test_moves_must_pay(state_bytes: int, link: float, number: int) -> None:
    """By the measured speed of the links."""
    costs = replace(FAST_LINK, link_bytes_per_ms=link)
    records = [
        replace(r, costs=costs) if isinstance(r, EngineRecord) else replace(r, state_bytes=state_bytes)
        for r in cluster(4, 1)
    ]
    assert len(moves(records)) == number


def test_the_slower_link_counts() -> None:
    """Of two equal targets the one that is reached sooner."""
    records = cluster(4, 1, 1)
    slow = replace(FAST_LINK, link_bytes_per_ms=2.0**22)
    records[1] = replace(records[1], costs=slow)  # type: ignore[arg-type]
    records[0] = replace(records[0], costs=FAST_LINK)  # type: ignore[arg-type]
    records[2] = replace(records[2], costs=FAST_LINK)  # type: ignore[arg-type]
    sized = [replace(r, state_bytes=2**28) if isinstance(r, SessionRecord) else r for r in records]
    assert moves(sized)[0][3] == "e_3"


@pytest.mark.parametrize(("exits_at", "number"), [(0, 0), (6, 1)])
def test_a_session_that_will_soon_end_is_not_moved(exits_at: int, number: int) -> None:
    """Where all sessions end within two seconds there are too few chunks left for 250 ms each."""
    lived = [0.0] * 14
    exits = [0.0] * 14
    lived[exits_at], exits[exits_at] = 50.0, 500.0
    memory = Memory(exits=tuple(exits), exposure_s=tuple(lived))
    young = [
        replace(r, created_ms=NOW_MS, state_bytes=2**33, slack_ms=5_000)
        if isinstance(r, SessionRecord)
        else r
        for r in cluster(4, 1)
    ]
    policy = Slack(moves=MoveRules(price=1.0))
    assert len(moves(young, policy, memory)) == number


def test_who_holds_least_video_comes_back_first() -> None:
    """Two are active again and one slot is free."""
    away = {"residence": Residence.OFFLOADED}
    view = world(
        engine("e_1", capacity=1),
        session("s_a", "e_1", slack_ms=900, **away),  # type: ignore[arg-type]
        session("s_b", "e_1", slack_ms=100, **away),  # type: ignore[arg-type]
        desired=("e_1",),
    )
    found = decide(POLICY, view, config=replace(CONFIG, engines=1))
    assert found == [("activate", "s_b"), ("requeue", "s_a")]


def samples(*demands: int, arrivals: int = 0) -> tuple[Sample, ...]:
    """One a second, up to the last second."""
    first_s = NOW_S - len(demands)
    return tuple(Sample(at_s=first_s + n, demand=d, arrivals=arrivals) for n, d in enumerate(demands))


def wanted(policy: Policy, records: list[EngineRecord | SessionRecord], memory: Memory) -> int:
    """Engines that it asks for, with room for sixteen."""
    ids = tuple(EngineId(f"e_f{n:02}") for n in range(16))
    engines = tuple(r.id for r in records if isinstance(r, EngineRecord))
    view = world(*records, desired=engines)
    config = replace(CONFIG, engines=1, max_engines=16)
    actions, _ = policy.plan(view, Changes(fresh_ids=ids), memory, NOW_MS, config)
    asked = [action for action in actions if isinstance(action, SetDesired)]
    return len(asked[0].engines) if asked else len(engines)


def test_engines_are_asked_for_before_they_are_needed() -> None:
    """Two sessions arrive each second and an engine takes 10 s to start: about 20 more than now."""
    records, rising = cluster(3, 3), Memory(window=samples(0, 2, 4, arrivals=2))
    assert wanted(Slack(forecasts=False), records, rising) == 2
    with_forecast = wanted(POLICY, records, rising)
    assert 6 <= with_forecast <= 10
    slow_start = wanted(POLICY, records, replace(rising, start_ms=20_000.0))
    assert slow_start > with_forecast


@pytest.mark.parametrize(
    ("start_s", "turnover", "engines"), [(3, 0.0, 13), (3, 2.5, 12), (20, 0.0, 15), (20, 2.5, 12)]
)
def test_spare_slots_are_fewer_where_slots_come_free_before_an_engine(
    start_s: int, turnover: float, engines: int
) -> None:
    """Forty sessions, two come and two stop each second. In 20 s less is certain than in 3 s, but no more is
    kept ready: who waits gets the slot of one that stops."""
    memory = Memory(window=samples(*[40] * 60, arrivals=2), start_ms=1_000.0 * start_s)
    assert wanted(Slack(turnover=turnover), cluster(*[4] * 10), memory) == engines


def test_engines_that_are_ready_at_once_are_not_asked_for_ahead() -> None:
    """One start that took no time is enough to know it."""
    records, rising = cluster(3, 3), Memory(window=samples(0, 2, 4, arrivals=2))
    seen = note_demand(world(*records), Changes(starts_ms=(0,)), rising, NOW_MS, "shapes")
    assert (seen.start_ms, seen.starts) == (0.0, 1)
    assert wanted(POLICY, records, seen) == wanted(Slack(forecasts=False), records, seen) == 2


def test_starts_that_differ_are_averaged() -> None:
    """The first few weigh the same, later ones more than those long ago."""
    memory = Memory()
    for took_ms in (4_000, 2_000, 3_000):
        memory = note_demand(world(), Changes(starts_ms=(took_ms,)), memory, NOW_MS, "shapes")
    assert memory.start_ms == pytest.approx(3_000)
    for _ in range(20):
        memory = note_demand(world(), Changes(starts_ms=(9_000,)), memory, NOW_MS, "shapes")
    assert memory.start_ms == pytest.approx(9_000, rel=0.01)


@pytest.mark.parametrize(("engines", "change"), [(3, 1), (4, 0), (5, 0), (6, -1), (8, -3)])
def test_engines_that_are_there_are_kept_for_more_than_is_asked_for(engines: int, change: int) -> None:
    """Ten sessions, of which one in two seconds is replaced by another: in ten seconds there will be ten,
    give or take two and a half. Slots for thirteen are asked for, and those for sixteen kept."""
    window = tuple(Sample(at_s=NOW_S - 60 + n, demand=10, arrivals=n % 2) for n in range(60))
    records = cluster(4, 4, 2, *[0] * (engines - 3))
    view = world(*records, desired=tuple(r.id for r in records if isinstance(r, EngineRecord)))
    memory, config = Memory(window=window, surplus_ms=1), replace(CONFIG, engines=1, max_engines=16)
    actions, _ = POLICY.plan(view, Changes(fresh_ids=(EngineId("e_f"),) * 5), memory, NOW_MS, config)
    asked = [len({*a.engines}) - engines for a in actions if isinstance(a, SetDesired)]
    drained = sum(isinstance(action, DrainEngine) for action in actions)
    assert sum(asked) - drained == change


@pytest.mark.parametrize(("sessions", "number"), [(5, 2), (6, 3), (7, 3)])
def test_capacity_is_what_keeps_latency_down_on_average(sessions: int, number: int) -> None:
    """Engines have eight slots, but two sessions take 60 % of a chunk's play time and three 90 %: nearly
    three on each, so that one may have three if another has two."""
    costs = replace(FAST_LINK, pass_ms=((60.0,),))
    records: list[EngineRecord | SessionRecord] = [engine(f"e_{n}", capacity=8, costs=costs) for n in (1, 2)]
    records += [session(f"s_{n}", f"e_{1 + n % 2}") for n in range(sessions)]
    assert wanted(Slack(forecasts=False), records, Memory()) == number


@pytest.mark.parametrize(("stopping", "waits"), [(0, False), (1, True)])
def test_who_returns_keeps_its_state_where_slots_free_soon(stopping: int, waits: bool) -> None:
    """All slots are taken and no engine comes. If every second a session stops and another starts, one
    slot of them is there before a rebuild would be."""
    records = [*cluster(4, 4), session("s_back", "e_1", residence=Residence.OFFLOADED)]
    memory = Memory(window=samples(*[9] * 60, arrivals=stopping))
    view = world(*records)
    found = decide(POLICY, view, memory=memory, config=replace(CONFIG, engines=2))
    assert (("requeue", "s_back") in found) is not waits


@pytest.mark.parametrize(("waited_ms", "waits"), [(MAX_WAIT_MS, True), (MAX_WAIT_MS + 1, False)])
@pytest.mark.parametrize("coming", ["stops", "moves", "engines"])
def test_nobody_waits_for_slots_that_never_come(coming: str, waited_ms: int, waits: bool) -> None:
    """Slots are expected again and again, whatever from: who has waited long enough goes to the queue."""
    back = session("s_back", "e_1", residence=Residence.OFFLOADED, active_ms=NOW_MS - waited_ms)
    stops = samples(*[9] * 60, arrivals=1)
    records, memory = [*cluster(4, 4), back], Memory(window=stops if coming == "stops" else ())
    if coming == "moves":
        records.append(session("s_m", "e_2", to="e_1"))
    if coming == "engines":
        records.append(engine("e_9", EngineState.STARTING))
        memory = replace(memory, start_ms=2_000.0)
    found = decide(POLICY, world(*records), memory=memory, config=replace(CONFIG, engines=3))
    assert (("requeue", "s_back") in found) is not waits


def test_nobody_is_passed_over_for_ever_by_those_who_hold_less_video() -> None:
    """Each second the slot is free again and somebody else, whose player is dry, wants it as well."""
    away = Residence.OFFLOADED
    cluster = Cluster(engine("e_1", capacity=1), session("s_old", "e_1", slack_ms=900, residence=away))
    cluster.memory = Memory(window=samples(*[1] * 60, arrivals=1))
    for number in range(60):
        cluster.now_ms += 1_000
        holders = [record for record in cluster.sessions.values() if record.residence is Residence.RESIDENT]
        for record in holders:
            cluster.sessions[record.id] = replace(record, active=False, residence=away)
        rival = session(f"s_{number:03}", "e_1", residence=away, active_ms=cluster.now_ms)
        cluster.sessions[rival.id] = rival
        cluster.step(POLICY, replace(CONFIG, engines=1), Changes(arrivals=1))
        old = cluster.sessions[SessionId("s_old")]
        if old.residence is Residence.RESIDENT:
            break
    else:
        pytest.fail("it never got the slot")
    assert cluster.now_ms - NOW_MS <= MAX_WAIT_MS + 2_000


def test_free_slots_are_made_before_newcomers_need_them() -> None:
    """Arrivals at one a second: both idle sessions give up their slots, the longest idle one first."""
    view = world(
        engine("e_1", capacity=4),
        *(session(f"s_{n}", "e_1") for n in range(2)),
        session("s_i", "e_1", active=False, active_ms=9),
        session("s_j", "e_1", active=False, active_ms=5),
        desired=("e_1",),
    )
    config = replace(CONFIG, engines=1)
    assert decide(POLICY, view, config=config) == []
    busy = Memory(window=samples(*[2] * 20, arrivals=1))
    found = decide(POLICY, view, memory=busy, config=config)
    assert found == [("suspend", "s_j"), ("suspend", "s_i")]


@pytest.mark.parametrize(("start_ms", "hold_ms"), [(0.0, 1_000), (400.0, 1_400), (30_000.0, 2_000)])
def test_engines_that_take_long_to_start_are_kept_longer(start_ms: float, hold_ms: int) -> None:
    """Before they are emptied, though fewer would do."""
    it = Cluster(*cluster(1, 0, 0, 0))
    it.memory = replace(it.memory, start_ms=start_ms)
    config = replace(CONFIG, engines=1, max_engines=8)
    while not it.step(POLICY, config):
        it.now_ms += 100
    assert it.now_ms - NOW_MS == pytest.approx(hold_ms, abs=100)


def test_scale_in_empties_then_drains_then_stops() -> None:
    """No session is on an engine that is told to drain; fewer must do for a while first."""
    it = Cluster(*cluster(1, 1, 1, 1))
    config = replace(CONFIG, engines=1, max_engines=8)
    seen: list[str] = []
    for _ in range(200):
        for action in it.step(POLICY, config):
            seen.append(type(action).__name__)
            if isinstance(action, DrainEngine):
                assert not [s for s in it.sessions.values() if s.engine == action.engine]
        it.now_ms += 500
        if it.now_ms < NOW_MS + 2_000:
            assert seen == []
    assert it.loads() == [2, 2]
    assert seen.count("DrainEngine") == seen.count("StopDrained") == seen.count("Migrate") == 2


def test_steady_demand_moves_nothing() -> None:
    """Sessions that come and go one by one cause next to no scaling and few moves."""
    draw = random.Random(7)
    it = Cluster(*cluster(3, 3, 3, 3))
    config = replace(CONFIG, engines=1, max_engines=8)
    acted: list[object] = []
    for second in range(600):
        it.now_ms += 1_000
        changes = Changes()
        if second % 5 == 0:  # one leaves, one comes: 60 s each
            gone = draw.choice(sorted(it.sessions))
            del it.sessions[gone]
            changes = replace(it.start(f"s_n{second}"), ages_ms=(60_000,))
        acted += it.step(POLICY, config, changes)
        it.make_ready()
    scaled = [a for a in acted if isinstance(a, SetDesired)]
    migrated = [a for a in acted if isinstance(a, Migrate)]
    assert len(scaled) <= 2
    assert len(migrated) <= 12
    assert all(e.state is not EngineState.STARTING for e in it.engines.values())


@pytest.mark.parametrize("name", ["slack", "turboserve"])
@pytest.mark.parametrize("order", [1, -1], ids=["as they came", "the other way"])
def test_of_equal_sessions_the_smaller_id_moves(name: str, order: int) -> None:
    """Whatever came first."""
    records = [*cluster(0, 0), *(session(f"s_{n}", "e_1") for n in "abcd"[::order])]
    assert moves(records, ALL[name])[0][1] == "s_a"
