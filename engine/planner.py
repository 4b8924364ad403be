"""Which sessions' passes run together next. Pure and deterministic: every rank computes the same batch.

Earliest deadline first, at the granularity of one pass. What holds, given true costs (the tests prove each):

    fresh first   the first pass of a session waits for the pass at hand and for first passes of sessions that
                  came before it, for nothing else; this promise alone may cost another session its deadline,
                  by at most one pass per newcomer
    no victim     nobody who would meet its deadline if passes ran one at a time misses it because they are
                  coalesced: a batch must leave them all in time even if it were the last one of its kind.
                  And while only those are late who would be anyway, coalescing makes them no later
    optimal       where coalescing never pays this is one at a time, earliest deadline first, which minimises
                  the largest lateness; where it is free, everybody is as early as if alone
    no starving   deadlines of waiting sessions do not move, and a chunk due later has a later one

In between, the batch is the one that does most work per millisecond among those without a victim. That is
a heuristic: of small random sets that some schedule would keep in time it loses one in twenty, one at a time
two in five (tests/engine). In overload the number of deadlines kept is not maximal: who is late keeps its
place, so that nobody is given up.

The clean pass of a chunk is the first pass of the next one here: it has that chunk's deadline, so it never
stands in the way of frames that are needed earlier.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from engine.cost_table import CostTable
from scheduler.messages import SessionId

__all__ = ["Batch", "Planner", "ReadyRow", "plan"]

MIN_GAIN = 0.02
"""A larger batch must make a row cheaper by this share; below it, batching only delays who is first."""
MIN_GAIN_IN_OVERLOAD = 0.01
"""Then throughput is what everybody waits for; the rest is the noise of measurement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyRow:
    """A session whose next pass could run now."""

    session: SessionId
    kv_frames: int
    """Valid ring frames of its next pass."""
    passes_left: int
    """Passes until its next frames can be decoded, this one included; at least 1."""
    deadline_ms: float
    """When those frames must be there, on the caller's clock."""
    fresh: bool = False
    """Has it run no pass here yet?"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows of the next pass, fresh ones first, then by deadline; empty when nothing is ready."""

    rows: tuple[ReadyRow, ...]

    @property
    def kv_frames(self) -> int:
        """The KV bucket it counts in."""
        return max(row.kv_frames for row in self.rows)


Planner: TypeAlias = Callable[[Iterable[ReadyRow], CostTable, float], Batch]
"""(ready, costs, now_ms) → the next pass."""


def plan(ready: Iterable[ReadyRow], costs: CostTable, now_ms: float) -> Batch:
    """Choose the rows of the next pass. The order of `ready` does not matter."""
    by_deadline = sorted(ready, key=lambda row: (row.deadline_ms, row.session))
    order = sorted(by_deadline, key=lambda row: not row.fresh)  # stable
    sizes = range(1, min(len(order), costs.largest) + 1)
    if len(sizes) < 2:
        return Batch(rows=tuple(order[: len(sizes)]))
    if _is_loose(by_deadline, costs, now_ms):
        return Batch(rows=tuple(order[: _best_size(order, sizes, costs, MIN_GAIN)]))
    overload, limits = _limits(order, by_deadline, costs, now_ms)
    allowed = [
        size
        for size in sizes
        if size == 1 or _is_within(limits, _ends_ms(order, by_deadline, size, costs, now_ms))
    ]
    min_gain = MIN_GAIN_IN_OVERLOAD if overload else MIN_GAIN
    return Batch(rows=tuple(order[: _best_size(order, allowed, costs, min_gain)]))


def _is_within(limits: Sequence[float], ends: Sequence[float]) -> bool:
    return all(end <= limit for end, limit in zip(ends, limits, strict=True))


def _best_size(order: Sequence[ReadyRow], sizes: Sequence[int], costs: CostTable, min_gain: float) -> int:
    """Of some rising sizes the one that does most work per millisecond."""
    best_size, best = sizes[0], _gain(order[: sizes[0]], costs)
    for size in sizes[1:]:
        gain = _gain(order[:size], costs)
        if gain * (1.0 - min_gain) >= best:
            best_size, best = size, gain
    return best_size


def _gain(rows: Sequence[ReadyRow], costs: CostTable) -> float:
    """How many times faster the rows are together than one after the other, as far as can be hoped."""
    kv_frames = max(row.kv_frames for row in rows)
    return sum(costs.pass_ms(1, row.kv_frames) for row in rows) / costs.hoped_ms(len(rows), kv_frames)


def _is_loose(by_deadline: Sequence[ReadyRow], costs: CostTable, now_ms: float) -> bool:
    """Is everybody in time whatever the batch and the order? A sufficient condition, for speed."""
    longest = max(row.kv_frames for row in by_deadline)
    work_ms = sum(_work_ms(row, costs) for row in by_deadline) + costs.pass_ms(costs.largest, longest)
    return now_ms + work_ms <= by_deadline[0].deadline_ms


def _limits(
    order: Sequence[ReadyRow], by_deadline: Sequence[ReadyRow], costs: CostTable, now_ms: float
) -> tuple[bool, list[float]]:
    """Is there overload, and by when must each row of `by_deadline` have its frames to be no victim?

    Overload: one at a time, somebody is late who would not be if the engine were its own. Then only work done
    counts, for those who are late. Otherwise who is late is so by the past, and coalescing for a throughput
    that nobody needs must not make that worse.
    """
    alone = _ends_ms(order, by_deadline, 1, costs, now_ms)
    late = [row for row, end in zip(by_deadline, alone, strict=True) if end > row.deadline_ms]
    overload = any(now_ms + _work_ms(row, costs) <= row.deadline_ms for row in late)
    return overload, [
        row.deadline_ms if end <= row.deadline_ms else math.inf if overload else end
        for row, end in zip(by_deadline, alone, strict=True)
    ]


def _work_ms(row: ReadyRow, costs: CostTable) -> float:
    """From its next pass to its frames, when the engine does nothing else."""
    return row.passes_left * costs.pass_ms(1, row.kv_frames) + costs.decode_ms


def _ends_ms(
    order: Sequence[ReadyRow], by_deadline: Sequence[ReadyRow], size: int, costs: CostTable, now_ms: float
) -> list[float]:
    """When each row of `by_deadline` has its frames if this batch has `size` rows and then passes run one at
    a time, earliest deadline first."""
    batch = order[:size]
    clock = now_ms + costs.pass_ms(size, max(row.kv_frames for row in batch))
    ends: dict[SessionId, float] = {}
    for row in batch:  # decodes follow the pass, in its order, before anything else runs
        if row.passes_left == 1:
            ends[row.session] = clock = clock + costs.decode_ms
    running = {row.session for row in batch}
    for row in by_deadline:
        if row.session not in ends:
            passes = row.passes_left - (row.session in running)
            ends[row.session] = clock = clock + passes * costs.pass_ms(1, row.kv_frames) + costs.decode_ms
    return [ends[row.session] for row in by_deadline]
