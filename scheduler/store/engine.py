"""What an engine writes: itself, and the sessions it owns."""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.keys import MAX_CHECKPOINT_BYTES
from scheduler.messages import (
    ENGINE_COMMANDS,
    EngineCommand,
    EngineCosts,
    EngineId,
    EngineState,
    ModelInfo,
    Residence,
    SessionId,
)
from scheduler.store import records
from scheduler.store.connection import mapped_errors
from scheduler.store.errors import CheckpointRefused, StaleEpoch
from scheduler.store.reader import StoreReader
from scheduler.store.values import AppliedRecord, CheckpointPointer, SessionCopy, SessionProgress

NO_DEADLINE = -1


class EngineStore(StoreReader):
    """Writes of sessions are fenced by (engine, epoch). Every method raises StoreUnavailable."""

    async def register_engine(
        self, engine: EngineId, *, url: str, model: ModelInfo, capacity: int, transfer: str = ""
    ) -> None:
        """Announce a started engine: its state becomes ready. Counts as a heartbeat; may be repeated.

        transfer is the host:port where other engines meet it to move sessions; "" if it can't.

        An engine that no leader asked for may register too; the leader takes it into the budget.

        Raises:
            EngineGone: it isn't wanted any more.
        """
        await self._redis.run(
            "register_engine",
            self._key("engine", engine),
            engine,
            url,
            model.name,
            records.model_json(model),
            capacity,
            transfer,
        )

    async def heartbeat_engine(
        self,
        engine: EngineId,
        *,
        load: float,
        chunk_ms: float,
        worst_ms: float = 0.0,
        phase: str,
        deadline_ms: int | None,
        costs: EngineCosts | None = None,
    ) -> EngineState:
        """Say that the engine lives, every 500 ms; also while starting. Returns its state in Redis.

        load is a share from 0 to 1, chunk_ms the mean latency of recent chunks, worst_ms the largest, phase
        what the compute thread does. deadline_ms is how long from now that phase may still take (Lua adds the
        server's time, 0 and less is overdue); None without a limit. costs replaces the published cost table;
        None leaves it.

        Raises:
            EngineGone: declared gone; EngineUnknown when Redis has no record (register again).
        """
        state: str = await self._redis.run(
            "heartbeat_engine",
            self._key("engine", engine),
            engine,
            load,
            chunk_ms,
            worst_ms,
            phase,
            "" if deadline_ms is None else deadline_ms,
            "" if costs is None else records.costs_json(costs),
        )
        return EngineState(state)

    async def read_commands(
        self, engine: EngineId, after: str, *, block_ms: int = 0
    ) -> list[tuple[str, EngineCommand]]:
        """Commands after an id, "0-0" at the start; waits up to block_ms for the first. Safe to cancel."""
        key = self._key("commands", engine)
        found = await self._read(ENGINE_COMMANDS, {key: after}, block_ms=block_ms, count=256)
        return found.get(key, [])

    async def placed_sessions(self, engine: EngineId) -> list[SessionId]:
        """Sessions that are placed on it."""
        async with mapped_errors():
            found = await self._redis.client.smembers(self._key("placed", engine))
        return [SessionId(session) for session in sorted(found)]

    async def announce_session(
        self, engine: EngineId, session: SessionId, epoch: int, *, state_bytes: int = 0
    ) -> None:
        """The owner generates: gateways may subscribe. state_bytes is what a migration of it sends.

        Raises:
            StaleEpoch: another engine owns it.
        """
        await self._redis.run(
            "announce_session", self._key("session", session), session, engine, epoch, state_bytes
        )

    async def publish_session(
        self,
        engine: EngineId,
        session: SessionId,
        epoch: int,
        *,
        active: bool,
        next_seq: int,
        next_frame: int,
        rev: int,
        slack_ms: int,
        residence: Residence = Residence.RESIDENT,
    ) -> None:
        """Publish progress; an event follows only when `active` or `residence` changes. Raises StaleEpoch."""
        progress = SessionProgress(
            session=session,
            epoch=epoch,
            active=active,
            next_seq=next_seq,
            next_frame=next_frame,
            rev=rev,
            slack_ms=slack_ms,
            residence=residence,
        )
        if await self.publish_sessions(engine, [progress]):
            raise StaleEpoch(f"{engine} does not own {session} at epoch {epoch}")

    async def publish_sessions(
        self, engine: EngineId, sessions: Sequence[SessionProgress]
    ) -> list[SessionId]:
        """Publish progress of many in one round trip. Returns those it does not own: drop them."""
        if not sessions:
            return []
        calls = [(self._key("session", p.session), _progress_args(engine, p)) for p in sessions]
        results = await self._redis.run_many("publish_session", calls)
        stale: list[SessionId] = []
        for progress, result in zip(sessions, results, strict=True):
            if isinstance(result, StaleEpoch):
                stale.append(progress.session)
            elif isinstance(result, Exception):
                raise result
        return stale

    async def restore_session(self, engine: EngineId, copy: SessionCopy) -> None:
        """Write a session that Redis lost, or whose newest owner it lost; no effect when it has it.

        Raises:
            StaleEpoch: closed, or another engine owns it at this or a newer epoch.
            EngineUnknown: register first.
        """
        record = copy.record
        await self._redis.run(
            "restore_session",
            self._key("session", record.id),
            record.id,
            engine,
            record.epoch,
            "" if copy.left_age_ms is None else copy.left_age_ms,
            copy.position,
            records.inputs_json(copy.inputs),
            records.applied_json(copy.applied),
            *records.owned_fields(record),
        )

    async def record_applied(
        self, engine: EngineId, session: SessionId, epoch: int, entries: Sequence[AppliedRecord]
    ) -> None:
        """Record where inputs were applied, before the first chunk made with them is emitted.

        Entries in log order. Entries at or before `last_applied` were recorded by an earlier call (or owner)
        and are skipped, so a repeat is harmless.

        Raises:
            StaleEpoch
        """
        if not entries:
            return
        fields = [item for e in entries for item in (e.entry, e.id or "", e.rev, e.seq)]
        key = self._key("session", session)
        await self._redis.run("record_applied", key, session, engine, epoch, *fields)

    async def admit_session(self, engine: EngineId, session: SessionId, epoch: int) -> bool:
        """Ask for a slot for a session whose state is elsewhere. True: it counts as resident from now on.

        Raises:
            StaleEpoch
        """
        key = self._key("session", session)
        return bool(await self._redis.run("admit_session", key, session, engine, epoch))

    async def point_checkpoint(
        self,
        engine: EngineId,
        session: SessionId,
        pointer: CheckpointPointer,
        *,
        data: bytes | None,
        ttl_s: int,
    ) -> str | None:
        """Name a newer checkpoint, of the owner's epoch. Returns an object that is not needed any more.

        data: its bytes, kept in this Redis for ttl_s; None: they were put elsewhere before this call.

        Raises:
            StaleEpoch
            CheckpointRefused: larger than MAX_CHECKPOINT_BYTES, or no room beside the others.
        """
        if data is not None and len(data) > MAX_CHECKPOINT_BYTES:
            raise CheckpointRefused(
                f"a checkpoint of {len(data)} bytes is over the {MAX_CHECKPOINT_BYTES} that the control Redis"
                " takes: set `checkpoints` to a directory or a second Redis"
            )
        unneeded = await self._redis.run(
            "write_checkpoint",
            self._key("session", session),
            session,
            engine,
            pointer.epoch,
            pointer.seq,
            pointer.last_applied,
            records.checkpoint_base(pointer),
            pointer.size,
            ttl_s,
            data if data is not None else "",
        )
        return unneeded or None

    async def checkpoint_pointer(self, session: SessionId) -> CheckpointPointer | None:
        """The newest checkpoint of an open session."""
        (found,) = await self._hashes([self._key("checkpoint", session)])
        return records.checkpoint_pointer(found) if found else None

    async def checkpoint_data(self, object_name: str) -> bytes | None:
        """Bytes that lie in this Redis; None: they expired, or were never here."""
        return await self._redis.get_bytes(self._key("checkpoint_data", object_name))

    async def commit_migration(
        self,
        engine: EngineId,
        session: SessionId,
        epoch: int,
        *,
        migration_id: str,
        residence: Residence,
        engine_ms: int,
        media_bytes: int,
    ) -> int:
        """Give the session to the target, which has verified its state. Returns the new epoch, also when it
        was committed before.

        engine_ms and media_bytes are as in SessionProgress: nobody can publish them any more afterwards.

        Raises:
            StaleEpoch
            PlacementRefused: the migration was called off; this engine goes on.
        """
        key = self._key("session", session)
        args = (session, engine, epoch, migration_id, residence.value, engine_ms, media_bytes)
        return int(await self._redis.run("commit_migration", key, *args))

    async def abort_migration(
        self, engine: EngineId, session: SessionId, epoch: int, *, migration_id: str
    ) -> None:
        """The source calls the migration off. No effect when it is over. Raises StaleEpoch."""
        key = self._key("session", session)
        await self._redis.run("abort_migration", key, session, migration_id, engine, epoch)

    async def end_session(self, engine: EngineId, session: SessionId, epoch: int, reason: str) -> None:
        """The owner closes it: the client's stop, idle too long, retained too long. Raises StaleEpoch."""
        await self._redis.run("end_session", self._key("session", session), session, engine, epoch, reason)

    async def remove_engine(self, engine: EngineId, reason: str = "exited") -> None:
        """Orderly end. Sessions still there wait again. Idempotent."""
        await self._redis.run("remove_engine", self._key("engine", engine), engine, reason, 0)


def _progress_args(engine: EngineId, p: SessionProgress) -> tuple[str | int, ...]:
    numbers = (p.epoch, int(p.active), p.next_seq, p.next_frame, p.rev, p.slack_ms)
    return (p.session, engine, *numbers, p.residence.value, p.engine_ms, p.media_bytes, int(p.asks_slot))
