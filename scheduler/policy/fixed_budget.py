"""The frame of the policies with a fixed number of engines: they differ in where a session goes. Pure."""

from __future__ import annotations

from scheduler.config import SchedulerConfig
from scheduler.policy.base import Changes, Memory, Plan
from scheduler.policy.board import Board
from scheduler.policy.drains import find_late, note_drains, requeue_late
from scheduler.policy.seating import Choose, Seats, arrival_order, seat
from scheduler.policy.upkeep import (
    find_lost,
    make_room,
    note_changes,
    requeue_orphans,
    size_cluster,
    sweep,
)
from scheduler.view import View


def plan_fixed(
    view: View, changes: Changes, memory: Memory, now_ms: int, config: SchedulerConfig, choose: Choose
) -> Plan:
    """Place who waits; nobody moves who need not. First come first served, returners before new starts."""
    memory = note_drains(view, note_changes(view, changes, memory, now_ms), now_ms, config)
    lost = find_lost(view, changes, config)
    sizing = size_cluster(
        view, changes, memory, now_ms, lost=tuple(lost), model=config.model, num_engines=config.engines
    )
    rows, busy = arrival_order(view), set[int]()
    seats = Seats()
    if rows:
        board = Board(view, closed={*lost, *sizing.draining})
        seats, busy = seat(board, rows, choose), board.seated
    late = find_late(view, memory, now_ms, config, lost=lost, busy=busy)
    busy = {*busy, *late}
    room = make_room(view, [row for row in seats.short if row not in busy], now_ms, busy=busy)
    upkeep = (*lost.values(), *requeue_orphans(view), *sweep(view, now_ms, config), *sizing.actions)
    return (*upkeep, *requeue_late(view, late), *seats.actions, *room), memory
