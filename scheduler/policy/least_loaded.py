"""Place each waiting session on the ready engine with most room; keep a fixed number of engines. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.config import SchedulerConfig
from scheduler.messages import EngineState, Phase
from scheduler.policy.base import Activate, Changes, Memory, Place, Plan
from scheduler.policy.upkeep import (
    find_lost,
    lose,
    make_room,
    note_changes,
    requeue_orphans,
    size_cluster,
    sweep,
    wants_slot,
)
from scheduler.view import NEVER_MS, NO_ENGINE, View


class LeastLoaded:
    """First come first served, returners before new starts; ties go to the smaller id."""

    name = "least_loaded"

    def plan(
        self, view: View, changes: Changes, memory: Memory, now_ms: int, config: SchedulerConfig
    ) -> Plan:
        """See `Policy`."""
        memory = note_changes(view, changes, memory, now_ms)
        lost = find_lost(view, changes, config)
        sizing = size_cluster(
            view, changes, memory, now_ms, lost=tuple(lost), model=config.model, num_engines=config.engines
        )
        closed = {*lost, *sizing.draining}
        is_open = np.array([id not in closed for id in view.engines.ids], dtype=bool)
        seats = seat(view, is_open)
        room = make_room(view, seats.short, now_ms)
        upkeep = (*lose(lost), *requeue_orphans(view), *sweep(view, now_ms, config), *sizing.actions)
        return (*upkeep, *seats.actions, *room), memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Seats:
    """Who gets a place, and who found none."""

    actions: tuple[Place | Activate, ...]
    short: tuple[int, ...]
    """Rows of sessions that need a slot and found none, who comes first first."""


def seat(view: View, is_open: NDArray[np.bool_]) -> Seats:
    """Place waiting sessions, give those that became active again a slot, and move sessions off draining
    engines, all on ready engines marked open. An idle session needs a place, but no slot.
    """
    engines, sessions = view.engines, view.sessions
    usable = view.is_state(EngineState.READY) & is_open
    room = np.where(usable, engines["capacity"] - engines["residents"], 0)
    actions: list[Place | Activate] = []
    short: list[int] = []
    for row in _order(view):
        own = int(sessions["engine"][row])
        is_active = bool(sessions["active"][row])
        fitting = usable & (engines["model"] == sessions["model"][row])
        if is_active and own != NO_ENGINE and usable[own] and room[own] > 0:
            room[own] -= 1
            actions.append(_activate(view, row))
            continue
        free = np.where(fitting, room, np.iinfo(room.dtype).min)
        # argmax gives the first of equals, and rows are sorted by id.
        best = int(np.argmax(free)) if len(free) else 0
        if not fitting.any() or (is_active and free[best] <= 0):
            if is_active:
                short.append(row)
            continue
        actions.append(_place(view, row, best, int(room[best])))
        room[best] -= is_active
    return Seats(actions=tuple(actions), short=tuple(short))


def _activate(view: View, row: int) -> Activate:
    return Activate(
        session=view.sessions.ids[row],
        expect_epoch=int(view.sessions["epoch"][row]),
        why="active again, and its engine has a free slot",
    )


def _place(view: View, row: int, engine: int, room: int) -> Place:
    return Place(
        session=view.sessions.ids[row],
        engine=view.engines.ids[engine],
        expect_epoch=int(view.sessions["epoch"][row]),
        why=f"most room: {room} of {view.engines['capacity'][engine]} slots free",
    )


def _order(view: View) -> list[int]:
    """Rows of sessions that want a place: returners, those active again without a slot, those on draining
    engines, then new starts.

    A queued session whose connection left waits until somebody attaches: nobody would watch.
    """
    sessions = view.sessions
    waiting = view.is_phase(Phase.QUEUED) & (sessions["left_ms"] == NEVER_MS)
    queue_order = sessions["queue_order"]
    by_order = np.argsort(queue_order, kind="stable")
    returners = [int(r) for r in by_order if waiting[r] and queue_order[r] < 0]
    starts = [int(r) for r in by_order if waiting[r] and queue_order[r] >= 0]
    placed = view.is_phase(Phase.PLACED)
    draining = placed & np.isin(sessions["engine"], np.flatnonzero(view.is_state(EngineState.DRAINING)))
    again = wants_slot(view) & ~draining
    return [*returners, *map(int, np.flatnonzero(again)), *map(int, np.flatnonzero(draining)), *starts]
