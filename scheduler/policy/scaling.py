"""The frame of the policies that choose the number of engines and migrate, in the paper's order. Pure.

place at the old budget -> decide the budget -> out: ask for engines now, they are filled by moves when they
are ready; in: empty engines, then remove them -> moves
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from scheduler.config import SchedulerConfig
from scheduler.messages import EngineState
from scheduler.policy.autoscale import Steering, steer
from scheduler.policy.base import Changes, Memory, Migrate, Plan
from scheduler.policy.board import Board
from scheduler.policy.drains import find_late, note_drains, requeue_late
from scheduler.policy.seating import Choose, Urgency, arrange
from scheduler.policy.upkeep import (
    PATIENCE_MS,
    find_lost,
    make_room,
    note_changes,
    requeue_orphans,
    size_cluster,
    sweep,
)
from scheduler.view import View


def plan_scaled(
    view: View,
    changes: Changes,
    memory: Memory,
    now_ms: int,
    config: SchedulerConfig,
    *,
    choose: Choose,
    target: Callable[[Board, Memory], int],
    hold_ms: float,
    moves: Callable[[Board], list[Migrate]],
    urgency: Urgency | None = None,
    ahead: Callable[[Board], int] = lambda board: 0,
    freed: Callable[[], float] = lambda: 0.0,
) -> Plan:
    """One plan. target: engines wanted, asked once everybody is placed. moves: migrations, asked last. ahead:
    slots to take from idle sessions for those who come next. freed: slots that sessions give back by
    themselves, a second. hold_ms: see `steer`."""
    memory = note_drains(view, note_changes(view, changes, memory, now_ms), now_ms, config)
    lost = find_lost(view, changes, config)
    board = Board(view, closed={*lost, *memory.closing} if lost else memory.closing)
    seats = arrange(board, memory.closing, choose, urgency)
    steering = Steering(0)  # nobody looks at it: a loss is seen to first
    if not lost:
        wanted = target(board, memory)
        memory, steering = steer(board, memory, now_ms, config, target=wanted, hold_ms=hold_ms)
        board.shut(steering.closing + steering.release)
    sizing = size_cluster(
        view,
        changes,
        memory,
        now_ms,
        lost=tuple(lost),
        model=config.model,
        num_engines=steering.num_engines,
        release=steering.release,
    )
    migrations = moves(board)
    late = find_late(view, memory, now_ms, config, lost=lost, busy=board.moved | board.seated)
    busy = {*board.moved, *board.seated, *late}
    short = [row for row in seats.short if row not in busy]
    room = make_room(
        view,
        short,
        now_ms,
        busy=busy,
        ahead={config.model: ahead(board)},
        is_patient=bool(short)
        and (_are_slots_coming(view, memory, steering) or 1_000 * len(short) <= PATIENCE_MS * freed()),
    )
    upkeep = (*lost.values(), *requeue_orphans(view), *sweep(view, now_ms, config), *sizing.actions)
    return (*upkeep, *requeue_late(view, late), *seats.actions, *migrations, *room), memory


def _are_slots_coming(view: View, memory: Memory, steering: Steering) -> bool:
    """Are sessions moving away from engines that stay, or are engines soon ready?"""
    ready = view.is_state(EngineState.READY)
    if view.engines["outgoing"][ready].any():
        return True
    if memory.failures:  # those that are asked for may never come
        return False
    is_growing = view.is_state(EngineState.STARTING).any() or steering.num_engines > np.count_nonzero(ready)
    return bool(memory.start_ms <= PATIENCE_MS and is_growing)
