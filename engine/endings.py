"""Sessions that this engine closed by its own decision, until Redis knows it for certain."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from scheduler.messages import EngineId, SessionId
from scheduler.store import SessionProgress, StaleEpoch, Store

__all__ = ["Endings"]

_log = logging.getLogger("turboserve.engine.endings")

KEPT_S = 10.0
"""How long an end is remembered after Redis took it: more than what a Redis that comes back can have lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    last: SessionProgress
    reason: str
    told_s: float | None = None
    """When Redis took it."""
    is_taken: asyncio.Event = field(default_factory=asyncio.Event)


class Endings:
    """Belongs to the event loop."""

    def __init__(
        self, store: Store, engine: EngineId, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` gives monotonic seconds."""
        self._store, self._engine, self._clock = store, engine, clock
        self._untold: dict[tuple[SessionId, int], _End] = {}
        self._told: dict[tuple[SessionId, int], _End] = {}

    def add(self, last: SessionProgress, reason: str) -> asyncio.Event:
        """Have the session's record closed; `last` is what was made of it. The event is set once it is."""
        self._untold[last.session, last.epoch] = end = _End(last=last, reason=reason)
        return end.is_taken

    def includes(self, session: SessionId, epoch: int) -> bool:
        """Was this ownership ended here?"""
        return (session, epoch) in self._untold or (session, epoch) in self._told

    async def flush(self) -> None:
        """Tell Redis. Raises StoreUnavailable."""
        for key, end in list(self._untold.items()):
            (session, epoch), told_s = key, self._clock()
            try:
                # Its usage is counted to the end.
                await self._store.publish_sessions(self._engine, [end.last])
                await self._store.end_session(self._engine, session, epoch, end.reason)
            except StaleEpoch:
                if end.told_s is not None:
                    told_s = end.told_s  # Redis has not lost it
                else:
                    _log.info("%s had another owner when it was closed here", session)
            end.is_taken.set()
            if self._untold.get(key) is end:  # not one that was added again meanwhile
                del self._untold[key]
                if told_s >= self._clock() - KEPT_S:
                    self._told[key] = replace(end, told_s=told_s)

    def recall(self) -> None:
        """Redis may have lost its last second: tell it again what it took lately."""
        for key, end in self._told.items():
            self._untold.setdefault(key, end)
        self._told.clear()

    def forget(self) -> None:
        """Redis is as it was: what it took long ago it keeps."""
        limit_s = self._clock() - KEPT_S
        for key in [key for key, end in self._told.items() if end.told_s is None or end.told_s < limit_s]:
            del self._told[key]
