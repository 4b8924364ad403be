"""What engines write, each refusal included."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from scheduler.messages import (
    DesiredEngine,
    EngineChanged,
    EngineCosts,
    EngineId,
    EngineState,
    OpenSession,
    Phase,
    PromptInput,
    SessionChanged,
    SessionId,
    SessionOpened,
)
from scheduler.store import (
    START,
    AppliedRecord,
    EngineGone,
    EngineUnknown,
    SessionIsClosed,
    SessionProgress,
    StaleEpoch,
    Store,
)
from tests.scheduler.conftest import (
    E1,
    E2,
    E3,
    MODEL,
    S1,
    S2,
    create,
    lead,
    placed,
    ready,
    restore,
    snapshot,
)


async def test_register_makes_a_wanted_engine_ready(store: Store) -> None:
    """The starting record of the desired set becomes ready with url, model and capacity."""
    term = await lead(store)
    await store.write_desired(term, [DesiredEngine(id=E1, model="shapes")])
    (starting,) = await store.list_engines()
    assert (starting.state, starting.model) == (EngineState.STARTING, None)
    await ready(store, capacity=3)
    (engine,) = await store.list_engines()
    assert (engine.state, engine.model, engine.capacity) == (EngineState.READY, MODEL, 3)
    assert engine.started_ms == starting.started_ms
    assert await store.list_models() == {"shapes": MODEL}
    last = (await store.read_events(START))[-1][1]
    assert last == EngineChanged(engine=E1, state=EngineState.READY, reason="registered")


async def test_register_twice_changes_no_state(store: Store) -> None:
    """A repeated registration keeps sessions and a draining state."""
    term, _ = await placed(store)
    await store.drain_engine(E1, term=term, reason="test")
    await ready(store)
    engine = await store.get_engine(E1)
    assert engine is not None and (engine.state, engine.sessions) == (EngineState.DRAINING, 1)


async def test_a_gone_engine_learns_it(store: Store) -> None:
    """Heartbeat and registration of an engine that was declared gone say so."""
    await ready(store)
    await store.lose_engine(E1, term=await lead(store), reason="silent")
    with pytest.raises(EngineGone):
        await store.heartbeat_engine(E1, load=0, chunk_ms=0, phase="idle", deadline_ms=None)
    with pytest.raises(EngineGone):
        await ready(store)


async def test_heartbeat_of_an_unknown_engine(store: Store) -> None:
    """An engine that Redis forgot is told apart from one that was declared gone."""
    with pytest.raises(EngineUnknown):
        await store.heartbeat_engine(E1, load=0, chunk_ms=0, phase="idle", deadline_ms=None)


async def test_heartbeat_publishes_in_server_time(store: Store) -> None:
    """The deadline is stored as a point in Redis time."""
    await ready(store)
    beat = {"load": 0.5, "chunk_ms": 81.5, "worst_ms": 300.0}
    await store.heartbeat_engine(E1, **beat, phase="pass", deadline_ms=2_000)
    engine = await store.get_engine(E1)
    assert engine is not None and engine.deadline_ms is not None
    assert (engine.load, engine.chunk_ms, engine.worst_ms) == (0.5, 81.5, 300.0)
    assert engine.phase == "pass"
    assert engine.deadline_ms == engine.heartbeat_ms + 2_000
    await store.heartbeat_engine(E1, load=0.5, chunk_ms=81.5, phase="idle", deadline_ms=None)
    engine = await store.get_engine(E1)
    assert engine is not None and engine.deadline_ms is None


async def test_costs_stay_published_until_they_are_replaced(store: Store) -> None:
    """A heartbeat without costs leaves them as they are."""
    costs = EngineCosts(
        buckets=(3, 12),
        pass_ms=((1.5, 2.0), (3.0, 4.25)),
        decode_ms=7.5,
        chunk_passes=5,
        first_chunk_passes=9,
    )
    await ready(store)
    engine = await store.get_engine(E1)
    assert engine is not None and engine.costs is None
    await store.heartbeat_engine(E1, load=0, chunk_ms=0, phase="idle", deadline_ms=None, costs=costs)
    await store.heartbeat_engine(E1, load=0, chunk_ms=0, phase="idle", deadline_ms=None)
    (engine,) = await store.list_engines()
    assert engine.costs == costs


async def test_commands_wake_a_blocked_engine(store: Store) -> None:
    """A blocking read returns as soon as a command is there."""
    await create(store)
    await ready(store)
    term = await lead(store)
    reading = asyncio.create_task(store.read_commands(E1, START, block_ms=30_000))
    await store.place_session(S1, E1, expect_epoch=0, term=term)
    ((_, command),) = await reading
    assert command == OpenSession(session=S1, epoch=1)


async def test_an_engine_learns_what_is_placed_on_it(store: Store) -> None:
    """Its own sessions only."""
    term, _ = await placed(store)
    await ready(store, E2)
    assert (await store.placed_sessions(E1), await store.placed_sessions(E2)) == ([S1], [])
    await store.requeue_session(S1, expect_epoch=1, term=term, reason="test")
    assert await store.placed_sessions(E1) == []


async def test_inputs_wake_a_blocked_engine(store: Store) -> None:
    """One blocking read covers all logs and returns only those with news."""
    await create(store, S1)
    await create(store, S2)
    logs = await store.read_inputs({S1: START, S2: START})
    after = {session: entries[-1][0] for session, entries in logs.items()}
    reading = asyncio.create_task(store.read_inputs(after, block_ms=30_000))
    await store.append_input(S2, PromptInput(text="blue"), controller_epoch=1)
    news = await reading
    assert {s: [m for _, m in entries] for s, entries in news.items()} == {S2: [PromptInput(text="blue")]}


async def test_cancelled_reads_leave_the_store_usable(store: Store) -> None:
    """A cancelled blocking read loses nothing: the next one gets the entry."""
    await create(store)
    ((after, _),) = (await store.read_inputs({S1: START}))[S1]
    for _ in range(20):
        reading = asyncio.create_task(store.read_inputs({S1: after}, block_ms=30_000))
        await store.ping()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    await store.append_input(S1, PromptInput(text="blue"), controller_epoch=1)
    assert len((await store.read_inputs({S1: after}, block_ms=30_000))[S1]) == 1


async def test_announce_opens_once_per_epoch(store: Store) -> None:
    """The owner's announcement sets `opened` and tells everybody."""
    _, epoch = await placed(store)
    await store.announce_session(E1, S1, epoch, state_bytes=4_300_000)
    record = await store.get_session(S1)
    assert record is not None and record.opened and record.state_bytes == 4_300_000
    last = (await store.read_events(START))[-1][1]
    assert last == SessionOpened(session=S1, engine=E1, epoch=epoch)


