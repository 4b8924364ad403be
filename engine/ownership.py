"""What becomes of a session when Redis refuses a write of its owner, or has lost it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

from engine.host import Host
from engine.hosted import Hosted
from scheduler.messages import EngineId, Phase, ReleaseSession, SessionId, SessionRecord
from scheduler.store import (
    CheckpointPointer,
    CheckpointRefused,
    EngineUnknown,
    SessionCopy,
    StaleEpoch,
    Store,
)

__all__ = ["Ownership"]

_log = logging.getLogger("turboserve.engine.ownership")


class Engine(Protocol):
    """Whose sessions these are."""

    host: Host
    engine: EngineId
    registration: Callable[[], Awaitable[None]] | None
    state_bytes: int

    async def write_checkpoint(self, session: SessionId, pointer: CheckpointPointer, data: bytes) -> None:
        """Raises StoreUnavailable, StaleEpoch, CheckpointRefused."""

    def ended(self, hosted: Hosted, reason: str) -> None:
        """Have the session's record closed."""

    def changed(self) -> None:
        """Publish soon, and `mend`."""


class Ownership:
    """Belongs to the event loop. Methods raise StoreUnavailable."""

    def __init__(self, store: Store, side: Engine) -> None:
        self._store, self._side = store, side

    async def disowned(self, hosted: Hosted) -> None:
        """A write was refused: drop the session and say who has it now, or write it again.

        No record, or one of an older epoch, means that Redis lost it: epochs never fall, so nobody can own it
        at a newer one. Several writes may be refused for one loss: the first to come here mends it for all.
        """
        record = await self._store.get_session(hosted.id)
        host = self._side.host
        if host.sessions.get(hosted.id) is not hosted:
            return  # gone meanwhile, or opened again under a newer epoch
        if record is None or (record.phase is not Phase.CLOSED and record.epoch < hosted.epoch):
            await self._restore(hosted)
        elif self._is_ours(hosted, record):
            hosted.published = None  # was refused before it was written again
            self._side.changed()
        else:
            self._drop(hosted, record)

    async def mend(self, hosted: Hosted) -> None:
        """Write its checkpoint again, if Redis has lost it; to be called until that is done.

        Raises CheckpointsUnavailable as well.
        """
        if (lost := hosted.kept.lost_checkpoint) is None:
            return
        pointer, data = lost
        try:
            await self._side.write_checkpoint(hosted.id, replace(pointer, epoch=hosted.epoch), data)
        except CheckpointRefused as exc:
            hosted.kept.is_checkpoint_lost = False
            _log.info("%s has no checkpoint until its next: %s", hosted.id, exc)
        except StaleEpoch as exc:
            _log.info("%s must be written again before its checkpoint: %s", hosted.id, exc)

    def _is_ours(self, hosted: Hosted, record: SessionRecord) -> bool:
        owner = (record.phase, record.engine, record.epoch)
        return owner == (Phase.PLACED, self._side.engine, hosted.epoch)

    def _drop(self, hosted: Hosted, record: SessionRecord) -> None:
        host = self._side.host
        if record.phase is Phase.CLOSED:
            host.close(hosted.id, record.reason)
        elif record.epoch > hosted.epoch:
            host.release(ReleaseSession(session=hosted.id, epoch=record.epoch, engine=record.engine))
        else:
            host.lose(hosted.id)

    async def _restore(self, hosted: Hosted) -> None:
        copy = self._copy(hosted)
        hosted.kept.is_checkpoint_lost = True  # though the answer be lost, or nobody wait for it
        try:
            try:
                await self._store.restore_session(self._side.engine, copy)
            except EngineUnknown:
                assert self._side.registration is not None, "it has sessions"
                await self._side.registration()
                await self._store.restore_session(self._side.engine, copy)
        except StaleEpoch:  # somebody was faster
            record = await self._store.get_session(hosted.id)
            if record is not None and self._side.host.sessions.get(hosted.id) is hosted:
                self._drop(hosted, record)
            return
        if self._side.host.sessions.get(hosted.id) is not hosted:
            # It ended meanwhile, and Redis may have refused to close what it did not have.
            self._side.ended(hosted, "ended")
            return
        _log.warning("Redis had lost %s at epoch %d: written again", hosted.id, hosted.epoch)
        hosted.published = None
        self._side.changed()

    def _copy(self, hosted: Hosted) -> SessionCopy:
        applied = hosted.kept.applied
        record = replace(
            hosted.record,
            engine=self._side.engine,
            active=hosted.active,
            paused=hosted.life.paused_ms is not None,
            controller_epoch=hosted.controller_epoch,
            next_seq=hosted.replay.next_seq,
            next_frame=hosted.next_frame,
            rev=hosted.rev,
            last_applied=applied[-1].entry if applied else hosted.record.last_applied,
            slack_ms=self._side.host.slack_ms(hosted),
            residence=hosted.residence,
            state_bytes=self._side.state_bytes,
        )
        return SessionCopy(
            record=record,
            left_age_ms=self._side.host.left_age_ms(hosted),
            position=hosted.log.position,
            inputs=[(item.entry, item.message) for item in hosted.kept.inputs],
            applied=list(applied),
        )
