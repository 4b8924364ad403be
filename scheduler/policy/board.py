"""The engines as a plan leaves them, action by action: room, active sessions, predicted latency. Pure.

The one mutable thing of a plan, made at its start from the view and thrown away at its end.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from scheduler.messages import EngineId
from scheduler.policy.base import Activate, Migrate, Place, Suspend
from scheduler.policy.fleet import fitting, usable
from scheduler.view import LOADS, View

MAX_MOVES = 12
"""Migrations that one plan begins."""
MAX_MOVES_PER_ENGINE = 2
"""Migrations from or to one engine at a time: more of them share its link and slow each other down."""


class Board:
    """Arrays by engine row; `take`, `move` and `shut` keep them up to date."""

    def __init__(self, view: View, closed: Collection[EngineId] = ()) -> None:
        """closed: engines that get no sessions, besides those that are not ready or are ordered to drain."""
        engines = view.engines
        self.view = view
        self.closed = tuple(sorted(closed))
        self.usable: NDArray[np.bool_] = view.keep(usable, *self.closed)
        self.room: NDArray[np.int32] = engines["capacity"] - engines["residents"] - engines["incoming"]
        # Those of the view until one of them changes: most plans change none.
        self.active: NDArray[np.int32] = engines["active"]
        self.latency_ms: NDArray[np.float64] = engines["latency_ms"]
        self.next_ms: NDArray[np.float64] = engines["next_ms"]
        self._is_changed = self._is_shut = False
        self._open: dict[int, NDArray[np.bool_]] = {}
        self._moves: NDArray[np.int32] | None = None
        self.transfers: NDArray[np.bool_] = engines["transfers"]
        self.moved: set[int] = set()
        """Rows of sessions that this plan migrates."""
        self.seated: set[int] = set()
        """Rows of sessions that this plan does anything else with."""
        self.taken: set[int] = set()
        """Engines that this plan gives sessions."""
        self._curves: NDArray[np.float64] = engines["round_ms"]

    @property
    def moves(self) -> NDArray[np.int32]:
        """Migrations from and to each engine."""
        if self._moves is None:
            self._moves = self.view.engines["incoming"] + self.view.engines["outgoing"]
        return self._moves

    def fitting(self, model: int) -> NDArray[np.bool_]:
        """Mask of engines that may get sessions of a model. Not to be changed."""
        if not self._is_shut:
            return self.view.keep(fitting, model, *self.closed)
        fits: NDArray[np.bool_] = self.usable & (self.view.engines["model"] == model)
        return fits

    def open_to(self, model: int) -> NDArray[np.bool_]:
        """Those of them that have room. Not to be changed."""
        found = self._open.get(model)
        if found is None:
            found = self._open[model] = self.fitting(model) & (self.room > 0)
        return found

    def shut(self, engines: Collection[int]) -> None:
        """Give these engines (rows) no sessions from now on."""
        if engines:
            self._is_shut, self.usable = True, self.usable.copy()
            self.usable[list(engines)] = False
            self._open.clear()

    def with_one_less(self, engine: int) -> float:
        """Its latency after one session has left, ms."""
        return float(self._curves[engine, max(0, min(int(self.active[engine]), LOADS) - 1)])

    def place(self, session: int, engine: int, why: str) -> Place:
        """Give a session to an engine; an active one takes a slot."""
        self.seated.add(session)
        if self.view.sessions["active"][session]:
            self._take(engine)
        return Place(
            session=self.view.sessions.ids[session],
            engine=self.view.engines.ids[engine],
            expect_epoch=int(self.view.sessions["epoch"][session]),
            why=why,
        )

    def activate(self, session: int, why: str) -> Activate:
        """Give a session a slot of its own engine."""
        self.seated.add(session)
        self._take(int(self.view.sessions["engine"][session]))
        return Activate(
            session=self.view.sessions.ids[session],
            expect_epoch=int(self.view.sessions["epoch"][session]),
            why=why,
        )

    def suspend(self, session: int, why: str) -> Suspend:
        """Have a session give up its slot, which is free once its state has left it."""
        self.seated.add(session)
        return Suspend(
            session=self.view.sessions.ids[session],
            expect_epoch=int(self.view.sessions["epoch"][session]),
            why=why,
        )

    def migrate(self, session: int, target: int, why: str) -> Migrate:
        """Move a session. Its slot at the source becomes free only when the migration is over."""
        source = int(self.view.sessions["engine"][session])
        if self.view.sessions["active"][session]:
            self._change(source, -1)
            self._change(target, +1)
        self.room[target] -= 1
        self._open.clear()
        self.moves[source] += 1
        self.moves[target] += 1
        self.moved.add(session)
        return Migrate(
            session=self.view.sessions.ids[session],
            source=self.view.engines.ids[source],
            target=self.view.engines.ids[target],
            expect_epoch=int(self.view.sessions["epoch"][session]),
            why=why,
        )

    def can_move(self, engine: int) -> bool:
        """May one more migration begin or end there?"""
        return bool(self.transfers[engine] and self.moves[engine] < MAX_MOVES_PER_ENGINE)

    def _take(self, engine: int) -> None:
        self.room[engine] -= 1
        self._open.clear()
        self.taken.add(engine)
        self._change(engine, +1)

    def _change(self, engine: int, by: int) -> None:
        if not self._is_changed:
            self._is_changed, self.active = True, self.active.copy()
            self.latency_ms, self.next_ms = self.latency_ms.copy(), self.next_ms.copy()
        self.active[engine] += by
        load, curve = int(self.active[engine]), self._curves[engine]
        self.latency_ms[engine] = curve[min(load, LOADS - 1)]
        self.next_ms[engine] = curve[min(load + 1, LOADS - 1)]


def move_costs_ms(
    view: View, session: int, source: int, targets: slice | NDArray[np.intp] = slice(None)
) -> NDArray[np.float64]:
    """f64[targets]: what moving a session to these engines takes, over the slower of both links."""
    link = view.engines["link_bytes_per_ms"]
    links = np.minimum(link[targets], link[source])
    costs: NDArray[np.float64] = (
        view.engines["move_ms"][targets] + view.sessions["state_bytes"][session] / links
    )
    return costs
