"""Carries out a plan's actions, one line each in the log and in Redis. Nothing is decided here."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import assert_never

from scheduler.messages import EngineId, EngineState
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
from scheduler.policy.upkeep import LoseGateway
from scheduler.store import PlacementRefused, Store, draw_id

log = logging.getLogger("scheduler")

MIGRATION_LIMIT_MS = 20_000
"""From the order to the commit."""
WAITING_LIMIT_MS = 9_000
"""The same of a session that makes no chunks meanwhile: as long as it would wait for a slot (`upkeep`)."""


async def apply(
    store: Store,
    actions: Sequence[Action | LoseGateway],
    *,
    term: int,
    may_act: Callable[[], Awaitable[bool]],
    untold: list[str] | None = None,
) -> bool:
    """Apply in order; refused actions are logged and skipped. What was done is kept for the cluster view.

    untold: what was done before and is not kept yet: kept with the rest. What can't be kept now stays there.

    False: may_act said stop, the rest is left out.

    Raises:
        StaleTerm, StoreUnavailable
    """
    done = untold if untold is not None else []
    for action in actions:
        if not await may_act():
            log.warning("the lease ended before %s: stopped acting", type(action).__name__)
            return False
        try:
            said = await _apply(store, action, term)
        except PlacementRefused as exc:
            log.info("%s refused, planning again: %s", type(action).__name__, exc)
            continue
        if said:
            is_bad = isinstance(action, LoseEngine | LoseGateway | CallOff)
            log.log(logging.WARNING if is_bad else logging.INFO, "%s", said)
            done.append(said)
    if done:
        await store.record_decisions(term, done)
        done.clear()
    return True


async def _apply(store: Store, action: Action | LoseGateway, term: int) -> str:
    """Returns what was done and why; "" if nothing."""
    match action:
        case Place() | Migrate() | CallOff() | Requeue() | Suspend() | Activate() | Sweep():
            return await _apply_to_session(store, action, term)
        case LoseEngine():
            sessions = await store.lose_engine(
                action.engine, term=term, reason=action.why, hangs=action.hangs
            )
            return f"lost engine {action.engine}, {len(sessions)} sessions wait: {action.why}"
        case LoseGateway():
            number = await store.lose_gateway(action.gateway, term=term)
            return f"lost gateway {action.gateway}, {number} sessions left: {action.why}" if number else ""
        case DrainEngine():
            await store.drain_engine(action.engine, term=term, reason=action.why)
            return f"draining engine {action.engine}: {action.why}"
        case StopDrained():
            await store.stop_engine(action.engine, term=term)
            return f"stopping engine {action.engine}: {action.why}"
        case SetDesired():
            await store.write_desired(term, action.engines)
            ids = ", ".join(engine.id for engine in action.engines) or "none"
            return f"desired engines are {ids}: {action.why}"
        case _:
            assert_never(action)


async def _must_move(store: Store, action: Place | Migrate) -> bool:
    """Be it from its checkpoint? A session that streams is not interrupted, nor does it lose its picture to
    an engine with other weights, so that load is more even."""
    if isinstance(action, Place):
        return True
    session, source = await store.get_session(action.session), await store.get_engine(action.source)
    is_ordered = session is not None and session.move_to == action.target
    stays = source is not None and source.state is EngineState.READY and not source.drain_ordered
    return is_ordered or not stays


async def _move(store: Store, action: Place | Migrate, engine: EngineId, term: int) -> str:
    """With its state where there is any to move and the engines can; else from its checkpoint, if it must."""
    session, epoch, id = action.session, action.expect_epoch, draw_id("m", 8)
    refusal = ""
    if epoch > 0:  # else nobody has had it
        try:
            await store.begin_migration(
                *(session, engine),
                expect_epoch=epoch,
                term=term,
                migration_id=id,
                limit_ms=MIGRATION_LIMIT_MS,
                waiting_limit_ms=WAITING_LIMIT_MS,
            )
        except PlacementRefused as exc:
            if not await _must_move(store, action):
                raise
            refusal = f" ({exc})"
        else:
            return f"migrating {session} to {engine}, {id}: {action.why}"
    epoch = await store.place_session(session, engine, expect_epoch=epoch, term=term)
    return f"placed {session} on {engine} at epoch {epoch}{refusal}: {action.why}"


async def _apply_to_session(store: Store, action: SessionAction, term: int) -> str:
    session, why = action.session, action.why
    match action:
        case Place(engine=engine):
            return await _move(store, action, engine, term)
        case Migrate(target=target):
            return await _move(store, action, target, term)
        case CallOff():
            await store.call_off_migration(session, term=term)
            return f"called off the migration of {session}: {why}"
        case Requeue(expect_epoch=epoch):
            await store.requeue_session(session, expect_epoch=epoch, term=term, reason=why)
            return f"queued {session} again: {why}"
        case Suspend(expect_epoch=epoch):
            await store.suspend_session(session, expect_epoch=epoch, term=term)
            return f"suspending {session}: {why}"
        case Activate(expect_epoch=epoch):
            await store.activate_session(session, expect_epoch=epoch, term=term)
            return f"activating {session}: {why}"
        case Sweep(left_ms=left_ms):
            closed = await store.sweep_session(session, left_ms=left_ms, term=term, reason="left")
            return f"closed {session}: {why}" if closed else ""
        case _:
            assert_never(action)
