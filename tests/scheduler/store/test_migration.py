"""Migrations in Redis: begun by the leader, committed or called off once, never two owners."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from scheduler.messages import (
    CancelMigration,
    EngineCommand,
    EngineId,
    MigrateSession,
    ModelInfo,
    OpenSession,
    Phase,
    ReceiveSession,
    Residence,
    SessionRecord,
)
from scheduler.store import START, PlacementRefused, StaleEpoch, StaleTerm, Store
from tests.scheduler.conftest import E1, E2, E3, MODEL, S1, S2, create, placed

ID = "m_0000000000000001"
LIMIT_MS = 60_000


async def enter(
    store: Store, engine: EngineId, *, capacity: int = 4, transfer: str = "h:2", model: ModelInfo = MODEL
) -> None:
    await store.register_engine(
        engine, url="ws://h:1/link", model=model, capacity=capacity, transfer=transfer
    )


async def begin(store: Store, term: int, epoch: int, *, limit_ms: int = LIMIT_MS, id: str = ID) -> None:
    await store.begin_migration(S1, E2, expect_epoch=epoch, term=term, migration_id=id, limit_ms=limit_ms)


async def flying(store: Store, *, limit_ms: int = LIMIT_MS) -> tuple[int, int]:
    """A session on its way from E1 to E2; returns (term, epoch)."""
    term, epoch = await placed(store)
    await enter(store, E1, transfer="h:1")
    await enter(store, E2)
    await store.publish_session(E1, S1, epoch, active=True, next_seq=3, next_frame=9, rev=0, slack_ms=0)
    await begin(store, term, epoch, limit_ms=limit_ms)
    return term, epoch


async def commit(store: Store, epoch: int, id: str = ID) -> int:
    return await store.commit_migration(
        E1, S1, epoch, migration_id=id, residence=Residence.RESIDENT, engine_ms=0, media_bytes=0
    )


async def record(store: Store) -> SessionRecord:
    found = await store.get_session(S1)
    assert found is not None
    return found


async def commands(store: Store, engine: EngineId) -> list[EngineCommand]:
    return [command for _, command in await store.read_commands(engine, START)]


async def test_begin_tells_both_and_changes_no_owner(store: Store) -> None:
    _, epoch = await flying(store)
    now = await record(store)
    assert (now.engine, now.epoch) == (E1, epoch)
    assert now.in_flight is not None and (now.in_flight.migration_id, now.in_flight.target) == (ID, E2)
    assert (await commands(store, E1))[-1] == MigrateSession(
        session=S1, epoch=epoch, migration_id=ID, engine=E2, address="h:2", limit_ms=LIMIT_MS
    )
    assert (await commands(store, E2))[-1] == ReceiveSession(
        session=S1, epoch=epoch, migration_id=ID, engine=E1, takes_slot=True, limit_ms=LIMIT_MS
    )


async def test_a_move_in_between_ends_a_row_of_crashes(store: Store) -> None:
    """The engine that it left in order shows that the session is no poison."""
    term, epoch = await placed(store)
    await store.report_exit(E1, "was killed by SIGSEGV", crashed=True)
    for engine in (E2, E3):
        await enter(store, engine)
    epoch = await store.place_session(S1, E2, expect_epoch=(await record(store)).epoch, term=term)
    await store.announce_session(E2, S1, epoch)
    await store.publish_session(E2, S1, epoch, active=True, next_seq=3, next_frame=9, rev=0, slack_ms=0)
    await store.begin_migration(S1, E3, expect_epoch=epoch, term=term, migration_id=ID, limit_ms=LIMIT_MS)
    await store.commit_migration(
        E2, S1, epoch, migration_id=ID, residence=Residence.RESIDENT, engine_ms=0, media_bytes=0
    )
    await store.report_exit(E3, "was killed by SIGSEGV", crashed=True)
    assert (await record(store)).phase is Phase.QUEUED


async def test_commit_changes_the_owner_once(store: Store) -> None:
    """A repeat, whose first answer was lost, gets the same answer, also when the session moved on."""
    term, epoch = await flying(store)
    assert await commit(store, epoch) == epoch + 1
    now = await record(store)
    assert (now.engine, now.epoch, now.in_flight, now.opened) == (E2, epoch + 1, None, True)
    assert (await commands(store, E2))[-1] == OpenSession(session=S1, epoch=epoch + 1)
    assert await commit(store, epoch) == epoch + 1
    await store.lose_engine(E2, term=term, reason="")
    assert await commit(store, epoch) == epoch + 1
    assert (await record(store)).epoch == epoch + 2
    with pytest.raises(StaleEpoch):
        await commit(store, epoch, "m_other")


async def test_other_moves_are_refused_meanwhile(store: Store) -> None:
    term, epoch = await flying(store)
    await enter(store, E3)
    moves: list[Callable[[], Awaitable[object]]] = [
        lambda: store.place_session(S1, E3, expect_epoch=epoch, term=term),
        lambda: store.requeue_session(S1, expect_epoch=epoch, term=term, reason=""),
        lambda: store.suspend_session(S1, expect_epoch=epoch, term=term),
        lambda: begin(store, term, epoch, id="m_other"),
    ]
    for move in moves:
        with pytest.raises(PlacementRefused, match="being migrated"):
            await move()
    assert (await record(store)).in_flight is not None


@pytest.mark.parametrize("who", ["source", "leader"])
async def test_called_off_the_source_goes_on(store: Store, who: str) -> None:
    """The target is told to drop its copy; a commit that comes late is refused."""
    term, epoch = await flying(store, limit_ms=0 if who == "leader" else LIMIT_MS)
    for _ in range(2):
        if who == "source":
            await store.abort_migration(E1, S1, epoch, migration_id=ID)
        else:
            await store.call_off_migration(S1, term=term)
    now = await record(store)
    assert (now.engine, now.epoch, now.in_flight, now.failed_moves) == (E1, epoch, None, 1)
    cancel = CancelMigration(session=S1, epoch=epoch, migration_id=ID)
    assert (await commands(store, E2))[-1] == cancel
    assert ((await commands(store, E1))[-1] == cancel) == (who == "leader")
    with pytest.raises(PlacementRefused):
        await commit(store, epoch)
    assert (await record(store)).engine == E1


async def test_the_leader_waits_for_the_deadline(store: Store) -> None:
    term, _ = await flying(store)
    await store.call_off_migration(S1, term=term)
    assert (await record(store)).in_flight is not None
    with pytest.raises(StaleTerm):
        await store.call_off_migration(S1, term=term + 1)


async def test_recovery_of_the_source_clears_it_and_bumps_the_epoch(store: Store) -> None:
    """The target drops what it has; the source's commit comes too late."""
    term, epoch = await flying(store)
    await store.lose_engine(E1, term=term, reason="killed")
    now = await record(store)
    assert (now.phase, now.epoch, now.in_flight) == (Phase.QUEUED, epoch + 1, None)
    assert isinstance((await commands(store, E2))[-1], CancelMigration)
    with pytest.raises(StaleEpoch):
        await commit(store, epoch)


