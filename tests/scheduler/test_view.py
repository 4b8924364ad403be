"""The view kept by deltas against one built from all records."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from scheduler.view import LOADS, NO_ENGINE
from tests.scheduler.policy.worlds import engine, session

COSTS = EngineCosts(
    buckets=(3, 12),
    pass_ms=((1.0, 2.0), (3.0, 4.0)),
    decode_ms=7.0,
    chunk_passes=5,
    first_chunk_passes=9,
)
engine_ids = st.integers(0, 5).map(lambda n: f"e_{n}")
session_ids = st.integers(0, 40).map(lambda n: f"s_{n}")
engines = st.builds(
    lambda id, state, capacity, model, heartbeat_ms, deadline_ms, costs: engine(
        id,
        state,
        capacity=capacity,
        model=model,
        heartbeat_ms=heartbeat_ms,
        deadline_ms=deadline_ms,
        costs=costs,
    ),
    engine_ids,
    st.sampled_from(EngineState),
    st.integers(0, 9),
    st.sampled_from(("a", "b", "c")),
    st.integers(0, 2**40),
    st.none() | st.integers(0, 2**40),
    st.sampled_from((None, COSTS)),
)
sessions = st.builds(
    lambda id, on, to, order, model, left_ms, active, residence, closed: (
        replace(session(id), phase=Phase.CLOSED)
        if closed
        else session(
            id, on, to=to, order=order, model=model, left_ms=left_ms, active=active, residence=residence
        )
    ),
    session_ids,
    st.none() | engine_ids,
    st.none() | engine_ids,
    st.integers(-(2**52), 2**40),
    st.sampled_from(("a", "b", "d")),
    st.none() | st.integers(0, 2**40),
    st.booleans(),
    st.sampled_from(Residence),
    st.integers(0, 5).map(lambda n: n == 0),
)
desired = st.lists(engine_ids, unique=True).map(
    lambda ids: tuple(DesiredEngine(id=EngineId(id), model="a") for id in ids)
)
drops = engine_ids.map(EngineId) | session_ids.map(SessionId)
Change = EngineRecord | SessionRecord | tuple[DesiredEngine, ...] | str


@settings(deadline=None)
@given(st.lists(engines | sessions | sessions | drops | desired, max_size=120))
def test_deltas_equal_a_full_rebuild(changes: list[Change]) -> None:
    """Whatever changed in whatever order, the view is that of the records that remain."""
    table = ClusterTable()
    remaining: dict[str, EngineRecord | SessionRecord] = {}
    for change in changes:
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
    rebuilt = build_table(
        [r for r in remaining.values() if isinstance(r, EngineRecord)],
        [r for r in remaining.values() if isinstance(r, SessionRecord)],
        table.desired,
    )
    assert table.view().same(rebuilt.view())


@settings(deadline=None)
@given(st.lists(engines, max_size=6), st.lists(sessions, max_size=40))
def test_what_is_counted_is_what_the_rows_say(
    engines: list[EngineRecord], sessions: list[SessionRecord]
) -> None:
    """Counts and sets that deltas keep, against the columns that they are about."""
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
