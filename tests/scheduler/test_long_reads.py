"""Leading a cluster that takes long to read, against a real Redis and a clock of the test's own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import pytest

from scheduler.config import SchedulerConfig
from scheduler.loop import Scheduler
from scheduler.messages import EngineId, Phase, SessionId
from scheduler.store import Store
from tests.scheduler.conftest import S1, S2, S3, create, create_many, nth, ready


@pytest.fixture
def config(redis_url: str, cluster: str) -> SchedulerConfig:
    """No engines are asked for, none is lost."""
    return SchedulerConfig(redis=redis_url, cluster=cluster, engines=0, heartbeat_timeout_ms=600_000)


LEASE_MS = 600_000
"""In Redis, by whose time nothing takes long here: this process may stand still."""


class LongRead:
    """A store that reads each record by itself, and a clock, Redis time too, by which that takes `read_s`."""

    def __init__(self, store: Store, patch: pytest.MonkeyPatch, read_s: float) -> None:
        self.clock_s = 1_000.0
        self.renewals = 0
        self.on_read: Callable[[], Awaitable[object]] | None = None
        patch.setattr("scheduler.store.connection.BATCH", 1)
        real_read, real_acquire = store._redis.read_hashes, store.acquire_lease
        real_renew = store.renew_lease

        async def read(keys: Sequence[str]) -> list[dict[str, str]]:
            self.clock_s += read_s
            if self.on_read is not None:
                await self.on_read()
            return await real_read(keys)

        async def renew(owner: str, term: int, ttl_ms: int) -> bool:
            self.renewals += 1
            return await real_renew(owner, term, LEASE_MS)

        async def acquire(owner: str, ttl_ms: int, *, floor: int = 0) -> int | None:
            return await real_acquire(owner, LEASE_MS, floor=floor)

        patch.setattr(store._redis, "read_hashes", read)

        async def now_ms() -> int:
            return round(self.clock_s * 1000)

        patch.setattr(store, "acquire_lease", acquire)
        patch.setattr(store, "renew_lease", renew)
        patch.setattr(store, "now_ms", now_ms)

    def clock(self) -> float:
        """The scheduler's own."""
        return self.clock_s


async def test_a_long_rebuild_keeps_the_lease_and_the_watch(
    store: Store, config: SchedulerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading everything takes longer than the lease lasts: it is renewed meanwhile, at take-over and later,
    and the time does not count as one in which engines could not be heard."""
    config = replace(config, lease_ttl_ms=3_000, resync_s=1, tick_ms=1_000)
    await create_many(store, 12)
    long = LongRead(store, monkeypatch, read_s=0.4)
    scheduler = Scheduler(store, config, clock=long.clock)
    assert await scheduler.step()
    term, reachable_ms = scheduler._lease.term, scheduler._reachable_ms
    assert term is not None and long.renewals >= 3
    for session in (S1, S2, S3):
        long.renewals = 0
        long.clock_s += 0.9
        await create(store, session)  # ends the wait for news; the next rebuild is due
        assert await scheduler.step()
        assert long.renewals >= 4 and scheduler._lease.is_held(long.clock_s)
    assert (scheduler._lease.term, scheduler._reachable_ms) == (term, reachable_ms)


async def test_a_late_read_of_a_rebuild_is_a_break(
    store: Store, config: SchedulerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis hung for longer than a read takes: engines get the time to be heard again."""
    await create_many(store, 2)
    long = LongRead(store, monkeypatch, read_s=0.6)
    scheduler = Scheduler(store, replace(config, resync_s=1), clock=long.clock)
    await scheduler.step()
    scheduler._reachable_ms = 0
    long.clock_s += 1.5
    await scheduler.step()
    assert scheduler._reachable_ms > 0


async def test_who_loses_the_lease_while_reading_does_not_act(
    store: Store, config: SchedulerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another leads before the take-over has read everything: the first stops, and stands by."""
    await ready(store)
    await create_many(store, 12)
    await create(store)
    long = LongRead(store, monkeypatch, read_s=0.4)

    async def overtake() -> None:
        await store._redis.client.delete(store._key("lease"))
        assert await store.acquire_lease("other", 60_000) is not None
        long.on_read = None

    long.on_read = overtake
    scheduler = Scheduler(store, config, clock=long.clock)
    await scheduler.step()
    assert long.renewals == 1 and scheduler._lease.term is None
    assert not await scheduler.step()
    record = await store.get_session(S1)
    assert record is not None and record.phase is Phase.QUEUED


async def test_many_actions_keep_the_lease(
    store: Store, config: SchedulerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Placing all who wait takes longer than the lease lasts: it is renewed meanwhile, and all are placed."""
    await ready(store, capacity=16)
    for n in range(12):
        await create(store, nth(n))
    long = LongRead(store, monkeypatch, read_s=0)
    real = store.place_session

    async def place(session: SessionId, engine: EngineId, *, expect_epoch: int, term: int) -> int:
        long.clock_s += 0.4
        return await real(session, engine, expect_epoch=expect_epoch, term=term)

    monkeypatch.setattr(store, "place_session", place)
    scheduler = Scheduler(store, replace(config, lease_ttl_ms=3_000, engines=1), clock=long.clock)
    await scheduler.step()
    assert [record.phase for record in await store.list_sessions()] == [Phase.PLACED] * 12
    assert long.renewals >= 3
