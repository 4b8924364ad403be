"""What the leader writes, each refusal included."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from scheduler.messages import (
    DesiredEngine,
    Drain,
    EngineState,
    OpenSession,
    Phase,
    ReleaseSession,
    SessionId,
    SessionPlaced,
    SessionQueued,
    StopEngine,
)
from scheduler.states import (
    ENGINE_TRANSITIONS,
    SESSION_TRANSITIONS,
    EngineMove,
    SessionMove,
)
from scheduler.store import START, EngineGone, PlacementRefused, StaleTerm, Store, StoreUnavailable
from scheduler.store.values import SessionProgress
from tests.scheduler.conftest import (
    E1,
    E2,
    GATEWAY,
    HASH,
    S1,
    S2,
    S3,
    RedisServer,
    create,
    forget_everything,
    lead,
    placed,
    ready,
)

WANTED = DesiredEngine(id=E1, model="shapes")


# --- lease


async def test_one_leader_at_a_time(store: Store) -> None:
    """While a lease is in force nobody else gets one; the next term is higher."""
    first = await store.acquire_lease("a", 60_000)
    assert first is not None and await store.acquire_lease("b", 60_000) is None
    assert await store.renew_lease("a", first, 60_000)
    assert not await store.renew_lease("b", first, 60_000)
    await store.release_lease("b", first)
    assert await store.acquire_lease("b", 60_000) is None
    await store.release_lease("a", first)
    second = await store.acquire_lease("b", 60_000)
    assert second is not None and second > first


async def test_term_is_above_the_floor(store: Store) -> None:
    """A leader that knew a higher term than Redis gets one above it."""
    assert await store.acquire_lease("a", 60_000, floor=2_000_000_041) == 2_000_000_042


async def test_a_term_is_given_once(store: Store) -> None:
    """Redis came back empty, and another leads at once: who led before is refused, and need not be told."""
    first = await lead(store)
    while await store.now_ms() < first * 1_000:  # noqa: ASYNC110 - so many leaders there never were
        await asyncio.sleep(0.02)
    await forget_everything(store)
    assert await lead(store) > first
    with pytest.raises(StaleTerm):
        await store.write_desired(first, [])


async def test_a_loss_under_the_same_term_ends_it(store: Store) -> None:
    """Redis came back older, its lease still in force: the next leader has a newer term and hears engines."""
    term = await lead(store)
    await store.mark_settled(term)
    await store.write_desired(term, [WANTED])
    assert await store.report_loss(term)
    assert not await store.is_settled() and await store.read_desired() == (0, ())
    assert not await store.renew_lease("test", term, 60_000)
    newer = await lead(store)
    assert newer > term + 1


async def test_a_loss_that_a_standby_did_not_see_ends_its_term_too(store: Store) -> None:
    """It began after the loss, and found that engines had been heard, before that."""
    term = await lead(store)
    await store.mark_settled(term)
    await store.release_lease("test", term)
    standby = await lead(store)
    assert await store.report_loss(term)
    assert not await store.renew_lease("test", standby, 60_000)
    assert await lead(store) > standby


@pytest.mark.parametrize("is_heard", [True, False])
async def test_a_loss_that_is_known_changes_nothing(store: Store, is_heard: bool) -> None:
    """A leader of a newer term hears engines, or has heard them, when the next one tells of it."""
    term = await lead(store)
    await store.report_loss(term)
    newer = await lead(store)
    if is_heard:
        await store.mark_settled(newer)
    assert not await store.report_loss(term)
    assert await store.renew_lease("test", newer, 60_000) and await store.is_settled() is is_heard


async def test_who_leads_after_a_raised_term_waits_for_engines(store: Store) -> None:
    """Redis came back older, and a provisioner notices before anybody leads: engines must speak again."""
    term = await lead(store)
    await store.mark_settled(term)
    await store.release_lease("test", term)
    await store.raise_term(term)
    assert await store.is_settled()  # nothing was lost
    await store.raise_term(term + 4)
    assert not await store.is_settled()
    assert await store.acquire_lease("b", 60_000, floor=term + 4) == term + 5


Write = Callable[[Store, int], Awaitable[object]]
LEADER_WRITES: dict[str, Write] = {
    "place": lambda store, term: store.place_session(S2, E1, expect_epoch=0, term=term),
    "requeue": lambda store, term: store.requeue_session(S1, expect_epoch=1, term=term, reason="x"),
    "sweep": lambda store, term: store.sweep_session(S2, left_ms=0, term=term, reason="x"),
    "lose": lambda store, term: store.lose_engine(E1, term=term, reason="x"),
    "lose gateway": lambda store, term: store.lose_gateway(GATEWAY, term=term),
    "drain": lambda store, term: store.drain_engine(E1, term=term, reason="x"),
    "stop": lambda store, term: store.stop_engine(E1, term=term),
    "desired": lambda store, term: store.write_desired(term, [WANTED]),
    "memory": lambda store, term: store.save_memory(term, b"{}"),
    "cluster": lambda store, term: store.publish_cluster(
        term, policy="x", budget=1, release_interval_ms=1, start_ms=1
    ),
}


@pytest.mark.parametrize("write", LEADER_WRITES.values(), ids=LEADER_WRITES.keys())
async def test_a_former_leader_is_refused(store: Store, write: Write) -> None:
    """Without the lease, or with an older term, no write of a leader has an effect."""
    term, _ = await placed(store)
    await create(store, S2)
    event = await store.last_event_id()
    await store.release_lease("test", term)
    with pytest.raises(StaleTerm):
        await write(store, term)
    await lead(store)
    with pytest.raises(StaleTerm):
        await write(store, term)
    assert await store.last_event_id() == event


# --- placement


async def test_place_tells_engine_and_everybody(store: Store) -> None:
    """A placement is one step: epoch, engine's set, command, event."""
    _, epoch = await placed(store)
    assert epoch == 1
    record, engine = await store.get_session(S1), await store.get_engine(E1)
    assert record is not None and engine is not None
    assert (record.phase, record.engine, record.epoch, engine.sessions) == (Phase.PLACED, E1, 1, 1)
    assert [c for _, c in await store.read_commands(E1, START)] == [OpenSession(session=S1, epoch=1)]
    assert (await store.read_events(START))[-1][1] == SessionPlaced(session=S1, engine=E1, epoch=1)


