"""Ends of sessions that Redis took, and may lose."""

from __future__ import annotations

from engine.endings import KEPT_S, Endings
from scheduler.messages import Phase
from scheduler.store import SessionProgress, Store
from tests.scheduler.conftest import E1, S1, placed

LAST = SessionProgress(session=S1, epoch=1, active=True, next_seq=1, next_frame=12, rev=0, slack_ms=0)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def test_an_end_is_told_again_where_redis_may_have_lost_it(store: Store) -> None:
    """Redis has the session again, as if it had not ended."""
    await placed(store)
    endings = Endings(store, E1, clock=Clock())
    endings.add(LAST, "stopped")
    await endings.flush()
    await store._redis.client.hset(store._key("session", S1), mapping={"phase": "placed", "engine": E1})
    await endings.flush()
    assert (await phase(store), endings.includes(S1, 1)) == (Phase.PLACED, True)
    endings.recall()
    await endings.flush()
    assert (await phase(store), endings.includes(S1, 1)) == (Phase.CLOSED, True)


async def test_what_redis_can_not_lose_any_more_is_forgotten(store: Store) -> None:
    """While it answers; what it was not told stays."""
    clock = Clock()
    await placed(store)
    endings = Endings(store, E1, clock=clock)
    endings.add(LAST, "stopped")
    clock.now_s = 2 * KEPT_S
    endings.forget()
    assert endings.includes(S1, 1)
    await endings.flush()
    clock.now_s += KEPT_S
    endings.forget()
    assert endings.includes(S1, 1) and not endings.includes(S1, 2)
    clock.now_s += 1.0
    endings.forget()
    assert not endings.includes(S1, 1)


async def test_what_is_recalled_again_and_again_grows_no_younger(store: Store) -> None:
    """Redis is out of reach now and then, and has lost nothing."""
    clock = Clock()
    await placed(store)
    endings = Endings(store, E1, clock=clock)
    endings.add(LAST, "stopped")
    await endings.flush()
    for _ in range(2):
        clock.now_s += 0.6 * KEPT_S
        assert endings.includes(S1, 1)
        endings.recall()
        await endings.flush()
    assert not endings.includes(S1, 1)


async def phase(store: Store) -> Phase:
    record = await store.get_session(S1)
    assert record is not None
    return record.phase
