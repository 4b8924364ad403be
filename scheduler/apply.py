"""Carries out a plan's actions, one log line each. Nothing is decided here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import assert_never

from scheduler.policy.base import (
    Action,
    Activate,
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
from scheduler.store import PlacementRefused, Store

log = logging.getLogger("scheduler")


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
        case Place() | Migrate() | Requeue() | Suspend() | Activate() | Sweep():
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


async def _apply_to_session(store: Store, action: SessionAction, term: int) -> None:
    match action:
        case Place():
            epoch = await store.place_session(
                action.session, action.engine, expect_epoch=action.expect_epoch, term=term
            )
            log.info("placed %s on %s at epoch %d: %s", action.session, action.engine, epoch, action.why)
        case Migrate():
            raise AssertionError("no script for it yet: registry.AVAILABLE has no policy that migrates")
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