async def test_publish_writes_progress_and_tells_changes_only(store: Store) -> None:
    """Progress is silent; a change of activity is one event."""
    _, epoch = await placed(store)
    start = await store.last_event_id()
    await store.publish_session(E1, S1, epoch, active=True, next_seq=3, next_frame=36, rev=1, slack_ms=900)
    assert await store.read_events(start) == []
    await store.publish_session(E1, S1, epoch, active=False, next_seq=4, next_frame=48, rev=1, slack_ms=-20)
    assert [e for _, e in await store.read_events(start)] == [SessionChanged(session=S1, active=False)]
    record = await store.get_session(S1)
    assert record is not None
    assert (record.next_seq, record.next_frame, record.rev, record.slack_ms) == (4, 48, 1, -20)


async def test_publish_many_returns_the_stale(store: Store) -> None:
    """One round trip for all; those that have another owner come back."""
    _, epoch = await placed(store)
    await create(store, S2)
    items = [
        SessionProgress(session=s, epoch=epoch, active=True, next_seq=5, next_frame=60, rev=0, slack_ms=0)
        for s in (S1, S2)
    ]
    assert await store.publish_sessions(E1, items) == [S2]
    record = await store.get_session(S1)
    assert record is not None and record.next_seq == 5


async def test_record_applied_skips_what_is_recorded(store: Store) -> None:
    """A repeat after a lost answer writes nothing twice and last_applied never falls."""
    _, epoch = await placed(store)
    receipt = await store.append_input(S1, PromptInput(text="blue"), controller_epoch=1)
    first = AppliedRecord(entry="1-1", rev=0, seq=0)
    second = AppliedRecord(entry=receipt.entry, rev=1, seq=4)
    await store.record_applied(E1, S1, epoch, [first])
    await store.record_applied(E1, S1, epoch, [first, second])
    await store.record_applied(E1, S1, epoch, [first])
    assert await store.applied_history(S1) == [first, second]
    record = await store.get_session(S1)
    assert record is not None and record.last_applied == receipt.entry


async def test_end_closes_without_a_command_to_oneself(store: Store) -> None:
    """The owner closes: everybody is told, the owner gets no command about it."""
    _, epoch = await placed(store)
    await store.end_session(E1, S1, epoch, "idle")
    record = await store.get_session(S1)
    assert record is not None and (record.phase, record.reason) == (Phase.CLOSED, "idle")
    commands = [command for _, command in await store.read_commands(E1, START)]
    assert commands == [OpenSession(session=S1, epoch=epoch)]
    with pytest.raises(SessionIsClosed):
        await store.append_input(S1, PromptInput(text="x"), controller_epoch=1)


