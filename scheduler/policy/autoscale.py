"""From a wanted number of engines to what is done about it: hold, cancel, empty, release. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.config import SchedulerConfig
from scheduler.messages import EngineId
from scheduler.policy.base import Changes, Memory, Sample
from scheduler.policy.board import Board
from scheduler.policy.fleet import fleet
from scheduler.view import View

WINDOW_S = 60
"""Length of the window in which demand is watched."""
_START_WEIGHT = 0.3
"""Of the last start in the mean of those seen. The first few weigh the same: one replaces the guess."""


class Steering(NamedTuple):
    """What the size of the cluster shall do now."""

    num_engines: int
    """Engines to keep starting or ready, without the released ones."""
    closing: tuple[int, ...] = ()
    """Rows of engines to empty: they get no sessions, and lose theirs."""
    release: tuple[int, ...] = ()
    """Rows of engines that are empty and go."""


def note_demand(view: View, changes: Changes, memory: Memory, now_ms: int, model: str) -> Memory:
    """Memory after this moment's demand and the start-up times seen."""
    at_s, demand = now_ms // 1_000, demand_of(view, model)
    window = memory.window
    while window and window[-1].at_s > at_s:  # Redis time was set back
        window = window[:-1]
    if window and window[-1].at_s == at_s:
        last = window[-1]
        if changes.arrivals or demand != last.demand:
            sample = Sample(at_s=at_s, demand=demand, arrivals=last.arrivals + changes.arrivals)
            window = (*window[:-1], sample)
    else:
        old = next((n for n, sample in enumerate(window) if sample.at_s > at_s - WINDOW_S), len(window))
        window = (*window[old:], Sample(at_s=at_s, demand=demand, arrivals=changes.arrivals))
    start_ms, starts = memory.start_ms, memory.starts
    for took_ms in changes.starts_ms:
        starts += 1
        start_ms += max(_START_WEIGHT, 1.0 / starts) * (took_ms - start_ms)
    if window is memory.window and starts == memory.starts:
        return memory
    return replace(memory, window=window, start_ms=start_ms, starts=starts)


def demand_of(view: View, model: str) -> int:
    """Sessions of a model that want chunks, with a place or without."""
    return view.demand[view.models.index(model)] if model in view.models else 0


def steer(
    board: Board, memory: Memory, now_ms: int, config: SchedulerConfig, *, target: int, hold_ms: float
) -> tuple[Memory, Steering]:
    """Come closer to `target` engines (first brought into the configured range).

    More are wanted at once. Fewer only when they would have done for hold_ms without a break: first those
    that still start are cancelled, then ready ones are emptied while they are still ready, so that returning
    demand finds them, and they go when they are empty.
    """
    view, engines = board.view, board.view.engines
    target = min(max(target, config.engines), config.max_engines or config.engines)
    known = view.keep(fleet)
    ready, starting = known.staying, known.num_starting
    if target >= len(ready) + starting:
        memory = _remember(memory, surplus_ms=0)
        return memory, Steering(target)
    since_ms = min(memory.surplus_ms or now_ms, now_ms)  # Redis time may have been set back
    memory = _remember(memory, surplus_ms=since_ms, closing=memory.closing)
    if now_ms - since_ms < hold_ms:
        return memory, Steering(len(ready) + starting)
    closing = _victims(board, memory, ready, len(ready) - target)
    release = tuple(row for row in closing if not engines["sessions"][row] and not engines["incoming"][row])
    release = tuple(row for row in release if row not in board.taken)
    closing = tuple(row for row in closing if row not in release)
    memory = _remember(memory, surplus_ms=since_ms, closing=tuple(engines.ids[row] for row in closing))
    num_engines = max(target, len(ready) - len(release))
    return memory, Steering(num_engines=num_engines, closing=closing, release=release)


def _remember(memory: Memory, *, surplus_ms: int, closing: tuple[EngineId, ...] = ()) -> Memory:
    if (memory.surplus_ms, memory.closing) == (surplus_ms, closing):
        return memory
    return replace(memory, surplus_ms=surplus_ms, closing=closing)


def _victims(board: Board, memory: Memory, rows: NDArray[np.intp], number: int) -> tuple[int, ...]:
    """The engines to empty: those that are being emptied already, then those with least to move away.

    Only as many as the others have room for the active sessions of.
    """
    engines = board.view.engines
    is_new = np.ones(len(engines), dtype=bool)
    is_new[[row for id in memory.closing if (row := engines.find(id)) is not None]] = False
    # Stable, and rows are sorted by id: among equals the smaller id.
    order = np.lexsort(
        (-engines["started_ms"][rows], engines["sessions"][rows], board.active[rows], is_new[rows])
    )
    room = np.maximum(board.room, 0)
    spare, victims = int(room[rows].sum()), []
    for row in rows[order][: max(0, number)].tolist():
        spare -= int(room[row] + board.active[row])
        if spare < 0:
            break
        victims.append(row)
    return tuple(victims)
