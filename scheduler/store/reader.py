"""Reads that every role needs: records, events, the cluster's summary."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import TypeVar

from scheduler.fairness import standings
from scheduler.keys import MAX_EVENTS, PAUSE_ANSWER
from scheduler.messages import (
    EVENTS,
    INPUTS,
    DecodeError,
    DesiredEngine,
    EngineId,
    EngineRecord,
    EngineState,
    Event,
    Input,
    MessageId,
    ModelInfo,
    SessionId,
    SessionRecord,
    Usage,
    decode_json,
)
from scheduler.store import records
from scheduler.store.connection import Connection, Entry, batches, mapped_errors
from scheduler.store.errors import EventsLost, EventsTrimmed
from scheduler.store.values import (
    PRIOR_RELEASE_INTERVAL_MS,
    PRIOR_START_MS,
    AppliedRecord,
    ClusterInfo,
    Decision,
    QueueOutlook,
    SessionOutline,
)

log = logging.getLogger("scheduler.store")

M = TypeVar("M")
USAGE_SCAN = 10_000
"""Entries that one call looks through."""
START = "0-0"
"""The id before the first entry of any stream."""


class StoreReader:
    """Reads only. All times are Redis server time in ms. Every method raises StoreUnavailable."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection
        self._key = connection.keys.key
        self._tables = records.CostTables()

    @property
    def prefix(self) -> str:
        """What every key of the cluster starts with."""
        return self._redis.keys.prefix

    async def ping(self) -> None:
        """Return when Redis answers."""
        async with mapped_errors():
            await self._redis.client.ping()

    async def now_ms(self) -> int:
        """Redis server time."""
        async with mapped_errors():
            seconds, micros = await self._redis.client.time()
        return int(seconds) * 1_000 + int(micros) // 1_000

    async def is_settled(self) -> bool:
        """False: Redis lost its data, or is new. Who outlived that may not have said yet what it has."""
        async with mapped_errors():
            return bool(await self._redis.client.exists(self._key("settled")))

    # --- sessions

    async def get_session(self, session: SessionId) -> SessionRecord | None:
        """The record, also of a session closed in the last `retain_s` seconds."""
        return (await self.get_sessions([session]))[session]

    async def get_sessions(self, sessions: Iterable[SessionId]) -> dict[SessionId, SessionRecord | None]:
        """Several records."""
        return {id: record async for part in self.read_sessions(sessions) for id, record in part.items()}

    async def read_sessions(
        self, sessions: Iterable[SessionId]
    ) -> AsyncIterator[dict[SessionId, SessionRecord | None]]:
        """Any number of records in parts, a short round trip each."""
        for ids in batches(list(sessions)):
            hashes = await self._redis.read_hashes([self._key("session", id) for id in ids])
            yield {
                id: records.session_record(id, h) if h else None for id, h in zip(ids, hashes, strict=True)
            }

    async def session_ids(self) -> list[SessionId]:
        """Of all sessions that are not closed, oldest first."""
        return [SessionId(id) for id in await self._redis.read_members(self._key("sessions"))]

    async def count_sessions(self) -> int:
        """How many are not closed."""
        async with mapped_errors():
            return int(await self._redis.client.zcard(self._key("sessions")))

    async def read_outlines(self) -> AsyncIterator[list[SessionOutline]]:
        """All sessions that are not closed, oldest first, in parts, a short round trip each.

        One that comes or goes meanwhile may be among them or not.
        """
        after, created_ms = "", ""
        while entries := await self._redis.read_outlines(after, created_ms):
            yield [records.session_outline(id, fields) for id, _, fields in entries if fields[0]]
            after, created_ms, _ = entries[-1]

    async def list_sessions(self) -> list[SessionRecord]:
        """All sessions that are not closed, oldest first."""
        found = await self.get_sessions(await self.session_ids())
        return [record for record in found.values() if record is not None]

    async def remembered_ids(self, session: SessionId) -> tuple[tuple[MessageId, ...], tuple[MessageId, ...]]:
        """The remembered message ids, oldest first: those of pauses and resumes, and those of inputs."""
        async with mapped_errors():
            pipe = self._redis.pipeline()
            pipe.lrange(self._key("id_order", session), 0, -1).hgetall(self._key("ids", session))
            order, known = await pipe.execute()
        pauses = tuple(id for id in order if known.get(id) == PAUSE_ANSWER)
        return pauses, tuple(id for id in order if known.get(id, PAUSE_ANSWER) != PAUSE_ANSWER)

    async def applied_history(self, session: SessionId) -> list[AppliedRecord]:
        """Where each input was applied, in log order."""
        async with mapped_errors():
            items = await self._redis.client.lrange(self._key("applied", session), 0, -1)
        return [records.applied_record(item) for item in items]

    async def read_inputs(
        self, after: Mapping[SessionId, str], *, block_ms: int = 0
    ) -> dict[SessionId, list[tuple[str, Input]]]:
        """New entries of many input logs, each after its id ("0-0" from the start); only logs with news.

        Waits up to block_ms for the first news, 0 does not wait. Safe to cancel, e.g. to add a session.
        At most 256 entries per log and call. An entry that can't be read is logged and left out.
        """
        if not after:
            return {}
        sessions = {self._key("inputs", session): session for session in after}
        cursors = {key: after[session] for key, session in sessions.items()}
        found = await self._read(INPUTS, cursors, block_ms=block_ms, count=256)
        return {sessions[key]: entries for key, entries in found.items()}

    # --- queue

    async def queue(self, model: str) -> list[SessionId]:
        """Sessions that wait for a model, who gets a place first first: the order that policies use."""
        async with mapped_errors():
            line = await self._redis.client.zrange(self._key("queue", model), 0, -1, withscores=True)
        asked = [("HGET", self._key("session", session), "subject") for session, _ in line]
        subjects = [subject or "" for subject in await self._redis.run_commands(asked)]
        names = sorted({*subjects} - {""})
        counts = await self._redis.run_commands([("SCARD", self._key("controlled", name)) for name in names])
        controlled = dict(zip(names, map(int, counts), strict=True))
        entries = [(int(order), subject) for (_, order), subject in zip(line, subjects, strict=True)]
        stands = standings(entries, controlled)
        return [SessionId(line[at][0]) for at in sorted(range(len(line)), key=stands.__getitem__)]

    async def queue_position(self, session: SessionId) -> int | None:
        """Place in the queue of the session's model, from 1; None when it does not wait."""
        async with mapped_errors():
            model = await self._redis.client.hget(self._key("session", session), "model")
        line = [] if model is None else await self.queue(model)
        return line.index(session) + 1 if session in line else None

    async def queue_outlook(self, model: str) -> QueueOutlook:
        """How soon a model's places become free."""
        info, now_ms = await self.cluster_info(), await self.now_ms()
        engines = [engine for engine in await self.list_engines() if engine.model_name == model]
        starting_ms = (
            max(0, engine.started_ms + info.start_ms - now_ms)
            for engine in engines
            if engine.state is EngineState.STARTING
        )
        return QueueOutlook(
            release_interval_ms=info.release_interval_ms,
            starting_ms=tuple(sorted(starting_ms)),
            capacity=max((engine.capacity for engine in engines), default=1),
        )

    async def queue_eta_ms(self, position: int, *, model: str) -> int:
        """Expected wait at a position of a model's queue: see `QueueOutlook`."""
        return (await self.queue_outlook(model)).eta_ms(position)

    # --- engines, models, gateways

    async def get_engine(self, engine: EngineId) -> EngineRecord | None:
        """The record, also of an engine gone in the last GONE_TTL_S seconds."""
        return (await self.get_engines([engine]))[engine]

    async def get_engines(self, engines: Iterable[EngineId]) -> dict[EngineId, EngineRecord | None]:
        """Several records."""
        found: dict[EngineId, EngineRecord | None] = {}
        for ids in batches(list(engines)):
            hashes = await self._redis.read_hashes([self._key("engine", id) for id in ids])
            for id, h in zip(ids, hashes, strict=True):
                found[id] = records.engine_record(id, h, self._tables) if h else None
        return found

    async def list_engines(self) -> list[EngineRecord]:
        """All engines that are not gone, by id."""
        with self._tables.reading_all():
            ids = await self._redis.read_members(self._key("engines"))
            found = await self.get_engines(EngineId(id) for id in sorted(ids))
        return [record for record in found.values() if record is not None]

    async def list_models(self) -> dict[str, ModelInfo]:
        """Every model that an engine ever registered here, by name: known also while no engine is ready."""
        async with mapped_errors():
            found = await self._redis.client.hgetall(self._key("models"))
        return {name: records.model_info(text) for name, text in found.items()}

    async def list_gateways(self) -> list[str]:
        """Gateways that beat within the last GATEWAY_TTL_S seconds."""
        async with mapped_errors():
            ids = await self._redis.client.zrange(self._key("gateways"), 0, -1)
        hashes = await self._hashes(self._key("gateway", id) for id in ids)
        return [id for id, h in zip(ids, hashes, strict=True) if h]

    async def read_desired(self) -> tuple[int, tuple[DesiredEngine, ...]]:
        """(term, the engines that should exist); term 0 when no leader ever wrote it."""
        (found,) = await self._hashes([self._key("desired")])
        return (int(found["term"]), records.desired_engines(found["engines"])) if found else (0, ())

    async def cluster_info(self) -> ClusterInfo:
        """What the leader published, and how many sessions wait."""
        async with mapped_errors():
            models = await self._redis.client.smembers(self._key("queued_models"))
            pipe = self._redis.pipeline()
            pipe.hgetall(self._key("cluster")).hget(self._key("desired"), "term")
            for model in sorted(models):
                pipe.zcard(self._key("queue", model))
            published, term, *lengths = await pipe.execute()
        return ClusterInfo(
            policy=published.get("policy", ""),
            budget=int(published.get("budget", 0)),
            queue=sum(map(int, lengths)),
            release_interval_ms=int(published.get("release_interval_ms", PRIOR_RELEASE_INTERVAL_MS)),
            start_ms=int(published.get("start_ms", PRIOR_START_MS)),
            term=int(term or 0),
        )

    async def decisions(self, count: int) -> list[Decision]:
        """The newest decisions, newest first."""
        async with mapped_errors():
            entries = await self._redis.client.xrevrange(self._key("decisions"), count=count)
        return [Decision(at_ms=int(id.partition("-")[0]), text=fields["text"]) for id, fields in entries]

    async def read_usage(
        self, after: str, *, subject: str | None = None, count: int = 1_000
    ) -> tuple[list[Usage], str]:
        """(records of sessions closed after `after`, oldest first, where to go on next time).

        `after` is what an earlier call returned, or a Redis time in ms; subject None: all. At most `count`
        records, of at most USAGE_SCAN entries: fewer, or none, do not mean that there are no more.
        """
        key = self._key("usage")
        async with mapped_errors():
            entries = await self._redis.client.xrange(key, f"({after}", count=USAGE_SCAN)
        found: list[Usage] = []
        for id, usage in _decoded({Usage.type: Usage}, entries):
            if subject is None or usage.subject == subject:
                found.append(usage)
            if len(found) == count:
                return found, id
        return found, entries[-1][0] if entries else after

    # --- events

    async def read_events(
        self, after: str, *, block_ms: int = 0, count: int = 1_000
    ) -> list[tuple[str, Event]]:
        """Events after an id; waits up to block_ms for the first, 0 does not wait. Safe to cancel.

        Start with `last_event_id()`, then read the records, then the events: nothing is missed.

        Raises:
            EventsTrimmed: events after `after` are lost; take `last_event_id()`, then read all records again.
            EventsLost: the same, and Redis lost data.
        """
        key = self._key("events")
        entries = (await self._read(EVENTS, {key: after}, block_ms=block_ms, count=count)).get(key, [])
        await self.check_events(after)
        return entries

    async def check_events(self, after: str) -> None:
        """Return if the event of this id, which was read, is still there. Raises as `read_events` does."""
        if after == START:
            return
        key = self._key("events")
        async with mapped_errors():
            pipe = self._redis.pipeline()
            pipe.xrange(key, after, after).xrange(key, count=1).xlen(key)
            found, first, length = await pipe.execute()
        if found:
            return
        # Trimming takes the oldest, and leaves at least MAX_EVENTS.
        if length >= MAX_EVENTS and _order(first[0][0]) > _order(after):
            raise EventsTrimmed("this reader fell behind the bounded events stream")
        raise EventsLost("Redis came back older, or empty: events that were read are not there")

    async def last_event_id(self) -> str:
        """Id of the newest event; "0-0" before the first."""
        async with mapped_errors():
            newest = await self._redis.client.xrevrange(self._key("events"), count=1)
        return str(newest[0][0]) if newest else START

    async def report_loss(self, seen: int) -> bool:
        """Redis lost data (EventsLost): whoever leads on what is left must acquire a new lease and hear
        engines first, and the desired set is forgotten. seen: the newest term that the caller knew before.

        False: no effect, since that is known already: a leader of a newer term does so, or has done so.
        """
        return bool(await self._redis.run("report_loss", self._key("term"), seen))

    async def _read(
        self, table: Mapping[str, type[M]], after: Mapping[str, str], *, block_ms: int, count: int
    ) -> dict[str, list[tuple[str, M]]]:
        """Decoded entries by key. Entries that can't be read are logged, left out, and don't end the wait."""
        cursors = dict(after)
        while True:
            streams = await self._redis.read_streams(cursors, block_ms=block_ms, count=count)
            found = {key: _decoded(table, entries) for key, entries in streams.items()}
            if any(found.values()) or not streams:
                return {key: entries for key, entries in found.items() if entries}
            cursors.update({key: entries[-1][0] for key, entries in streams.items() if entries})

    async def _hashes(self, keys: Iterable[str]) -> list[dict[str, str]]:
        return [h for batch in batches(list(keys)) for h in await self._redis.read_hashes(batch)]


def _decoded(table: Mapping[str, type[M]], entries: Sequence[Entry]) -> list[tuple[str, M]]:
    good: list[tuple[str, M]] = []
    for id, fields in entries:
        try:
            good.append((id, decode_json(table, fields["m"])))
        except (DecodeError, KeyError) as exc:
            log.warning("left out stream entry %s that can't be read: %s", id, exc)
    return good


def _order(id: str) -> tuple[int, int]:
    ms, _, serial = id.partition("-")
    return int(ms), int(serial or 0)


def draw_id(prefix: str, num_bytes: int) -> str:
    """A random id, e.g. `draw_id("s", 8)` for a session."""
    return f"{prefix}_{secrets.token_hex(num_bytes)}"
