"""Place each waiting session on the ready engine with most room; keep a fixed number of engines. Pure."""

from __future__ import annotations

from collections import Counter

import numpy as np

from scheduler.config import SchedulerConfig
from scheduler.messages import EngineState, Phase
from scheduler.policy.base import Changes, Memory, Place, Plan
from scheduler.policy.upkeep import (
    find_lost,
    lose,
    make_room,
    note_changes,
    requeue_orphans,
    size_cluster,
    sweep,
)
from scheduler.view import NEVER_MS, View


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
        open_ = [id not in closed for id in view.engines.ids]
        places = place(view, np.array(open_, dtype=bool))
        room = make_room(view, _num_short(view, places), now_ms)
        upkeep = (*lose(lost), *requeue_orphans(view), *sweep(view, now_ms, config), *sizing.actions)
        return (*upkeep, *places, *room), memory


def place(view: View, is_open: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> list[Place]:
    """Place waiting sessions, and move sessions off draining engines, on ready engines marked open."""
    engines = view.engines
    usable = view.is_state(EngineState.READY) & is_open
    room = np.where(usable, engines["capacity"] - engines["sessions"], 0)
    actions: list[Place] = []
    for row in _order(view):
        model = view.sessions["model"][row]
        fitting = np.where(engines["model"] == model, room, 0)
        # argmax gives the first of equals, and rows are sorted by id.
        if not len(fitting) or fitting[best := int(np.argmax(fitting))] <= 0:
            continue
        actions.append(
            Place(
                session=view.sessions.ids[row],
                engine=engines.ids[best],
                expect_epoch=int(view.sessions["epoch"][row]),
                why=f"most room: {room[best]} of {engines['capacity'][best]} places free",
            )
        )
        room[best] -= 1
    return actions


def _num_short(view: View, places: list[Place]) -> Counter[int]:
    """Queued sessions that found no place, by model index."""
    placed = {action.session for action in places}
    queued = view.is_phase(Phase.QUEUED)
    rows = (row for row in _order(view) if queued[row] and view.sessions.ids[row] not in placed)
    return Counter(int(view.sessions["model"][row]) for row in rows)


def _order(view: View) -> list[int]:
    """Rows of sessions that want a place: returners, then those on draining engines, then new starts.

    A queued session whose connection left waits until somebody attaches: nobody would watch.
    """
    sessions = view.sessions
    waiting = view.is_phase(Phase.QUEUED) & (sessions["left_ms"] == NEVER_MS)
    queue_order = sessions["queue_order"]
    by_order = np.argsort(queue_order, kind="stable")
    returners = [int(r) for r in by_order if waiting[r] and queue_order[r] < 0]
    starts = [int(r) for r in by_order if waiting[r] and queue_order[r] >= 0]
    draining = np.flatnonzero(view.is_state(EngineState.DRAINING))
    leaving = np.flatnonzero(view.is_phase(Phase.PLACED) & np.isin(sessions["engine"], draining))
    return [*returners, *(int(r) for r in leaving), *starts]
