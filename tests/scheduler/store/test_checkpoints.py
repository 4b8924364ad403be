"""Checkpoints: the pointer moves under the epoch, old bytes go, all of it is bounded."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from scheduler.keys import MAX_CHECKPOINT_BYTES, MAX_CHECKPOINT_TOTAL_BYTES, MIN_APPLIED_KEPT
from scheduler.messages import PromptInput, SessionId
from scheduler.store import (
    AppliedRecord,
    CheckpointPointer,
    CheckpointRefused,
    Checkpoints,
    CheckpointsUnavailable,
    StaleEpoch,
    Store,
    StoreUnavailable,
    open_checkpoints,
)
from scheduler.store import checkpoints as module
from tests.scheduler.conftest import E1, E2, S1, S2, RedisServer, create, placed, ready, restore, snapshot

POINTER = CheckpointPointer(epoch=1, seq=4, last_applied="0-0", text="a red ball", seed=7, rev=2, size=3)
BYTES = bytes(range(256))


@pytest.fixture(params=["control", "second", "directory"])
async def kept(
    request: pytest.FixtureRequest, store: Store, own_redis: RedisServer, tmp_path: Path
) -> AsyncIterator[Checkpoints]:
    """Checkpoints in each of their places."""
    where = {"control": None, "second": own_redis.url, "directory": str(tmp_path / "kept")}[request.param]
    checkpoints = open_checkpoints(store, where, ttl_s=100)
    yield checkpoints
    await checkpoints.close()


async def test_the_newest_is_read(store: Store, kept: Checkpoints) -> None:
    """Bytes that are no text come back, with what the pointer says."""
    await placed(store)
    assert await kept.read(S1) is None
    for seq in (3, 4):
        await kept.write(E1, S1, replace(POINTER, seq=seq), BYTES + bytes([seq]))
    assert await kept.read(S1) == (POINTER, BYTES + b"\x04")


async def test_an_older_one_that_comes_late_changes_nothing(store: Store, kept: Checkpoints) -> None:
    """Nor does a repeat."""
    await placed(store)
    await kept.write(E1, S1, POINTER, BYTES)
    await kept.write(E1, S1, replace(POINTER, seq=2), b"old")
    await kept.write(E1, S1, POINTER, BYTES)
    assert await kept.read(S1) == (POINTER, BYTES)


async def test_only_the_owner_writes(store: Store, kept: Checkpoints) -> None:
    """A former owner is refused, and what it put aside is gone."""
    term, _ = await placed(store)
    await kept.write(E1, S1, POINTER, BYTES)
    await ready(store, E2)
    await store.place_session(S1, E2, expect_epoch=1, term=term)
    with pytest.raises(StaleEpoch):
        await kept.write(E1, S1, replace(POINTER, seq=9), b"stale")
    assert await kept.read(S1) == (POINTER, BYTES)
    newer = replace(POINTER, epoch=2, seq=3)
    await kept.write(E2, S1, newer, b"new owner")
    assert await kept.read(S1) == (newer, b"new owner")


async def test_a_late_try_of_a_former_owner_drops_nothing(
    store: Store, kept: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pointer had moved, though its answer was lost. The next owner, which has not read yet, needs it."""
    term, _ = await placed(store)
    await ready(store, E2)
    with monkeypatch.context() as patch:
        patch.setattr(store, "point_checkpoint", answer_lost(store.point_checkpoint))
        with pytest.raises(StoreUnavailable):
            await kept.write(E1, S1, POINTER, BYTES)
    await store.place_session(S1, E2, expect_epoch=1, term=term)
    with pytest.raises(StaleEpoch):
        await kept.write(E1, S1, POINTER, BYTES)
    assert await kept.read(S1) == (POINTER, BYTES)


