"""The legal moves of a session's record and of an engine. Everything that moves a state is in these tables.

Pure. The Lua scripts get the tables rendered as Lua and move states through one function, as
`advance_session` and `advance_engine` do here. Diagram of a table: `describe`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TypeVar

from scheduler.messages import EngineState, Phase


class SessionMove(Enum):
    """What happens to a session's record."""

    PLACE = "place"
    """The leader gives it to an engine, or to another one."""
    REQUEUE = "requeue"
    """Its engine is lost, or the leader takes it back."""
    CLOSE = "close"


class EngineMove(Enum):
    """What happens to an engine."""

    REGISTER = "register"
    """It is up and announces its link and model. Again after Redis lost its last second: no change."""
    DRAIN = "drain"
    LOSE = "lose"
    """Declared gone by the leader, or it says goodbye itself."""


SESSION_TRANSITIONS: Mapping[Phase, Mapping[SessionMove, Phase]] = {
    Phase.QUEUED: {SessionMove.PLACE: Phase.PLACED, SessionMove.CLOSE: Phase.CLOSED},
    Phase.PLACED: {
        SessionMove.PLACE: Phase.PLACED,
        SessionMove.REQUEUE: Phase.QUEUED,
        SessionMove.CLOSE: Phase.CLOSED,
    },
    Phase.CLOSED: {},
}

ENGINE_TRANSITIONS: Mapping[EngineState, Mapping[EngineMove, EngineState]] = {
    EngineState.STARTING: {
        EngineMove.REGISTER: EngineState.READY,
        EngineMove.LOSE: EngineState.GONE,
    },
    EngineState.READY: {
        EngineMove.REGISTER: EngineState.READY,
        EngineMove.DRAIN: EngineState.DRAINING,
        EngineMove.LOSE: EngineState.GONE,
    },
    EngineState.DRAINING: {
        EngineMove.REGISTER: EngineState.DRAINING,
        EngineMove.DRAIN: EngineState.DRAINING,
        EngineMove.LOSE: EngineState.GONE,
    },
    EngineState.GONE: {},
}

State = TypeVar("State", bound=Enum)
Move = TypeVar("Move", bound=Enum)


class IllegalMove(ValueError):
    """The table has no such move; nothing was changed."""


def advance_session(phase: Phase, move: SessionMove) -> Phase:
    """The phase after `move`. Raises IllegalMove."""
    return _advance(SESSION_TRANSITIONS, phase, move)


def advance_engine(state: EngineState, move: EngineMove) -> EngineState:
    """The state after `move`. Raises IllegalMove."""
    return _advance(ENGINE_TRANSITIONS, state, move)


def describe(table: Mapping[State, Mapping[Move, State]]) -> str:
    """The table as Graphviz text."""
    arrows = (
        f'    {state.value} -> {target.value} [label="{move.value}"]'
        for state, moves in table.items()
        for move, target in moves.items()
    )
    return "\n".join(("digraph {", *arrows, "}"))


def _advance(table: Mapping[State, Mapping[Move, State]], state: State, move: Move) -> State:
    try:
        return table[state][move]
    except KeyError:
        raise IllegalMove(f"{state.value} can't {move.value}") from None
