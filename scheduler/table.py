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
    oldest_heartbeat,
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

    model: int
    subject: str
    """Of who is controlled."""
    queue_order: int
    """0 of who is placed."""
    idle_ms: int
    """Its active_ms if it is idle in a slot and not migrating, else 0."""
    left_ms: int
    """0 unless nobody controls it and it is in a slot and not migrating."""
    is_queued: bool = False
    is_deserted: bool = False
    """Queued, and nobody controls it."""
    is_placed: bool = False
    wishes: bool = False
    """Does it count in the demand?"""
    wants_slot: bool = False
    """Placed, active, and out of its slot."""
    holds_slot: bool = False
    computes: bool = False
    """Active in its slot."""
    is_idle: bool = False
    is_left: bool = False
    """Do these two times count?"""
    is_leaver: bool = False
    in_flight: bool = False


_NOWHERE = _Counted(0, "", 0, 0, 0)
"""Of a session that is not in the table."""


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
        self._idle_line: list[tuple[int, SessionId]] = []
        self._left_line: list[tuple[int, SessionId]] = []
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
        self._kept.pop(oldest_heartbeat, None)
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
        for session in self._naming(engine, row):
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
        counted, row = self._counted_of(record), rows.row.get(record.id)
        if row is None:
            row = rows.append(record.id)
            rows.write(row, _values(record, counted, engine, target))
            self._recount(row, _NOWHERE, counted)
            self._counted.append(counted)
            return None
        before, arrays = self._counted[row], rows.arrays
        stays = engine == arrays["engine"].item(row) and target == arrays["target"].item(row)
        stays = stays and before[:5] == counted[:5]
        if not stays:
            self._recount(row, before, _NOWHERE)
        rows.write(row, _values(record, counted, engine, target))
        if not stays or before != counted:
            self._recount(row, before if stays else _NOWHERE, counted)
            self._counted[row] = counted
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
        residence, is_active, in_flight = record.residence, record.active, record.in_flight is not None
        is_placed, is_controlled = record.phase is not Phase.QUEUED, record.left_ms is None
        is_resident = residence is Residence.RESIDENT
        holds_slot = is_resident or residence is Residence.LEAVING
        is_still = is_placed and is_resident and not in_flight
        is_idle, left_ms = is_still and not is_active, record.left_ms if is_still else None
        return _Counted(
            self._code(record.model),
            record.subject if is_controlled else "",
            0 if is_placed else record.queue_order,
            record.active_ms if is_idle else 0,
            left_ms or 0,
            not is_placed,
            not is_placed and not is_controlled,
            is_placed,
            is_active and (is_placed or is_controlled),
            is_placed and is_active and not holds_slot,
            holds_slot,
            holds_slot and is_active,
            is_idle,
            left_ms is not None,
            is_placed and residence is Residence.LEAVING,
            in_flight,
        )

    def drop_session(self, session: SessionId) -> None:
        """Forget a session; unknown ids are ignored."""
        row = self._sessions.row.get(session)
        if row is None:
            return
        self._recount(row, self._counted[row], _NOWHERE)
        last = len(self._sessions.ids) - 1
        filler = self._counted.pop()
        if row != last:  # the last row fills the hole
            self._recount(last, filler, _NOWHERE)
        self._sessions.fill_hole(row)
        if row != last:
            self._counted[row] = filler
            self._recount(row, _NOWHERE, filler)
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
                idle_line=self._idle_line,
                left_line=self._left_line,
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

    def _naming(self, engine: EngineId, row: int) -> list[SessionId]:
        """Sessions on it or on their way to it, by its row; NO_ENGINE: the table has not known it."""
        ids, s = self._sessions.ids, self._sessions.arrays
        to = (s["target"] == row) & s["in_flight"]
        found = [ids[at] for at in np.flatnonzero(((s["engine"] == row) | to)[: len(ids)]).tolist()]
        return [id for id in found if engine in (self._owner.get(id), self._target.get(id))]

    def _relink_all(self, engine: EngineId) -> None:
        for session in self._naming(engine, NO_ENGINE):
            self._relink(session, NO_ENGINE, self._engines.row[engine])

    def _relink(self, session: SessionId, before: int, after: int) -> None:
        row = self._sessions.row[session]
        self._recount(row, self._counted[row], _NOWHERE)
        for name in ("engine", "target"):
            ids = self._owner if name == "engine" else self._target
            column = self._sessions.arrays[name]
            if column[row] == before and (after == NO_ENGINE or ids.get(session) == self._engines.ids[after]):
                column[row] = after
        self._recount(row, _NOWHERE, self._counted[row])

    def _recount(self, row: int, old: _Counted, new: _Counted) -> None:
        """Bring what is counted or collected over sessions from what was so of one of them to what is: with
        its engines, model, subject and place in the queue as they are, or it comes, or it goes."""
        self._recount_queue(row, old, new)
        self._recount_still(row, old, new)
        if by := new.is_leaver - old.is_leaver:
            _collect(self._leavers, row, by)
        s, e = self._sessions.arrays, self._engines.arrays
        engine, target = s["engine"].item(row), s["target"].item(row)
        if engine != NO_ENGINE:
            self._recount_on(engine, row, old, new)
        elif by := new.is_placed - old.is_placed:
            _collect(self._orphans, row, by)
        if target != NO_ENGINE:
            engine = target
            if by := (new is not _NOWHERE) - (old is not _NOWHERE):
                _add(e["incoming"], target, by)
        if engine != NO_ENGINE and (by := new.computes - old.computes):
            _add(e["active"], engine, by)
            self._predict(engine)

    def _recount_queue(self, row: int, old: _Counted, new: _Counted) -> None:
        there = old if new is _NOWHERE else new
        if by := new.wishes - old.wishes:
            self._demand[there.model] += by
        if by := new.is_queued - old.is_queued:
            _collect(self._queued, row, by)
            _stand(self._line, (there.queue_order, self._sessions.ids[row]), by)
        if by := new.is_deserted - old.is_deserted:
            _collect(self._deserted, row, by)
        if by := bool(new.subject) - bool(old.subject):
            number = self._controlled[there.subject] = self._controlled.get(there.subject, 0) + by
            if number == 0:  # there is no end of subjects
                del self._controlled[there.subject]

    def _recount_still(self, row: int, old: _Counted, new: _Counted) -> None:
        there = old if new is _NOWHERE else new
        if by := new.is_idle - old.is_idle:
            _stand(self._idle_line, (there.idle_ms, self._sessions.ids[row]), by)
        if by := new.is_left - old.is_left:
            _stand(self._left_line, (there.left_ms, self._sessions.ids[row]), by)

    def _recount_on(self, engine: int, row: int, old: _Counted, new: _Counted) -> None:
        e = self._engines.arrays
        if by := (new is not _NOWHERE) - (old is not _NOWHERE):
            _collect(self._members[engine], row, by)
            _add(e["sessions"], engine, by)
        if by := new.wants_slot - old.wants_slot:
            _collect(self._wanting, row, by)
        if by := new.holds_slot - old.holds_slot:
            _add(e["residents"], engine, by)
        if by := new.in_flight - old.in_flight:
            _add(e["outgoing"], engine, by)

    def _predict(self, engine: int) -> None:
        e = self._engines.arrays
        load, curves = e["active"].item(engine), e["round_ms"]
        e["latency_ms"][engine] = curves.item(engine, min(load, LOADS - 1))
        e["next_ms"][engine] = curves.item(engine, min(load + 1, LOADS - 1))


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
        record.active,
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


def _add(column: NDArray[Any], at: int, by: int) -> None:
    column[at] = column.item(at) + by  # faster than to add in place


def _stand(line: list[tuple[int, SessionId]], entry: tuple[int, SessionId], by: int) -> None:
    """Insert where it belongs, or remove."""
    at = bisect_left(line, entry)
    if by > 0:
        line.insert(at, entry)
    else:
        del line[at]


def _collect(rows: set[int], row: int, by: int) -> None:
    if by > 0:
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
