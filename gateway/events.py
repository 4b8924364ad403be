"""Background work of a gateway on the store: one reader of the events stream for all sessions, queue
positions, heartbeat, catalog."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace

from gateway.hub import Hub
from scheduler.messages import (
    ControllerChanged,
    DesiredChanged,
    EngineChanged,
    Event,
    SessionClosed,
    SessionLeft,
    SessionPlaced,
    SessionQueued,
)
from scheduler.store import EventsTrimmed, StoreError, StoreUnavailable

logger = logging.getLogger("gateway.events")

BLOCK_MS = 1_000
RETRY_S = 0.2
HEARTBEAT_S = 3.0
POSITIONS_EVERY_S = 0.2
"""Queue positions are read at most so often, for all waiting sessions together."""
ETAS_EVERY_S = 1.0
"""And so often while somebody waits: the wait changes by itself, e.g. as an engine starts."""
QUEUE_EVENTS = (SessionQueued, SessionPlaced, SessionClosed, SessionLeft, ControllerChanged)
"""Somebody may have joined or left the line: who leaves gives up the place, who comes back takes it again."""


class EventReader:
    """Reads events for as long as the gateway lives; after a loss everybody reads its record again."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._after: str | None = None
        self._is_up = False

    async def prepare(self) -> None:
        """Find the place to read from and load the catalog. Raises StoreUnavailable."""
        self._after = await self._hub.store.last_event_id()
        await self._load_catalog()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._step()
            except EventsTrimmed as exc:
                logger.warning("events were missed: %s", exc)
                self._after = None
            except StoreUnavailable as exc:
                self._mark(False, exc)
                self._after = None  # it may come back empty, with events that fit in behind those read
                await asyncio.sleep(RETRY_S)
            except StoreError:
                logger.exception("reading events failed")
                await asyncio.sleep(RETRY_S)

    async def _step(self) -> None:
        if self._after is None:
            await self.prepare()
            for connection in tuple(self._hub.connections):
                connection.receive_events_lost()
            self._hub.queue_changed()
        assert self._after is not None
        entries = await self._hub.store.read_events(self._after, block_ms=BLOCK_MS)
        self._mark(True, None)
        for id, event in entries:
            self._after = id
            self._dispatch(event)
        if any(isinstance(event, EngineChanged | DesiredChanged) for _, event in entries):
            await self._load_catalog()

    def _dispatch(self, event: Event) -> None:
        session = getattr(event, "session", None)
        if session is not None:
            for connection in self._hub.of(session):
                connection.receive_event(event)
        if isinstance(event, QUEUE_EVENTS):
            self._hub.queue_changed()

    async def _load_catalog(self) -> None:
        store = self._hub.store
        models = await store.list_models()
        _term, desired = await store.read_desired()
        # A model stays known while no engine serves it: sessions may wait for the next one.
        known = {**self._hub.catalog.models, **models}
        expected = frozenset(engine.model for engine in desired)
        self._hub.catalog = replace(self._hub.catalog, models=known, expected=expected)

    def _mark(self, is_up: bool, exc: Exception | None) -> None:
        if is_up != self._is_up:
            logger.warning("Redis %s", "answers" if is_up else f"does not answer: {exc}")
            self._hub.redis_back_s = asyncio.get_running_loop().time() if is_up else None
        self._is_up = is_up
        self._hub.metrics.redis_up.set(int(is_up))


class QueueWatcher:
    """Tells waiting clients their position whenever the queue may have changed, and how their wait does."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._poked = asyncio.Event()
        hub.queue_changed = self._poked.set

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            is_awaited = any(connection.machine.is_queued() for connection in self._hub.connections)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ETAS_EVERY_S if is_awaited else None):
                    await self._poked.wait()
            self._poked.clear()
            try:
                await self._tell_positions()
            except StoreError as exc:
                logger.debug("queue positions are not known: %s", exc)
            await asyncio.sleep(POSITIONS_EVERY_S)

    async def _tell_positions(self) -> None:
        store = self._hub.store
        machines = (connection.machine for connection in self._hub.connections)
        for model in sorted({m.model for m in machines if m.model is not None and m.is_queued()}):
            line, outlook = await store.queue(model), await store.queue_outlook(model)
            places = {session: at for at, session in enumerate(line, start=1)}
            for connection in tuple(self._hub.connections):
                session = connection.machine.session_id
                if session is not None and connection.machine.model == model:
                    position = places.get(session)
                    connection.receive_position(position, outlook.eta_ms(position) if position else 0)


async def beat(hub: Hub, url: str) -> None:
    """Say that this gateway lives, until cancelled."""
    while True:
        try:
            info: dict[str, str | int | float] = {"url": url, "connections": len(hub.connections)}
            await hub.store.heartbeat_gateway(hub.gateway, info)
        except StoreError as exc:
            logger.debug("no heartbeat: %s", exc)
        await asyncio.sleep(HEARTBEAT_S)
