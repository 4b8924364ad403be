"""What plans ask of engines whatever their sessions do, found out once between changes of engines. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.messages import EngineId, EngineState
from scheduler.view import NEVER_MS, View

__all__ = ["Fleet", "fitting", "fleet", "usable"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fleet:
    """`view.keep(fleet)`. Rows are in the order of ids; arrays are not to be changed."""

    staying: NDArray[np.intp]
    """Rows of ready engines that nobody ordered to drain."""
    num_starting: int
    """Engines that start and that nobody ordered to drain."""
    draining: tuple[int, ...]
    """Rows of engines that sessions must leave."""
    ordered: tuple[int, ...]
    """Rows of engines that were ordered to drain, whatever they do now."""
    going: NDArray[np.bool_]
    """Mask of those that drain or were ordered to."""
    num_going: int
    is_as_desired: bool
    """Are the engines that there are those that should be?"""
    asked_ms: int
    """Redis time since which the first of those that start does; NEVER_MS if none does."""
    deadline_ms: int
    """The first deadline of a phase; NEVER_MS if there is none."""


def fleet(view: View) -> Fleet:
    """To be kept."""
    engines = view.engines
    ready, starting = view.is_state(EngineState.READY), view.is_state(EngineState.STARTING)
    draining, ordered = view.is_state(EngineState.DRAINING), engines["drain_ordered"]
    going, staying = draining | ordered, (ready & ~ordered).nonzero()[0]
    going.flags.writeable = staying.flags.writeable = False
    return Fleet(
        staying=staying,
        num_starting=int(np.count_nonzero(starting & ~ordered)),
        draining=_rows(draining),
        ordered=_rows(ordered),
        going=going,
        num_going=int(np.count_nonzero(going)),
        is_as_desired=bool(engines["desired"].all()) and len(view.desired) == len(engines),
        asked_ms=int(engines["started_ms"][starting].min(initial=NEVER_MS)),
        deadline_ms=int(engines["deadline_ms"].min(initial=NEVER_MS)),
    )


def usable(view: View, *closed: EngineId) -> NDArray[np.bool_]:
    """Mask of engines that may get sessions: ready, not ordered to drain, and not `closed`. To be kept."""
    engines = view.engines
    mask: NDArray[np.bool_] = view.is_state(EngineState.READY) & ~engines["drain_ordered"]
    rows = [engines.find(id) for id in closed]
    mask[[row for row in rows if row is not None]] = False
    mask.flags.writeable = False
    return mask


def fitting(view: View, model: int, *closed: EngineId) -> NDArray[np.bool_]:
    """Mask of those of a model. To be kept."""
    mask: NDArray[np.bool_] = view.keep(usable, *closed) & (view.engines["model"] == model)
    mask.flags.writeable = False
    return mask


def _rows(mask: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(mask.nonzero()[0].tolist())
