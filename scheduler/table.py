"""The mutable side of the view: records go in as they change, one owner. Pure.

Each put or drop costs the same whatever the size of the cluster, except that engines come and go rarely and
then shift the rows behind them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Generic, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from scheduler.keys import MAX_FAILED_MOVES
from scheduler.latency import play_ms, round_ms
from scheduler.messages import (
    DesiredEngine,
    EngineCosts,
    EngineId,
    EngineRecord,
    EngineState,
    InFlight,
    Phase,
    Residence,
    SessionId,
)
from scheduler.view import (
    ENGINE_STATES,
    LOADS,
    NEVER_MS,
    NO_ENGINE,
    PHASES,
    RESIDENCES,
    Columns,
    Id,
    View,
)

_ENGINE: Mapping[str, tuple[str, tuple[int, ...]]] = {
    **dict.fromkeys(("state",), ("i1", ())),
    **dict.fromkeys(("model", "capacity", "sessions", "residents"), ("i4", ())),
    **dict.fromkeys(("incoming", "outgoing", "active"), ("i4", ())),
    **dict.fromkeys(("latency_ms", "next_ms", "play_ms", "move_ms", "link_bytes_per_ms"), ("f8", ())),
    **dict.fromkeys(("load", "chunk_ms"), ("f8", ())),
    **dict.fromkeys(("started_ms", "heartbeat_ms", "deadline_ms"), ("i8", ())),
    **dict.fromkeys(("drain_ordered", "desired", "transfers"), ("?", ())),
    "round_ms": ("f8", (LOADS,)),
}
_SESSION: Mapping[str, tuple[str, tuple[int, ...]]] = {
    **dict.fromkeys(("phase", "residence"), ("i1", ())),
    **dict.fromkeys(("model", "engine", "target"), ("i4", ())),
    **dict.fromkeys(("active", "in_flight", "movable", "stuck"), ("?", ())),
    **dict.fromkeys(("epoch", "queue_order", "created_ms", "left_ms", "active_ms"), ("i8", ())),
    **dict.fromkeys(("moved_ms", "slack_ms", "state_bytes"), ("i8", ())),
    **dict.fromkeys(("subject",), ("O", ())),
}
"""Column → (dtype, shape of an entry)."""
_STATE = {state: index for index, state in enumerate(ENGINE_STATES)}
_NO_COSTS = EngineCosts(buckets=(), pass_ms=((),), decode_ms=0.0, chunk_passes=0, first_chunk_passes=0)


class SessionFacts(Protocol):
    """What a row holds of a session. `SessionRecord` has it."""

    @property
    def id(self) -> SessionId: ...
    @property
    def model(self) -> str: ...
    @property
    def phase(self) -> Phase: ...
    @property
    def residence(self) -> Residence: ...
    @property
    def engine(self) -> EngineId | None: ...
    @property
    def in_flight(self) -> InFlight | None: ...
    @property
    def epoch(self) -> int: ...
    @property
    def opened(self) -> bool: ...
    @property
    def active(self) -> bool: ...
    @property
    def queue_order(self) -> int: ...
    @property
    def created_ms(self) -> int: ...
    @property
    def left_ms(self) -> int | None: ...
    @property
    def active_ms(self) -> int: ...
    @property
    def moved_ms(self) -> int: ...
    @property
    def failed_moves(self) -> int: ...
    @property
    def slack_ms(self) -> int: ...
    @property
    def state_bytes(self) -> int: ...
    @property
    def subject(self) -> str: ...


class _Counted(NamedTuple):
    """What of a session is counted or collected, besides its engines."""

    is_placed: bool
    model: int
    is_active: bool
    holds_slot: bool
    is_leaving: bool
    is_idler: bool
    in_flight: bool
    is_controlled: bool
    queue_order: int
    """0 of who is placed."""
    subject: str


class ClusterTable:
    """Put what changed, drop what is gone, take a `view()`."""

    def __init__(self) -> None:
        self.read_ms = 0
        self._desired: tuple[DesiredEngine, ...] = ()
        self._engines: _Rows[EngineId] = _Rows(_ENGINE)
        self._sessions: _Rows[SessionId] = _Rows(_SESSION)
        self._models: list[str] = []
        self._demand: list[int] = []
        self._members: list[set[int]] = []
        self._counted: list[_Counted] = []
        """By session row."""
        self._queued: set[int] = set()
        self._line: list[tuple[int, SessionId]] = []
        self._deserted: set[int] = set()
        self._wanting: set[int] = set()
        self._idlers: set[int] = set()
        self._leavers: set[int] = set()
        self._orphans: set[int] = set()
        self._controlled: dict[str, int] = {}
        self._kept: dict[Hashable, Any] = {}
        """What views were asked to keep since what they may keep last changed."""
        self._view: View | None = None
        """The last one."""
        self._curves: dict[EngineId, tuple[EngineCosts, NDArray[np.float64]]] = {}
        """Latency curves, and the costs that they follow from."""
        self._owner: dict[SessionId, EngineId] = {}
        self._target: dict[SessionId, EngineId] = {}

    @property
    def desired(self) -> tuple[DesiredEngine, ...]:
        """Engines that should exist, as last written."""
        return self._desired

    @desired.setter
    def desired(self, engines: tuple[DesiredEngine, ...]) -> None:
        self._desired = engines
        self._kept = {}
        ids = {engine.id for engine in engines}
        rows = self._engines
        rows.arrays["desired"][: len(rows.ids)] = [id in ids for id in rows.ids]

    def put_engine(self, record: EngineRecord) -> None:
        """Insert or replace; a gone engine is dropped."""
        if record.state is EngineState.GONE:
            return self.drop_engine(record.id)
        self._kept = {}
        row = self._engines.row.get(record.id)
        is_new = row is None
        if row is None:
            row = self._insert_engine(record.id)
        costs = record.costs or _NO_COSTS
        self._engines.set(
            row,
            state=_STATE[record.state],
            model=self._code(record.model_name),
            capacity=record.capacity,
            load=record.load,
            chunk_ms=record.chunk_ms,
            started_ms=record.started_ms,
            heartbeat_ms=record.heartbeat_ms,
            deadline_ms=NEVER_MS if record.deadline_ms is None else record.deadline_ms,
            drain_ordered=record.drain_ordered,
            transfers=record.transfer != "",
            round_ms=self._curve(record),
            play_ms=play_ms(record),
            move_ms=costs.move_ms,
            link_bytes_per_ms=costs.link_bytes_per_ms,
        )
        self._predict(row)
        if is_new:
            self._relink_all(record.id)
        return None

    def hear(self, engines: Iterable[EngineId], heartbeat_ms: int) -> None:
        """These engines were heard at that time; nothing else about them has changed."""
        self._kept = {}
        rows = self._engines.row
        self._engines.arrays["heartbeat_ms"][[rows[id] for id in engines]] = heartbeat_ms

    def _curve(self, record: EngineRecord) -> NDArray[np.float64]:
        """Made anew for other costs only: heartbeats come often, and a curve takes a while."""
        costs, known = record.costs, self._curves.get(record.id)
        if costs is None:
            return round_ms(record)
        if known is None or known[0] != costs:
            known = self._curves[record.id] = costs, round_ms(record)
        return known[1]

    def drop_engine(self, engine: EngineId) -> None:
        """Forget an engine; unknown ids are ignored."""
        self._curves.pop(engine, None)
        row = self._engines.row.get(engine)
        if row is None:
            return
        self._kept = {}
        for session in self._naming(engine):
            self._relink(session, row, NO_ENGINE)
        self._engines.remove(row)
        del self._members[row]
        for name in ("engine", "target"):
            column = self._sessions.arrays[name]
            column -= column > row

    def put_session(self, record: SessionFacts) -> None:
        """Insert or replace; a closed session is dropped."""
        if record.phase is Phase.CLOSED:
            return self.drop_session(record.id)
        rows, (engine, target) = self._sessions, self._link(record)
        counted = self._counted_of(record)
        row = rows.row.get(record.id)
        is_the_same = False
        if row is None:
            row = rows.append(record.id)
            self._counted.append(counted)
        else:
            before = rows.arrays["engine"].item(row), rows.arrays["target"].item(row), self._counted[row]
            is_the_same = before == (engine, target, counted)
            if not is_the_same:
                self._count(row, -1)
                self._counted[row] = counted
        rows.write(row, _values(record, counted, engine, target))
        if not is_the_same:
            self._count(row, +1)
        return None

    def _link(self, record: SessionFacts) -> tuple[int, int]:
        """Rows of its engine and of the one that it migrates to, which is remembered by their ids."""
        id, flight, engine_row = record.id, record.in_flight, self._engines.row
        engine = target = NO_ENGINE
        if record.engine is not None:
            self._owner[id] = record.engine
            engine = engine_row.get(record.engine, NO_ENGINE)
        else:
            self._owner.pop(id, None)
        if flight is not None:
            self._target[id] = flight.target
            target = engine_row.get(flight.target, NO_ENGINE)
        else:
            self._target.pop(id, None)
        return engine, target

    def _counted_of(self, record: SessionFacts) -> _Counted:
        residence, is_placed = record.residence, record.phase is not Phase.QUEUED
        is_resident, is_leaving = residence is Residence.RESIDENT, residence is Residence.LEAVING
        model, is_active, is_controlled = self._code(record.model), record.active, record.left_ms is None
        is_still = is_placed and is_resident and record.in_flight is None
        return _Counted(
            is_placed,
            model,
            is_active,
            is_resident or is_leaving,
            is_placed and is_leaving,
            is_still and not (is_active and is_controlled),
            record.in_flight is not None,
            is_controlled,
            0 if is_placed else record.queue_order,
            record.subject,
        )

    def drop_session(self, session: SessionId) -> None:
        """Forget a session; unknown ids are ignored."""
        row = self._sessions.row.get(session)
        if row is None:
            return
        self._count(row, -1)
        last = len(self._sessions.ids) - 1
        if row != last:  # the last row fills the hole
            self._count(last, -1)
        self._sessions.fill_hole(row)
        filler = self._counted.pop()
        if row != last:
            self._counted[row] = filler
            self._count(row, +1)
        self._owner.pop(session, None)
        self._target.pop(session, None)

    def view(self) -> View:
        """The present moment, until the next change."""
        view, engines, sessions = self._view, self._engines.columns(), self._sessions.columns()
        is_good = view is not None and view.engines is engines and view.sessions is sessions
        # What it may keep changes with all that engines say, and with what is desired.
        if view is None or not is_good or view.kept is not self._kept or view.read_ms != self.read_ms:
            view = self._view = View(
                engines=engines,
                sessions=sessions,
                models=self._models,
                demand=self._demand,
                members=self._members,
                queued=self._queued,
                line=self._line,
                deserted=self._deserted,
                wanting=self._wanting,
                idlers=self._idlers,
                leavers=self._leavers,
                orphans=self._orphans,
                controlled=self._controlled,
                desired=self._desired,
                read_ms=self.read_ms,
                kept=self._kept,
            )
        return view

    def _code(self, model: str) -> int:
        if model not in self._models:
            self._models.append(model)
            self._demand.append(0)
        return self._models.index(model)

    def _insert_engine(self, engine: EngineId) -> int:
        at = self._engines.insert(engine)
        self._members.insert(at, set())
        for name in ("engine", "target"):
            column = self._sessions.arrays[name]
            column += column >= at
        self._engines.arrays["desired"][at] = any(wanted.id == engine for wanted in self._desired)
        return at

    def _naming(self, engine: EngineId) -> list[SessionId]:
        named = [id for id, owner in self._owner.items() if owner == engine]
        return named + [id for id, target in self._target.items() if target == engine and id not in named]

    def _relink_all(self, engine: EngineId) -> None:
        for session in self._naming(engine):
            self._relink(session, NO_ENGINE, self._engines.row[engine])

    def _relink(self, session: SessionId, before: int, after: int) -> None:
        row = self._sessions.row[session]
        self._count(row, -1)
        for name in ("engine", "target"):
            ids = self._owner if name == "engine" else self._target
            column = self._sessions.arrays[name]
            if column[row] == before and (after == NO_ENGINE or ids.get(session) == self._engines.ids[after]):
                column[row] = after
        self._count(row, +1)

    def _count(self, row: int, sign: int) -> None:
        """Add a session to everything that is counted or collected over sessions, or take it out."""
        counted, s, e = self._counted[row], self._sessions.arrays, self._engines.arrays
        engine, target = s["engine"].item(row), s["target"].item(row)
        self._count_wishes(counted, sign)
        self._collect(row, counted, engine, sign)
        if engine != NO_ENGINE:
            _collect(self._members[engine], row, sign)
            e["sessions"][engine] += sign
            if counted.holds_slot:
                e["residents"][engine] += sign
            if counted.in_flight:
                e["outgoing"][engine] += sign
        if target != NO_ENGINE:
            e["incoming"][target] += sign
            engine = target
        if engine != NO_ENGINE and counted.is_active and counted.holds_slot:
            e["active"][engine] += sign
            self._predict(engine)

    def _count_wishes(self, counted: _Counted, sign: int) -> None:
        if counted.is_active and (counted.is_controlled or counted.is_placed):
            self._demand[counted.model] += sign
        if counted.is_controlled and (subject := counted.subject):
            number = self._controlled[subject] = self._controlled.get(subject, 0) + sign
            if number == 0:  # there is no end of subjects
                del self._controlled[subject]

    def _collect(self, row: int, counted: _Counted, engine: int, sign: int) -> None:
        if not counted.is_placed:
            self._collect_queued(row, counted, sign)
        elif engine == NO_ENGINE:
            _collect(self._orphans, row, sign)
        elif counted.is_active and not counted.holds_slot:
            _collect(self._wanting, row, sign)
        if counted.is_idler:
            _collect(self._idlers, row, sign)
        if counted.is_leaving:
            _collect(self._leavers, row, sign)

    def _collect_queued(self, row: int, counted: _Counted, sign: int) -> None:
        _collect(self._queued, row, sign)
        if not counted.is_controlled:
            _collect(self._deserted, row, sign)
        stand = (counted.queue_order, self._sessions.ids[row])
        at = bisect_left(self._line, stand)
        if sign > 0:
            self._line.insert(at, stand)
        else:
            del self._line[at]

    def _predict(self, engine: int) -> None:
        e = self._engines.arrays
        load, curves = e["active"].item(engine), e["round_ms"]
        e["latency_ms"][engine] = curves[engine, min(load, LOADS - 1)]
        e["next_ms"][engine] = curves[engine, min(load + 1, LOADS - 1)]


def build_table(
    engines: Iterable[EngineRecord],
    sessions: Iterable[SessionFacts],
    desired: Iterable[DesiredEngine],
    before: ClusterTable | None = None,
) -> ClusterTable:
    """A table from all records at once; with what an earlier one has computed that still holds."""
    table = ClusterTable()
    table.desired = tuple(desired)
    known = before._curves if before is not None else {}
    for engine in engines:
        if engine.id in known:
            table._curves[engine.id] = known[engine.id]
        table.put_engine(engine)
    for session in sessions:
        table.put_session(session)
    return table


def _is_movable(record: SessionFacts) -> bool:
    generates = record.opened and record.residence is Residence.RESIDENT
    return generates and record.in_flight is None and not _is_stuck(record)


def _is_stuck(record: SessionFacts) -> bool:
    return record.failed_moves >= MAX_FAILED_MOVES


def _values(record: SessionFacts, counted: _Counted, engine: int, target: int) -> tuple[object, ...]:
    """A row, in the order of `_SESSION`."""
    return (
        PHASES.index(record.phase),
        RESIDENCES.index(record.residence),
        counted.model,
        engine,
        target,
        counted.is_active,
        counted.in_flight,
        _is_movable(record),
        _is_stuck(record),
        record.epoch,
        record.queue_order,
        record.created_ms,
        NEVER_MS if record.left_ms is None else record.left_ms,
        record.active_ms,
        record.moved_ms,
        record.slack_ms,
        record.state_bytes,
        record.subject,
    )


def _collect(rows: set[int], row: int, sign: int) -> None:
    if sign > 0:
        rows.add(row)
    else:
        rows.discard(row)


class _Rows(Generic[Id]):
    """Arrays that grow together, dense, and the row of each id."""

    def __init__(self, spec: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        self.arrays: dict[str, NDArray[Any]] = {
            name: np.zeros((16, *shape), dtype) for name, (dtype, shape) in spec.items()
        }
        self.ids: list[Id] = []
        self.row: dict[Id, int] = {}
        self._columns: Columns[Id] | None = None
        """Good while rows neither come nor go: it looks at the arrays themselves."""

    def set(self, row: int, **values: object) -> None:
        arrays = self.arrays
        for name, value in values.items():
            arrays[name][row] = value

    def write(self, row: int, values: Iterable[object]) -> None:
        """A whole one, in the order of the columns."""
        for array, value in zip(self.arrays.values(), values, strict=True):
            array[row] = value

    def append(self, id: Id) -> int:
        self._columns = None
        row = len(self.ids)
        if row == len(next(iter(self.arrays.values()))):
            for name, array in self.arrays.items():
                self.arrays[name] = np.concatenate((array, np.zeros_like(array)))
        for array in self.arrays.values():
            array[row] = 0
        self.ids.append(id)
        self.row[id] = row
        return row

    def fill_hole(self, row: int) -> None:
        """Drop a row; the last one takes its place."""
        self._columns = None
        last_id = self.ids.pop()
        del self.row[self.ids[row] if row < len(self.ids) else last_id]
        if row < len(self.ids):
            last = len(self.ids)
            for array in self.arrays.values():
                array[row] = array[last]
            self.ids[row] = last_id
            self.row[last_id] = row

    def insert(self, id: Id) -> int:
        """A row of zeros in the order of ids; rows behind it move on."""
        at = bisect_left(self.ids, id)
        last = self.append(id)
        for array in self.arrays.values():
            array[at + 1 : last + 1] = array[at:last].copy()
            array[at] = 0
        self.ids.insert(at, self.ids.pop())
        self._number(at)
        return at

    def remove(self, row: int) -> None:
        """Drop a row; rows behind it move up."""
        self._columns = None
        del self.row[self.ids[row]]
        for array in self.arrays.values():
            array[row : len(self.ids) - 1] = array[row + 1 : len(self.ids)].copy()
        del self.ids[row]
        self._number(row)

    def columns(self) -> Columns[Id]:
        if self._columns is None:
            self._columns = Columns(ids=self.ids, arrays=self.arrays, rows=self.row)
        return self._columns

    def _number(self, start: int) -> None:
        for at in range(start, len(self.ids)):
            self.row[self.ids[at]] = at
