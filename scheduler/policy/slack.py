"""Ours: sessions where they stall least, engines before they are needed, moves that pay. Pure.

place     where predicted latency stays lowest; who holds least video goes first among those that return
move      off the worst engine, and off any on which players run dry, while the ms that a move takes off
          chunks are no error of measurement and, over the chunks that the session is expected to live for,
          worth more than the move costs; where nobody runs dry only if load would stay uneven; the session
          that the move disturbs least; and a moved one rests
out       for the demand expected when an engine that is asked for now is ready, with a margin
in        when fewer engines would have done for longer than one takes to start; emptied first
ahead     idle sessions give up slots before newcomers need them
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.config import SchedulerConfig
from scheduler.policy.autoscale import demand_of, note_demand
from scheduler.policy.base import Changes, Memory, Migrate, Plan
from scheduler.policy.board import Board
from scheduler.policy.fixed import fastest
from scheduler.policy.forecast import arrival_rate, churn, forecast
from scheduler.policy.lives import note_lives, remaining_s
from scheduler.policy.relief import MoveRules, Relief
from scheduler.policy.scaling import plan_scaled
from scheduler.view import View

AHEAD_S = 2.0
"""Slots are kept free for the arrivals of so long: a suspended session needs about that to leave its slot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slack:
    """See the module."""

    name: str = "slack"
    utilisation: float = 0.9
    """Share of a chunk's play time that its predicted latency may take when engines are counted."""
    margin: float = 1.0
    """Standard deviations of the forecast that engines are asked for besides."""
    forecasts: bool = True
    """False: size for the demand of this moment."""
    heeds_players: bool = True
    """False: those active again go by id, not by who holds least video."""
    migrates: bool = True
    """False: move nobody but off engines that go."""
    moves: MoveRules = MoveRules()
    hold_ms: int = 5_000
    """Fewer engines must do for so long, and for as long as one takes to start, before one goes."""

    def plan(
        self, view: View, changes: Changes, memory: Memory, now_ms: int, config: SchedulerConfig
    ) -> Plan:
        """See `Policy`."""
        memory = note_lives(memory, changes.ages_ms)
        memory = note_demand(view, changes, memory, now_ms, config.model)
        slack_ms, ids = view.sessions["slack_ms"], view.sessions.ids
        return plan_scaled(
            view,
            changes,
            memory,
            now_ms,
            config,
            choose=fastest,
            urgency=(lambda row: (slack_ms[row], ids[row])) if self.heeds_players else None,
            target=lambda board, _: self._target(board, memory, now_ms, config),
            hold_ms=max(self.hold_ms, memory.start_ms),
            moves=lambda board: self._relieve(board, memory, now_ms),
            ahead=lambda board: _slots_ahead(board, memory, now_ms, config),
        )

    def _target(self, board: Board, memory: Memory, now_ms: int, config: SchedulerConfig) -> int:
        """Engines that keep latency within `utilisation` for the demand of now and of when one is ready."""
        demand = demand_of(board.view, config.model)
        need = float(demand)
        if self.forecasts:
            coming = forecast(memory.window, demand, now_ms // 1000, memory.start_ms / 1000)
            need = max(need, coming.mean + self.margin * coming.deviation)
        rows = np.flatnonzero(board.usable)
        if not len(rows):
            return max(len(board.view.engines), min(1, demand))
        fits = self._fit(board.view)[rows]
        fits[::-1].sort()  # largest first
        reach: list[int] = fits.cumsum().tolist()
        if need <= reach[-1]:
            return 1 + bisect_left(reach, need) if need > 0 else 0
        last = len(fits) - 1
        typical = (fits[last // 2] + fits[(last + 1) // 2]) / 2  # the median
        return len(rows) + math.ceil((need - reach[-1]) / float(typical))

    def _fit(self, view: View) -> NDArray[np.int64]:
        """Sessions that each engine serves within `utilisation` and its capacity; at least one."""
        engines = view.engines
        limit_ms = self.utilisation * engines["play_ms"]
        capacity = engines["capacity"]
        curves = engines["round_ms"][:, 1 : 1 + int(capacity.max())]
        within = (curves <= limit_ms[:, None]).sum(axis=1)
        fit: NDArray[np.int64] = np.maximum(np.minimum(within, capacity), 1)
        return fit

    def _relieve(self, board: Board, memory: Memory, now_ms: int) -> list[Migrate]:
        if not self.migrates:
            return []
        lives_s = remaining_s(memory)
        rates = churn(memory.window, now_ms // 1000)
        found: list[Migrate] = []
        for model in (board.view.models.index(name) for name in sorted(board.view.models)):
            relief = Relief(board, model, self.moves, churn=rates, lives_s=lives_s, now_ms=now_ms)
            found += relief.moves()
        return found


def _slots_ahead(board: Board, memory: Memory, now_ms: int, config: SchedulerConfig) -> int:
    """Slots that are not free but should be for those who come next."""
    view = board.view
    if config.model not in view.models:
        return 0
    free = int(np.maximum(board.room[board.fitting(view.models.index(config.model))], 0).sum())
    return max(0, math.ceil(AHEAD_S * arrival_rate(memory.window, now_ms // 1000)) - free)
