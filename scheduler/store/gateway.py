"""What a gateway writes: sessions on behalf of clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from scheduler.messages import (
    EngineId,
    GatewayId,
    Input,
    MessageId,
    PromptInput,
    SessionId,
    SessionRecord,
    encode_json,
)
from scheduler.store import records
from scheduler.store.errors import NoSuchSession, QueueFull
from scheduler.store.reader import StoreReader
from scheduler.store.values import AppliedRecord, InputReceipt, QueuedCopy

ANY_CONTROLLER = 0
ORDER_TTL_MS = 10_000


class GatewayStore(StoreReader):
    """Writes for one connection are fenced by its controller_epoch. Every method raises StoreUnavailable."""

    async def create_session(
        self,
        *,
        session: SessionId,
        model: str,
        prompt: PromptInput,
        seed: int,
        lead_ms: int,
        codec: str,
        resume_hash: str,
        gateway: GatewayId,
        queue_limit: int,
        subject: str = "",
        max_sessions: int | None = None,
    ) -> SessionRecord:
        """Write a new session, queued, controller_epoch 1, its prompt the first entry of its input log.

        queue_limit (≥ 1) counts sessions of the model that wait, those about to be placed at once included.
        `subject` owns it, "" nobody; max_sessions counts its open sessions, None: it may have any number.

        Raises:
            QueueFull: queue_limit sessions wait already, or so many of the subject that fewer places are left
                than it would take.
            QuotaReached: the subject has max_sessions already.
        """
        try:
            await self._redis.run(
                "create_session",
                self._key("session", session),
                session,
                model,
                encode_json(prompt).decode(),
                prompt.id or "",
                seed,
                lead_ms,
                codec,
                resume_hash,
                gateway,
                queue_limit,
                subject,
                "" if max_sessions is None else max_sessions,
            )
        except QueueFull:  # what it takes to tell when there is room is only read now
            raise QueueFull(await self.queue_eta_ms(1, model=model)) from None
        return await self._written(session)

    async def restore_queued(self, copy: QueuedCopy, *, gateway: GatewayId) -> None:
        """Write a session that Redis lost while it waited for its first owner; no effect when it has it."""
        await self._redis.run(
            "restore_queued",
            self._key("session", copy.session),
            copy.session,
            copy.model,
            encode_json(copy.prompt).decode(),
            copy.prompt.id or "",
            copy.seed,
            copy.lead_ms,
            copy.codec,
            copy.resume_hash,
            gateway,
            copy.created_ms,
            int(copy.paused),
            records.inputs_json(copy.inputs),
            copy.subject,
        )

    async def append_input(
        self,
        session: SessionId,
        message: Input,
        *,
        merged_ids: Sequence[MessageId] = (),
        controller_epoch: int,
        write: str = "",
    ) -> InputReceipt:
        """Append to the input log, once per message id (the last MAX_REMEMBERED_IDS are known).

        `merged_ids` are other messages in it: who repeats one gets the answers of this one. `write` names
        this call, without spaces: a message without an id is appended once however often its newest write
        is tried, because an answer may be lost.

        Raises:
            NoSuchSession, SessionIsClosed, StaleController, InputLogFull
        """
        entry, repeat, rev, seq = await self._redis.run(
            "append_input",
            self._key("session", session),
            session,
            controller_epoch,
            encode_json(message).decode(),
            message.id or "",
            write,
            *merged_ids,
        )
        applied = None
        if rev != "":
            applied = AppliedRecord(entry=entry, id=message.id, rev=int(rev), seq=int(seq))
        return InputReceipt(entry=entry, repeat=repeat == 1, applied=applied)

    async def take_control(
        self, session: SessionId, *, gateway: GatewayId, resume_hash: str, next_seq: int = 0
    ) -> SessionRecord:
        """Let a new connection control the session: controller_epoch + 1, older ones are told by event.

        `next_seq` is the first chunk that it wants.

        Raises:
            NoSuchSession: no such session, or the resume token's hash is another.
            SessionIsClosed: it was closed in the last `retain_s` seconds (and the hash fits).
            BeyondGenerated: next_seq is more than REPLAY_CHUNKS beyond the record's.
        """
        key = self._key("session", session)
        epoch = await self._redis.run("take_control", key, session, gateway, resume_hash, next_seq)
        # A newer attach may have written the record since: told its epoch, this one would be the newest too.
        return replace(await self._written(session), controller_epoch=int(epoch))

    async def leave_session(self, session: SessionId, *, controller_epoch: int) -> None:
        """The connection is gone: nobody controls the session. No effect when closed or taken over."""
        await self._redis.run("leave_session", self._key("session", session), session, controller_epoch)

    async def set_paused(
        self, session: SessionId, paused: bool, *, ids: Sequence[MessageId] = (), controller_epoch: int
    ) -> None:
        """Record pause or resume: a copy of what went over the link, or the only record while queued.

        `ids` are the messages it stands for; `remembered_ids` tells them to a later connection.

        Raises:
            NoSuchSession, SessionIsClosed, StaleController
        """
        key = self._key("session", session)
        await self._redis.run("set_paused", key, session, controller_epoch, int(paused), *ids)

    async def close_session(
        self, session: SessionId, reason: str, *, controller_epoch: int | None = None
    ) -> bool:
        """Close it, and tell the owner if it is placed. False: it was closed before. None closes for anybody.

        Raises:
            NoSuchSession, StaleController
        """
        key = self._key("session", session)
        fence = ANY_CONTROLLER if controller_epoch is None else controller_epoch
        return bool(await self._redis.run("close_session", key, session, fence, reason))

    async def order_drain(self, engine: EngineId) -> None:
        """An administrator wants the engine empty and stopped; the leader acts on it, also a later one.

        Raises:
            NoSuchEngine
        """
        await self._redis.run("order_drain", self._key("engine", engine), engine)

    async def order_migration(self, session: SessionId, engine: EngineId) -> None:
        """An administrator wants the session there; the leader acts on it within ORDER_TTL_MS, or never.

        Raises:
            NoSuchSession, SessionIsClosed, NoSuchEngine
            PlacementRefused: it says why it can't be moved there.
        """
        key = self._key("session", session)
        await self._redis.run("order_migration", key, session, engine, ORDER_TTL_MS)

    async def start_gateway(self, gateway: GatewayId) -> None:
        """A process takes this id, and lives: who waited through an earlier one of that id has left."""
        await self._redis.run("lose_gateway", self._key("gateway", gateway), gateway, "")
        await self.heartbeat_gateway(gateway, {})

    async def heartbeat_gateway(self, gateway: GatewayId, info: Mapping[str, str | int | float]) -> None:
        """Say that the gateway lives, with what it wants to be known (few small values). Beat every 3 s.

        Sessions that it lost (`lose_gateway`), and that nobody took or left since, wait through it again.
        """
        pairs = [item for pair in info.items() for item in pair]
        await self._redis.run("heartbeat_gateway", self._key("gateway", gateway), gateway, *pairs)

    async def remove_gateway(self, gateway: GatewayId) -> None:
        """Orderly end. Its sessions must have been left before."""
        await self._redis.run("remove_gateway", self._key("gateway", gateway), gateway)

    async def _written(self, session: SessionId) -> SessionRecord:
        record = await self.get_session(session)
        if record is None:
            raise NoSuchSession("the session vanished right after it was written: Redis lost data")
        return record
