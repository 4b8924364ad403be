"""What the leading scheduler writes. Every write but the lease itself is fenced by the leader's term."""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.keys import CLOSED_TTL_S, MAX_DECISION_CHARS, MAX_MEMORY_BYTES
from scheduler.messages import DesiredEngine, EngineId, GatewayId, SessionId
from scheduler.store import records
from scheduler.store.reader import StoreReader


class LeaderStore(StoreReader):
    """Every method raises StoreUnavailable; those with a `term` raise StaleTerm when it is not in force."""

    async def acquire_lease(self, owner: str, ttl_ms: int, *, floor: int = 0) -> int | None:
        """Lead for ttl_ms from before this call was sent. Returns the term, or None while another leads.

        floor: newest term the caller knows of; the new term is above it even if Redis lost its data.
        """
        term = await self._redis.run("acquire_lease", self._key("lease"), owner, ttl_ms, floor)
        return int(term) or None

    async def renew_lease(self, owner: str, term: int, ttl_ms: int) -> bool:
        """Lead for ttl_ms from before this call was sent. False: the lease is lost."""
        return bool(await self._redis.run("renew_lease", self._key("lease"), owner, term, ttl_ms))

    async def release_lease(self, owner: str, term: int) -> None:
        """Let another lead at once. No effect when the lease is another's."""
        await self._redis.run("release_lease", self._key("lease"), owner, term)

    async def mark_settled(self, term: int) -> None:
        """Everybody had the time to say what it has: see `is_settled`."""
        await self._redis.run("mark_settled", self._key("settled"), term)

    async def place_session(
        self, session: SessionId, engine: EngineId, *, expect_epoch: int, term: int
    ) -> int:
        """Give a session to an engine, a placed one to another engine. Returns the new epoch.

        Raises:
            PlacementRefused: closed, epoch changed, or the engine isn't ready, is full or has another model.
        """
        key = self._key("session", session)
        return int(await self._redis.run("place_session", key, session, engine, expect_epoch, term))

    async def begin_migration(
        self,
        session: SessionId,
        engine: EngineId,
        *,
        expect_epoch: int,
        term: int,
        migration_id: str,
        limit_ms: int,
        waiting_limit_ms: int | None = None,
    ) -> None:
        """Have a placed session moved with its state; its owner commits. Other moves are refused until then.

        It is called off after limit_ms; after waiting_limit_ms, if that is less, where its client waits for
        chunks that are not made meanwhile.

        Raises:
            PlacementRefused: not placed, epoch changed, in flight, without state to move, or the target isn't
                ready, is full, or has another model.
        """
        key = self._key("session", session)
        waiting_ms = limit_ms if waiting_limit_ms is None else waiting_limit_ms
        args = (session, engine, expect_epoch, term, migration_id, limit_ms, waiting_ms)
        await self._redis.run("begin_migration", key, *args)

    async def call_off_migration(self, session: SessionId, *, term: int) -> None:
        """Its deadline has passed: source and target are told. No effect otherwise."""
        await self._redis.run("abort_migration", self._key("session", session), session, "", "", term)

    async def requeue_session(self, session: SessionId, *, expect_epoch: int, term: int, reason: str) -> None:
        """Take a placed session from its engine and put it at the front of the queue.

        Raises:
            PlacementRefused: not placed, or the epoch changed.
        """
        key = self._key("session", session)
        await self._redis.run("requeue_session", key, session, expect_epoch, term, reason)

    async def suspend_session(self, session: SessionId, *, expect_epoch: int, term: int) -> None:
        """Tell the owner to take a session that nobody watches out of its slot.

        Raises:
            PlacementRefused: not placed, the epoch changed, or it is not resident.
        """
        key = self._key("session", session)
        await self._redis.run("suspend_session", key, session, expect_epoch, term)

    async def activate_session(self, session: SessionId, *, expect_epoch: int, term: int) -> None:
        """Give a placed session a slot of its engine again, and tell the engine.

        Raises:
            PlacementRefused: not placed, the epoch changed, it has a slot, or its engine is full.
        """
        key = self._key("session", session)
        await self._redis.run("activate_session", key, session, expect_epoch, term)

    async def sweep_session(self, session: SessionId, *, left_ms: int, term: int, reason: str) -> bool:
        """Close a queued session that nobody controls since left_ms. False: the world moved on."""
        key = self._key("session", session)
        return bool(await self._redis.run("sweep_session", key, session, term, left_ms, reason))

    async def lose_engine(
        self, engine: EngineId, *, term: int, reason: str, hangs: bool = False
    ) -> list[SessionId]:
        """Declare an engine gone; its sessions go to the front of the queue. Returns them. Idempotent.

        hangs: it beats, and yet its work does not end: as a crash, that may be a session's fault.
        """
        key = self._key("engine", engine)
        return list(await self._redis.run("lose_engine", key, engine, term, reason, int(hangs)))

    async def lose_gateway(self, gateway: GatewayId, *, term: int) -> int:
        """Have the sessions left that wait for a place through a gateway of which nothing was heard for
        GATEWAY_TTL_S. Returns how many: 0 if it was heard meanwhile."""
        return int(await self._redis.run("lose_gateway", self._key("gateway", gateway), gateway, term))

    async def drain_engine(self, engine: EngineId, *, term: int, reason: str) -> None:
        """No new sessions for this engine; it is told. Idempotent.

        Raises:
            PlacementRefused: the engine is not ready or gone.
        """
        await self._redis.run("drain_engine", self._key("engine", engine), engine, term, reason)

    async def stop_engine(self, engine: EngineId, *, term: int) -> None:
        """Tell a drained engine to exit.

        Raises:
            PlacementRefused: it is not draining, or not empty.
        """
        await self._redis.run("stop_engine", self._key("engine", engine), engine, term)

    async def write_desired(self, term: int, engines: Sequence[DesiredEngine]) -> None:
        """Say which engines should exist. New ids get a starting record; dropped ones that start are gone.

        Raises:
            PlacementRefused: one that is not among them is ready: it must be drained first.
        """
        pairs = [item for e in engines for item in (e.id, e.model)]
        await self._redis.run(
            "write_desired", self._key("desired"), term, records.desired_json(engines), *pairs
        )

    async def save_memory(self, term: int, data: bytes) -> None:
        """Keep the policy's memory (UTF-8, at most MAX_MEMORY_BYTES) for the next leader."""
        if len(data) > MAX_MEMORY_BYTES:
            raise ValueError(f"memory may have at most {MAX_MEMORY_BYTES} bytes, has {len(data)}")
        await self._redis.run("save_memory", self._key("memory"), term, data.decode())

    async def load_memory(self) -> bytes | None:
        """What the last leader kept."""
        (found,) = await self._hashes([self._key("memory")])
        return found["data"].encode() if found else None

    async def record_decisions(self, term: int, texts: Sequence[str]) -> None:
        """Keep what was done and why, a sentence each, for `decisions`. Raises StaleTerm."""
        cut = (text[:MAX_DECISION_CHARS] for text in texts)
        await self._redis.run("record_decisions", self._key("decisions"), term, *cut)

    async def publish_cluster(
        self,
        term: int,
        *,
        policy: str,
        budget: int,
        release_interval_ms: int,
        start_ms: int,
        retain_s: int = CLOSED_TTL_S,
    ) -> None:
        """What `cluster_info` and the queue's ETA show, and for how long sessions are known after their end.
        start_ms is what an engine's start takes."""
        await self._redis.run(
            "publish_cluster",
            self._key("cluster"),
            term,
            policy,
            budget,
            release_interval_ms,
            start_ms,
            retain_s,
        )
