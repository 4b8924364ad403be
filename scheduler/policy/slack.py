"""Ours: sessions where they stall least, engines before they are needed, moves that pay. Pure.

place     where predicted latency stays lowest; who holds least video goes first among those that return
move      off the worst engine, and off any on which players run dry, while the ms that a move takes off
          chunks are no error of measurement and, over the chunks that the session is expected to live for,
          worth more than the move costs; where nobody runs dry only if load would stay uneven; the session
          that the move disturbs least, to where less is to do; and a moved one rests
out       when the demand expected once an engine that is asked for now is ready may not find a slot each, or
          those of now who will still be there then run dry; where engines are ready at once there is
          nothing to expect, and the demand of this moment counts
in        when fewer would do, and even far more demand than expected would find slots until one that
          is asked for then is ready; emptied first
wait      who finds no slot keeps its state if sessions give enough back before long
ahead     idle sessions give up slots before newcomers need them
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scheduler.config import SchedulerConfig
from scheduler.messages import EngineId
from scheduler.policy.autoscale import demand_of, note_demand
from scheduler.policy.base import Changes, Memory, Migrate, Plan
from scheduler.policy.board import Board
from scheduler.policy.fixed import fastest
from scheduler.policy.fleet import fleet, usable
from scheduler.policy.forecast import Churn, churn, forecast
from scheduler.policy.lives import note_lives
from scheduler.policy.relief import MoveRules, Relief
from scheduler.policy.scaling import plan_scaled
from scheduler.view import View

AHEAD_S = 2.0
"""Slots are kept free for the arrivals of so long: a suspended session needs about that to leave its slot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slack:
    """See the module."""

    name: str = "slack"
    utilisation: float = 0.88
    """Share of a chunk's play time that predicted latency may take, on average, when engines are counted."""
    margin: float = 3.0
    """Standard deviations of the forecast for which there shall be slots when engines start fast."""
    turnover: float = 2.5
    """How much fewer the more of the slots in use are given back while an engine starts (μh): who waits gets
    one of those long before, and a margin is paid for all the time: margin / (1 + turnover · μh)."""
    keep: float = 1.0
    """Deviations more for engines that are there: one that goes and is wanted again costs its start twice,
    what it is paid for meanwhile, and those who wait for it."""
    forecasts: bool = True
    """False: size for the demand of this moment."""
    heeds_players: bool = True
    """False: those active again go by id, not by who holds least video."""
    migrates: bool = True
    """False: move nobody but off engines that go."""
    moves: MoveRules = MoveRules()
    hold_ms: int = 1_000
    """Fewer engines must do for so long before one goes, and as long again where a start takes that or more.
    About a chunk: an engine is emptied at chunk boundaries, so one that is not wanted for less long would be
    wanted again before it is empty; and where starts take time one that went too soon is missed longer."""

    def plan(
        self, view: View, changes: Changes, memory: Memory, now_ms: int, config: SchedulerConfig
    ) -> Plan:
        """See `Policy`."""
        memory = note_lives(memory, changes.ages_ms)
        memory = note_demand(view, changes, memory, now_ms, config.model)
        rates = churn(memory.window, now_ms // 1000, memory.start_ms / 1000)
        slack_ms, ids = view.sessions["slack_ms"], view.sessions.ids
        return plan_scaled(
            view,
            changes,
            memory,
            now_ms,
            config,
            choose=fastest,
            urgency=(lambda row: (slack_ms[row], ids[row])) if self.heeds_players else None,
            target=lambda board, _: self._target(board, memory, rates, config),
            hold_ms=self.hold_ms + min(self.hold_ms, memory.start_ms),
            moves=lambda board: self._relieve(board, memory, rates, now_ms),
            freed=lambda: rates.stops * demand_of(view, config.model),
            ahead=lambda board: _slots_ahead(board, rates, config),
        )

    def _target(self, board: Board, memory: Memory, rates: Churn, config: SchedulerConfig) -> int:
        """Engines wanted: at least so many that all of now and `margin` find slots, and that latency stays
        within `utilisation` for those of now who are still there when an engine is ready; of those that there
        are, not fewer than keep it so for all of now, and find slots for `keep` more."""
        view = board.view
        demand, engines = demand_of(view, config.model), view.engines
        in_time, slots = view.keep(_tallies, self.utilisation, *board.closed)
        if not slots:
            return max(len(engines), min(1, demand))
        now = _count(in_time, demand)
        if not self.forecasts or memory.start_ms <= 0:
            return now
        start_s = memory.start_ms / 1000
        coming = forecast(rates, demand, start_s)
        margin = self.margin / (1.0 + self.turnover * rates.stops * start_s)
        out = _count(slots, max(demand, coming.mean + margin * coming.deviation))
        out = max(out, _count(in_time, coming.staying))
        keep = max(now, _count(slots, coming.mean + (margin + self.keep) * coming.deviation))
        return max(out, min(keep, len(engines) - view.keep(fleet).num_going))

    def _relieve(self, board: Board, memory: Memory, rates: Churn, now_ms: int) -> list[Migrate]:
        if not self.migrates:
            return []
        found: list[Migrate] = []
        for model in (board.view.models.index(name) for name in sorted(board.view.models)):
            relief = Relief(board, model, self.moves, churn=rates, memory=memory, now_ms=now_ms)
            found += relief.moves()
        return found


Tally = list[tuple[float, int]]
"""(sessions that an engine serves, in eighths; engines that do), most sessions first."""


def _tallies(view: View, utilisation: float, *closed: EngineId) -> tuple[Tally, Tally]:
    """Of the engines that may get sessions: by how many they serve in time, by their slots. To be kept."""
    rows = np.flatnonzero(view.keep(usable, *closed))
    if not len(rows):
        return [], []
    return _tally(_fit(view, utilisation)[rows]), _tally(view.engines["capacity"][rows])


def _fit(view: View, utilisation: float) -> NDArray[np.float64]:
    """Sessions that each engine serves on average, where some have one more than others, within
    `utilisation` and its capacity; at least one."""
    engines = view.engines
    limit_ms, rows = utilisation * engines["play_ms"], np.arange(len(engines))
    capacity = engines["capacity"]
    curves = engines["round_ms"][:, : 1 + int(capacity.max())]
    within = np.maximum((curves[:, 1:] <= limit_ms[:, None]).sum(axis=1), 1)
    more = np.minimum(within + 1, curves.shape[1] - 1)
    step_ms = curves[rows, more] - curves[rows, within]
    part = np.clip((limit_ms - curves[rows, within]) / np.maximum(step_ms, 1e-6), 0.0, 1.0)
    fit: NDArray[np.float64] = np.minimum(within + part, capacity)
    return fit


def _tally(fits: NDArray[Any]) -> Tally:
    numbers = np.bincount((8 * fits).astype(np.int64))
    return [(eighths / 8, int(numbers[eighths])) for eighths in np.flatnonzero(numbers)[::-1].tolist()]


def _count(tally: Sequence[tuple[float, int]], need: float) -> int:
    """Engines for so many sessions, those that serve most first; more are like their median."""
    number = 0
    for fit, engines in tally:
        if need <= fit * engines:
            return number + max(0, math.ceil(need / fit))
        need -= fit * engines
        number += engines
    ends = list(accumulate(engines for _, engines in tally))
    middle = (tally[bisect_right(ends, rank)][0] for rank in ((number - 1) // 2, number // 2))
    return number + math.ceil(2 * need / sum(middle))


def _slots_ahead(board: Board, rates: Churn, config: SchedulerConfig) -> int:
    """Slots that are not free but should be for those who come next."""
    view = board.view
    if config.model not in view.models:
        return 0
    needed = math.ceil(AHEAD_S * rates.arrivals)
    if not needed:
        return 0
    is_open = board.open_to(view.models.index(config.model))
    return max(0, needed - int(np.add.reduce(board.room[is_open])))
