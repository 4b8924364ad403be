"""A fixed number of engines, each session where most memory is free. Pure."""

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
class GreedyMemory:
    """Memory counts in slots: all sessions of a model have slots of one size."""

    name: str = "greedy_memory"

    def plan(
        self, view: View, changes: Changes, memory: Memory, now_ms: int, config: SchedulerConfig
    ) -> Plan:
        """See `Policy`."""
        return plan_fixed(view, changes, memory, now_ms, config, roomiest)


def roomiest(board: Board, candidates: NDArray[np.bool_]) -> int:
    """The engine with most free slots."""
    lowest = np.iinfo(board.room.dtype).min
    return int(np.where(candidates, board.room, lowest).argmax())
