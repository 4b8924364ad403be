"""Keeps the view by deltas: events name what changed, records say to what."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import assert_never

from scheduler.messages import (
    ControllerChanged,
    DesiredChanged,
    EngineChanged,
    EngineId,
    EngineRecord,
    EngineState,
    Event,
    GatewayId,
    Phase,
    SessionChanged,
    SessionClosed,
    SessionId,
    SessionLeft,
    SessionOpened,
    SessionPlaced,
    SessionQueued,
    SessionRecord,
)
from scheduler.policy.base import GoneEngine
from scheduler.policy.moves import is_special
from scheduler.store import EventsLost, EventsTrimmed, Store
from scheduler.table import ClusterTable, build_table
from scheduler.view import ENGINE_STATES, PHASES, View

log = logging.getLogger("scheduler.feed")

BATCH = 1_000
"""Events per read."""
PUT = 1_000
"""Records that a rebuild takes in without a pause: some 10 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What a step of the feed found besides the view."""

    gone: tuple[GoneEngine, ...] = ()
    released: int = 0
    arrivals: int = 0
    ages_ms: tuple[int, ...] = ()
    starts_ms: tuple[int, ...] = ()
    """See Changes for all of them."""


class Feed:
    """`rebuild` first; then `follow` for events and `refresh` at each tick. `view` is the present."""

    def __init__(self, store: Store, between_reads: Callable[[], Awaitable[None]] | None = None) -> None:
        """between_reads: awaited time and again where there is much to read; what it raises ends the call."""
        self._store = store
        self._between_reads = between_reads or _go_on
        self._table = ClusterTable()
        self._after = ""
        self.view: View = self._table.view()
        self.special: dict[SessionId, SessionRecord] = {}
        """Sessions that are being migrated, or were ordered to be."""
        self.waiting: dict[SessionId, GatewayId] = {}
        """Sessions without a place that somebody waits for, and through which gateway."""
        self.heard: frozenset[str] = frozenset()
        """Gateways that were heard of late, at the last `refresh` while somebody waited."""
        self._starting: set[EngineId] = set()
        self._starts_ms: list[int] = []
        """Of engines that became ready, and nobody was told yet."""

    async def rebuild(self) -> None:
        """Read everything. Logs when the view kept by deltas differs (by more than a change in between).

        Raises:
            EventsLost: Redis lost data since this feed read last; also of `follow`, and until `forget`.
        """
        before, started = self.view, bool(self._after)
        if self._after:
            await self._check_position()
        self._after = await self._store.last_event_id()  # first, so that nothing is missed
        sessions: list[SessionRecord] = []
        async for part in self._store.read_sessions(await self._store.session_ids()):
            sessions += [record for record in part.values() if record is not None]
            await self._between_reads()
        _, desired = await self._store.read_desired()
        # After the sessions, which take long: engines that they name are there or gone, and were just heard.
        read_ms = await self._store.now_ms()
        engines = await self._store.list_engines()
        table = build_table(engines, (), desired, self._table)
        for at in range(0, len(sessions), PUT):
            await self._between_reads()
            for session in sessions[at : at + PUT]:
                table.put_session(session)
        self._starting = {engine.id for engine in engines if engine.state is EngineState.STARTING}
        self._table = table
        self.special = {record.id: record for record in sessions if is_special(record)}
        self.waiting = {record.id: gateway for record in sessions if (gateway := _waits_at(record))}
        self._table.read_ms = read_ms
        self.view = self._table.view()
        if started and before.engines.ids != self.view.engines.ids:
            log.info("engines were %s by deltas, are %s", before.engines.ids, self.view.engines.ids)
        differ = set(before.sessions.ids) ^ set(self.view.sessions.ids)
        if started and differ:
            log.info("%d sessions differed from the view by deltas: %s", len(differ), sorted(differ)[:8])

    async def _check_position(self) -> None:
        try:
            await self._store.check_events(self._after)
        except EventsLost:
            raise
        except EventsTrimmed:
            pass  # everything is about to be read

    def forget(self) -> None:
        """What was read counts no more: the next `rebuild` takes what there is."""
        self._after = ""

    async def follow(self, block_ms: int) -> Delta:
        """Wait up to block_ms for events, then bring the view up to them."""
        delta = await self._follow(block_ms)
        starts_ms, self._starts_ms = tuple(self._starts_ms), []
        return replace(delta, starts_ms=starts_ms)

    async def _follow(self, block_ms: int) -> Delta:
        try:
            events = batch = await self._store.read_events(self._after, block_ms=block_ms, count=BATCH)
            await self._between_reads()
            while len(batch) == BATCH:  # a plan on half of the news would repeat what the other half says
                batch = await self._store.read_events(events[-1][0], count=BATCH)
                events = [*events, *batch]
                await self._between_reads()
        except EventsLost:
            raise
        except EventsTrimmed as exc:
            log.warning("reading everything again: %s", exc)
            await self.rebuild()
            return Delta()
        if not events:
            return Delta()
        delta = await self._take([event for _, event in events])
        self._after = events[-1][0]
        return delta

    async def refresh(self) -> None:
        """Read what changes without events: heartbeats, and whether queued sessions were left."""
        await self._read_sessions([self.view.sessions.ids[row] for row in self.view.queued])
        read_ms = await self._store.now_ms()  # before the heartbeats: silence is never overrated
        if self.waiting:
            self.heard = frozenset(await self._store.list_gateways())
        engines = await self._store.list_engines()
        self._note_starts(engines, read_ms)  # also of those whose events are not followed yet
        for engine in engines:
            self._table.put_engine(engine)
        self._table.read_ms = read_ms
        self.view = self._table.view()

    async def _take(self, events: list[Event]) -> Delta:
        self.view = self._table.view()  # Redis may have gone away when the last news were half read
        delta = self._count(events)
        sessions: set[SessionId] = set()
        engines: set[EngineId] = set()
        is_desired_changed = False
        for event in events:
            match event:
                case SessionQueued() | SessionPlaced() | SessionChanged():
                    sessions.add(event.session)
                case ControllerChanged() | SessionLeft() | SessionClosed():
                    sessions.add(event.session)
                case SessionOpened():
                    sessions.add(event.session)  # only who generates can be moved
                case EngineChanged():
                    engines.add(event.engine)
                case DesiredChanged():
                    is_desired_changed = True
                case _:
                    assert_never(event)
        gone = await self._read_engines(sorted(engines))
        await self._read_sessions(sorted(sessions))
        if is_desired_changed:
            _, self._table.desired = await self._store.read_desired()
        self.view = self._table.view()
        return replace(delta, gone=gone)

    def _count(self, events: list[Event]) -> Delta:
        """What events mean to a view that does not know them yet."""
        released = 0
        ages_ms: list[int] = []
        arrived: set[SessionId] = set()
        for event in events:
            match event:
                case SessionQueued():
                    if self.view.sessions.find(event.session) is None:
                        arrived.add(event.session)
                case SessionChanged():
                    row = self.view.sessions.find(event.session)
                    if event.active and row is not None and not self.view.sessions["active"][row]:
                        arrived.add(event.session)
                case SessionClosed():
                    row = self.view.sessions.find(event.session)
                    if row is not None:
                        released += PHASES[self.view.sessions["phase"][row]] is Phase.PLACED
                        ages_ms.append(self.view.read_ms - int(self.view.sessions["created_ms"][row]))
                case _:
                    pass
        return Delta(
            released=released, arrivals=len(arrived), ages_ms=tuple(max(0, age_ms) for age_ms in ages_ms)
        )

    async def _read_sessions(self, sessions: list[SessionId]) -> None:
        async for part in self._store.read_sessions(sessions):
            for id, record in part.items():
                self._put_session(id, record)
            await self._between_reads()

    def _put_session(self, id: SessionId, record: SessionRecord | None) -> None:
        self.special.pop(id, None)
        if record is not None and is_special(record):
            self.special[id] = record
        self.waiting.pop(id, None)
        if record is not None and (gateway := _waits_at(record)):
            self.waiting[id] = gateway
        if record is None:
            self._table.drop_session(id)
        else:
            self._table.put_session(record)

    async def _read_engines(self, engines: list[EngineId]) -> tuple[GoneEngine, ...]:
        records = await self._store.get_engines(engines)
        self._note_starts((record for record in records.values() if record is not None), self.view.read_ms)
        # Before any of them changes the table: who comes or goes shifts the rows that the view looks at.
        gone = [
            found
            for id, record in records.items()
            if record is None or record.state is EngineState.GONE
            if (found := self._gone(id, record)) is not None
        ]
        for id, record in records.items():
            if record is None:
                self._table.drop_engine(id)
            else:
                self._table.put_engine(record)
        return tuple(gone)

    def _gone(self, engine: EngineId, record: EngineRecord | None) -> GoneEngine | None:
        row = self.view.engines.find(engine)
        if row is not None:
            state = ENGINE_STATES[self.view.engines["state"][row]]
            started_ms = int(self.view.engines["started_ms"][row])
        elif record is not None:  # gone within one batch of events, or while everything was read
            state = EngineState.STARTING if record.model is None else EngineState.READY
            started_ms = record.started_ms
        else:
            return None
        return GoneEngine(id=engine, state=state, started_ms=started_ms)

    def _note_starts(self, engines: Iterable[EngineRecord], read_ms: int) -> None:
        """Watch engines until they are ready, which tells how long that took, to within a tick."""
        for engine in engines:
            if engine.state is EngineState.STARTING:
                self._starting.add(engine.id)
            elif engine.id in self._starting:
                self._starting.remove(engine.id)
                if engine.state is EngineState.READY:
                    self._starts_ms.append(max(0, read_ms - engine.started_ms))


def _waits_at(record: SessionRecord) -> GatewayId | None:
    is_waiting = record.phase is Phase.QUEUED and record.left_ms is None
    return record.gateway if is_waiting else None


async def _go_on() -> None:
    """Nothing to do between reads."""
