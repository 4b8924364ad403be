"""Keeps the view by deltas: events name what changed, records say to what."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import assert_never

from scheduler.messages import (
    ControllerChanged,
    DesiredChanged,
    EngineChanged,
    EngineId,
    EngineRecord,
    EngineState,
    Event,
    Phase,
    SessionChanged,
    SessionClosed,
    SessionId,
    SessionLeft,
    SessionOpened,
    SessionPlaced,
    SessionQueued,
)
from scheduler.policy.base import GoneEngine
from scheduler.store import EventsTrimmed, Store
from scheduler.view import ENGINE_STATES, PHASES, ClusterTable, View, build_table

log = logging.getLogger("scheduler.feed")

BATCH = 1_000
"""Events per read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What a step of the feed found besides the view."""

    gone: tuple[GoneEngine, ...] = ()
    released: int = 0


class Feed:
    """`rebuild` first; then `follow` for events and `refresh` at each tick. `view` is the present."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._table = ClusterTable()
        self._after = ""
        self.view: View = self._table.view()

    async def rebuild(self) -> None:
        """Read everything. Logs when the view kept by deltas differs (by more than a change in between)."""
        before, started = self.view, bool(self._after)
        self._after = await self._store.last_event_id()  # first, so that nothing is missed
        read_ms = await self._store.now_ms()
        engines, sessions = await self._store.list_engines(), await self._store.list_sessions()
        _, desired = await self._store.read_desired()
        self._table = build_table(engines, sessions, desired)
        self._table.read_ms = read_ms
        self.view = self._table.view()
        if started and before.engines.ids != self.view.engines.ids:
            log.info("engines were %s by deltas, are %s", before.engines.ids, self.view.engines.ids)
        if started and before.sessions.ids != self.view.sessions.ids:
            differ = set(before.sessions.ids) ^ set(self.view.sessions.ids)
            log.info("%d sessions differed from the view by deltas: %s", len(differ), sorted(differ)[:8])

    async def follow(self, block_ms: int) -> Delta:
        """Wait up to block_ms for events, then bring the view up to them."""
        try:
            events = batch = await self._store.read_events(self._after, block_ms=block_ms, count=BATCH)
            while len(batch) == BATCH:  # a plan on half of the news would repeat what the other half says
                batch = await self._store.read_events(events[-1][0], count=BATCH)
                events = [*events, *batch]
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
        read_ms = await self._store.now_ms()  # before the heartbeats: silence is never overrated
        for engine in await self._store.list_engines():
            self._table.put_engine(engine)
        queued = [self.view.sessions.ids[row] for row in self.view.is_phase(Phase.QUEUED).nonzero()[0]]
        await self._read_sessions(queued)
        self._table.read_ms = read_ms
        self.view = self._table.view()

    async def _take(self, events: list[Event]) -> Delta:
        sessions: set[SessionId] = set()
        engines: set[EngineId] = set()
        is_desired_changed = False
        released = 0
        for event in events:
            match event:
                case SessionQueued() | SessionPlaced() | SessionChanged():
                    sessions.add(event.session)
                case ControllerChanged() | SessionLeft():
                    sessions.add(event.session)
                case SessionClosed():
                    sessions.add(event.session)
                    released += self._is_placed(event.session)
                case SessionOpened():
                    pass  # nothing a policy looks at
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
        return Delta(gone=gone, released=released)

    async def _read_sessions(self, sessions: list[SessionId]) -> None:
        for id, record in (await self._store.get_sessions(sessions)).items():
            if record is None:
                self._table.drop_session(id)
            else:
                self._table.put_session(record)

    async def _read_engines(self, engines: list[EngineId]) -> tuple[GoneEngine, ...]:
        gone: list[GoneEngine] = []
        for id, record in (await self._store.get_engines(engines)).items():
            if record is None or record.state is EngineState.GONE:
                gone.extend(self._gone(id, record))
                self._table.drop_engine(id)
            else:
                self._table.put_engine(record)
        return tuple(gone)

    def _gone(self, engine: EngineId, record: EngineRecord | None) -> list[GoneEngine]:
        row = self.view.engines.find(engine)
        if row is not None:
            state = ENGINE_STATES[self.view.engines["state"][row]]
            started_ms = int(self.view.engines["started_ms"][row])
        elif record is not None:  # wanted and gone within one batch of events
            state, started_ms = EngineState.STARTING, record.started_ms
        else:
            return []
        return [GoneEngine(id=engine, state=state, started_ms=started_ms)]

    def _is_placed(self, session: SessionId) -> bool:
        row = self.view.sessions.find(session)
        return row is not None and PHASES[self.view.sessions["phase"][row]] is Phase.PLACED
