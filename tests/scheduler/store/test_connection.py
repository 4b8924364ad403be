"""What becomes of redis-py's errors."""

from __future__ import annotations

import asyncio

import pytest
from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    TryAgainError,
)

from scheduler.store import Store, StoreUnavailable
from scheduler.store.connection import mapped_errors
from scheduler.store.values import SessionProgress
from tests.scheduler.conftest import E1, S1, RedisServer, placed

PROGRESS = SessionProgress(session=S1, epoch=1, active=True, next_seq=1, next_frame=12, rev=0, slack_ms=0)


async def test_a_redis_that_does_not_answer_is_named_so() -> None:
    """The builtin TimeoutError has no text of its own, and a person reads this sentence."""
    with pytest.raises(StoreUnavailable, match="can't be reached: no answer in time"):
        async with mapped_errors(0.01):
            await asyncio.Event().wait()


@pytest.mark.parametrize(
    "error",
    [
        ReadOnlyError("You can't write against a read only replica. script: 0a, on @user_script:1."),
        MasterDownError("Link with MASTER is down and replica-serve-stale-data is set to 'no'."),
        ClusterDownError("The cluster is down"),
        TryAgainError("Multiple keys request during rehashing of slot"),
        NoScriptError("No matching script. Please use EVAL."),
        BusyLoadingError("Redis is loading the dataset in memory"),
    ],
)
async def test_a_code_that_redis_py_knows_is_not_in_its_text(
    store: Store, error: RedisError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says as much raised as among the replies to a pipeline: the server can't serve now."""
    with pytest.raises(StoreUnavailable):
        async with mapped_errors():
            raise error

    async def answer(pipe: object, raise_on_error: bool = True) -> list[object]:
        return [error]

    monkeypatch.setattr("redis.asyncio.client.Pipeline.execute", answer)
    with pytest.raises(StoreUnavailable):
        await store.publish_sessions(E1, [PROGRESS])


@pytest.mark.parametrize("serves_stale_data", ["yes", "no"])
async def test_a_primary_that_was_demoted_can_not_be_written_to(
    own_redis: RedisServer, cluster: str, serves_stale_data: str
) -> None:
    """READONLY or MASTERDOWN to one call and to a batch, until it is a primary again."""
    store = await Store.connect(own_redis.url, cluster=cluster)
    await placed(store)
    client = store._redis.client
    await client.config_set("replica-serve-stale-data", serves_stale_data)
    await client.execute_command("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(StoreUnavailable):
        await store.publish_sessions(E1, [PROGRESS])
    with pytest.raises(StoreUnavailable):
        await store.announce_session(E1, S1, 1)
    await client.execute_command("REPLICAOF", "NO", "ONE")
    assert await store.publish_sessions(E1, [PROGRESS]) == []
    await store.close()
