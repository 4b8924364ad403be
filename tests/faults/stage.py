"""A session on the first of two engines, its client, and what happens to it on its way to the second.

The engines are real, both `tests.engine.faulty_engine`; the test is the leader and the gateway. Engines that
a test leaves alive serve the next one too.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from websockets.exceptions import ConnectionClosed, InvalidHandshake

from engine.config import EngineConfig
from scheduler.messages import (
    ChunkPart,
    Credit,
    EngineId,
    Input,
    Moved,
    Refused,
    SessionId,
    SessionRecord,
)
from scheduler.store import Store, StoreUnavailable
from tests.cluster import SCALE, until
from tests.engine.link_client import LinkClient
from tests.engine.process import EngineProcess, Engines, place
from tests.scheduler.conftest import RedisServer

SOURCE, TARGET = "source", "target"
LIMIT_MS = round(8_000 * SCALE)
"""Of a migration."""


@dataclass
class Client:
    """Follows the session from owner to owner, as a gateway does."""

    store: Store
    session: SessionId
    next_seq: int = 0
    next_frame: int = 0
    link: LinkClient | None = None
    """Subscribed at the owner."""
    buffer_ms: float = 0.0
    """What the player still holds, as it says."""
    seen: list[tuple[int, EngineId, int]] = field(default_factory=list)
    """(seq, owner, epoch) of each complete chunk."""

    async def follow(self) -> None:
        """Take chunks until cancelled. A chunk is taken when it is complete and the next one."""
        while True:
            try:
                record = await self.store.get_session(self.session)
                if record is not None and record.engine is not None and record.opened:
                    engine = await self.store.get_engine(record.engine)
                    assert engine is not None
                    await self._watch(await LinkClient.open(engine.url), record)
            except (OSError, ConnectionClosed, InvalidHandshake, StoreUnavailable):
                pass
            await asyncio.sleep(0.05)  # the next owner is known to Redis soon

    async def acknowledge(self, link: LinkClient) -> None:
        """Say what was taken."""
        credit = Credit(
            session=self.session, controller_epoch=1, seq=self.next_seq - 1, buffer_ms=self.buffer_ms
        )
        await link.send(credit)

    async def _watch(self, link: LinkClient, record: SessionRecord) -> None:
        try:
            await link.subscribe(self.session, self.next_seq, epoch=record.epoch, next_frame=self.next_frame)
            self.link = link
            while True:
                message = await link.receive()
                if isinstance(message, Moved | Refused):
                    return
                if not isinstance(message, ChunkPart) or message.seq < self.next_seq:
                    continue
                assert (message.seq, message.epoch) == (self.next_seq, record.epoch)
                if message.part + 1 == message.parts:
                    assert link.decoded_frames(message.seq) == 12
                    assert record.engine is not None
                    self.seen.append((message.seq, record.engine, message.epoch))
                    self.next_seq, self.next_frame = message.seq + 1, self.next_frame + 12
                    await self.acknowledge(link)
        finally:
            await link.close()


class FaultyEngines(Engines):
    """Engines to which something happens where a test wants it."""

    def settings(self, engine: EngineId) -> EngineConfig:
        return replace(super().settings(engine), capacity=2)  # more would be measured, and serve nobody

    async def start(self, engine: EngineId) -> EngineProcess:
        faults, log = str(self._faults(engine)), self.logs / f"{engine}.log"
        module = "tests.engine.faulty_engine"
        config = self.settings(engine)
        return await EngineProcess.start(self.server, config, log, module=module, FAULT_FILE=faults)

    def arm(self, engine: EngineId, step: str, fault: str, *, rank: int = 0) -> None:
        """See `tests.engine.faulty_engine`."""
        assert self.redis.process is not None
        order = {"step": step, "fault": fault, "redis_pid": self.redis.process.pid, "rank": rank}
        part = self._faults(engine).with_suffix(".part")
        part.write_text(json.dumps(order))
        part.rename(self._faults(engine))

    def has_struck(self, engine: EngineId) -> bool:
        """Has it happened?"""
        return not self._faults(engine).exists()

    def _faults(self, engine: EngineId) -> Path:
        return self.logs / f"{engine}.fault"


@dataclass
class Stage:
    """Two engines, a session on the first, its client."""

    store: Store
    redis: RedisServer
    source: EngineProcess
    target: EngineProcess
    session: SessionId
    term: int
    client: Client

    async def begin(self, number: int = 1, *, expect_epoch: int = 1, chunks: int = 2) -> None:
        """Have it moved once the client has so many chunks."""
        await until(lambda: self.client.next_seq >= chunks)
        await self.store.begin_migration(
            self.session,
            self.target.id,
            expect_epoch=expect_epoch,
            term=self.term,
            migration_id=f"m_{self.session}_{number}",
            limit_ms=LIMIT_MS,
        )

    async def record(self) -> SessionRecord:
        found = await self.store.get_session(self.session)
        assert found is not None
        return found

    async def over(self) -> SessionRecord:
        """The record once the migration is neither committed nor called off any more."""
        while True:
            with contextlib.suppress(StoreUnavailable):  # it may need a moment after it stood still
                if (found := await self.record()).in_flight is None:
                    return found
                await self.store.call_off_migration(self.session, term=self.term)
            await asyncio.sleep(0.1)  # as a leader's tick

    async def goes_on(self, chunks: int = 2) -> None:
        """Return when the client got so many more, then check all that it got."""
        for goal in range(self.client.next_seq + 1, self.client.next_seq + chunks + 1):
            await until(partial(self._has, goal))
        seqs, epochs = [s for s, _, _ in self.client.seen], [e for _, _, e in self.client.seen]
        assert seqs == list(range(len(seqs)))
        assert epochs == sorted(epochs)
        assert len({(owner, epoch) for _, owner, epoch in self.client.seen}) == len(set(epochs))

    async def follows(self, record: SessionRecord) -> None:
        """Return when the client has a chunk of this owner: before, it may still have others of the last."""
        await until(lambda: self.client.seen[-1][2] >= record.epoch)

    def _has(self, chunks: int) -> bool:
        return self.client.next_seq >= chunks


_numbers = itertools.count(1)


class Script:
    """Puts a session on the first of two engines, with a fault in one of them."""

    def __init__(self, engines: FaultyEngines) -> None:
        self._engines, self._session = engines, SessionId(f"s_{next(_numbers):016x}")
        self._following: asyncio.Task[None] | None = None
        self._client = Client(engines.store, self._session)

    async def start(
        self,
        faulty: str = SOURCE,
        step: str = "none",
        fault: str = "none",
        *,
        rank: int = 0,
        inputs: Sequence[Input] = (),
    ) -> Stage:
        """Place it, and follow it. `inputs` come after the start prompt in its log."""
        engines, session = self._engines, self._session
        source, target = await engines.take(2)
        engines.arm((source if faulty == SOURCE else target).id, step, fault, rank=rank)
        await place(engines.store, source.id, session, inputs=inputs, term=engines.term)
        self.follow()
        return Stage(engines.store, engines.redis, source, target, session, engines.term, self._client)

    def follow(self) -> None:
        """Begin to follow the session, or begin anew."""
        if self._following is not None:
            self._following.cancel()
        self._following = asyncio.create_task(self._client.follow())

    async def end(self) -> None:
        engines = self._engines
        assert engines.redis.process is not None
        engines.redis.process.send_signal(signal.SIGCONT)
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
            await engines.store.close_session(self._session, "the test has ended")
        for engine in engines.alive:
            if engine.is_over:
                await engines.store.lose_engine(engine.id, term=engines.term, reason="killed")
