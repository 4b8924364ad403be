"""Moves that no policy decides: what administrators ordered, and migrations that took too long. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from scheduler.messages import SessionRecord
from scheduler.policy.base import CallOff, Migrate

__all__ = ["is_special", "special_moves"]


def is_special(record: SessionRecord) -> bool:
    """Must `special_moves` look at it?"""
    return record.in_flight is not None or record.move_to is not None


def special_moves(records: Iterable[SessionRecord], now_ms: int) -> list[Migrate | CallOff]:
    """The actions for these sessions."""
    actions: list[Migrate | CallOff] = []
    for record in records:
        flight = record.in_flight
        if flight is not None and flight.deadline_ms < now_ms:
            why = f"{now_ms - flight.deadline_ms} ms over its limit"
            actions.append(CallOff(session=record.id, why=why))
        elif flight is None and record.engine and record.move_to and now_ms < record.move_until_ms:
            actions.append(
                Migrate(
                    session=record.id,
                    source=record.engine,
                    target=record.move_to,
                    expect_epoch=record.epoch,
                    why="ordered",
                )
            )
    return actions
