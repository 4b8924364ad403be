"""The cluster as columns: what policies read. Pure.

`ClusterTable` is kept by deltas (put and drop of records); `view()` freezes it in canonical order, so a view
does not depend on the history that led to it. Rows are sorted by id; columns are numpy arrays by row index:

    engines["state"]          int8   index into ENGINE_STATES
    engines["model"]          int32  index into View.models
    engines["capacity"]       int32  sessions
    engines["sessions"]       int32  sessions placed on it, counted from the session rows
    engines["residents"]      int32  those of them that hold one of its `capacity` slots
    engines["load"]           f64    share, 0 to 1
    engines["chunk_ms"]       f64    ms
    engines["started_ms"], ["heartbeat_ms"], ["deadline_ms"]   int64, Redis time; NEVER_MS without a deadline
    engines["drain_ordered"]  bool
    engines["pass_ms"]        f64[MAX_BATCH]  t(1), t(2), ... at the full window, ms; 0 where unknown
    engines["decode_ms"]      f64    ms per chunk
    engines["chunk_passes"]   int32  passes of a chunk, the clean one included; 0 before costs are published
    sessions["phase"]         int8   index into PHASES
    sessions["model"]         int32  index into View.models
    sessions["engine"]        int32  row of its engine; NO_ENGINE when it has none that is in the view
    sessions["epoch"]         int64
    sessions["active"]        bool
    sessions["residence"]     int8   index into RESIDENCES
    sessions["active_ms"]     int64  Redis time of the last active moment
    sessions["queue_order"]   int64  returners below zero
    sessions["created_ms"], ["left_ms"]   int64, Redis time; left_ms NEVER_MS while somebody controls it
    sessions["slack_ms"]      int64  ms
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from scheduler.messages import (
    MAX_BATCH,
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

PHASES = tuple(Phase)
ENGINE_STATES = tuple(EngineState)
RESIDENCES = tuple(Residence)
HOLDING_A_SLOT = (RESIDENCES.index(Residence.RESIDENT), RESIDENCES.index(Residence.LEAVING))
NO_ENGINE = -1
NEVER_MS = int(np.iinfo(np.int64).max)
_NO_COSTS = EngineCosts(buckets=(), pass_ms=((),), decode_ms=0.0, chunk_passes=0, first_chunk_passes=0)

_ENGINE = np.dtype(
    [("state", "i1"), ("model", "i4"), ("capacity", "i4"), ("sessions", "i4"), ("residents", "i4")]
    + [("load", "f8")]
    + [("chunk_ms", "f8"), ("started_ms", "i8"), ("heartbeat_ms", "i8"), ("deadline_ms", "i8")]
    + [("drain_ordered", "?"), ("pass_ms", "f8", (MAX_BATCH,)), ("decode_ms", "f8"), ("chunk_passes", "i4")]
)
_SESSION = np.dtype(
    [("phase", "i1"), ("model", "i4"), ("engine", "i4"), ("epoch", "i8"), ("active", "?")]
    + [("queue_order", "i8"), ("created_ms", "i8"), ("left_ms", "i8"), ("slack_ms", "i8")]
    + [("residence", "i1"), ("active_ms", "i8")]
)

Id = TypeVar("Id", bound=str)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Columns(Generic[Id]):
    """Read-only rows, sorted by id."""

    ids: tuple[Id, ...]
    rows: NDArray[Any]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, column: str) -> NDArray[Any]:
        found: NDArray[Any] = self.rows[column]
        return found

    def find(self, id: Id) -> int | None:
        """Row of an id."""
        at = bisect_left(self.ids, id)
        return at if at < len(self.ids) and self.ids[at] == id else None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """One moment of the cluster: engines that are not gone, sessions that are not closed."""

    engines: Columns[EngineId]
    sessions: Columns[SessionId]
    models: tuple[str, ...]
    """Names, sorted; columns `model` index into it."""
    desired: tuple[DesiredEngine, ...]
    """Engines that should exist, as last written."""
    read_ms: int
    """Redis time just before the heartbeats were read."""

    def is_phase(self, phase: Phase) -> NDArray[np.bool_]:
        """Mask of session rows."""
        mask: NDArray[np.bool_] = self.sessions["phase"] == PHASES.index(phase)
        return mask

    def is_state(self, state: EngineState) -> NDArray[np.bool_]:
        """Mask of engine rows."""
        mask: NDArray[np.bool_] = self.engines["state"] == ENGINE_STATES.index(state)
        return mask

    def is_residence(self, residence: Residence) -> NDArray[np.bool_]:
        """Mask of session rows; it says nothing about sessions that are not placed."""
        mask: NDArray[np.bool_] = self.sessions["residence"] == RESIDENCES.index(residence)
        return mask

    def same(self, other: View) -> bool:
        """Equal in every column?"""
        return (
            (self.engines.ids, self.sessions.ids) == (other.engines.ids, other.sessions.ids)
            and (self.models, self.desired) == (other.models, other.desired)
            and bool(np.array_equal(self.engines.rows, other.engines.rows))
            and bool(np.array_equal(self.sessions.rows, other.sessions.rows))
        )


class ClusterTable:
    """Mutable side of the view, one owner. Rows live in slots that are reused."""

    def __init__(self) -> None:
        self.desired: tuple[DesiredEngine, ...] = ()
        self.read_ms = 0
        self._engines: _Slots[EngineId] = _Slots(_ENGINE)
        self._sessions: _Slots[SessionId] = _Slots(_SESSION)
        self._owners: dict[SessionId, EngineId] = {}
        self._model_of: dict[EngineId | SessionId, str] = {}

    def put_engine(self, record: EngineRecord) -> None:
        """Insert or replace; a gone engine is dropped."""
        if record.state is EngineState.GONE:
            return self.drop_engine(record.id)
        self._model_of[record.id] = record.model_name
        deadline_ms = NEVER_MS if record.deadline_ms is None else record.deadline_ms
        costs = record.costs or _NO_COSTS
        self._engines.put(
            record.id,
            (ENGINE_STATES.index(record.state), 0, record.capacity, 0, 0, record.load, record.chunk_ms)
            + (record.started_ms, record.heartbeat_ms, deadline_ms, record.drain_ordered)
            + (_steady_ms(costs), costs.decode_ms, costs.chunk_passes),
        )
        return None

    def drop_engine(self, engine: EngineId) -> None:
        """Forget an engine; unknown ids are ignored."""
        self._engines.drop(engine)
        self._model_of.pop(engine, None)

    def put_session(self, record: SessionRecord) -> None:
        """Insert or replace; a closed session is dropped."""
        if record.phase is Phase.CLOSED:
            return self.drop_session(record.id)
        self._model_of[record.id] = record.model
        self._owners.pop(record.id, None)
        if record.engine is not None:
            self._owners[record.id] = record.engine
        left_ms = NEVER_MS if record.left_ms is None else record.left_ms
        self._sessions.put(
            record.id,
            (PHASES.index(record.phase), 0, NO_ENGINE, record.epoch, record.active)
            + (record.queue_order, record.created_ms, left_ms, record.slack_ms)
            + (RESIDENCES.index(record.residence), record.active_ms),
        )
        return None

    def drop_session(self, session: SessionId) -> None:
        """Forget a session; unknown ids are ignored."""
        self._sessions.drop(session)
        self._owners.pop(session, None)
        self._model_of.pop(session, None)

    def view(self) -> View:
        """The present moment, frozen."""
        engines, sessions = self._engines.copy(), self._sessions.copy()
        models = tuple(sorted(set(self._model_of.values())))
        code = {name: index for index, name in enumerate(models)}
        row = {id: index for index, id in enumerate(engines.ids)}
        owners = (self._owners.get(id) for id in sessions.ids)
        engines.rows["model"] = [code[self._model_of[id]] for id in engines.ids]
        sessions.rows["model"] = [code[self._model_of[id]] for id in sessions.ids]
        sessions.rows["engine"] = [NO_ENGINE if o is None else row.get(o, NO_ENGINE) for o in owners]
        is_placed = sessions.rows["engine"] != NO_ENGINE
        holds_slot = is_placed & np.isin(sessions.rows["residence"], HOLDING_A_SLOT)
        for column, mask in (("sessions", is_placed), ("residents", holds_slot)):
            engines.rows[column] = np.bincount(sessions.rows["engine"][mask], minlength=len(engines.ids))
        for columns in (engines, sessions):
            columns.rows.flags.writeable = False
        return View(
            engines=engines,
            sessions=sessions,
            models=models,
            desired=self.desired,
            read_ms=self.read_ms,
        )


def _steady_ms(costs: EngineCosts) -> tuple[float, ...]:
    known = costs.pass_ms[-1][:MAX_BATCH]
    return known + (0.0,) * (MAX_BATCH - len(known))


def build_table(
    engines: Iterable[EngineRecord], sessions: Iterable[SessionRecord], desired: Iterable[DesiredEngine]
) -> ClusterTable:
    """A table from all records at once."""
    table = ClusterTable()
    for engine in engines:
        table.put_engine(engine)
    for session in sessions:
        table.put_session(session)
    table.desired = tuple(desired)
    return table


class _Slots(Generic[Id]):
    """Rows by id in one growing array, plus the ids in order."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._rows = np.zeros(16, dtype)
        self._slot: dict[Id, int] = {}
        self._free = list(range(16))
        self._ids: list[Id] = []

    def put(self, id: Id, row: tuple[Any, ...]) -> None:
        if id not in self._slot:
            if not self._free:
                size = len(self._rows)
                self._rows = np.concatenate((self._rows, np.zeros_like(self._rows)))
                self._free = list(range(size, 2 * size))
            self._slot[id] = self._free.pop()
            insort(self._ids, id)
        self._rows[self._slot[id]] = row

    def drop(self, id: Id) -> None:
        slot = self._slot.pop(id, None)
        if slot is not None:
            self._free.append(slot)
            del self._ids[bisect_left(self._ids, id)]

    def copy(self) -> Columns[Id]:
        slots = [self._slot[id] for id in self._ids]
        return Columns(ids=tuple(self._ids), rows=self._rows[slots])