Write = Callable[[Store, int], Awaitable[object]]
OWNER_WRITES: dict[str, Write] = {
    "announce": lambda store, epoch: store.announce_session(E1, S1, epoch),
    "publish": lambda store, epoch: store.publish_session(
        E1, S1, epoch, active=True, next_seq=9, next_frame=9, rev=9, slack_ms=9
    ),
    "applied": lambda store, epoch: store.record_applied(
        E1, S1, epoch, [AppliedRecord(entry="1-1", rev=0, seq=0)]
    ),
    "end": lambda store, epoch: store.end_session(E1, S1, epoch, "stop"),
}


@pytest.mark.parametrize("write", OWNER_WRITES.values(), ids=OWNER_WRITES.keys())
async def test_a_former_owner_is_refused(store: Store, write: Write) -> None:
    """After a move every write of the engine before is refused and changes nothing."""
    term, epoch = await placed(store)
    await ready(store, E2)
    await store.place_session(S1, E2, expect_epoch=epoch, term=term)
    before = await store.get_session(S1)
    for stale in (epoch, epoch + 1):  # its own epoch, and the new one under its own name
        with pytest.raises(StaleEpoch):
            await write(store, stale)
    assert await store.get_session(S1) == before


async def test_remove_engine_returns_its_sessions(store: Store) -> None:
    """An engine that exits leaves nothing behind; a second goodbye changes nothing."""
    await placed(store)
    await store.remove_engine(E1)
    await store.remove_engine(E1)
    record = await store.get_session(S1)
    assert record is not None and (record.phase, record.epoch, record.engine) == (Phase.QUEUED, 2, None)
    assert await store.list_engines() == []


async def crash(
    store: Store, engines: Sequence[EngineId], *sessions: SessionId, crashed: bool = True, term: int
) -> None:
    """The sessions are given to one engine after the other, and each of them ends."""
    for engine in engines:
        await ready(store, engine)
        for session in sessions:
            record = await store.get_session(session)
            assert record is not None
            await store.place_session(session, engine, expect_epoch=record.epoch, term=term)
        await store.report_exit(engine, "test", crashed=crashed)


async def phases(store: Store, *sessions: SessionId) -> list[tuple[Phase, str]]:
    found = await store.get_sessions(sessions)
    return [(record.phase, record.reason) for record in found.values() if record is not None]


WAITS, CLOSED = (Phase.QUEUED, "engine_lost"), (Phase.CLOSED, "engine_crashed")


async def test_a_session_that_two_engines_in_a_row_crash_with_is_closed(store: Store) -> None:
    """Rather than given to a third; one that was with it once only goes on."""
    term = await lead(store)
    await create(store, S1)
    await create(store, S2)
    await crash(store, [E1], S1, S2, term=term)
    assert await phases(store, S1, S2) == [WAITS, WAITS]
    await crash(store, [E2], S1, term=term)
    assert await phases(store, S1, S2) == [CLOSED, WAITS]


async def test_of_sessions_that_crash_together_all_get_one_more_engine(store: Store) -> None:
    """Which of them is the cause shows when they are apart, or all are closed."""
    term = await lead(store)
    await create(store, S1)
    await create(store, S2)
    await crash(store, [E1, E2], S1, S2, term=term)
    assert await phases(store, S1, S2) == [WAITS, WAITS]
    await crash(store, [E3], S1, S2, term=term)
    assert await phases(store, S1, S2) == [CLOSED, CLOSED]


async def test_engines_that_are_killed_or_unheard_say_nothing_about_their_sessions(store: Store) -> None:
    """However often; a crash after a kill still follows the crash before it."""
    term = await lead(store)
    await create(store, S1)
    await crash(
        store, [EngineId(f"e_{number:08x}") for number in range(16, 20)], S1, crashed=False, term=term
    )
    assert await phases(store, S1) == [WAITS]
    await crash(store, [E1], S1, term=term)
    record = await store.get_session(S1)
    assert record is not None
    await ready(store, E2)
    await store.place_session(S1, E2, expect_epoch=record.epoch, term=term)
    await store.lose_engine(E2, term=term, reason="silent")
    assert await phases(store, S1) == [WAITS]
    await crash(store, [E3], S1, term=term)
    assert await phases(store, S1) == [CLOSED]


