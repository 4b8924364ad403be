"""The calls of a connection."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from gateway.calls import CallQueue, Pauses
from gateway.faults import Faults
from gateway.steps import AppendInput, Call, Failure, FailureKind, SetPaused, TakeControl
from scheduler.messages import GatewayId, PromptInput, SessionId
from scheduler.store import InputReceipt, NoSuchSession, Store, StoreUnavailable

S1 = SessionId("s_0000000000000001")


class FrailStore:
    """Takes inputs; the first attempt fails, once it may end."""

    def __init__(self) -> None:
        self.taken: list[str | None] = []
        self.may_fail = asyncio.Event()
        self.num_attempts = 0

    async def append_input(self, session: SessionId, message: PromptInput, **_: object) -> InputReceipt:
        self.num_attempts += 1
        if self.num_attempts == 1:
            await self.may_fail.wait()
            raise StoreUnavailable("no answer in time")
        self.taken.append(message.id)
        return InputReceipt(entry=f"{self.num_attempts}-0", repeat=False, applied=None)


def append(id: str) -> AppendInput:
    message = PromptInput(text="a red ball", id=id)
    return AppendInput(session=S1, controller_epoch=1, message=message, write=id, ids=(id,))


def queue_of(store: object, pauses: Pauses) -> CallQueue:
    """The calls of one connection."""
    gateway, faults = GatewayId("g_00000001"), Faults(lambda where: None)
    return CallQueue(cast(Store, store), gateway, 1, faults=faults, pauses=pauses)


async def results_of(store: FrailStore, *, is_gone: bool) -> list[object]:
    """Of two inputs, the first of which fails while its client is there or gone."""
    queue = queue_of(store, Pauses())
    results: list[object] = []

    def take(_call: Call, result: object) -> None:
        results.append(result)

    for id in ("a", "b"):
        queue.push(append(id), take)
    await asyncio.sleep(0)
    if is_gone:
        queue.finish()
    store.may_fail.set()
    await asyncio.gather(*queue.tasks)
    return results


async def test_what_could_not_be_written_for_who_is_there_is_tried_again_in_its_place() -> None:
    """The later input waits for it."""
    store = FrailStore()
    await results_of(store, is_gone=False)
    assert store.taken == ["a", "b"]


async def test_after_an_input_that_is_given_up_none_of_who_is_gone_is_written() -> None:
    """Its client sends both again when it is back: the later one must not be before the earlier one then."""
    store = FrailStore()
    results = await results_of(store, is_gone=True)
    assert store.taken == []
    assert [cast(Failure, result).kind for result in results] == [FailureKind.UNAVAILABLE] * 2


class SlowStore:
    """Notes what it is told; a pause is written once it may be."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.may_write = asyncio.Event()

    async def set_paused(self, session: SessionId, paused: bool, **_: object) -> None:
        await self.may_write.wait()
        self.told.append("pause" if paused else "resume")

    async def take_control(self, session: SessionId, **_: object) -> None:
        self.told.append("attach")
        raise NoSuchSession("gone")

    async def is_settled(self) -> bool:
        return True


def set_paused(paused: bool) -> SetPaused:
    return SetPaused(session=S1, controller_epoch=1, paused=paused)


@pytest.mark.parametrize("is_gone", [False, True])
async def test_who_takes_a_session_over_waits_for_its_pause_to_be_written(is_gone: bool) -> None:
    """The engine may have answered it already. The resume behind it is written, too, whether or not its
    client is still there."""
    store, pauses = SlowStore(), Pauses()
    before, after = queue_of(store, pauses), queue_of(store, pauses)

    def resume(call: Call, _result: object) -> None:
        if isinstance(call, SetPaused) and call.paused:
            before.push(set_paused(False), resume)

    before.push(set_paused(True), resume)
    await asyncio.sleep(0)
    if is_gone:
        before.finish()
    after.push(TakeControl(session=S1, resume_hash="", next_seq=0), lambda call, result: None)
    for _ in range(5):
        await asyncio.sleep(0)
    store.may_write.set()
    await asyncio.gather(*before.tasks, *after.tasks)
    assert store.told == ["pause", "resume", "attach"]


async def test_an_attach_does_not_wait_for_a_pause_of_its_own_or_a_store_that_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pause is tried again until Redis is back, an attach is told that it is not there."""
    store, pauses = SlowStore(), Pauses()
    before, after = queue_of(store, pauses), queue_of(store, pauses)
    monkeypatch.setattr("gateway.calls.PAUSES_S", 0.01)
    before.push(set_paused(True), lambda call, result: None)
    after.push(TakeControl(session=S1, resume_hash="", next_seq=0), lambda call, result: None)
    await asyncio.gather(*after.tasks)
    store.may_write.set()
    before.push(TakeControl(session=S1, resume_hash="", next_seq=0), lambda call, result: None)
    await asyncio.gather(*before.tasks)
    assert store.told == ["attach", "pause", "attach"]
