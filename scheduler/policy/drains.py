"""Drains that an administrator ordered end in time, by checkpoint if need be. Pure.

Sessions leave a draining engine for slots elsewhere, and stream on until there is one. Where the scheduler
drains of its own accord, because fewer engines do, that may take for ever: nobody stops so that cost may
fall. Who orders a drain waits for the engine to go: who is still there `drain_timeout_s` after the order is
queued again, and goes on from its checkpoint. While an engine of the model starts, slots are about to come:
that time does not count, up to `start_timeout_ms`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from scheduler.config import SchedulerConfig
from scheduler.messages import EngineId, EngineState
from scheduler.policy.base import Drain, Memory, Requeue
from scheduler.policy.fleet import fleet
from scheduler.view import View

MAX_DRAINS = 1_000
"""Ordered drains that have a time at once, by id: a memory has its limit."""


def note_drains(view: View, memory: Memory, now_ms: int, config: SchedulerConfig) -> Memory:
    """Memory with the times of all ordered drains, and of no others."""
    ordered = view.keep(fleet).ordered[:MAX_DRAINS]
    if not ordered and not memory.drains:
        return memory
    engines, known = view.engines, {drain.engine: drain for drain in memory.drains}
    coming = view.is_state(EngineState.STARTING) & ~engines["drain_ordered"]
    growing = {*engines["model"][coming].tolist()}
    drains: list[Drain] = []
    for row in ordered:
        id = engines.ids[row]
        drain = known.get(id, Drain(engine=id, ordered_ms=now_ms, since_ms=now_ms))
        ordered_ms = min(drain.ordered_ms, now_ms)  # Redis time may have been set back
        since_ms = min(drain.since_ms, now_ms)
        if int(engines["model"][row]) in growing:
            since_ms = max(since_ms, min(now_ms, ordered_ms + config.start_timeout_ms))
        drains.append(Drain(engine=id, ordered_ms=ordered_ms, since_ms=since_ms))
    return replace(memory, drains=tuple(drains))


def find_late(
    view: View,
    memory: Memory,
    now_ms: int,
    config: SchedulerConfig,
    *,
    lost: Collection[EngineId],
    busy: Collection[int],
) -> list[int]:
    """Rows of sessions to queue again, by id: on engines whose ordered drain took too long. Without those
    that migrate, those that the plan does something with (`busy`), and those of `lost` engines."""
    if not memory.drains:
        return []
    late_ms = now_ms - 1_000 * config.drain_timeout_s
    late = [drain.engine for drain in memory.drains if drain.since_ms <= late_ms and drain.engine not in lost]
    in_flight = view.sessions["in_flight"]
    rows = [row for engine in late for row in view.members[view.engines.rows[engine]]]
    return view.by_id(row for row in rows if not in_flight[row] and row not in busy)


def requeue_late(view: View, rows: Iterable[int]) -> list[Requeue]:
    """Take these sessions back, wherever their state is."""
    ids, epochs = view.sessions.ids, view.sessions["epoch"]
    return [Requeue(session=ids[row], expect_epoch=int(epochs[row]), why="engine_drained") for row in rows]
