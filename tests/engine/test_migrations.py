"""All migrations of one engine: what becomes of the sessions where one does not get far."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import torch

from engine.compute_messages import Command, Reserve, Reserved, Thaw, Unreserve
from engine.cost_table import CostTable
from engine.hosted import Hosted
from engine.kv_pool import SlabPool
from engine.migrations import Migrations
from engine.models.shapes.model import TINY, ShapesModel
from engine.outgoing import Outgoing, Timing
from engine.pairs import Pair, PairLost, Pairs
from scheduler.messages import (
    CancelMigration,
    EngineId,
    MigrateSession,
    ReceiveSession,
    Residence,
    SessionId,
    SessionRecord,
)
from tests.engine.edges import S1, until
from tests.engine.test_host import RECORD
from tests.engine.test_host import World as HostWorld

A, B = EngineId("e_0000000a"), EngineId("e_0000000b")
MODEL = ShapesModel.random(0, config=TINY)
OUT = MigrateSession(session=S1, epoch=1, migration_id="m", engine=B, address="127.0.0.1:1", limit_ms=20_000)
IN = ReceiveSession(session=S1, epoch=5, migration_id="m", engine=A, takes_slot=True, limit_ms=20_000)
OFF = CancelMigration(session=S1, epoch=1, migration_id="m")


class World(HostWorld):
    """The migrations of a host, whose compute side is recorded; Redis does as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted: list[SessionId] = []
        self.reopened: list[tuple[SessionId, int]] = []
        self.pairs = Pairs(B, "127.0.0.1", torch.device("cpu"))
        self.migrations = Migrations(
            *(MODEL, SlabPool(MODEL, slots=1), self.pairs, self.host, self),
            engine=B,
            submit=self.submit,
            costs=lambda: CostTable.flat(1.0),
            clock=lambda: self.now_ms,
        )

    def submit(self, command: Command) -> None:
        super().submit(command)
        if isinstance(command, Reserve):
            self.host.migration_event(Reserved(migration_id=command.migration_id, slot=0))

    def told(self, kind: type[Command]) -> bool:
        return any(isinstance(command, kind) for command in self.commands)

    def served(self) -> Hosted:
        """A session whose state the compute side has."""
        hosted = self.open()
        self.subscribe()
        assert hosted.at_compute
        return hosted

    # MigrationLedger
    async def ping(self) -> None:
        pass

    async def record_of(self, session: SessionId) -> SessionRecord | None:
        return RECORD

    async def flush_applied(self, hosted: Hosted) -> None:
        pass

    async def commit_migration(self, hosted: Hosted, migration_id: str, residence: Residence) -> int:
        raise RuntimeError("Redis says what nobody understands")

    async def abort_migration(self, session: SessionId, epoch: int, migration_id: str) -> None:
        self.aborted.append(session)

    async def disowned(self, hosted: Hosted) -> None:
        raise AssertionError("nobody else has it")

    def reopen(self, session: SessionId, epoch: int) -> None:
        self.reopened.append((session, epoch))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    await world.migrations.close()
    for hosted in list(world.host.sessions.values()):
        world.host.close(hosted.id, "test over")


def no_memory(*_: object, **__: object) -> Pair:
    raise torch.OutOfMemoryError("no memory for a copy")


async def test_called_off_before_it_has_begun_the_session_goes_on(world: World) -> None:
    """The order and its end come in one batch: it may leave, rest and be moved as before."""
    hosted = world.served()
    world.migrations.migrate(OUT)
    assert hosted.moving
    world.migrations.cancel(OFF)
    await until(lambda: not hosted.moving)
    assert world.told(Thaw) and world.fatal == []
    await until(lambda: world.migrations._outgoing == {})
    world.migrations.migrate(OUT)
    assert hosted.moving


async def test_called_off_on_its_way_the_session_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, not when a step has taken too long."""
    begun, loop, over = asyncio.Event(), asyncio.get_running_loop(), asyncio.Event()

    def call(*_: object, **__: object) -> Pair:
        loop.call_soon_threadsafe(begun.set)
        asyncio.run_coroutine_threadsafe(over.wait(), loop).result()
        raise PairLost("too late")

    monkeypatch.setattr(world.pairs, "call", call)
    hosted = world.served()
    world.migrations.migrate(OUT)
    await begun.wait()
    world.migrations.cancel(OFF)
    await until(lambda: not hosted.moving)
    assert world.told(Thaw) and world.fatal == []
    over.set()


async def test_an_ownership_after_one_that_was_called_off_is_another(world: World) -> None:
    """Both orders come in one batch: what was on its way does not come, so the session must be opened."""
    world.migrations.receive(IN)
    world.migrations.cancel(CancelMigration(session=S1, epoch=5, migration_id="m"))
    assert not world.migrations.own(S1, 6)
    await until(lambda: world.told(Unreserve))
    assert world.reopened == []


async def test_one_that_is_ours_and_does_not_come_is_opened(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was told that it would come with its state does not open it."""

    def answer(*_: object, **__: object) -> Pair:
        raise PairLost("the source is gone")

    monkeypatch.setattr(world.pairs, "answer", answer)
    world.migrations.receive(IN)
    assert world.migrations.own(S1, 6)
    await until(lambda: world.reopened == [(S1, 6)])
    assert world.told(Unreserve) and world.fatal == []


async def test_without_memory_for_a_copy_the_session_stays(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of one migration at its source is none of the engine's."""
    monkeypatch.setattr(world.pairs, "call", no_memory)
    hosted = world.served()
    world.migrations.migrate(OUT)
    await until(lambda: world.aborted == [S1])
    assert not hosted.moving and world.told(Thaw) and world.fatal == []


async def test_without_memory_for_what_comes_its_place_is_given_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same at its target."""
    monkeypatch.setattr(world.pairs, "answer", no_memory)
    world.migrations.receive(IN)
    await until(lambda: world.told(Unreserve))
    await until(lambda: world.migrations._incoming == {})
    assert world.fatal == [] and world.reopened == []


async def test_a_fault_while_it_is_committed_ends_the_engine(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows whose the session is: who goes on with it might be the second."""

    async def commit(outgoing: Any) -> tuple[int, Timing]:
        outgoing.is_committing = True
        await world.commit_migration(outgoing._hosted, "m", Residence.RESIDENT)
        raise AssertionError("it is refused")

    monkeypatch.setattr(Outgoing, "run", commit)
    hosted = world.served()
    world.migrations.migrate(OUT)
    await until(lambda: world.fatal != [])
    assert hosted.moving and world.aborted == [] and not world.told(Thaw)
