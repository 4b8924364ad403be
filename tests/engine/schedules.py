"""Run ready-sets to their end under true costs: by the planner, by fixed rules, by every possible rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations

from engine.cost_table import CostTable
from engine.planner import ReadyRow, plan
from scheduler.messages import SessionId

Ends = Mapping[SessionId, float]
Choose = Callable[[Sequence[ReadyRow], CostTable, float], Sequence[ReadyRow]]
EPSILON_MS = 1e-6


def planned(ready: Sequence[ReadyRow], costs: CostTable, now_ms: float) -> Sequence[ReadyRow]:
    """What the planner chooses."""
    return plan(ready, costs, now_ms).rows


def one_at_a_time(ready: Sequence[ReadyRow], costs: CostTable, now_ms: float) -> Sequence[ReadyRow]:
    """Earliest deadline first, batches of one."""
    return sorted(ready, key=lambda row: (row.deadline_ms, row.session))[:1]


def finish(
    ready: Iterable[ReadyRow], costs: CostTable, choose: Choose = planned, now_ms: float = 0.0
) -> Ends:
    """When each row's frames are there, when nothing else comes."""
    left = {row.session: row for row in ready}
    ends: dict[SessionId, float] = {}
    while left:
        batch = choose(list(left.values()), costs, now_ms)
        now_ms += costs.pass_ms(len(batch), max(row.kv_frames for row in batch))
        for row in batch:
            left[row.session] = replace(row, passes_left=row.passes_left - 1, fresh=False)
            if row.passes_left == 1:
                now_ms += costs.decode_ms
                ends[row.session] = now_ms
                del left[row.session]
    return ends


def missed(rows: Iterable[ReadyRow], ends: Ends) -> set[SessionId]:
    return {row.session for row in rows if ends[row.session] > row.deadline_ms + EPSILON_MS}


def lateness_ms(rows: Iterable[ReadyRow], ends: Ends) -> float:
    """The largest; negative when everybody is early."""
    return max(ends[row.session] - row.deadline_ms for row in rows)


def best_lateness_ms(rows: Sequence[ReadyRow], costs: CostTable) -> float:
    """The smallest largest lateness of any schedule: all of them are tried. One KV bucket, no decode time."""

    @cache
    def search(left: tuple[int, ...], now_ms: float) -> float:
        active = [i for i, passes in enumerate(left) if passes]
        best = float("inf") if active else float("-inf")
        for size in range(1, min(len(active), costs.largest) + 1):
            for batch in combinations(active, size):
                then = round(now_ms + costs.pass_ms(size, 1), 9)
                after = tuple(passes - (i in batch) for i, passes in enumerate(left))
                late = [then - rows[i].deadline_ms for i in batch if after[i] == 0]
                best = min(best, max(*late, search(after, then), float("-inf")))
        return best

    return search(tuple(row.passes_left for row in rows), 0.0)