async def test_placing_a_placed_session_moves_it(store: Store) -> None:
    """The engine before is told to release, the new one to open, with one higher epoch."""
    term, epoch = await placed(store)
    await store.announce_session(E1, S1, epoch)
    await ready(store, E2)
    assert (await store.list_sessions())[0].moved_ms == 0
    now_ms = await store.now_ms()
    assert await store.place_session(S1, E2, expect_epoch=1, term=term) == 2
    record = await store.get_session(S1)
    assert record is not None and record.moved_ms >= now_ms
    assert record is not None and (record.engine, record.opened) == (E2, False)
    assert (await store.read_commands(E1, START))[-1][1] == ReleaseSession(session=S1, epoch=2, engine=E2)
    assert (await store.read_commands(E2, START))[-1][1] == OpenSession(session=S1, epoch=2)
    assert [e.sessions for e in await store.list_engines()] == [0, 1]


async def refuse(store: Store, term: int, *, session: SessionId = S2, expect_epoch: int = 0) -> None:
    """Assert that placing on E1 is refused and changes nothing."""
    before = await store.list_sessions(), await store.list_engines(), await store.last_event_id()
    with pytest.raises(PlacementRefused):
        await store.place_session(session, E1, expect_epoch=expect_epoch, term=term)
    assert before == (await store.list_sessions(), await store.list_engines(), await store.last_event_id())


async def test_place_refuses_a_full_engine(store: Store) -> None:
    """Capacity is enforced where it can't race."""
    await ready(store, capacity=1)
    await create(store, S1)
    await create(store, S2)
    term = await lead(store)
    await store.place_session(S1, E1, expect_epoch=0, term=term)
    await refuse(store, term)


async def test_place_refuses_an_old_plan(store: Store) -> None:
    """A plan made before the last change of owner has no effect."""
    term, epoch = await placed(store)
    await refuse(store, term, session=S1, expect_epoch=epoch - 1)
    await refuse(store, term, session=S1, expect_epoch=epoch)  # it is there already


