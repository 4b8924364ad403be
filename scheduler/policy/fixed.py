"""A fixed number of engines, each session where chunks stay fastest when it comes, and nobody moves. Pure."""

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
class Fixed:
    """The paper's first step alone: what scaling and migration are measured against."""

    name: str = "fixed"

    def plan(
        self, view: View, changes: Changes, memory: Memory, now_ms: int, config: SchedulerConfig
    ) -> Plan:
        """See `Policy`."""
        return plan_fixed(view, changes, memory, now_ms, config, fastest)


def fastest(board: Board, candidates: NDArray[np.bool_]) -> int:
    """The engine with the lowest predicted latency once the session is there."""
    return int(np.where(candidates, board.next_ms, np.inf).argmin())
