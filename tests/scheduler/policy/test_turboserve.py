"""The paper's policy: its example, its rules, one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.messages import EngineRecord, EngineState, Residence, SessionRecord
from scheduler.policy.base import Memory, Sample, SetDesired
from scheduler.policy.registry import ALL
from scheduler.policy.turboserve import LEVELS, Turboserve, volatility
from tests.scheduler.policy.worlds import (
    CHANGES,
    CONFIG,
    NOW_MS,
    Cluster,
    decide,
    engine,
    session,
    world,
)

POLICY = ALL["turboserve"]
STILL = replace(CONFIG, engines=2, max_engines=2)
SCALED = replace(CONFIG, engines=1, max_engines=8)


def cluster(*loads: int) -> list[EngineRecord | SessionRecord]:
    """Engines of four slots with so many active sessions."""
    engines: list[EngineRecord | SessionRecord] = [
        engine(f"e_{n}", capacity=4) for n in range(1, len(loads) + 1)
    ]
    return engines + [session(f"s_{n}{k}", f"e_{n + 1}") for n, load in enumerate(loads) for k in range(load)]


def desired(*loads: int) -> tuple[str, ...]:
    return tuple(f"e_{n}" for n in range(1, len(loads) + 1))


def test_the_papers_example() -> None:
    """2 engines (3 + 3), 4 arrive: 3 engines; then 3 leave, and once demand is calm, 2 engines (4/3)."""
    it = Cluster(*cluster(3, 3))
    it.step(POLICY, SCALED)
    it.step(POLICY, SCALED, it.start("s_a", "s_b", "s_c", "s_d"))
    assert it.loads() == [4, 4] and len(it.engines) == 3
    it.make_ready()
    it.step(POLICY, SCALED)
    assert sum(it.loads()) == 10 and it.loads()[0] == 4 and len(it.loads()) == 3
    for id in ("s_00", "s_01", "s_02"):
        del it.sessions[id]  # type: ignore[arg-type]
    for _ in range(70):
        it.now_ms += 1_000
        it.step(POLICY, SCALED)
    assert it.loads() == [4, 3] and len(it.engines) == 2


@pytest.mark.parametrize(
    ("loads", "moves"),
    [
        pytest.param((4, 1), 1, id="off the bottleneck, to the lightest"),
        pytest.param((4, 0), 2, id="until none gains"),
        pytest.param((3, 2), 0, id="no gain: L′ is L"),
        pytest.param((4, 4, 1), 0, id="two bottlenecks: no single move lowers the worst"),
    ],
)
def test_moves(loads: tuple[int, ...], moves: int) -> None:
    """A move's gain is what it takes off the worst latency."""
    found = decide(
        POLICY, world(*cluster(*loads), desired=desired(*loads)), config=replace(CONFIG, engines=len(loads))
    )
    assert len(found) == moves
    assert all(action[0] == "migrate" and action[2] == "e_1" for action in found)


def test_the_smallest_state_moves() -> None:
    """It is cheapest for every target."""
    records = [engine("e_1", capacity=4), engine("e_2", capacity=4)]
    sizes = [session(f"s_{n}", "e_1", state_bytes=9 - n) for n in range(3)]
    assert decide(POLICY, world(*records, *sizes), config=STILL) == [("migrate", "s_2", "e_1", "e_2")]


@pytest.mark.parametrize(
    "more", [{"to": "e_2"}, {"opened": False}, {"active": False}], ids=["in flight", "not yet open", "idle"]
)
def test_who_can_not_be_moved(more: dict[str, object]) -> None:
    """Nothing happens to the sessions of the bottleneck."""
    records = [engine("e_1", capacity=4), engine("e_2", capacity=4)]
    view = world(*records, *(session(f"s_{n}", "e_1", **more) for n in range(3)))  # type: ignore[arg-type]
    assert decide(POLICY, view, config=STILL) == []


@pytest.mark.parametrize(("weight", "moves"), [(0.0, 1), (20.0, 0)])
def test_moves_must_be_worth_their_cost(weight: float, moves: int) -> None:
    """η·κ counts against the gain: 250 ms here, for 16 ms of migration."""
    records = cluster(3, 1)
    heavy = [replace(r, state_bytes=8 * 2**25) if isinstance(r, SessionRecord) else r for r in records]
    view = world(*heavy, desired=desired(3, 1))
    assert len(decide(Turboserve(move_weight=weight), view, config=STILL)) == moves


def window(*demands: int) -> tuple[Sample, ...]:
    return tuple(Sample(at_s=n, demand=demand, arrivals=0) for n, demand in enumerate(demands))


@pytest.mark.parametrize(
    ("demands", "level"), [((10, 10, 10), 0), ((), 0), ((10, 12, 8), 1), ((2, 10, 2, 10), 2)]
)
def test_volatility_has_levels(demands: tuple[int, ...], level: int) -> None:
    """The more demand swings, the emptier engines are kept."""
    found = volatility(window(*demands))
    assert [found <= step.volatility for step in LEVELS].index(True) == level
    assert list(LEVELS) == sorted(LEVELS, key=lambda step: -step.utilisation)


@pytest.mark.parametrize(
    ("demands", "engines"), [((20, 20), 6), ((14, 26), 7), ((2, 40), 8)], ids=["calm", "moderate", "volatile"]
)
def test_budget_follows_volatility(demands: tuple[int, ...], engines: int) -> None:
    """⌈20 / (4·ρ̂)⌉, ρ̂ by level."""
    loads = (4,) * 5
    view = world(*cluster(*loads), desired=desired(*loads))
    stamped = tuple(replace(s, at_s=NOW_MS // 1000 - 3 + s.at_s) for s in window(*demands))
    changes = replace(CHANGES, fresh_ids=CHANGES.fresh_ids * 4)
    actions, _ = POLICY.plan(view, changes, Memory(window=stamped), NOW_MS, SCALED)
    (asked,) = [action for action in actions if isinstance(action, SetDesired)]
    assert len(asked.engines) == engines


def test_scale_in_waits_and_is_cancelled_when_demand_returns() -> None:
    """Five seconds in which fewer would have done; then engines are emptied while they are ready."""
    it = Cluster(*cluster(2, 1, 1))
    config = replace(SCALED, engines=2)
    for _ in range(5):
        assert it.step(POLICY, config) == []
        it.now_ms += 1_000
    assert it.step(POLICY, config) == [] and len(it.memory.closing) == 1
    assert [short_name(a) for a in it.step(POLICY, config)] == ["migrate"]
    it.step(POLICY, config, it.start(*(f"s_new{n}" for n in range(7))))
    assert not it.memory.closing and len(it.engines) >= 3
    assert all(e.state is not EngineState.DRAINING for e in it.engines.values())


def short_name(action: object) -> str:
    return type(action).__name__.lower()


def test_a_draining_engine_is_emptied_by_migration() -> None:
    """As many at a time as its link bears; who is idle leaves its slot, and moves when it is out."""
    view = world(
        engine("e_1", EngineState.DRAINING, capacity=4),
        engine("e_2", capacity=8),
        *(session(f"s_{n}", "e_1") for n in range(3)),
        session("s_i", "e_1", active=False),
        session("s_l", "e_1", active=False, residence=Residence.LEAVING),
        session("s_o", "e_1", active=False, residence=Residence.OFFLOADED),
    )
    found = decide(POLICY, view, config=STILL)
    assert [a for a in found if a[0] != "desired"] == [
        ("migrate", "s_0", "e_1", "e_2"),
        ("migrate", "s_1", "e_1", "e_2"),
        ("suspend", "s_i"),
        ("place", "s_o", "e_2"),
    ]
