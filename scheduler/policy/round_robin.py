"""A fixed number of engines, sessions dealt out in turn. Pure."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scheduler.config import SchedulerConfig
from scheduler.messages import EngineId
from scheduler.policy.base import Changes, Memory, Plan
from scheduler.policy.board import Board
from scheduler.policy.fixed_budget import plan_fixed
from scheduler.view import View


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """In the order of ids, after the engine that got the last session; full ones are passed over."""

    name: str = "round_robin"

    def plan(
        self, view: View, changes: Changes, memory: Memory, now_ms: int, config: SchedulerConfig
    ) -> Plan:
        """See `Policy`."""
        last = memory.last_engine

        def next_in_turn(board: Board, candidates: NDArray[np.bool_]) -> int:
            nonlocal last
            ids = board.view.engines.ids
            rows = np.flatnonzero(candidates)
            after = bisect_right(ids, EngineId(last))
            best = int(rows[np.searchsorted(rows, after) % len(rows)])
            last = ids[best]
            return best

        actions, memory = plan_fixed(view, changes, memory, now_ms, config, next_in_turn)
        return actions, memory if last == memory.last_engine else replace(memory, last_engine=last)
