"""What the feed tells a policy besides the view, from a real Redis."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.feed import Feed
from scheduler.messages import DesiredEngine, EngineId, EngineState, SessionId
from scheduler.store import SessionProgress, Store, StoreUnavailable
from tests.scheduler.conftest import E1, E2, E3, MODEL, S1, S2, S3, create, lead, nth, placed, ready

E0 = EngineId("e_00000000")


@pytest.fixture
async def feed(store: Store) -> Feed:
    """Knows S1, placed on E1, and that E2 starts."""
    term, epoch = await placed(store)
    await store.announce_session(E1, S1, epoch)
    await store.write_desired(term, [DesiredEngine(id=engine, model="shapes") for engine in (E1, E2)])
    feed = Feed(store)
    await feed.rebuild()
    return feed


def progress(active: bool) -> SessionProgress:
    """Of S1."""
    return SessionProgress(session=S1, epoch=1, active=active, next_seq=0, next_frame=0, rev=0, slack_ms=0)


async def test_arrivals_are_new_sessions_and_those_active_again(store: Store, feed: Feed) -> None:
    """Each counts once; who was active, goes on or returns to the queue is none."""
    await create(store, S2)
    await create(store, S3)
    assert (await feed.follow(1_000)).arrivals == 2
    await store.publish_sessions(E1, [progress(active=False)])
    assert (await feed.follow(1_000)).arrivals == 0
    await store.publish_sessions(E1, [progress(active=True)])
    assert (await feed.follow(1_000)).arrivals == 1
    term = await lead_again(store)
    await store.requeue_session(S1, expect_epoch=1, term=term, reason="x")
    assert (await feed.follow(1_000)).arrivals == 0


async def lead_again(store: Store) -> int:
    """The term in force, or a new one."""
    await store.release_lease("test", await store._redis.client.hget(store._key("lease"), "term"))
    return await lead(store)


async def test_closed_sessions_have_ages(store: Store, feed: Feed) -> None:
    """Of those that the view knew: one that came and went in between says nothing."""
    await create(store, S2)
    for session in (S1, S2):
        await store.close_session(session, controller_epoch=0, reason="stop")
    delta = await feed.follow(1_000)
    assert delta.released == 1
    (age_ms,) = delta.ages_ms
    assert 0 <= age_ms < 60_000


async def test_engines_that_become_ready_say_how_long_it_took(store: Store, feed: Feed) -> None:
    """Of E2, which was starting; not of one that nobody had asked for."""
    await ready(store, E2)
    (took_ms,) = (await feed.follow(1_000)).starts_ms
    assert 0 <= took_ms < 60_000
    await ready(store, E2)
    assert (await feed.follow(100)).starts_ms == ()


async def test_starts_are_counted_whoever_hears_of_them_first(store: Store, feed: Feed) -> None:
    """The tick has read that E2 is ready before its event was followed."""
    await feed.follow(0)
    await ready(store, E2)
    await feed.refresh()
    (took_ms,) = (await feed.follow(1_000)).starts_ms
    assert 0 <= took_ms < 60_000
    assert (await feed.follow(0)).starts_ms == ()


async def test_engines_that_come_and_go_in_one_batch(store: Store, feed: Feed) -> None:
    """The new one shifts the row of the last one, which is gone: it is told with the state that it had."""
    await store.register_engine(E0, url="ws://127.0.0.1:1/e", model=MODEL, capacity=1)
    await store.remove_engine(E2)
    (gone,) = (await feed.follow(1_000)).gone
    assert (gone.id, gone.state) == (E2, EngineState.STARTING)
    await store.remove_engine(E1)
    (gone,) = (await feed.follow(1_000)).gone
    assert (gone.id, gone.state) == (E1, EngineState.READY)
    assert list(feed.view.engines.ids) == [E0]


async def test_news_that_were_half_read(store: Store, feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis went away meanwhile. They are read again, and mean what they say."""
    await store.publish_sessions(E1, [progress(active=False)])
    await feed.follow(1_000)
    assert not feed.view.sessions["active"].any()  # a plan looks at it
    term = await lead_again(store)
    await create(store, S2)
    epoch = await store.place_session(S2, E1, expect_epoch=0, term=term)
    for active in (False, True):
        await store.publish_sessions(E1, [replace(progress(active), session=S2, epoch=epoch)])
    await store.write_desired(term, [DesiredEngine(id=E1, model="shapes")])
    with monkeypatch.context() as patch:
        patch.setattr(store, "read_desired", unavailable)
        with pytest.raises(StoreUnavailable):
            await feed.follow(1_000)
    await feed.follow(1_000)
    assert set(feed.view.sessions.ids) == {S1, S2} and len(feed.view.desired) == 1


