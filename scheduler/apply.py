"""Carries out a plan's actions, one log line each. Nothing is decided here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import assert_never

from scheduler.messages import EngineId
from scheduler.policy.base import (
    Action,
    Activate,
    CallOff,
    DrainEngine,
    LoseEngine,
    Migrate,
    Place,
    Requeue,
    SessionAction,
    SetDesired,
    StopDrained,
    Suspend,
    Sweep,
)
from scheduler.store import PlacementRefused, Store, draw_id

log = logging.getLogger("scheduler")

MIGRATION_LIMIT_MS = 20_000
"""From the order to the commit."""


async def apply(store: Store, actions: Sequence[Action], *, term: int, may_act: Callable[[], bool]) -> bool:
    """Apply in order; refused actions are logged and skipped. False: may_act said stop, the rest is left out.

    Raises:
        StaleTerm, StoreUnavailable
    """
    for action in actions:
        if not may_act():
            log.warning("the lease ended before %s: stopped acting", type(action).__name__)
            return False
        try:
            await _apply(store, action, term)
        except PlacementRefused as exc:
            log.info("%s refused, planning again: %s", type(action).__name__, exc)
    return True


async def _apply(store: Store, action: Action, term: int) -> None:
    match action:
        case Place() | Migrate() | CallOff() | Requeue() | Suspend() | Activate() | Sweep():
            await _apply_to_session(store, action, term)
        case LoseEngine():
            sessions = await store.lose_engine(action.engine, term=term, reason=action.why)
            log.warning("lost engine %s, %d sessions wait: %s", action.engine, len(sessions), action.why)
        case DrainEngine():
            await store.drain_engine(action.engine, term=term, reason=action.why)
            log.info("draining engine %s: %s", action.engine, action.why)
        case StopDrained():
            await store.stop_engine(action.engine, term=term)
            log.info("stopping engine %s: %s", action.engine, action.why)
        case SetDesired():
            await store.write_desired(term, action.engines)
            ids = ", ".join(engine.id for engine in action.engines) or "none"
            log.info("desired engines are %s: %s", ids, action.why)
        case _:
            assert_never(action)


async def _move(store: Store, action: Place | Migrate, engine: EngineId, term: int) -> None:
    """With its state where there is any to move and the engines can; else from its checkpoint."""
    session, epoch, id = action.session, action.expect_epoch, draw_id("m", 8)
    try:
        await store.begin_migration(
            *(session, engine),
            expect_epoch=epoch,
            term=term,
            migration_id=id,
            limit_ms=MIGRATION_LIMIT_MS,
        )
        log.info("migrating %s to %s, %s: %s", session, engine, id, action.why)
    except PlacementRefused as exc:
        epoch = await store.place_session(session, engine, expect_epoch=epoch, term=term)
        log.info("placed %s on %s at epoch %d (%s): %s", session, engine, epoch, exc, action.why)


async def _apply_to_session(store: Store, action: SessionAction, term: int) -> None:
    match action:
        case Place(engine=engine):
            await _move(store, action, engine, term)
        case Migrate(target=target):
            await _move(store, action, target, term)
        case CallOff():
            await store.call_off_migration(action.session, term=term)
            log.warning("called off the migration of %s: %s", action.session, action.why)
        case Requeue():
            await store.requeue_session(
                action.session, expect_epoch=action.expect_epoch, term=term, reason=action.why
            )
            log.info("queued %s again: %s", action.session, action.why)
        case Suspend():
            await store.suspend_session(action.session, expect_epoch=action.expect_epoch, term=term)
            log.info("suspending %s: %s", action.session, action.why)
        case Activate():
            await store.activate_session(action.session, expect_epoch=action.expect_epoch, term=term)
            log.info("activating %s: %s", action.session, action.why)
        case Sweep():
            if await store.sweep_session(action.session, left_ms=action.left_ms, term=term, reason="left"):
                log.info("closed %s: %s", action.session, action.why)
        case _:
            assert_never(action)
