"""The paper's policy: min-max placement and migration, autoscaling by volatility, in the paper's order. Pure.

    place      keep what is placed; others where the resulting worst latency is lowest, ties to the lighter
    autoscale  engines for the demand at the target utilisation of the present volatility, if the fullest
               engine is above it; fewer when that costs less latency than it saves
    rebalance  the best single move off the bottleneck, while it gains

What the paper does not publish (levels of volatility, their λ and target utilisation, the window) is chosen
here: a grid of them belongs into an evaluation, not one guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.config import SchedulerConfig
from scheduler.messages import EngineState
from scheduler.policy.autoscale import demand_of, note_demand
from scheduler.policy.base import Changes, Memory, Migrate, Plan, Sample
from scheduler.policy.board import MAX_MOVES, Board, move_costs_ms
from scheduler.policy.fixed import fastest
from scheduler.policy.forecast import latest
from scheduler.policy.scaling import plan_scaled
from scheduler.view import View


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """How to size the cluster while demand is this volatile."""

    volatility: float
    """Up to here the level applies."""
    weight: float
    """λ: engines that one chunk's play time of worst-case latency is worth."""
    utilisation: float
    """Target share of the slots in use."""


LEVELS = (
    Level(volatility=0.1, weight=1.0, utilisation=0.9),
    Level(volatility=0.3, weight=2.0, utilisation=0.8),
    Level(volatility=math.inf, weight=4.0, utilisation=0.7),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turboserve:
    """Constants are those seen in the public code's demo, except LEVELS."""

    name: str = "turboserve"
    levels: tuple[Level, ...] = LEVELS
    move_weight: float = 0.0
    """η: ms of worst-case latency that a ms of migration must bring."""
    min_gain_ms: float = 5.0
    hold_ms: int = 5_000
    """Fewer engines must do for so long before one goes."""

    def plan(
        self, view: View, changes: Changes, memory: Memory, now_ms: int, config: SchedulerConfig
    ) -> Plan:
        """See `Policy`."""
        memory = note_demand(view, changes, memory, now_ms, config.model)
        return plan_scaled(
            view,
            changes,
            memory,
            now_ms,
            config,
            choose=fastest,
            target=lambda board, memory: self._target(board, memory, config),
            hold_ms=self.hold_ms,
            moves=lambda board: rebalance(board, self.move_weight, self.min_gain_ms),
        )

    def _target(self, board: Board, memory: Memory, config: SchedulerConfig) -> int:
        """Engines that demand needs at the level's utilisation: ⌈N / (K·ρ̂)⌉.

        More than there are only when an engine is fuller than ρ̂, fewer only when what they cost is more than
        λ times the worst-case latency that they save.
        """
        engines = board.view.engines
        level = next(level for level in self.levels if volatility(memory.window) <= level.volatility)
        rows = np.flatnonzero(board.usable)
        demand = demand_of(board.view, config.model)
        if not len(rows):
            return max(len(engines), min(1, demand))
        capacity = max(1, round(float(engines["capacity"][rows].mean())))
        target = math.ceil(demand / (capacity * level.utilisation))
        number = len(rows)
        if target > number:
            fullest = float((board.active[rows] / np.maximum(engines["capacity"][rows], 1)).max())
            waiting = demand > int(board.active[rows].sum())
            starting = int(np.count_nonzero(board.view.is_state(EngineState.STARTING)))
            return target if fullest > level.utilisation or waiting else min(target, number + starting)
        curve, play_ms = engines["round_ms"][rows[0]], float(engines["play_ms"][rows[0]])
        while target < number:
            now, then = (curve[min(math.ceil(demand / n), len(curve) - 1)] for n in (number, max(1, target)))
            if number - target >= level.weight * float(then - now) / play_ms:
                break
            target += 1
        return target


@latest
def volatility(window: Sequence[Sample]) -> float:
    """The larger of two coefficients of variation: of demand, and of arrivals by second, the latter against
    demand, so that a few arrivals at a large cluster are calm."""
    if len(window) < 2:
        return 0.0
    demand = np.array([sample.demand for sample in window], dtype=float)
    arrivals = np.array([sample.arrivals for sample in window], dtype=float)
    scale = max(1.0, float(demand.mean()))
    return max(float(demand.std()), float(arrivals.std())) / scale


def rebalance(board: Board, move_weight: float, min_gain_ms: float) -> list[Migrate]:
    """Moves off the engine with the largest latency L, each the one with the best L − L′ − η·κ, while that
    is above min_gain_ms. At most MAX_MOVES in the whole plan, a session at most once."""
    moves: list[Migrate] = []
    for name in sorted(board.view.models):
        model = board.view.models.index(name)
        while len(board.moved) < MAX_MOVES:
            move = _best_move(board, model, move_weight, min_gain_ms)
            if move is None:
                break
            moves.append(move)
    return moves


def _best_move(board: Board, model: int, move_weight: float, min_gain_ms: float) -> Migrate | None:
    fits = board.fitting(model) & board.transfers
    latency_ms = np.where(fits, board.latency_ms, 0.0)
    if not len(latency_ms):
        return None
    source = int(latency_ms.argmax())
    worst_ms = float(latency_ms[source])
    session = _cheapest(board, source)
    targets = fits & (board.room > 0)
    targets[source] = False
    if session is None or not targets.any():
        return None
    latency_ms[source] = board.with_one_less(source)
    floor_ms = latency_ms.max()
    costs_ms = move_costs_ms(board.view, session, source)
    after_ms = np.where(targets, np.maximum(floor_ms, board.next_ms) + move_weight * costs_ms, np.inf)
    best_ms = after_ms.min()
    # Among equals the lightest: it leaves the smallest spread.
    target = int(np.where(after_ms <= best_ms, board.next_ms, np.inf).argmin())
    gain_ms = worst_ms - float(best_ms)
    if gain_ms <= min_gain_ms:
        return None
    return board.migrate(session, target, f"worst chunk latency {worst_ms:.0f} ms, {gain_ms:.0f} ms less")


def _cheapest(board: Board, engine: int) -> int | None:
    """The movable session of an engine with the smallest state: the cheapest to move, whatever the target."""
    sessions = board.view.sessions
    movable, active, size = sessions["movable"], sessions["active"], sessions["state_bytes"]
    rows = [r for r in board.view.members[engine] if movable[r] and active[r] and r not in board.moved]
    return min(rows, key=lambda row: (size[row], sessions.ids[row]), default=None)