async def test_place_refuses_what_does_not_fit(store: Store) -> None:
    """Unknown session, unknown or draining engine, another model, closed session."""
    term = await lead(store)
    await create(store, S2)
    await refuse(store, term)
    await ready(store)
    await refuse(store, term, session=S3)
    await create(store, S1, model="other")
    await refuse(store, term, session=S1)
    await store.drain_engine(E1, term=term, reason="test")
    await refuse(store, term)
    await ready(store, E2)
    await store.close_session(S2, "stop")
    with pytest.raises(PlacementRefused):
        await store.place_session(S2, E2, expect_epoch=0, term=term)


# --- queue


async def test_returners_go_before_new_starts(store: Store) -> None:
    """A requeued session waits in front of every session that has not started yet."""
    term, epoch = await placed(store, S2)
    await create(store, S1)
    await create(store, S3)
    await store.requeue_session(S2, expect_epoch=epoch, term=term, reason="test")
    assert [await store.queue_position(s) for s in (S2, S1, S3)] == [1, 2, 3]
    record = await store.get_session(S2)
    assert record is not None and (record.epoch, record.engine, record.reason) == (2, None, "test")
    assert record.queue_order < 0
    assert (await store.read_commands(E1, START))[-1][1] == ReleaseSession(session=S2, epoch=2, engine=None)
    with pytest.raises(PlacementRefused):
        await store.requeue_session(S2, expect_epoch=2, term=term, reason="twice")


async def test_lost_engine_returns_its_sessions_oldest_first(store: Store) -> None:
    """All sessions of a lost engine wait at the front, each with a higher epoch, in one step."""
    term, _ = await placed(store, S1)
    await create(store, S2)
    await store.place_session(S2, E1, expect_epoch=0, term=term)
    await create(store, S3)
    start = await store.last_event_id()
    assert await store.lose_engine(E1, term=term, reason="silent") == [S1, S2]
    assert await store.lose_engine(E1, term=term, reason="silent") == []
    assert [await store.queue_position(s) for s in (S1, S2, S3)] == [1, 2, 3]
    assert [r.epoch for r in await store.list_sessions()] == [2, 2, 0]
    queued = [e for _, e in await store.read_events(start) if isinstance(e, SessionQueued)]
    assert queued == [SessionQueued(session=s, reason="engine_lost") for s in (S1, S2)]


async def test_sweep_spares_who_came_back(store: Store) -> None:
    """Only a session that is still queued and still left as seen is swept."""
    term = await lead(store)
    await create(store)
    await store.leave_session(S1, controller_epoch=1)
    record = await store.get_session(S1)
    assert record is not None and record.left_ms is not None
    assert not await store.sweep_session(S1, left_ms=record.left_ms - 1, term=term, reason="left")
    assert await store.sweep_session(S1, left_ms=record.left_ms, term=term, reason="left")
    assert not await store.sweep_session(S1, left_ms=record.left_ms, term=term, reason="left")


# --- engines


async def test_drain_then_stop(store: Store) -> None:
    """An engine drains once, and is told to stop only when it is empty."""
    term, epoch = await placed(store)
    with pytest.raises(PlacementRefused):
        await store.stop_engine(E1, term=term)
    await store.drain_engine(E1, term=term, reason="test")
    await store.drain_engine(E1, term=term, reason="test")
    with pytest.raises(PlacementRefused):
        await store.stop_engine(E1, term=term)
    await store.end_session(E1, S1, epoch, "stop")
    await store.stop_engine(E1, term=term)
    commands = [c for _, c in await store.read_commands(E1, START)]
    assert commands == [OpenSession(session=S1, epoch=1), Drain(), StopEngine()]


async def test_desired_set_makes_and_drops_starting_engines(store: Store) -> None:
    """New ids get a record; a dropped one that still starts is gone, one that drains goes by itself."""
    term = await lead(store)
    await store.write_desired(term, [WANTED, DesiredEngine(id=E2, model="shapes")])
    assert await store.read_desired() == (term, (WANTED, DesiredEngine(id=E2, model="shapes")))
    await ready(store, E1)
    await store.drain_engine(E1, term=term, reason="")
    await store.write_desired(term, [])
    assert [(e.id, e.state) for e in await store.list_engines()] == [(E1, EngineState.DRAINING)]
    with pytest.raises(EngineGone):
        await ready(store, E2)


