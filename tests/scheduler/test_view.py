"""The view kept by deltas against one built from all records."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from scheduler.messages import (
    DesiredEngine,
    EngineCosts,
    EngineId,
    EngineRecord,
    EngineState,
    Phase,
    Residence,
    SessionId,
    SessionRecord,
)
from scheduler.table import ClusterTable, build_table
from scheduler.view import LOADS, NEVER_MS, NO_ENGINE
from tests.scheduler.policy.worlds import engine, session

COSTS = EngineCosts(
    buckets=(3, 12),
    pass_ms=((1.0, 2.0), (3.0, 4.0)),
    decode_ms=7.0,
    chunk_passes=5,
    first_chunk_passes=9,
)
ENGINE_IDS = [f"e_{n}" for n in range(6)]
SESSION_IDS = [f"s_{n}" for n in range(40)]
Change = EngineRecord | SessionRecord | tuple[DesiredEngine, ...] | str


def random_engine(draw: random.Random) -> EngineRecord:
    """In any state; one that is gone is dropped."""
    return engine(
        draw.choice(ENGINE_IDS),
        draw.choice(tuple(EngineState)),
        capacity=draw.randint(0, 9),
        model=draw.choice(("a", "b", "c")),
        heartbeat_ms=draw.getrandbits(40),
        deadline_ms=draw.choice((None, draw.getrandbits(40))),
        costs=draw.choice((None, COSTS)),
    )


def random_session(draw: random.Random) -> SessionRecord:
    """In any condition; one in eight is closed, so dropped."""
    record = session(
        draw.choice(SESSION_IDS),
        draw.choice((None, *ENGINE_IDS)),
        to=draw.choice((None, *ENGINE_IDS)),
        order=draw.randint(-(2**52), 2**40),
        model=draw.choice(("a", "b", "d")),
        left_ms=draw.choice((None, draw.getrandbits(40))),
        active=draw.random() < 0.5,
        active_ms=draw.getrandbits(4),
        residence=draw.choice(tuple(Residence)),
        slack_ms=draw.getrandbits(12),
        subject=draw.choice(("", "alice", "bob")),
    )
    return replace(record, phase=Phase.CLOSED) if draw.random() < 0.125 else record


def random_change(draw: random.Random) -> Change:
    """A record, an id to drop, or the desired set."""
    kind = draw.random()
    if kind < 0.05:
        ids = draw.sample(ENGINE_IDS, draw.randint(0, 6))
        return tuple(DesiredEngine(id=EngineId(id), model="a") for id in ids)
    if kind < 0.15:
        return draw.choice(ENGINE_IDS + SESSION_IDS)
    return random_engine(draw) if kind < 0.3 else random_session(draw)


def test_of_costs_that_change_only_the_last_are_kept() -> None:
    """An engine measures all the time, and a scheduler runs for months."""
    table = ClusterTable()
    for number in range(100):
        table.put_engine(engine("e_1", costs=replace(COSTS, decode_ms=number + 1.0)))
    assert len(table._curves) == 1
    curve = table._curves[EngineId("e_1")][1]
    again = build_table([engine("e_1", costs=replace(COSTS, decode_ms=100.0))], [], (), table)
    assert again._curves[EngineId("e_1")][1] is curve
    table.drop_engine(EngineId("e_1"))
    assert not table._curves


@pytest.mark.parametrize("seed", range(12))
def test_deltas_equal_a_full_rebuild(seed: int) -> None:
    """Whatever changed in whatever order, the view is that of the records that remain."""
    draw = random.Random(seed)
    table = ClusterTable()
    remaining: dict[str, EngineRecord | SessionRecord] = {}
    for number in range(400):
        change = random_change(draw)
        match change:
            case EngineRecord():
                table.put_engine(change)
                remaining[change.id] = change
            case SessionRecord():
                table.put_session(change)
                remaining[change.id] = change
            case tuple():
                table.desired = change
            case str():
                (table.drop_engine if change[0] == "e" else table.drop_session)(change)  # type: ignore[operator]
                remaining.pop(change, None)
        if number % 10 == 0:
            rebuilt = build_table(
                [r for r in remaining.values() if isinstance(r, EngineRecord)],
                [r for r in remaining.values() if isinstance(r, SessionRecord)],
                table.desired,
            )
            assert table.view().same(rebuilt.view())
            for state in EngineState:  # masks are kept from one view to the next
                assert np.array_equal(table.view().is_state(state), rebuilt.view().is_state(state))
            assert [table.view().sessions.find(id) for id in table.view().sessions.ids] == list(
                range(len(table.view().sessions))
            )


@pytest.mark.parametrize("seed", range(12))
def test_what_is_counted_is_what_the_rows_say(seed: int) -> None:
    """Counts and sets that deltas keep, against the columns that they are about."""
    draw = random.Random(seed)
    engines = [random_engine(draw) for _ in range(6)]
    sessions = [random_session(draw) for _ in range(60)]
    view = build_table(engines, sessions, ()).view()
    s = view.sessions
    rows = range(len(s))
    holds = np.isin(s["residence"], [0, 1])
    placed = view.is_phase(Phase.PLACED)
    for on in range(len(view.engines)):
        own = s["engine"] == on
        assert set(np.flatnonzero(own)) == view.members[on]
        assert view.engines["sessions"][on] == own.sum()
        assert view.engines["residents"][on] == (own & holds).sum()
        assert view.engines["incoming"][on] == (s["target"] == on).sum()
        assert view.engines["outgoing"][on] == (own & s["in_flight"]).sum()
        ends = np.where(s["target"] != NO_ENGINE, s["target"], s["engine"]) == on
        active = (ends & holds & s["active"]).sum()
        assert view.engines["active"][on] == active
        assert view.engines["latency_ms"][on] == view.engines["round_ms"][on][active]
        assert view.engines["next_ms"][on] == view.engines["round_ms"][on][active + 1]
    assert view.queued == {row for row in rows if not placed[row]}
    assert view.orphans == {row for row in rows if placed[row] and s["engine"][row] == NO_ENGINE}
    away = {row for row in rows if placed[row] and s["active"][row] and not holds[row]}
    assert view.wanting == away - view.orphans
    left, still = s["left_ms"] != NEVER_MS, placed & (s["residence"] == 0) & ~s["in_flight"]
    idle, gone = np.flatnonzero(still & ~s["active"]), np.flatnonzero(still & left)
    assert view.idle_line == sorted((s["active_ms"][row], s.ids[row]) for row in idle)
    assert view.left_line == sorted((s["left_ms"][row], s.ids[row]) for row in gone)
    assert view.leavers == set(np.flatnonzero(placed & (s["residence"] == 1)).tolist())
    assert view.deserted == set(np.flatnonzero(~placed & left).tolist())
    assert view.line == sorted((s["queue_order"][row], s.ids[row]) for row in view.queued)
    kept = {record.id: record for record in sessions}.values()
    subjects = [r.subject for r in kept if r.subject and r.left_ms is None and r.phase is not Phase.CLOSED]
    assert view.controlled == Counter(subjects)


def test_a_view_is_made_anew_when_what_it_says_changes() -> None:
    """One that was taken before keeps its time and its desired set, as who compares them expects."""
    table = build_table([engine("e_1")], [session("s_1", "e_1")], ())
    first = table.view()
    table.put_session(session("s_1", "e_1", active=False))
    assert table.view() is first and first.idle_line
    table.read_ms = 5
    second = table.view()
    table.desired = (DesiredEngine(id=EngineId("e_1"), model="a"),)
    third = table.view()
    assert [view.read_ms for view in (first, second, third)] == [0, 5, 5]
    assert [len(view.desired) for view in (first, second, third)] == [0, 0, 1]
    table.put_session(session("s_2"))
    assert list(table.view().sessions["active"]) == [False, True]


def test_columns_hold_the_records() -> None:
    """One row per record, engines by row, sessions counted."""
    view = build_table(
        [engine("e_2"), engine("e_1")], [session("s_1", "e_2"), session("s_2", "e_9")], ()
    ).view()
    assert list(view.engines.ids) == ["e_1", "e_2"]
    assert view.engines["sessions"].tolist() == [0, 1]
    rows = [view.sessions.find(SessionId(id)) for id in ("s_1", "s_2")]
    assert view.sessions["engine"][rows].tolist() == [1, NO_ENGINE]
    assert view.sessions.find(SessionId("s_3")) is None


@pytest.mark.parametrize(
    ("batch_ms", "rounds_ms"),
    [
        ((3.0, 4.0), [0, 22, 34, 56, 68]),  # two rows for the price of one and a third
        ((3.0, 7.0), [0, 22, 44, 66, 88]),  # coalescing does not pay
    ],
)
def test_latency_follows_the_cost_table(batch_ms: tuple[float, ...], rounds_ms: list[float]) -> None:
    """At the full window, in the cheapest batches, a decode for each."""
    costs = replace(COSTS, pass_ms=((1.0, 2.0), batch_ms))
    view = build_table([engine("e_1", costs=costs)], [], ()).view()
    assert view.engines["round_ms"][0, :5].tolist() == rounds_ms


def test_without_costs_capacity_is_what_plays_in_real_time() -> None:
    """The guess until an engine has measured; an engine without a model plays chunks of a second."""
    view = build_table([engine("e_1", capacity=4)], [], ()).view()
    assert view.engines["round_ms"][0, :5].tolist() == [0, 250, 500, 750, 1000]
    assert view.engines["round_ms"].shape == (1, LOADS)


def test_views_are_read_only() -> None:
    """Nobody but the table writes."""
    view = build_table([engine("e_1")], [], ()).view()
    with pytest.raises(ValueError, match="read-only"):
        view.engines["capacity"][0] = 1
    assert view.engines["heartbeat_ms"].dtype == np.int64