async def test_a_crash_that_is_told_late_counts_as_well(store: Store) -> None:
    """The leader missed heartbeats before the provisioner saw the end: the session is elsewhere by then."""
    term = await lead(store)
    await create(store, S1)
    for engine in (E1, E2):
        record = await store.get_session(S1)
        assert record is not None
        await ready(store, engine)
        await store.place_session(S1, engine, expect_epoch=record.epoch, term=term)
        await store.lose_engine(engine, term=term, reason="silent")
    await ready(store, E3)
    await store.place_session(S1, E3, expect_epoch=4, term=term)
    for engine in (E1, E1, E2):
        assert (await phases(store, S1))[0][0] is Phase.PLACED
        await store.report_exit(engine, "was killed by SIGSEGV", crashed=True)
    assert await phases(store, S1) == [CLOSED]


async def test_an_engine_that_hangs_counts_as_crashed(store: Store) -> None:
    """A pass that never ends may be a session's fault too."""
    term = await lead(store)
    await create(store, S1)
    for engine in (E1, E2):
        record = await store.get_session(S1)
        assert record is not None
        await ready(store, engine)
        await store.place_session(S1, engine, expect_epoch=record.epoch, term=term)
        await store.lose_engine(engine, term=term, reason="over its limit", hangs=True)
    assert await phases(store, S1) == [CLOSED]


async def crash_after_long(store: Store, engine: EngineId, *, term: int) -> None:
    """The session is given to the engine, which crashes when it has served it for long."""
    record = await store.get_session(S1)
    assert record is not None
    await ready(store, engine)
    await store.place_session(S1, engine, expect_epoch=record.epoch, term=term)
    await store._redis.client.hset(store._key("session", S1), "placed_ms", 0)
    await store.report_exit(engine, "exited with status 1", crashed=True)


async def test_crashes_long_after_it_came_or_orderly_ends_do_not_count(store: Store) -> None:
    """A session that lives long meets many of both."""
    term = await lead(store)
    await create(store, S1)
    for number in range(4):
        engine = EngineId(f"e_{number:08x}")
        if number % 2 == 0:
            await crash_after_long(store, engine, term=term)
            continue
        record = await store.get_session(S1)
        assert record is not None
        await ready(store, engine)
        await store.place_session(S1, engine, expect_epoch=record.epoch, term=term)
        await store.remove_engine(engine)
    assert await phases(store, S1) == [WAITS]


async def test_the_first_of_two_may_come_late(store: Store) -> None:
    """What crashes an engine may need a prompt or a long window first, and soon has it from a checkpoint."""
    term = await lead(store)
    await create(store, S1)
    await crash_after_long(store, E1, term=term)
    await crash(store, [E2], S1, term=term)
    assert await phases(store, S1) == [CLOSED]


async def test_report_exit_works_while_starting(store: Store) -> None:
    """A provisioner tells that a process died before it was ready."""
    term = await lead(store)
    await store.write_desired(term, [DesiredEngine(id=E1, model="shapes")])
    await store.report_exit(E1, "exit status 1", crashed=True)
    engine = await store.get_engine(E1)
    assert engine is not None and engine.state is EngineState.GONE
    await store.report_exit(E2, "never known", crashed=True)


async def test_claims_are_given_once(store: Store) -> None:
    """Each wanted engine is claimed by one provisioner; then nothing is left."""
    assert await store.claim_engine("p_1") is None
    term = await lead(store)
    wanted = [DesiredEngine(id=e, model="shapes") for e in (E1, E2)]
    await store.write_desired(term, wanted)
    assert [await store.claim_engine(f"p_{n}") for n in (1, 2, 3)] == [E1, E2, None]


async def test_a_claim_of_one_engine(store: Store) -> None:
    """Whoever was first has it, whichever way it was asked for, and gets it again. Its start begins then."""
    term = await lead(store)
    wanted = [DesiredEngine(id=e, model="shapes") for e in (E1, E2)]
    await store.write_desired(term, wanted)
    assert await store.claim_engine("p_1", E2) == await store.claim_engine("p_1", E2) == E2
    record = await store.get_engine(E2)
    assert await store.claim_engine("p_1", E2) == E2 and await store.get_engine(E2) == record
    assert await store.claim_engine("p_2", E2) is None
    assert await store.claim_engine("p_2") == E1
    assert await store.claim_engine("p_1", E1) is None
    assert await store.claim_engine("p_1", E3) is None
    await ready(store, E2)
    assert await store.claim_engine("p_1", E2) is None


async def test_a_claim_that_redis_lost(store: Store) -> None:
    """The engine that somebody starts is heard: nobody else starts one of the same id."""
    term = await lead(store)
    await store.write_desired(term, [DesiredEngine(id=E1, model="shapes")])
    older = await snapshot(store)
    assert await store.claim_engine("p_1") == E1
    await restore(store, older)
    await store.heartbeat_engine(E1, load=0, chunk_ms=0, phase="starting", deadline_ms=None)
    assert await store.claim_engine("p_2") is None and await store.claim_engine("p_2", E1) is None
