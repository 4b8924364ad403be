"""A fixed number of engines, each session where fewest are active. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.config import SchedulerConfig
from scheduler.policy.base import Changes, Memory, Plan
from scheduler.policy.board import Board
from scheduler.policy.fixed_budget import plan_fixed
from scheduler.view import View


@dataclass(frozen=True, slots=True)
class GreedyLoad:
    """Load is the number of active sessions; among equals, the busy share that engines measure."""

    name: str = "greedy_load"

    def plan(
        self, view: View, changes: Changes, memory: Memory, now_ms: int, config: SchedulerConfig
    ) -> Plan:
        """See `Policy`."""
        return plan_fixed(view, changes, memory, now_ms, config, least_busy)


def least_busy(board: Board, candidates: NDArray[np.bool_]) -> int:
    """The engine with fewest active sessions."""
    load = board.active + np.clip(board.view.engines["load"], 0.0, 0.999)  # never outweighs a session
    return int(np.where(candidates, load, np.inf).argmin())
