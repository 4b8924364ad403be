"""The transition tables."""

from __future__ import annotations

import pytest

from scheduler.messages import EngineState, Phase
from scheduler.states import (
    ENGINE_TRANSITIONS,
    SESSION_TRANSITIONS,
    EngineMove,
    IllegalMove,
    SessionMove,
    advance_engine,
    advance_session,
    describe,
)


def test_tables_know_every_state() -> None:
    """No state is without a row."""
    assert set(SESSION_TRANSITIONS) == set(Phase)
    assert set(ENGINE_TRANSITIONS) == set(EngineState)


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("move", SessionMove)
def test_session_moves(phase: Phase, move: SessionMove) -> None:
    """Legal moves lead where the table says, all others raise."""
    if move in SESSION_TRANSITIONS[phase]:
        assert advance_session(phase, move) is SESSION_TRANSITIONS[phase][move]
    else:
        with pytest.raises(IllegalMove):
            advance_session(phase, move)


@pytest.mark.parametrize("move", EngineMove)
def test_gone_is_final(move: EngineMove) -> None:
    """Nothing brings an engine id back."""
    with pytest.raises(IllegalMove, match="gone can't"):
        advance_engine(EngineState.GONE, move)


def test_a_draining_engine_never_becomes_ready() -> None:
    """Registering again keeps it draining."""
    assert advance_engine(EngineState.DRAINING, EngineMove.REGISTER) is EngineState.DRAINING


def test_diagram_has_every_arrow() -> None:
    """The drawing comes from the table."""
    text = describe(SESSION_TRANSITIONS)
    assert text.count("->") == sum(map(len, SESSION_TRANSITIONS.values()))
    assert 'queued -> placed [label="place"]' in text
