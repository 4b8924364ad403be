"""Keeps engines equal to the desired set in Redis, and reports those that ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from typing import Final, NoReturn, Protocol

from launch.quarantine import is_orderly
from scheduler.messages import (
    DesiredChanged,
    DesiredEngine,
    EngineChanged,
    EngineId,
    EngineState,
    Event,
)
from scheduler.store import EventsLost, EventsTrimmed, Store, StoreUnavailable

__all__ = ["Engines", "Provisioner"]

log = logging.getLogger("launch.provisioner")
_BLOCK_MS: Final = 5_000
_RETRY_S: Final = 0.5


class Engines(Protocol):
    """What the provisioner steers: processes (`launch/fleet.py`) or pods (`launch/kubernetes_pods.py`).

    An engine is drained by the scheduler before it drops it from the desired set: nothing here drains.
    """

    def reconcile(self, desired: Sequence[DesiredEngine]) -> None:
        """Start what is wanted and was never started; stop what is not wanted any more."""

    def owned(self) -> Collection[EngineId]:
        """Those that run here now, also if an earlier provisioner had started them."""

    async def mark_ready(self, engine: EngineId) -> None:
        """The engine has registered and takes sessions."""

    def mark_lost(self, engine: EngineId) -> None:
        """The engine is gone, and not in order: it was given up, or its end was reported, by whomever. Said
        before it is not wanted any more, and perhaps of one that does not run here."""


class Provisioner:
    """Follows the events stream. Sets of a leader older than one already seen are ignored."""

    def __init__(self, store: Store, engines: Engines, *, name: str, newer_than: int) -> None:
        """`name`: in claims; whoever goes on with its engines later must have the same, and nobody else.
        `newer_than`: the term of the set found before this cluster's scheduler started; 0: any.
        """
        self._store = store
        self._name = name
        self._engines = engines
        self._newest_term = newer_than + 1
        self._has_obeyed = False
        """Has any set been carried out?"""
        self._ours: set[EngineId] = set()
        self._after: str | None = None
        """Id of the last event that was read; None: before the first, and after events were lost."""
        self._has_lost = False
        """Did Redis lose data, and does its leader perhaps not know?"""
        self._is_away = False
        self._reports: set[asyncio.Task[None]] = set()

    async def follow(self) -> NoReturn:
        """Reconcile at each change, for ever. While Redis is away everything keeps running as it is."""
        while True:
            try:
                await self._follow_events()
            except EventsTrimmed as exc:
                log.info("%s: reading everything again", exc)
                self._has_lost |= isinstance(exc, EventsLost)
                self._after = None
            except StoreUnavailable as exc:
                if not self._is_away:  # once per outage
                    log.warning("%s; engines keep running", exc)
                self._is_away = True
                await asyncio.sleep(_RETRY_S)

    async def _follow_events(self) -> NoReturn:
        if self._after is not None:
            await self._store.check_events(self._after)
        if self._has_lost and self._has_obeyed:
            # What is left may want, under the same term, none of the engines that were started since.
            await self._store.report_loss(self._newest_term)
            self._newest_term += 1
        self._has_lost = False
        if self._after is None:
            self._after = await self._store.last_event_id()
        self._is_away = False
        await self._reconcile()
        await self._mark_all_ready()
        while True:
            entries = await self._store.read_events(self._after, block_ms=_BLOCK_MS)
            for id, event in entries:
                await self._handle(event)
                self._after = id
            if not entries:
                await self._reconcile()  # once per quiet period, should an event ever be missed

    async def _handle(self, event: Event) -> None:
        match event:
            case DesiredChanged():
                await self._reconcile()
            case EngineChanged(engine=engine, state=EngineState.READY):
                await self._engines.mark_ready(engine)
            case EngineChanged(engine=engine, state=EngineState.GONE, reason=reason):
                if not is_orderly(reason):
                    self._engines.mark_lost(engine)
            case _:
                pass

    async def _mark_all_ready(self) -> None:
        for engine in await self._store.list_engines():
            if engine.state is EngineState.READY:
                await self._engines.mark_ready(engine.id)

    async def _reconcile(self) -> None:
        term, desired = await self._store.read_desired()
        if term < self._newest_term:
            if self._has_obeyed:  # terms never fall: Redis lost data, and its next leader began anew
                await self._store.raise_term(self._newest_term)
            return
        self._newest_term, self._has_obeyed = term, True
        owned = set(self._engines.owned())
        self._ours = self._ours & {engine.id for engine in desired} | owned
        for engine in desired:  # `turboserve engine` elsewhere takes some of them, and may have registered
            if engine.id not in self._ours and await self._store.claim_engine(self._name, engine.id):
                self._ours.add(engine.id)
        self._engines.reconcile([engine for engine in desired if engine.id in self._ours])

    def report_exit(self, engine: EngineId, reason: str, *, crashed: bool) -> None:
        """Tell the scheduler that an engine's process ended; goes on until Redis has heard it."""
        work = self._report_exit(engine, reason, crashed)
        task = asyncio.create_task(work, name=f"report exit of {engine}")
        self._reports.add(task)
        task.add_done_callback(self._reports.discard)

    async def _report_exit(self, engine: EngineId, reason: str, crashed: bool) -> None:
        while True:
            try:
                await self._store.report_exit(engine, reason, crashed=crashed)
                return
            except StoreUnavailable:
                await asyncio.sleep(_RETRY_S)
