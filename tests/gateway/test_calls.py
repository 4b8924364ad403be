"""The calls of a connection."""

from __future__ import annotations

import asyncio
from typing import cast

from gateway.calls import CallQueue
from gateway.faults import Faults
from gateway.steps import AppendInput, Call, Failure, FailureKind
from scheduler.messages import GatewayId, PromptInput, SessionId
from scheduler.store import InputReceipt, Store, StoreUnavailable

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


async def results_of(store: FrailStore, *, is_gone: bool) -> list[object]:
    """Of two inputs, the first of which fails while its client is there or gone."""
    queue = CallQueue(cast(Store, store), GatewayId("g_00000001"), 1, faults=Faults(lambda where: None))
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
