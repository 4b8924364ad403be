"""Notes between two engines arrive whole, whatever the size of their buffers; what is damaged is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from engine.handover import (
    MAX_WHOLE_BYTES,
    PROLOGUE_BYTES,
    Note,
    _receive_state,
    receive_note,
    send_note,
)
from engine.pairs import MAX_MESSAGE_BYTES, Pair, PairLost, Pairs
from engine.state_format import StateFormatError, describe
from scheduler.messages import EngineId
from tests.engine.test_pairs import aside, meet
from tests.engine.test_state_format import HEADER
from tests.patience import PATIENCE_S

ID = "m_1"
BARE = replace(HEADER, buffers=(), replay=())
SIZES = {
    "none": (),
    "nothing in it": (0,),
    "a few odd ones": (1, 63, 64, 7),
    "whole at most": (MAX_WHOLE_BYTES,),
    "too large for one message": (MAX_WHOLE_BYTES + 1, 5),
}


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Pair, Pair]]:
    ends = [Pairs(EngineId(f"e_0000000{n}"), "127.0.0.1", torch.device("cpu")) for n in (1, 2)]
    yield meet((ends[0], ends[1]), ID)
    for end in ends:
        end.close()


def some(sizes: tuple[int, ...]) -> Mapping[str, Tensor]:
    return {f"b{n}": torch.arange(size).to(torch.uint8) for n, size in enumerate(sizes)}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_a_note_arrives_with_its_buffers(pair: tuple[Pair, Pair], sizes: tuple[int, ...]) -> None:
    """Both ways, and after each other."""
    buffers = some(sizes)
    buffers = {**buffers, "rows": torch.rand(3, 2, 5)[:, 1]} if sizes else buffers  # not contiguous
    note = Note(kind="final", migration_id=ID, header=describe(BARE, buffers, checked=False).header)
    for sender, receiver in (pair, pair[::-1], pair):
        sending = aside(lambda sender=sender: send_note(sender, note, buffers, limit_s=PATIENCE_S))  # type: ignore[misc]
        got, state = receive_note(receiver, ID, limit_s=PATIENCE_S)
        sending.result()
        assert state is not None and got.header is not None
        assert got.header.scalars == BARE.scalars and list(state.buffers) == list(buffers)
        assert all(torch.equal(state.buffers[name], sent) for name, sent in buffers.items())


@pytest.mark.parametrize("at", [0, 8, PROLOGUE_BYTES + 3, -1])
def test_a_changed_byte_is_noticed(pair: tuple[Pair, Pair], at: int) -> None:
    """In the prologue, the body and the buffers."""
    buffers = some((4_096,))
    note = Note(kind="frames", migration_id=ID, header=describe(BARE, buffers, checked=False).header)
    send_message = pair[0].send_message

    def damage(num_bytes: int, *, limit_s: float) -> None:
        pair[0].outbox[at if at >= 0 else num_bytes + at] ^= 4
        send_message(num_bytes, limit_s=limit_s)

    pair[0].send_message = damage  # type: ignore[method-assign]
    try:
        sending = aside(lambda: send_note(pair[0], note, buffers, limit_s=PATIENCE_S))
        with pytest.raises(PairLost):
            receive_note(pair[1], ID, limit_s=PATIENCE_S)
        sending.result()
    finally:
        pair[0].send_message = send_message  # type: ignore[method-assign]


def test_a_changed_byte_in_a_buffer_that_follows_is_noticed(pair: tuple[Pair, Pair]) -> None:
    buffers = some((MAX_MESSAGE_BYTES,))
    note = Note(kind="frames", migration_id=ID, header=describe(BARE, buffers, checked=False).header)
    send = pair[0].send

    def damage(tensors: list[Tensor], *, limit_s: float) -> None:
        if tensors[0] is buffers["b0"]:
            tensors[0][99] ^= 4
        send(tensors, limit_s=limit_s)

    pair[0].send = damage  # type: ignore[assignment,method-assign]
    try:
        sending = aside(lambda: send_note(pair[0], note, buffers, limit_s=PATIENCE_S))
        with pytest.raises(StateFormatError, match="checksum"):
            receive_note(pair[1], ID, limit_s=PATIENCE_S)
        sending.result()
    finally:
        pair[0].send = send  # type: ignore[method-assign]


def test_a_note_of_another_migration_is_refused(pair: tuple[Pair, Pair]) -> None:
    """As when a group was kept too early."""
    sending = aside(lambda: send_note(pair[0], Note(kind="ready", migration_id="m_0"), limit_s=PATIENCE_S))
    with pytest.raises(PairLost, match="m_0"):
        receive_note(pair[1], ID, limit_s=PATIENCE_S)
    sending.result()


def test_buffers_from_a_gpu_are_refused_without_one(pair: tuple[Pair, Pair]) -> None:
    """Before anything is received: nobody waits for the time limit."""
    buffers = {"kv": torch.zeros(MAX_WHOLE_BYTES + 1, dtype=torch.uint8)}
    header = describe(BARE, buffers, checked=True).header
    with pytest.raises(StateFormatError, match="GPU"):
        _receive_state(pair[1], header, ("kv",), limit_s=PATIENCE_S)
