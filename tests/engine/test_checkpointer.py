"""Which checkpoints are written, and that a slow place holds nothing up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import torch

from engine.checkpointer import MAX_UNACKNOWLEDGED, REST_S, Checkpointer
from engine.compute_messages import CheckpointMade
from engine.state_format import describe, unpack
from scheduler.messages import SessionId
from scheduler.store import CheckpointPointer, CheckpointRefused, StaleEpoch, StoreUnavailable
from tests.engine.edges import S1, until
from tests.engine.test_state_format import HEADER
from tests.patience import PATIENCE_S

S2 = SessionId("s_0000000000000002")


def made(seq: int, session: SessionId = S1, epoch: int = 1) -> CheckpointMade:
    state = describe(HEADER, {"latents": torch.full((2,), float(seq))}, checked=False)
    return CheckpointMade(session=session, epoch=epoch, seq=seq, state=state)


class Place:
    """Where checkpoints are written to: it waits for `open`, and may raise once per error."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.errors: list[Exception] = []
        self.written: list[tuple[SessionId, int]] = []
        self.data: list[bytes] = []
        self.stale: list[tuple[SessionId, int]] = []
        self.calls = 0
        self.now_s = 0.0

    async def write(self, session: SessionId, pointer: CheckpointPointer, data: bytes) -> None:
        self.calls += 1
        await self.open.wait()
        if self.errors:
            raise self.errors.pop(0)
        self.written.append((session, pointer.seq))
        self.data.append(data)

    async def on_stale(self, session: SessionId, epoch: int) -> None:
        self.stale.append((session, epoch))


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Checkpointer, Place]]:
    place = Place()
    checkpointer = Checkpointer(place.write, on_stale=place.on_stale, clock=lambda: place.now_s)
    task = asyncio.create_task(checkpointer.run())
    yield checkpointer, place
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_only_what_the_client_has_is_written() -> None:
    """The newest one before the first chunk that it lacks, whole."""
    async with running() as (checkpointer, place):
        for seq in range(1, 6):
            checkpointer.offer(made(seq))
        checkpointer.acknowledge(S1, 1, 0)
        checkpointer.acknowledge(S1, 1, 3)
        await until(lambda: bool(place.written))
        assert place.written == [(S1, 3)]
        assert torch.equal(unpack(place.data[0]).buffers["latents"], torch.full((2,), 3.0))
        assert checkpointer.num_held == 2


async def test_while_writing_is_slow_the_newest_wins() -> None:
    """Each session has one that waits, whatever was acknowledged meanwhile."""
    async with running() as (checkpointer, place):
        place.open.clear()
        for seq in range(1, 9):
            checkpointer.offer(made(seq))
            checkpointer.offer(made(seq, S2))
            checkpointer.acknowledge(S1, 1, seq)
            checkpointer.acknowledge(S2, 1, seq)
            if seq == 1:
                await until(lambda: place.calls == 1)
        assert checkpointer.num_held == 2
        place.open.set()
        await until(lambda: len(place.written) == 3)
        assert place.written == [(S1, 1), (S2, 8), (S1, 8)]


async def test_what_nobody_acknowledges_is_bounded() -> None:
    """The oldest are dropped."""
    async with running() as (checkpointer, _):
        for seq in range(1, 100):
            checkpointer.offer(made(seq))
        assert checkpointer.num_held == MAX_UNACKNOWLEDGED


async def test_a_place_out_of_reach_is_tried_again_with_the_newest() -> None:
    """And a session that is gone is not written any more."""
    async with running() as (checkpointer, place):
        place.errors.append(StoreUnavailable("no"))
        checkpointer.offer(made(1))
        checkpointer.acknowledge(S1, 1, 1)
        await until(lambda: place.calls == 1)
        checkpointer.offer(made(2))
        checkpointer.acknowledge(S1, 1, 2)
        async with asyncio.timeout(PATIENCE_S):
            await until(lambda: bool(place.written))
        assert place.written == [(S1, 2)]
        checkpointer.offer(made(3))
        checkpointer.forget(S1)
        checkpointer.acknowledge(S1, 1, 3)
        assert checkpointer.num_held == 0


async def test_a_lost_ownership_is_told() -> None:
    """Its checkpoints count no more; a new ownership starts anew."""
    async with running() as (checkpointer, place):
        place.errors.append(StaleEpoch("no"))
        checkpointer.offer(made(1))
        checkpointer.acknowledge(S1, 1, 1)
        await until(lambda: bool(place.stale))
        assert place.stale == [(S1, 1)] and place.written == []
        checkpointer.offer(made(2))
        checkpointer.offer(made(2, epoch=2))
        checkpointer.acknowledge(S1, 1, 2)
        assert checkpointer.num_held == 1
        checkpointer.acknowledge(S1, 2, 2)
        await until(lambda: bool(place.written))


async def test_a_refused_one_is_given_up() -> None:
    """The session goes on; for a while no other is to be made of it, then the next one is tried."""
    async with running() as (checkpointer, place):
        place.errors.append(CheckpointRefused("too large"))
        checkpointer.offer(made(1))
        checkpointer.acknowledge(S1, 1, 1)
        assert checkpointer.takes(S1)
        await until(lambda: not checkpointer.takes(S1))
        assert checkpointer.takes(S2) and checkpointer.num_held == 0
        place.now_s = REST_S
        assert checkpointer.takes(S1)
        checkpointer.offer(made(2))
        checkpointer.acknowledge(S1, 1, 2)
        await until(lambda: bool(place.written))
        assert place.written == [(S1, 2)]


async def test_a_session_that_comes_back_starts_anew() -> None:
    """What was refused of it here before is forgotten with it."""
    async with running() as (checkpointer, place):
        place.errors.append(CheckpointRefused("too large"))
        checkpointer.offer(made(1))
        checkpointer.acknowledge(S1, 1, 1)
        await until(lambda: not checkpointer.takes(S1))
        checkpointer.forget(S1)
        assert checkpointer.takes(S1)
