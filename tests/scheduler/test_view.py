"""The view kept by deltas against one built from all records."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.messages import (
    EngineCosts,
    EngineId,
    EngineRecord,
    EngineState,
    Phase,
    SessionId,
    SessionRecord,
)
from scheduler.view import NO_ENGINE, ClusterTable, build_table
from tests.scheduler.policy.test_least_loaded import engine, session

engine_ids = st.integers(0, 5).map(lambda n: f"e_{n}")
session_ids = st.integers(0, 40).map(lambda n: f"s_{n}")
engines = st.builds(
    lambda id, state, capacity, model, heartbeat_ms, deadline_ms: engine(
        id, state, capacity=capacity, model=model, heartbeat_ms=heartbeat_ms, deadline_ms=deadline_ms
    ),
    engine_ids,
    st.sampled_from(EngineState),
    st.integers(0, 9),
    st.sampled_from(("a", "b", "c")),
    st.integers(0, 2**40),
    st.none() | st.integers(0, 2**40),
)
sessions = st.builds(
    lambda id, on, order, model, left_ms, closed: (
        replace(session(id), phase=Phase.CLOSED)
        if closed
        else session(id, on, order=order, model=model, left_ms=left_ms)
    ),
    session_ids,
    st.none() | engine_ids,
    st.integers(-(2**52), 2**40),
    st.sampled_from(("a", "b", "d")),
    st.none() | st.integers(0, 2**40),
    st.booleans(),
)


@settings(deadline=None)
@given(st.lists(engines | sessions | engine_ids.map(EngineId) | session_ids.map(SessionId), max_size=120))
def test_deltas_equal_a_full_rebuild(changes: list[EngineRecord | SessionRecord | str]) -> None:
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
            case str():
                (table.drop_engine if change[0] == "e" else table.drop_session)(change)  # type: ignore[operator]
                remaining.pop(change, None)
    rebuilt = build_table(
        [r for r in remaining.values() if isinstance(r, EngineRecord)],
        [r for r in remaining.values() if isinstance(r, SessionRecord)],
        (),
    )
    assert table.view().same(rebuilt.view())


def test_columns_hold_the_records() -> None:
    """One row per record, engines by row, sessions counted."""
    view = build_table(
        [engine("e_2"), engine("e_1")], [session("s_1", "e_2"), session("s_2", "e_9")], ()
    ).view()
    assert view.engines.ids == ("e_1", "e_2")
    assert view.engines["sessions"].tolist() == [0, 1]
    assert view.sessions["engine"].tolist() == [1, NO_ENGINE]
    assert view.sessions.find(SessionId("s_2")) == 1 and view.sessions.find(SessionId("s_3")) is None


def test_costs_are_columns_at_the_full_window() -> None:
    """An engine that has published none has zeros."""
    costs = EngineCosts(
        buckets=(3, 12),
        pass_ms=((1.0, 2.0), (3.0, 4.0)),
        decode_ms=7.0,
        chunk_passes=5,
        first_chunk_passes=9,
    )
    view = build_table([replace(engine("e_1"), costs=costs), engine("e_2")], [], ()).view()
    assert view.engines["pass_ms"].tolist() == [[3.0, 4.0] + [0.0] * 14, [0.0] * 16]
    assert view.engines["decode_ms"].tolist() == [7.0, 0.0]
    assert view.engines["chunk_passes"].tolist() == [5, 0]


def test_views_are_read_only_and_do_not_follow() -> None:
    """A view is a moment: it can't be written and later changes don't reach it."""
    table = build_table([engine("e_1")], [], ())
    view = table.view()
    table.put_engine(engine("e_1", capacity=7))
    assert view.engines["capacity"].tolist() == [2]
    with pytest.raises(ValueError, match="read-only"):
        view.engines["capacity"][0] = 1
    assert view.engines.rows.dtype["heartbeat_ms"] == np.int64