async def test_who_comes_while_everything_is_read(
    store: Store, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions on an engine that registers meanwhile have a place: to queue them again would stop them."""
    term = await lead_again(store)
    await create(store, S2)
    real = store.session_ids

    async def late() -> list[SessionId]:
        await ready(store, E3)
        await store.place_session(S2, E3, expect_epoch=0, term=term)
        return await real()

    monkeypatch.setattr(store, "session_ids", late)
    await feed.rebuild()
    view = feed.view
    assert not view.orphans
    assert view.engines.ids[view.sessions["engine"][view.sessions.rows[S2]]] == E3


async def test_who_is_gone_while_everything_is_read(
    store: Store, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that served is none that died at its start: those are replaced with pauses."""
    real = store.session_ids

    async def late() -> list[SessionId]:
        for engine in (E1, E2):
            await store.remove_engine(engine)
        return await real()

    monkeypatch.setattr(store, "session_ids", late)
    await feed.rebuild()
    gone = (await feed.follow(1_000)).gone
    assert [(each.id, each.state) for each in gone] == [
        (E1, EngineState.READY),
        (E2, EngineState.STARTING),
    ]


async def test_a_rebuild_pauses(store: Store, feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each round trip, and while it takes in what it read."""
    monkeypatch.setattr("scheduler.store.connection.BATCH", 2)
    monkeypatch.setattr("scheduler.feed.PUT", 2)
    pauses = 0

    async def pause() -> None:
        nonlocal pauses
        pauses += 1

    for n in range(100, 108):
        await create(store, nth(n))
    feed = Feed(store, pause)
    await feed.rebuild()
    assert len(feed.view.sessions) == 9 and pauses == 10


async def unavailable() -> None:
    raise StoreUnavailable("it is gone")


async def test_a_session_whose_target_is_lost_is_known_to_stay(store: Store, feed: Feed) -> None:
    """At once: it can be moved elsewhere."""
    await store.register_engine(E1, url="ws://h:1/1", model=MODEL, capacity=1, transfer="h:1")
    await store.register_engine(E2, url="ws://h:1/2", model=MODEL, capacity=1, transfer="h:2")
    term = await lead_again(store)
    await store.begin_migration(S1, E2, expect_epoch=1, term=term, migration_id="m_1", limit_ms=60_000)
    await feed.follow(1_000)
    assert feed.view.sessions["in_flight"][feed.view.sessions.rows[S1]] and S1 in feed.special
    await store.lose_engine(E2, term=term, reason="silent")
    await feed.follow(1_000)
    assert not feed.view.sessions["in_flight"][feed.view.sessions.rows[S1]] and S1 not in feed.special


async def test_who_generates_can_be_moved(store: Store, feed: Feed) -> None:
    """The view hears that a session was opened."""
    await create(store, S2)
    await store.place_session(S2, E1, expect_epoch=0, term=await lead_again(store))
    await feed.follow(1_000)
    row = feed.view.sessions.rows[S2]
    assert not feed.view.sessions["movable"][row]
    await store.announce_session(E1, S2, 1)
    await feed.follow(1_000)
    assert feed.view.sessions["movable"][feed.view.sessions.rows[S2]]
