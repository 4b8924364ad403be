"""Reads: bounded events, entries that can't be read, a Redis that is away."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from redis.asyncio import Redis

from scheduler.keys import Keys
from scheduler.messages import SessionQueued, encode_json
from scheduler.store import START, EventsLost, EventsTrimmed, Store, StoreUnavailable
from scheduler.store.connection import BATCH
from scheduler.store.values import SessionOutline
from tests.scheduler.conftest import S1, S2, S3, create, create_many, nth, restore, snapshot


async def raw(url: str, *command: str | int) -> None:
    """A command past the store, as another program could send it."""
    client = Redis.from_url(url)
    await client.execute_command(*command)
    await client.aclose()


async def test_events_after_an_id(store: Store) -> None:
    """Each event is read once by a reader that follows its cursor."""
    await create(store, S1)
    cursor = await store.last_event_id()
    assert await store.read_events(cursor) == []
    await create(store, S2)
    assert [event for _, event in await store.read_events(cursor)] == [SessionQueued(session=S2)]


async def test_a_reader_left_behind_is_told(
    store: Store, redis_url: str, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When events after the cursor were trimmed, the reader must read everything again."""
    monkeypatch.setattr("scheduler.store.reader.MAX_EVENTS", 2)
    await create(store, S1)
    cursor = await store.last_event_id()
    key = Keys(cluster).key("events")
    for _ in range(4):
        await raw(redis_url, "XADD", key, "*", "m", encode_json(SessionQueued(session=S2)).decode())
    await raw(redis_url, "XTRIM", key, "MAXLEN", 2)
    with pytest.raises(EventsTrimmed, match="fell behind"):
        await store.read_events(cursor, count=2)


async def test_a_reader_ahead_of_redis_is_told(store: Store) -> None:
    """Redis came back with older data: its ids are below the reader's cursor."""
    await create(store, S1)
    with pytest.raises(EventsLost, match="older"):
        await store.read_events("9999999999999-0", block_ms=1)


@pytest.mark.parametrize("is_empty", [False, True])
async def test_a_reader_of_lost_events_is_told(store: Store, is_empty: bool) -> None:
    """Redis came back older, or empty, and has gone on since: there are news, but not of what was lost."""
    await create(store, S1)
    older = await snapshot(store)
    await create(store, S2)
    cursor = await store.last_event_id()
    await restore(store, {} if is_empty else older)
    await create(store, S3)
    with pytest.raises(EventsLost):
        await store.read_events(cursor)
    with pytest.raises(EventsLost):
        await store.check_events(cursor)
    await store.check_events(await store.last_event_id())


async def test_entries_that_cannot_be_read_are_left_out(store: Store, redis_url: str, cluster: str) -> None:
    """Events of a newer version, or garbage, neither break nor wake a reader."""
    await create(store, S1)
    key = Keys(cluster).key("events")
    await raw(redis_url, "XADD", key, "*", "m", '{"type": "from_the_future"}')
    await raw(redis_url, "XADD", key, "*", "x", "garbage")
    (cursor, _), *rest = await store.read_events(START)
    assert not rest and await store.read_events(cursor, block_ms=1) == []


async def test_a_missing_server_is_unavailable(tmp_path: Path) -> None:
    """No server: one sentence, no traceback of redis-py's own exceptions."""
    with pytest.raises(StoreUnavailable, match="can't be reached"):
        await Store.connect(f"unix://{tmp_path}/none.sock")


async def test_many_sessions_are_read_in_short_round_trips(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has few keys and a time limit of its own. A session whose record is gone is left out."""
    await create_many(store, 12_000)
    await store._redis.client.delete(store._key("session", nth(7)))
    sizes: list[int] = []
    real = store._redis.read_hashes

    async def watched(keys: Sequence[str]) -> list[dict[str, str]]:
        sizes.append(len(keys))
        return await real(keys)

    monkeypatch.setattr(store._redis, "read_hashes", watched)
    found = await store.list_sessions()
    assert [record.id for record in found] == [nth(n) for n in range(12_000) if n != 7]
    assert {(record.model, record.seed) for record in found} == {("shapes", 7)}
    assert max(sizes) == BATCH and sum(sizes) == 12_000
    assert (await store.get_sessions([nth(7), S1])) == {nth(7): None, S1: None}


async def test_outlines_are_read_in_parts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oldest first, each once, also where the last of a part has gone since. No record: left out."""
    monkeypatch.setattr("scheduler.store.connection.BATCH", 2)
    for n in range(9):
        await create(store, nth(n))
    # Of one age: then ids decide who comes first.
    await store._redis.client.zadd(store._key("sessions"), {nth(n): 5 for n in range(9)})
    await store._redis.client.delete(store._key("session", nth(2)))
    assert await store.count_sessions() == 9
    found: list[SessionOutline] = []
    async for part in store.read_outlines():
        found += part
        if len(found) == 3:
            await store.close_session(nth(3), "stopped")  # the last that was read
            await store.close_session(nth(0), "stopped")
    assert [outline.id for outline in found] == [nth(n) for n in (0, 1, 3, *range(4, 9))]
    record = await store.get_session(nth(8))
    assert record is not None
    assert all(getattr(record, name) == getattr(found[-1], name) for name in SessionOutline.__slots__)


async def test_a_long_queue_is_read_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several round trips, in its order: who has less before who has more."""
    monkeypatch.setattr("scheduler.store.connection.BATCH", 2)
    for n in range(5):
        await create(store, nth(n), subject="many")
    await create(store, S1, subject="few")
    assert await store.queue("shapes") == [nth(0), S1, *(nth(n) for n in range(1, 5))]


async def test_any_text_is_read_as_it_was_written(store: Store) -> None:
    """What is in a record passes through JSON unharmed."""
    subject = 'a/b "c" \\ \x7f\x01\n é 漢 \U0001f680 {} []'
    await create(store, S1, subject=subject)
    record = await store.get_session(S1)
    assert record is not None and record.subject == subject


async def test_nothing_is_listed_where_nothing_is(store: Store) -> None:
    """Empty sets, and no records."""
    assert (await store.list_sessions(), await store.list_engines(), await store.list_gateways()) == (
        [],
        [],
        [],
    )
    assert await store.get_sessions([]) == {} and await store.queue("shapes") == []
