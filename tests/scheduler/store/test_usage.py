"""What sessions use: counted by Redis's clock, recorded once when they are closed, whoever dies meanwhile."""

from __future__ import annotations

from scheduler.messages import EngineId, Residence, SessionId, Usage
from scheduler.store import START, SessionProgress, Store
from scheduler.store.engine import EngineStore
from tests.scheduler.conftest import E1, E2, MODEL, S1, S2, S3, create, lead, ready

WAIT_MS = 40


async def later(store: Store) -> None:
    """Until Redis's clock has moved on."""
    end_ms = await store.now_ms() + WAIT_MS
    while await store.now_ms() < end_ms:
        await store.read_commands(E1, START, block_ms=5)


async def publish(
    store: EngineStore,
    engine: EngineId,
    epoch: int,
    chunks: int,
    *,
    engine_ms: int,
    media_bytes: int,
    active: bool = True,
    residence: Residence = Residence.RESIDENT,
) -> None:
    progress = SessionProgress(
        session=S1,
        epoch=epoch,
        active=active,
        next_seq=chunks,
        next_frame=12 * chunks,
        rev=0,
        slack_ms=0,
        residence=residence,
        engine_ms=engine_ms,
        media_bytes=media_bytes,
    )
    assert await store.publish_sessions(engine, [progress]) == []


async def usages(store: Store) -> list[Usage]:
    return (await store.read_usage(START))[0]


async def test_one_record_over_two_owners(store: Store) -> None:
    """Waiting costs nothing; what a lost engine had said counts, what it says twice counts once; time out of
    the slot is not resident, and time without wanting chunks not active."""
    await create(store, subject="alice")
    await ready(store, E1)
    await ready(store, E2)
    term = await lead(store)
    await later(store)  # in the queue

    began_ms = await store.now_ms()
    epoch = await store.place_session(S1, E1, expect_epoch=0, term=term)
    for _ in range(2):
        await publish(store, E1, epoch, 2, engine_ms=100, media_bytes=1_000)
    await later(store)
    await store.lose_engine(E1, term=term, reason="heartbeat missed")
    lost_ms = await store.now_ms()
    await later(store)  # in the queue again

    placed_ms = await store.now_ms()
    epoch = await store.place_session(S1, E2, expect_epoch=epoch + 1, term=term)
    await publish(store, E2, epoch, 3, engine_ms=50, media_bytes=400)
    await later(store)
    await publish(store, E2, epoch, 3, engine_ms=60, media_bytes=500, active=False)
    idle_ms = await store.now_ms()
    await later(store)  # in its slot, but idle
    stored = Residence.OFFLOADED
    await publish(store, E2, epoch, 3, engine_ms=60, media_bytes=500, active=False, residence=stored)
    offloaded_ms = await store.now_ms()
    await later(store)
    assert await usages(store) == []
    await store.end_session(E2, S1, epoch, "idle")
    assert not await store.close_session(S1, "stopped")

    (usage,) = await usages(store)
    assert (usage.session, usage.subject, usage.model, usage.reason) == (S1, "alice", "shapes", "idle")
    assert (usage.engine_ms, usage.media_bytes, usage.chunks, usage.frames) == (160, 1_500, 3, 36)
    on_first = lost_ms - began_ms
    assert 2 * WAIT_MS <= usage.active_ms <= on_first + idle_ms - placed_ms
    assert usage.active_ms + WAIT_MS <= usage.resident_ms <= on_first + offloaded_ms - placed_ms
    assert usage.closed_ms - usage.created_ms >= usage.resident_ms + 3 * WAIT_MS


async def test_what_a_source_made_to_the_end_counts(store: Store) -> None:
    """Also what it had not published when it gave the session away; a repeat of that adds nothing."""
    await create(store)
    for engine in (E1, E2):
        await store.register_engine(engine, url="ws://h:1/l", model=MODEL, capacity=1, transfer="h:2")
    term = await lead(store)
    epoch = await store.place_session(S1, E1, expect_epoch=0, term=term)
    await publish(store, E1, epoch, 1, engine_ms=100, media_bytes=1_000)
    await store.begin_migration(S1, E2, expect_epoch=epoch, term=term, migration_id="m", limit_ms=60_000)
    made = {"residence": Residence.RESIDENT, "engine_ms": 130, "media_bytes": 1_300}
    for _ in range(2):
        await store.commit_migration(E1, S1, epoch, migration_id="m", **made)  # type: ignore[arg-type]
    await publish(store, E2, epoch + 1, 3, engine_ms=50, media_bytes=400)
    await store.end_session(E2, S1, epoch + 1, "idle")
    (usage,) = await usages(store)
    assert (usage.engine_ms, usage.media_bytes) == (180, 1_700)


async def test_every_closed_session_has_one(store: Store) -> None:
    """Also one that nobody ever placed, one that lost its connection, and one that crashes engines."""
    term = await lead(store)
    await create(store, S1)
    await store.close_session(S1, "stopped")
    await create(store, S2)
    await store.leave_session(S2, controller_epoch=1)
    record = await store.get_session(S2)
    assert record is not None and record.left_ms is not None
    await store.sweep_session(S2, left_ms=record.left_ms, term=term, reason="disconnected")
    await create(store, S3)
    epoch = 0
    for engine in (E1, E2):
        await ready(store, engine)
        epoch = 1 + await store.place_session(S3, engine, expect_epoch=epoch, term=term)
        await store.report_exit(engine, "crashed", crashed=True)
    found = [(usage.session, usage.reason) for usage in await usages(store)]
    assert found == [(S1, "stopped"), (S2, "disconnected"), (S3, "engine_crashed")]


async def test_pages(store: Store) -> None:
    """By subject and time, a few at a time; a cursor goes on behind what was looked through."""
    ids = [SessionId(f"s_{n:016x}") for n in range(5)]
    for n, id in enumerate(ids):
        await create(store, id, subject=("alice", "bob")[n % 2])
        await store.close_session(id, "stopped")
    found, cursor = await store.read_usage(START, subject="alice", count=2)
    assert [usage.session for usage in found] == [ids[0], ids[2]]
    found, cursor = await store.read_usage(cursor, subject="alice")
    assert [usage.session for usage in found] == [ids[4]]
    assert await store.read_usage(cursor) == ([], cursor)
    assert (await store.read_usage(str(await store.now_ms() + 1)))[0] == []
