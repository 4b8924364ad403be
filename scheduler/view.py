"""The cluster as columns: what policies read. Pure.

A view is a read-only window on the table that `scheduler/table.py` keeps by deltas: making one costs nothing
that grows with the cluster, and it is good until the table's next change. Columns are numpy arrays by row.
Rows of engines are sorted by id. Rows of sessions are in no order, so policies break ties by id: what a plan
decides must not depend on the history that led to a view.

    engines["state"]          int8   index into ENGINE_STATES
    engines["model"]          int32  index into View.models
    engines["capacity"]       int32  sessions
    engines["sessions"]       int32  sessions placed on it, counted from the session rows
    engines["residents"]      int32  those of them that hold one of its `capacity` slots
    engines["incoming"], ["outgoing"]   int32, migrations under way to and from it
    engines["active"]         int32  residents that want chunks, where their migrations end
    engines["round_ms"]       f64[LOADS]  predicted chunk latency with 0, 1, 2 ... active sessions, ms
    engines["latency_ms"], ["next_ms"]  f64, of these: with its active sessions, and with one more
    engines["play_ms"]        f64    how long a chunk plays
    engines["move_ms"]        f64    ms of a migration whatever its size
    engines["link_bytes_per_ms"]  f64
    engines["load"]           f64    share, 0 to 1
    engines["chunk_ms"]       f64    ms
    engines["started_ms"], ["heartbeat_ms"], ["deadline_ms"]   int64, Redis time; NEVER_MS without a deadline
    engines["drain_ordered"]  bool
    engines["desired"]        bool   is it in the desired set?
    engines["transfers"]      bool   can it migrate sessions?
    sessions["phase"]         int8   index into PHASES
    sessions["model"]         int32  index into View.models
    sessions["engine"]        int32  row of its engine; NO_ENGINE when it has none that is in the view
    sessions["target"]        int32  row of the engine that it migrates to; NO_ENGINE likewise
    sessions["in_flight"]     bool   does it migrate?
    sessions["epoch"]         int64
    sessions["active"]        bool
    sessions["movable"]       bool   generating in a slot, no migration under way, and not stuck
    sessions["stuck"]         bool   its migrations were called off so often that no more are begun
    sessions["residence"]     int8   index into RESIDENCES
    sessions["active_ms"]     int64  Redis time of the last active moment
    sessions["moved_ms"]      int64  Redis time of the last move, 0 before
    sessions["queue_order"]   int64  returners below zero
    sessions["created_ms"], ["left_ms"]   int64, Redis time; left_ms NEVER_MS while somebody controls it
    sessions["slack_ms"]      int64  ms, as old as the session's last event
    sessions["state_bytes"]   int64  what a migration sends, 0 when unknown
    sessions["subject"]       object str, whom it belongs to; "" nobody
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from scheduler.messages import DesiredEngine, EngineId, EngineState, Phase, Residence, SessionId

PHASES = tuple(Phase)
ENGINE_STATES = tuple(EngineState)
RESIDENCES = tuple(Residence)
HOLDING_A_SLOT = (RESIDENCES.index(Residence.RESIDENT), RESIDENCES.index(Residence.LEAVING))
NO_ENGINE = -1
NEVER_MS = int(np.iinfo(np.int64).max)
LOADS = 65
"""Length of a latency curve; more active sessions than it covers count as its last."""

Id = TypeVar("Id", bound=str)
Kept = TypeVar("Kept")


class Columns(dict[str, NDArray[Any]], Generic[Id]):
    """Read-only rows: arrays by column, each cut to the rows when it is first asked for. Its length is the
    number of rows. A dict, because there is nothing that plans do more often than ask for columns."""

    __slots__ = ("arrays", "ids", "rows")

    def __init__(
        self, *, ids: Sequence[Id], arrays: Mapping[str, NDArray[Any]], rows: Mapping[Id, int]
    ) -> None:
        """arrays: may be longer than the rows."""
        self.ids, self.arrays, self.rows = ids, arrays, rows

    def __len__(self) -> int:
        return len(self.ids)

    def __missing__(self, column: str) -> NDArray[Any]:
        found = self[column] = self.arrays[column][: len(self.ids)]
        found.flags.writeable = False
        return found

    def find(self, id: Id) -> int | None:
        """Row of an id."""
        return self.rows.get(id)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """One moment of the cluster: engines that are not gone, sessions that are not closed."""

    engines: Columns[EngineId]
    sessions: Columns[SessionId]
    models: Sequence[str]
    """Names; columns `model` index into it."""
    demand: Sequence[int]
    """By model: sessions that want chunks, with a place or without."""
    members: Sequence[AbstractSet[int]]
    """By engine row: rows of the sessions placed on it."""
    queued: AbstractSet[int]
    """Rows of sessions that have no engine yet, or none any more."""
    line: Sequence[tuple[int, SessionId]]
    """(queue_order, id) of these, sorted."""
    deserted: AbstractSet[int]
    """Rows of those of them that nobody controls."""
    wanting: AbstractSet[int]
    """Rows of placed sessions that are active while their state is out of its slot."""
    idle_line: Sequence[tuple[int, SessionId]]
    """(active_ms, id), sorted, of idle sessions that are in a slot and not migrating: who can leave it."""
    left_line: Sequence[tuple[int, SessionId]]
    """(left_ms, id), sorted, of sessions there that nobody controls, idle or not."""
    leavers: AbstractSet[int]
    """Rows of placed sessions that are about to leave their slot."""
    orphans: AbstractSet[int]
    """Rows of placed sessions whose engine has no record."""
    controlled: Mapping[str, int]
    """By subject: its sessions that somebody controls, with a place or without; none of those that belong to
    nobody."""
    desired: Sequence[DesiredEngine]
    """Engines that should exist, as last written."""
    read_ms: int
    """Redis time just before the heartbeats were read."""
    kept: dict[Hashable, Any] = field(default_factory=dict, repr=False)
    """See `keep`."""

    def keep(self, compute: Callable[..., Kept], *args: Hashable) -> Kept:
        """`compute(view, *args)`, maybe as an earlier view was told. It must read nothing but what engines
        say of themselves, without heartbeats, and `desired`: no column that is counted from sessions. Nobody
        may change it."""
        key = (compute, *args) if args else compute
        found: Kept | None = self.kept.get(key)
        if found is None:
            found = self.kept[key] = compute(self, *args)
        return found

    @property
    def heard_ms(self) -> int:
        """Redis time of the oldest heartbeat of the engines that do not start; NEVER_MS if all do."""
        return self.keep(oldest_heartbeat)

    def is_phase(self, phase: Phase) -> NDArray[np.bool_]:
        """Mask of session rows."""
        mask: NDArray[np.bool_] = self.sessions["phase"] == PHASES.index(phase)
        return mask

    def is_state(self, state: EngineState) -> NDArray[np.bool_]:
        """Mask of engine rows, read-only."""
        return self.keep(_mask, ENGINE_STATES.index(state))

    def is_residence(self, residence: Residence) -> NDArray[np.bool_]:
        """Mask of session rows; it says nothing about sessions that are not placed."""
        mask: NDArray[np.bool_] = self.sessions["residence"] == RESIDENCES.index(residence)
        return mask

    def by_id(self, rows: Iterable[int]) -> list[int]:
        """Session rows in the order of their ids."""
        return sorted(rows, key=self.sessions.ids.__getitem__)

    def same(self, other: View) -> bool:
        """Equal in all but the order of session rows and models? For tests: it costs as much as a rebuild."""
        ours, theirs = self._contents(), other._contents()
        return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)

    def _contents(self) -> dict[str, NDArray[Any]]:
        """Everything in an order of ids and names."""
        order = self.by_id(range(len(self.sessions)))
        place = {row: at for at, row in enumerate(order)}
        names = np.array(self.models, dtype=object)
        found = {f"engines.{name}": self.engines[name] for name in self.engines.arrays}
        found |= {f"sessions.{name}": self.sessions[name][order] for name in self.sessions.arrays}
        for kind in ("engines.model", "sessions.model"):
            found[kind] = names[found[kind]]
        names_of_sets = ("queued", "deserted", "wanting", "leavers", "orphans")
        sets = {name: getattr(self, name) for name in names_of_sets}
        sets |= {f"members {row}": members for row, members in enumerate(self.members)}
        found |= {name: np.array(sorted(place[row] for row in rows)) for name, rows in sets.items()}
        demand = sorted((name, n) for name, n in zip(self.models, self.demand, strict=True) if n)
        found["demand"] = np.array(demand, dtype=object)
        for name in ("line", "idle_line", "left_line"):
            found[name] = np.array([f"{at} {id}" for at, id in getattr(self, name)], dtype=object)
        found["controlled"] = np.array(sorted(self.controlled.items()), dtype=object)
        found["ids"] = np.array([*self.engines.ids, *(self.sessions.ids[row] for row in order)], dtype=object)
        found["desired"] = np.array([f"{e.id} {e.model}" for e in self.desired], dtype=object)
        return found


def oldest_heartbeat(view: View) -> int:
    """Kept until an engine was heard. See `View.heard_ms`."""
    is_speaking = ~view.is_state(EngineState.STARTING)
    return int(view.engines["heartbeat_ms"][is_speaking].min(initial=NEVER_MS))


def _mask(view: View, state: int) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = view.engines["state"] == state
    mask.flags.writeable = False
    return mask
