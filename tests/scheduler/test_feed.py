"""What the feed tells a policy besides the view, from a real Redis."""

from __future__ import annotations

import pytest

from scheduler.feed import Feed
from scheduler.messages import DesiredEngine
from scheduler.store import SessionProgress, Store
from tests.scheduler.conftest import E1, E2, S1, S2, S3, create, lead, placed, ready


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
    await store.release_lease("test", 1)
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
