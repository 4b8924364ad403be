"""Reads what earlier owners left of a session: its input log, what was applied, its checkpoint."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from engine.recovery import Past
from engine.state_format import ExportedState, StateFormatError, unpack
from engine.steering import LogEntry
from scheduler.messages import SessionId, SessionRecord
from scheduler.store import START, Checkpoints, Store

__all__ = ["read_past"]

_log = logging.getLogger("turboserve.engine.past")


async def read_past(
    record: SessionRecord, store: Store, checkpoints: Checkpoints, *, can_use: Callable[[ExportedState], bool]
) -> Past:
    """All of it; a checkpoint that can't be read or used counts as none.

    Raises:
        StoreUnavailable: Redis is out of reach.
    """
    log = await _read_whole_log(store, record.id)
    applied = await store.applied_history(record.id)
    found = await checkpoints.read(record.id)
    pointer, data = found if found is not None else (None, None)
    checkpoint = None
    if data is not None:
        try:
            checkpoint = await asyncio.to_thread(unpack, data)
        except StateFormatError as exc:
            _log.error("the checkpoint of %s can't be used: %s", record.id, exc)
        else:
            checkpoint = checkpoint if can_use(checkpoint) else None
    return Past(
        record=record,
        log=tuple(log),
        applied=tuple(applied),
        pointer=pointer,
        checkpoint=checkpoint,
        data=data,
    )


async def _read_whole_log(store: Store, session: SessionId) -> list[LogEntry]:
    log: list[LogEntry] = []
    while True:
        after = log[-1].entry if log else START
        page = (await store.read_inputs({session: after})).get(session, [])
        if not page:
            return log
        log.extend(LogEntry(entry=id, message=message) for id, message in page)
