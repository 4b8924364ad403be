"""Groups of two engines: bytes arrive, cached groups serve again, a lost peer is noticed within the limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import pytest
import torch

from engine.pairs import DONE, MAX_IDLE, Pair, PairLost, Pairs, share_of
from scheduler.messages import EngineId
from tests.patience import PATIENCE_S

A, B = EngineId("e_00000001"), EngineId("e_00000002")
CPU = torch.device("cpu")
T = TypeVar("T")


@pytest.fixture
def ends() -> Iterator[tuple[Pairs, Pairs]]:
    source, target = (Pairs(engine, "127.0.0.1", CPU) for engine in (A, B))
    yield source, target
    source.close()
    target.close()


def aside(function: Callable[[], T]) -> Future[T]:
    """On a thread of its own."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(function)
    pool.shutdown(wait=False)
    return future


def meet(ends: tuple[Pairs, Pairs], id: str, limit_s: float = PATIENCE_S) -> tuple[Pair, Pair]:
    source, target = ends
    answered = aside(lambda: target.answer(id, limit_s=limit_s))
    return source.call(B, target.address, id, limit_s=limit_s), answered.result()


def carries(pair: tuple[Pair, Pair]) -> bool:
    """Do a message and tensors of several types arrive, both ways?"""
    for sender, receiver in (pair, pair[::-1]):
        sent = [torch.arange(9), torch.empty(0), torch.rand(3, 5), torch.arange(200_000, dtype=torch.uint8)]
        received = [torch.zeros_like(tensor) for tensor in sent]
        message = torch.randint(256, (99,), dtype=torch.uint8)
        sender.outbox[:99] = message

        def send(sender: Pair = sender, sent: list[torch.Tensor] = sent) -> None:
            sender.send_message(99, limit_s=PATIENCE_S)
            sender.send(sent, limit_s=PATIENCE_S)

        sending = aside(send)
        same = torch.equal(receiver.receive_message(limit_s=PATIENCE_S)[:99], message)
        receiver.receive(received, limit_s=PATIENCE_S)
        sending.result()
        if not same or not all(map(torch.equal, sent, received)):
            return False
    return True


def test_what_is_sent_arrives(ends: tuple[Pairs, Pairs]) -> None:
    """Over a fresh group, and over the same one again."""
    pair = meet(ends, "m_1")
    assert carries(pair)
    ends[0].keep(pair[0], B)
    ends[1].keep(pair[1], None)
    again = meet(ends, "m_2")
    assert again[0] is pair[0] and again[1] is pair[1]
    assert carries(again)
    assert carries(meet(ends, "m_3"))  # the cached one is in use


def test_a_group_that_the_target_has_closed_is_replaced(ends: tuple[Pairs, Pairs]) -> None:
    """In the same migration, whether or not the source has noticed."""
    for noticed in (True, False):
        pair = meet(ends, f"m_{noticed}")
        ends[0].keep(pair[0], B)
        pair[1].close()
        if noticed:
            with pytest.raises(PairLost):
                pair[0].receive_message(limit_s=PATIENCE_S)
        assert carries(meet(ends, f"m_{noticed}_again"))
        assert ends[0].num_idle == 0


def test_idle_groups_are_bounded(ends: tuple[Pairs, Pairs]) -> None:
    """The one unused for longest is closed, so that its other end notices."""
    pairs = [meet(ends, f"m_{n}") for n in range(MAX_IDLE + 1)]
    for pair, _ in pairs:
        ends[0].keep(pair, B)
    assert ends[0].num_idle == MAX_IDLE
    with pytest.raises(PairLost):
        pairs[0][1].receive([torch.zeros(1)], limit_s=0.2)


@pytest.mark.parametrize("what", ["call", "answer", "receive"])
def test_a_silent_peer_is_noticed(ends: tuple[Pairs, Pairs], what: str) -> None:
    """By the limit, not by the test's timeout."""
    source, target = ends
    pair = meet(ends, "m_1") if what == "receive" else None
    with pytest.raises(PairLost):
        if pair is not None:
            pair[1].receive([torch.zeros(1)], limit_s=0.2)
        elif what == "call":
            source.call(B, target.address, "m_2", limit_s=0.2)
        else:
            target.answer("m_2", limit_s=0.2)


def test_other_ranks_meet_where_rank_0_listens(ends: tuple[Pairs, Pairs]) -> None:
    """At the same time as rank 0, each the same rank of the other engine."""
    others = tuple(
        Pairs(engine, "127.0.0.1", CPU, meeting=end.address) for engine, end in zip((A, B), ends, strict=True)
    )
    share = aside(lambda: meet(others, share_of("m_1", 1)))
    assert carries(meet(ends, "m_1")) and carries(share.result())


def test_rank_0_waits_until_all_others_have_taken_a_step(ends: tuple[Pairs, Pairs]) -> None:
    """A failure is heard where a step is waited for; what nobody reads any more is taken back."""
    first, *others = (ends[0].reports(limit_s=PATIENCE_S) for _ in range(3))
    others[0].add(share_of("m_1", 1), "met", DONE)
    with pytest.raises(PairLost, match="rank 2 does not say"):
        first.wait("m_1", 3, "met", limit_s=0.2)
    for rank, other in enumerate(others, start=1):
        other.add(share_of("m_1", rank), "ahead", DONE)
        other.add(share_of("m_1", rank), "verified", "its link was cut")
    first.wait("m_1", 3, "ahead", limit_s=PATIENCE_S)
    with pytest.raises(PairLost, match="rank 1: its link was cut"):
        first.wait("m_1", 3, "verified", limit_s=PATIENCE_S)
    others[1].withdraw(share_of("m_1", 2))
    with pytest.raises(PairLost, match="rank 1 does not say"):
        first.wait("m_1", 2, "verified", limit_s=0.2)