async def test_a_lost_target_leaves_the_session_where_it_is(store: Store) -> None:
    term, epoch = await flying(store)
    await store.lose_engine(E2, term=term, reason="killed")
    now = await record(store)
    assert (now.engine, now.epoch, now.in_flight) == (E1, epoch, None)
    assert isinstance((await commands(store, E1))[-1], CancelMigration)
    with pytest.raises(PlacementRefused):
        await commit(store, epoch)


async def test_closing_ends_it(store: Store) -> None:
    _, epoch = await flying(store)
    await store.close_session(S1, "stopped")
    assert isinstance((await commands(store, E2))[-1], CancelMigration)
    with pytest.raises(StaleEpoch):
        await commit(store, epoch)


async def test_a_session_on_its_way_holds_a_slot_at_the_target(store: Store) -> None:
    term, epoch = await flying(store)
    await enter(store, E2, capacity=1)
    await create(store, S2)
    with pytest.raises(PlacementRefused, match="full"):
        await store.place_session(S2, E2, expect_epoch=0, term=term)
    await store.abort_migration(E1, S1, epoch, migration_id=ID)
    assert await store.place_session(S2, E2, expect_epoch=0, term=term) == 1


async def test_what_can_not_be_migrated(store: Store) -> None:
    """Nothing to move, another model, an engine that can't, or is not ready."""
    term, epoch = await placed(store)
    refusals = ["several GPUs", "not ready"]
    await enter(store, E2)
    with pytest.raises(PlacementRefused, match=refusals[0]):
        await begin(store, term, epoch)
    await enter(store, E1, transfer="h:1")
    await enter(store, E2, model=replace(MODEL, weights_hash="01"))
    with pytest.raises(PlacementRefused, match="other weights"):
        await begin(store, term, epoch)
    await store.drain_engine(E2, term=term, reason="")
    with pytest.raises(PlacementRefused, match=refusals[1]):
        await begin(store, term, epoch)
    stored = {"residence": Residence.STORED, "next_seq": 0, "next_frame": 0, "rev": 0, "slack_ms": 0}
    await store.publish_session(E1, S1, epoch, active=False, **stored)  # type: ignore[arg-type]
    with pytest.raises(PlacementRefused, match="no state"):
        await begin(store, term, epoch)


async def test_an_order_to_where_its_state_means_nothing_is_refused(store: Store) -> None:
    """Who gives it is told; from a checkpoint the picture would be lost as well."""
    await placed(store)
    await enter(store, E1, transfer="h:1")
    await enter(store, E2, model=replace(MODEL, weights_hash="01"))
    with pytest.raises(PlacementRefused, match="other weights"):
        await store.order_migration(S1, E2)
    assert (await record(store)).move_to is None
    await enter(store, E2)
    await store.order_migration(S1, E2)
    assert (await record(store)).move_to == E2