def answer_lost(call: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
    """It is done, and nobody is told."""

    async def lose(*args: object, **named: object) -> object:
        await call(*args, **named)
        raise StoreUnavailable("planted")

    return lose


async def test_a_newer_one_comes_while_it_is_read(
    store: Store, kept: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes that the pointer named may be gone by then: those of the newer one count."""
    await placed(store)
    await kept.write(E1, S1, POINTER, BYTES)
    newer, find, asked = replace(POINTER, seq=5), store.checkpoint_pointer, 0

    async def find_and_write(session: SessionId) -> CheckpointPointer | None:
        nonlocal asked
        found, asked = await find(session), asked + 1
        if asked == 1:
            await kept.write(E1, S1, newer, b"newer")
        return found

    monkeypatch.setattr(store, "checkpoint_pointer", find_and_write)
    assert await kept.read(S1) in ((POINTER, BYTES), (newer, b"newer"))


async def test_the_one_before_is_there_where_the_pointer_is_lost(store: Store, kept: Checkpoints) -> None:
    """The control Redis comes back older; the place of the bytes may have lost nothing."""
    await placed(store)
    await kept.write(E1, S1, POINTER, BYTES)
    older = await snapshot(store)
    for seq in (5, 6):
        await kept.write(E1, S1, replace(POINTER, seq=seq), b"newer")
    await restore(store, older)
    assert await kept.read(S1) == (POINTER, BYTES)


async def test_what_is_kept_of_those_who_ended_is_forgotten(store: Store, tmp_path: Path) -> None:
    """There is no end of sessions."""
    term, _ = await placed(store)
    clock_s = 0.0
    kept = open_checkpoints(store, str(tmp_path), ttl_s=100, clock=lambda: clock_s)
    for seq in (1, 2):
        await kept.write(E1, S1, replace(POINTER, seq=seq), BYTES)
    assert list(kept._superseded) == [S1]
    await store.end_session(E1, S1, 1, "stopped")
    await create(store, S2)
    await store.place_session(S2, E1, expect_epoch=0, term=term)
    clock_s = 101.0
    for seq in (1, 2):
        await kept.write(E1, S2, replace(POINTER, seq=seq), BYTES)
    assert list(kept._superseded) == [S2]


async def test_of_a_session_one_object_is_kept(store: Store, redis_url: str, cluster: str) -> None:
    """In the control Redis, and none once it is closed; the total says so."""
    await placed(store)
    kept = open_checkpoints(store, None, ttl_s=100)
    for seq in range(1, 6):
        await kept.write(E1, S1, replace(POINTER, seq=seq), bytes(100 + seq))
    assert await objects(store) == [f"checkpoint:{S1}:1:5"]
    assert await total(store) == 105
    await store.end_session(E1, S1, 1, "stopped")
    assert await objects(store) == []
    assert await total(store) == 0


@pytest.mark.parametrize(("every_s", "seqs"), [(0.1, (5, 6, 7, 8)), (1.0, (5, 6, 7, 8)), (2.0, (6, 7, 8))])
async def test_of_a_session_few_files_are_kept(
    store: Store, tmp_path: Path, every_s: float, seqs: tuple[int, ...]
) -> None:
    """The newest, and some of those before it for a while. Files of sessions that ended are swept when they
    are old; others' files are left alone."""
    await placed(store)
    clock_s = 0.0
    kept = open_checkpoints(store, str(tmp_path), ttl_s=100, clock=lambda: clock_s)
    (tmp_path / "notes.txt").write_text("mine")
    for seq in range(1, 9):
        clock_s += every_s
        await kept.write(E1, S1, replace(POINTER, seq=seq), BYTES)
    names = [f"{S1}_at_1_at_{seq}.state" for seq in seqs]
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", *names]
    for name in os.listdir(tmp_path):
        os.utime(tmp_path / name, (0, 0))
    other = open_checkpoints(store, str(tmp_path), ttl_s=100)
    await create(store, S2)
    with pytest.raises(StaleEpoch):
        await other.write(E1, S2, POINTER, BYTES)
    assert os.listdir(tmp_path) == ["notes.txt"]


async def test_larger_than_the_control_redis_takes(store: Store) -> None:
    """Refused with what to do; the one before stays."""
    await placed(store)
    kept = open_checkpoints(store, None, ttl_s=100)
    await kept.write(E1, S1, POINTER, BYTES)
    with pytest.raises(CheckpointRefused, match="directory or a second Redis"):
        await kept.write(E1, S1, replace(POINTER, seq=5), bytes(MAX_CHECKPOINT_BYTES + 1))
    assert await kept.read(S1) == (POINTER, BYTES)


async def test_all_together_are_bounded(store: Store) -> None:
    """Beyond the total a new one is refused, until others have expired."""
    await placed(store)
    kept = open_checkpoints(store, None, ttl_s=100)
    await set_total(store, MAX_CHECKPOINT_TOTAL_BYTES - 10)
    with pytest.raises(CheckpointRefused):
        await kept.write(E1, S1, POINTER, bytes(11))
    await kept.write(E1, S1, POINTER, bytes(10))
    await expire(store, SessionId("s_gone"), size=MAX_CHECKPOINT_TOTAL_BYTES - 10)
    await kept.write(E1, S1, replace(POINTER, seq=5), bytes(500))
    assert await total(store) == 500


async def test_the_bytes_expire_and_the_pointer_stays(store: Store) -> None:
    """Where the prompts stood is still known: the log may be trimmed."""
    await placed(store)
    kept = open_checkpoints(store, None, ttl_s=100)
    await kept.write(E1, S1, POINTER, BYTES)
    async with module.mapped_errors():
        ttl_s = await store._redis.client.ttl(store._key("checkpoint_data", POINTER.object_name(S1)))
        await store._redis.client.delete(store._key("checkpoint_data", POINTER.object_name(S1)))
    assert 0 < ttl_s <= 100
    assert await kept.read(S1) == (POINTER, None)


async def test_the_logs_are_trimmed_to_what_a_rebuild_needs(store: Store) -> None:
    """Entries before the checkpoint's newest go; of applied records the newest stay for repeats."""
    await placed(store)
    entries = [
        (await store.append_input(S1, PromptInput(text=f"p{n}"), controller_epoch=1)).entry
        for n in range(MIN_APPLIED_KEPT + 5)
    ]
    applied = [AppliedRecord(entry=entry, rev=n, seq=n) for n, entry in enumerate(entries)]
    await store.record_applied(E1, S1, 1, applied)
    kept = open_checkpoints(store, None, ttl_s=100)
    await kept.write(E1, S1, replace(POINTER, last_applied=entries[-2]), BYTES)
    log = (await store.read_inputs({S1: "0-0"}))[S1]
    assert [entry for entry, _ in log] == entries[-2:]
    assert await store.applied_history(S1) == applied[-MIN_APPLIED_KEPT:]


async def test_a_directory_that_can_not_be_made_is_refused(store: Store, tmp_path: Path) -> None:
    """At start-up, with the reason."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot make the directory"):
        open_checkpoints(store, str(tmp_path / "file" / "below"), ttl_s=1)


async def test_a_directory_that_vanished_is_unavailable(store: Store, tmp_path: Path) -> None:
    """A trouble that may pass, and none of the control Redis."""
    await placed(store)
    kept = open_checkpoints(store, str(tmp_path / "kept"), ttl_s=1)
    (tmp_path / "kept").rmdir()
    with pytest.raises(CheckpointsUnavailable):
        await kept.write(E1, S1, POINTER, BYTES)


async def test_of_two_redis_servers_it_is_told_which_is_out_of_reach(
    store: Store, own_redis: RedisServer
) -> None:
    """The one with the bytes, or the one with the pointers."""
    await placed(store)
    kept = open_checkpoints(store, own_redis.url, ttl_s=100)
    await kept.write(E1, S1, POINTER, BYTES)
    own_redis.kill()
    with pytest.raises(CheckpointsUnavailable):
        await kept.read(S1)
    await kept.close()
    own_redis.start()
    other = await Store.connect(own_redis.url, cluster="other")
    kept = open_checkpoints(other, None, ttl_s=100)
    own_redis.kill()
    with pytest.raises(StoreUnavailable) as refused:
        await kept.read(S1)
    assert not isinstance(refused.value, CheckpointsUnavailable)
    await other.close()


async def objects(store: Store) -> list[str]:
    async with module.mapped_errors():
        keys = [key async for key in store._redis.client.scan_iter(f"{store.prefix}checkpoint:*")]
    return sorted(key.removeprefix(store.prefix) for key in keys)


async def total(store: Store) -> int:
    async with module.mapped_errors():
        return int(await store._redis.client.get(store._key("checkpoint_total")) or 0)


async def set_total(store: Store, size: int) -> None:
    async with module.mapped_errors():
        await store._redis.client.set(store._key("checkpoint_total"), size)


async def expire(store: Store, session: SessionId, *, size: int) -> None:
    """A session whose bytes have expired by themselves."""
    async with module.mapped_errors():
        await store._redis.client.hset(store._key("checkpoint_sizes"), session, size)
        await store._redis.client.zadd(store._key("checkpoint_expiry"), {session: 1})
