"""Who gets a place next: sessions that wait, that are active again, that must leave their engine. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.fairness import standings
from scheduler.messages import EngineId, EngineState, Residence
from scheduler.policy.base import Activate, Migrate, Place, Suspend
from scheduler.policy.board import MAX_MOVES, MAX_MOVES_PER_ENGINE, Board
from scheduler.policy.fleet import fleet
from scheduler.view import ENGINE_STATES, RESIDENCES, View

Choose = Callable[[Board, NDArray[np.bool_]], int]
"""(board, mask of candidates, one at least) → the engine for one more session. Ties go to the smaller id."""
Urgency = Callable[[int], Any]
"""Session row → sort key."""
Moves = Place | Migrate | Activate | Suspend
DRAINING = ENGINE_STATES.index(EngineState.DRAINING)
LEAVING = RESIDENCES.index(Residence.LEAVING)


class Seats(NamedTuple):
    """Who gets a place, and who found none."""

    actions: tuple[Moves, ...] = ()
    short: tuple[int, ...] = ()
    """Rows of sessions that need a slot and found none, who comes first first."""


def seat(board: Board, rows: Iterable[int], choose: Choose) -> Seats:
    """Give sessions that wait a place, in this order, and those that are active again a slot.

    Who is on an engine that is still usable stays there. An idle session needs a place, but no slot.
    """
    sessions, usable, room = board.view.sessions, board.usable, board.room
    active, own, model = sessions["active"], sessions["engine"], sessions["model"]
    fitting: dict[int, NDArray[np.bool_]] = {}
    actions: list[Moves] = []
    short: list[int] = []
    full: set[int] = set()
    for row in rows:
        kind, is_active = int(model[row]), bool(active[row])
        if kind not in fitting:
            fitting[kind] = board.fitting(kind)
        if is_active and kind in full:
            short.append(row)
            continue
        at = int(own[row])
        if is_active and at >= 0 and usable[at] and room[at] > 0:
            actions.append(board.activate(row, "active again, and its engine has a free slot"))
            continue
        fits = fitting[kind] & (room > 0) if is_active else fitting[kind]
        if np.count_nonzero(fits):
            best = choose(board, fits)
            actions.append(board.place(row, best, _why(board, best)))
        elif is_active:
            full.add(kind)
            short.append(row)
    return Seats(actions=tuple(actions), short=tuple(short))


def _why(board: Board, engine: int) -> str:
    capacity = board.view.engines["capacity"][engine]
    return f"{board.room[engine]} of {capacity} slots free, {board.next_ms[engine]:.0f} ms per chunk then"


def waiting(view: View) -> tuple[list[int], list[int]]:
    """Queued sessions that somebody watches, who gets a place first first: (returners, new starts).

    It is the order that `StoreReader.queue` tells clients.
    """
    sessions = view.sessions
    if not view.line:
        return [], []
    find, deserted = sessions.rows, view.deserted
    line = [(order, row) for order, id in view.line if (row := find[id]) not in deserted]
    if line and view.controlled:
        rows, order = _in_turn(view, [row for _, row in line]), sessions["queue_order"]
        line = [(int(order[row]), row) for row in rows]
    return [row for order, row in line if order < 0], [row for order, row in line if order >= 0]


def _in_turn(view: View, rows: Sequence[int]) -> list[int]:
    """Rows of the lines of all models, by subject in turn in each."""
    order, subject = view.sessions["queue_order"], view.sessions["subject"]
    lines: dict[int, list[int]] = {}
    for row in rows:
        lines.setdefault(int(view.sessions["model"][row]), []).append(row)
    stands: list[tuple[int, int]] = []
    for line in lines.values():
        entries = [(int(order[row]), subject[row]) for row in line]
        stands += zip(standings(entries, view.controlled), line, strict=True)
    rank = {row: at for at, row in enumerate(rows)}
    return [row for _, row in sorted(stands, key=lambda entry: (entry[0], rank[entry[1]]))]


def draining(view: View) -> list[int]:
    """Engines that sessions must leave."""
    return list(view.keep(fleet).draining)


def leavers(view: View, engines: Collection[int]) -> list[int]:
    """Sessions of these engines, by id, without those that migrate already."""
    if not engines:
        return []
    in_flight = view.sessions["in_flight"]
    return view.by_id(row for engine in engines for row in view.members[engine] if not in_flight[row])


def arrival_order(view: View) -> list[int]:
    """Returners, those active again without a slot, those on draining engines, then new starts."""
    returners, starts = waiting(view)
    leaving = draining(view)
    return [*returners, *active_again(view, leaving), *leavers(view, leaving), *starts]


def active_again(view: View, leaving: Collection[int]) -> list[int]:
    """Sessions that are active without a slot, by id, less those of engines that everybody leaves."""
    if not view.wanting:
        return []
    engine, in_flight = view.sessions["engine"], view.sessions["in_flight"]
    return view.by_id(row for row in view.wanting if engine[row] not in leaving and not in_flight[row])


def empty_engines(board: Board, engines: Collection[int], choose: Choose) -> tuple[list[Moves], list[int]]:
    """Begin to take every session away from these engines: (actions, rows that are out of their slot or found
    no target, and are to be seated as if they waited).

    Who generates migrates, as many at a time as the links bear; the others wait for that or for their turn.
    Who can't migrate, because its engine or none with room can or because that failed before, goes by its
    checkpoint. Who is idle in a slot leaves it first: its state then moves without needing a slot elsewhere.
    """
    sessions, states = board.view.sessions, board.view.engines["state"]
    actions: list[Moves] = []
    rest: list[int] = []
    for row in leavers(board.view, engines):
        source = int(sessions["engine"][row])
        if not sessions["active"][row] and (
            sessions["movable"][row] or sessions["residence"][row] == LEAVING
        ):
            if sessions["movable"][row]:
                actions.append(
                    board.suspend(row, f"idle, and leaves {board.view.engines.ids[source]}, which goes")
                )
            continue
        can_migrate = board.transfers[source] and not sessions["stuck"][row]
        if not can_migrate or not sessions["active"][row] or row in board.view.wanting:
            rest.append(row)
            continue
        if not sessions["movable"][row]:
            continue
        fits = board.fitting(int(sessions["model"][row])) & (board.room > 0)
        if not fits.any():
            if states[source] == DRAINING:
                rest.append(row)
            continue
        fits &= board.transfers
        if not fits.any():
            rest.append(row)
            continue
        fits &= board.moves < MAX_MOVES_PER_ENGINE
        if len(board.moved) < MAX_MOVES and board.can_move(source) and fits.any():
            target = choose(board, fits)
            actions.append(board.migrate(row, target, f"leaves {board.view.engines.ids[source]}, which goes"))
    return actions, rest


def arrange(
    board: Board, closing: Collection[EngineId], choose: Choose, urgency: Urgency | None = None
) -> Seats:
    """What a policy that migrates does with everybody who waits or must leave: who generates on an engine
    that goes migrates, everybody else is seated.

    closing: engines that go although they are ready. urgency: order of those that are active again.
    """
    view = board.view
    rows = [view.engines.find(id) for id in closing]
    leaving = sorted({*draining(view), *(row for row in rows if row is not None)})
    if not leaving and not view.queued and not view.wanting:
        return Seats()
    moves, rest = empty_engines(board, leaving, choose)
    returners, starts = waiting(view)
    again = active_again(view, leaving)
    if urgency is not None:
        again.sort(key=urgency)
    seats = seat(board, [*returners, *again, *rest, *starts], choose)
    return Seats(actions=(*moves, *seats.actions), short=seats.short)