async def test_an_engine_that_has_got_ready_is_not_dropped(store: Store) -> None:
    """The plan saw it starting, and wants fewer: provisioners would end it, with whoever is placed there."""
    term = await lead(store)
    both = (WANTED, DesiredEngine(id=E2, model="shapes"))
    await store.write_desired(term, both)
    await ready(store, E1)
    with pytest.raises(PlacementRefused, match="drained before"):
        await store.write_desired(term, [])
    assert await store.read_desired() == (term, both)
    assert len(await store.list_engines()) == 2


async def test_memory_survives_a_change_of_leader(store: Store) -> None:
    """What one leader saved the next one loads; too much is refused."""
    assert await store.load_memory() is None
    term = await lead(store)
    await store.save_memory(term, '{"é": 1}'.encode())
    assert await store.load_memory() == '{"é": 1}'.encode()
    with pytest.raises(ValueError, match="at most"):
        await store.save_memory(term, b"x" * 300_000)


# --- the tables of states.py against the scripts


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("move", SessionMove)
async def test_lua_agrees_with_the_session_table(store: Store, phase: Phase, move: SessionMove) -> None:
    """Each move of each phase ends where the table says, or is refused and changes nothing."""
    term, epoch = await placed(store)
    await ready(store, E2)
    if phase is Phase.QUEUED:
        await store.requeue_session(S1, expect_epoch=epoch, term=term, reason="")
    if phase is Phase.CLOSED:
        await store.close_session(S1, "stop")
    record = await store.get_session(S1)
    assert record is not None and record.phase is phase
    target = SESSION_TRANSITIONS[phase].get(move)
    try:
        match move:
            case SessionMove.PLACE:
                await store.place_session(S1, E2, expect_epoch=record.epoch, term=term)
            case SessionMove.REQUEUE:
                await store.requeue_session(S1, expect_epoch=record.epoch, term=term, reason="")
            case SessionMove.CLOSE:
                assert await store.close_session(S1, "again") == (target is not None)
    except PlacementRefused:
        assert target is None
    after = await store.get_session(S1)
    assert after is not None and after.phase is (target or phase)


@pytest.mark.parametrize("state", EngineState)
@pytest.mark.parametrize("move", EngineMove)
async def test_lua_agrees_with_the_engine_table(store: Store, state: EngineState, move: EngineMove) -> None:
    """Each move of each state ends where the table says, or is refused and changes nothing."""
    term = await lead(store)
    await store.write_desired(term, [WANTED])
    if state is not EngineState.STARTING:
        await ready(store)
    if state is EngineState.DRAINING:
        await store.drain_engine(E1, term=term, reason="")
    if state is EngineState.GONE:
        await store.lose_engine(E1, term=term, reason="")
    target = ENGINE_TRANSITIONS[state].get(move)
    try:
        match move:
            case EngineMove.REGISTER:
                await ready(store)
            case EngineMove.DRAIN:
                await store.drain_engine(E1, term=term, reason="")
            case EngineMove.LOSE:
                await store.lose_engine(E1, term=term, reason="")
    except (PlacementRefused, EngineGone):
        assert target is None
    engine = await store.get_engine(E1)
    assert engine is not None and engine.state is (target or state)


async def test_the_resume_hash_is_not_in_events(store: Store) -> None:
    """Nothing secret goes through the events stream."""
    await placed(store)
    assert all(HASH not in str(event) for _, event in await store.read_events(START))


async def test_a_redis_without_memory_counts_as_unavailable(own_redis: RedisServer, cluster: str) -> None:
    """Engines and schedulers wait and go on; an unknown error would end them. Also in a pipeline."""
    store = await Store.connect(own_redis.url, cluster=cluster)
    await ready(store)
    await store._redis.client.config_set("maxmemory", 1)
    with pytest.raises(StoreUnavailable, match="OOM"):
        await store.heartbeat_engine(E1, load=0, chunk_ms=0, phase="idle", deadline_ms=None)
    progress = SessionProgress(session=S1, epoch=1, active=True, next_seq=0, next_frame=0, rev=0, slack_ms=0)
    await store._redis.client.config_set("maxmemory", 0)
    await placed(store)
    await store._redis.client.config_set("maxmemory", 1)
    with pytest.raises(StoreUnavailable, match="OOM"):
        await store.publish_sessions(E1, [progress])
    await store.close()
