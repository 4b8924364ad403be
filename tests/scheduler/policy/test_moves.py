"""Moves besides what a policy decides."""

from __future__ import annotations

from dataclasses import replace

from scheduler.messages import EngineId, InFlight
from scheduler.policy.base import CallOff, Migrate
from scheduler.policy.moves import is_special, special_moves
from tests.scheduler.policy.worlds import NOW_MS, session

PLAIN = session("s_a", "e_1")
E1, E2 = EngineId("e_1"), EngineId("e_2")


def test_a_migration_is_called_off_after_its_deadline() -> None:
    flight = InFlight(migration_id="m", source=E1, target=E2, deadline_ms=NOW_MS)
    flying = replace(PLAIN, in_flight=flight)
    assert is_special(flying) and not is_special(PLAIN)
    assert special_moves([flying], NOW_MS) == []
    assert [type(action) for action in special_moves([flying], NOW_MS + 1)] == [CallOff]


def test_an_order_holds_for_a_while() -> None:
    """Not while the session migrates, or waits for a place."""
    ordered = replace(PLAIN, move_to=E2, move_until_ms=NOW_MS + 1)
    (move,) = special_moves([ordered], NOW_MS)
    assert isinstance(move, Migrate) and (move.source, move.target) == (E1, E2)
    assert special_moves([ordered], NOW_MS + 1) == []
    assert special_moves([replace(ordered, engine=None)], NOW_MS) == []
