"""Moves off the engines where chunks take longest, as long as each pays for itself. Pure.

The engine with the worst latency is relieved first: the largest chunk latency is its own. When it can't be,
others are relieved only where players run dry, so that it matters how many suffer and not only how much one
does. A move pays when its target is faster by more than predictions are wrong by, and when the ms that it
takes off each chunk, over the chunks that the session is expected to live for, are worth more than it costs.
Where no player runs dry nobody sees those ms: there only the chunks until load evens out by itself count,
which must not be soon, as every newcomer goes where least is to do, and the gain must be more than what the
move adds to one chunk. And there an engine that has as much to do must be faster by far: a session would
move to and fro as engines of one machine measure themselves in turn as the slower one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.policy.base import Memory, Migrate
from scheduler.policy.board import MAX_MOVES, MAX_MOVES_PER_ENGINE, Board, move_costs_ms
from scheduler.policy.forecast import Churn
from scheduler.policy.lives import bucket_of, remaining_s


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveRules:
    """When a move pays."""

    most: int = MAX_MOVES
    """Migrations that one plan begins."""

    rest_ms: int = 10_000
    """A moved session is not moved again for so long."""
    horizon_s: float = 60.0
    """Gains later than this don't count: until then the placement has changed anyhow."""
    min_gain_ms: float = 5.0
    """A move takes more than this off each chunk of the engine that it relieves."""
    noise: float = 0.15
    """Share of a latency by which an engine may seem slower than another with as much to do, as costs are
    measured. Of four equal engines on two busy cores, nine in ten predictions were within 6 %, all within
    14 % (bench/results/moves_*.md)."""
    faster: float = 0.5
    """The same where nobody runs dry and the move leaves the load as uneven as it was: of other hardware."""
    calm_s: float = 10.0
    """Where nobody runs dry, an uneven load that evens out by itself within so long is left alone."""
    price: float = 2.0
    """ms of latency, summed over chunks, that a ms of migration must bring."""
    stall_price: float = 20.0
    """The same for a ms by which the migration is longer than the video that the player holds."""
    dry: float = 0.9
    """Players are taken to run dry where predicted latency is above this share of a chunk's play time."""


