"""Reads: bounded events, entries that can't be read, a Redis that is away."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis.asyncio import Redis

from scheduler.keys import Keys
from scheduler.messages import SessionQueued, encode_json
from scheduler.store import START, EventsTrimmed, Store, StoreUnavailable
from tests.scheduler.conftest import S1, S2, create


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


async def test_a_reader_left_behind_is_told(store: Store, redis_url: str, cluster: str) -> None:
    """When events after the cursor were trimmed, the reader must read everything again."""
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
    with pytest.raises(EventsTrimmed, match="older"):
        await store.read_events("9999999999999-0", block_ms=1)


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