class Relief:
    """One plan's moves among the engines of one model."""

    def __init__(
        self,
        board: Board,
        model: int,
        rules: MoveRules,
        *,
        churn: Churn,
        memory: Memory,
        now_ms: int,
    ) -> None:
        """churn: of the sessions that want chunks. memory: what is known of how long they live."""
        fits = board.fitting(model)
        self._board, self._rules, self._churn = board, rules, churn
        self._memory, self._now_ms = memory, now_ms
        self._num_engines = int(np.count_nonzero(fits))
        self._sources_ms: NDArray[np.float64] = np.where(fits, board.latency_ms, -np.inf)
        """Latency of engines that may be relieved."""
        is_open = board.open_to(model) & board.transfers
        is_open &= board.moves < MAX_MOVES_PER_ENGINE
        self._targets_ms: NDArray[np.float64] = np.where(is_open, board.next_ms, np.inf)
        """Latency of engines that may get a session, with it."""
        self._stuck_ms = 0.0
        """Latency of the worst engine that can't be relieved."""

    def moves(self) -> list[Migrate]:
        """Worst engine first."""
        found: list[Migrate] = []
        if not len(self._targets_ms):
            return found
        best_ms = self._targets_ms.item(self._targets_ms.argmin())
        while len(self._board.moved) < self._rules.most:
            source = int(self._sources_ms.argmax())
            latency_ms = self._sources_ms.item(source)
            if latency_ms < self._stuck_ms and not self._runs_dry(source):
                break
            if latency_ms - best_ms <= self._rules.noise * latency_ms:
                break  # nobody with a lower latency has more to gain
            if self._only_seem_slower(best_ms, source):
                seeming = self._only_seem_slower(best_ms)  # at once: it may be half of all engines
                self._sources_ms[seeming] = -np.inf
                continue
            move = self._move_off(source, best_ms)
            if move is not None:
                found.append(move)
                best_ms = self._targets_ms.item(self._targets_ms.argmin())
            else:
                self._stuck_ms = max(self._stuck_ms, latency_ms)
                self._sources_ms[source] = -np.inf
        return found

    def _move_off(self, source: int, best_ms: float) -> Migrate | None:
        """The move off an engine that disturbs least, to one where latency is best_ms then, if it pays."""
        board = self._board
        if not board.can_move(source):
            return None
        session = self._least_disturbed(source)
        before_ms = float(board.latency_ms[source])
        gain_ms = before_ms - max(best_ms, board.with_one_less(source))
        if session is None or gain_ms <= self._rules.min_gain_ms:
            return None
        equal = np.flatnonzero(self._targets_ms == best_ms)
        costs_ms = move_costs_ms(board.view, session, source, equal)
        cheapest = int(costs_ms.argmin())  # the first of equals: the smaller id
        target, cost_ms = int(equal[cheapest]), float(costs_ms[cheapest])
        chunks = self._chunks_left(session, source)
        if not self._pays(session, source, gain_ms, chunks, cost_ms):
            return None
        why = f"{gain_ms:.0f} of {before_ms:.0f} ms less in {chunks:.0f} chunks, for {cost_ms:.0f} ms once"
        move = board.migrate(session, target, why)
        self._sources_ms[source] = board.latency_ms[source]
        self._targets_ms[source] = np.inf  # it was among the worst
        self._sources_ms[target] = board.latency_ms[target]
        is_open = board.room[target] > 0 and board.can_move(target)
        self._targets_ms[target] = board.next_ms[target] if is_open else np.inf
        return move

    def _only_seem_slower(self, best_ms: float, engines: int | slice = slice(None)) -> NDArray[np.bool_]:
        """Those on which nobody runs dry, and which a move to where latency is best_ms then would leave as
        uneven: such an engine is not the worst, whatever it has measured."""
        board, rules = self._board, self._rules
        latency_ms, active = board.latency_ms[engines], board.active[engines]
        is_calm = latency_ms <= rules.dry * board.view.engines["play_ms"][engines]
        is_close = latency_ms - best_ms <= rules.faster * latency_ms
        is_even = active - board.active[self._targets_ms.argmin()] <= 1
        seem: NDArray[np.bool_] = is_calm & is_close & is_even
        return seem

    def _pays(self, session: int, source: int, gain_ms: float, chunks: float, cost_ms: float) -> bool:
        rules = self._rules
        if not self._runs_dry(source) and (self._uneven_s(source) < rules.calm_s or gain_ms <= cost_ms):
            return False
        stall_ms = max(0.0, cost_ms - float(self._board.view.sessions["slack_ms"][session]))
        return gain_ms * chunks > rules.price * cost_ms + rules.stall_price * stall_ms

    def _runs_dry(self, engine: int) -> bool:
        """Does it take so long for chunks that its players may stand still?"""
        play_ms = self._board.view.engines["play_ms"].item(engine)
        return bool(self._board.latency_ms.item(engine) > self._rules.dry * play_ms)

    def _uneven_s(self, source: int) -> float:
        """For how long this engine is expected to have more to do than others if nobody is moved."""
        return self._churn.evens_out_s(int(self._board.active[source]), self._num_engines)

    def _chunks_left(self, session: int, source: int) -> float:
        """Chunks of a session until it ends or the horizon is reached; where nobody runs dry, also until load
        has evened out: where somebody does, each chunk counts, and who comes next would run dry as well."""
        view = self._board.view
        age_ms = self._now_ms - int(view.sessions["created_ms"][session])
        left_s = min(self._rules.horizon_s, remaining_s(self._memory)[bucket_of(age_ms)])
        if not self._runs_dry(source):
            left_s = min(left_s, self._uneven_s(source))
        return left_s * 1000 / max(1.0, float(view.engines["play_ms"][source]))

    def _least_disturbed(self, source: int) -> int | None:
        """The rested session whose stall would be shortest, then the smallest, then who holds most video.

        One that moved later than now has rested: Redis time was set back.
        """
        view, s = self._board.view, self._board.view.sessions
        base_ms = float(view.engines["move_ms"][source])
        link = float(view.engines["link_bytes_per_ms"][source])
        movable, active, moved_ms = s["movable"], s["active"], s["moved_ms"]
        size, slack_ms = s["state_bytes"], s["slack_ms"]
        rested_ms = self._now_ms - self._rules.rest_ms
        rows = [
            row
            for row in view.members[source] - self._board.moved
            if movable[row] and active[row] and not rested_ms < moved_ms[row] <= self._now_ms
        ]
        return min(
            rows,
            key=lambda row: (
                max(0.0, base_ms + float(size[row]) / link - float(slack_ms[row])),
                int(size[row]),
                -int(slack_ms[row]),
                s.ids[row],
            ),
            default=None,
        )
