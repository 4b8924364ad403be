"""What is heard at pass boundaries, alone and with other ranks."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.boundary import _OPAQUE, _WIRE_CLASSES, Boundary, News, PassTime
from engine.compute_messages import (
    Adopt,
    AdoptShare,
    Command,
    Drop,
    Feed,
    Freeze,
    MoveShare,
    Open,
    Reserve,
    Survey,
    Thaw,
    Unreserve,
    Wish,
)
from engine.credit import Player
from engine.models.base import ModelSpec, TokenExchange
from engine.rank_wire import from_wire, to_wire
from engine.ranks import Meeting, Verdict
from engine.session_state import SessionState
from engine.steering import LogEntry, Steering
from scheduler.messages import (
    ControlInput,
    EngineId,
    MigrateSession,
    PromptInput,
    ReceiveSession,
    ResetInput,
    SessionId,
)
from tests.engine.harness import Bench

S1 = SessionId("s_1")
PLAYER = Player(lead_ms=1500.0, chunk_ms=750.0)


@dataclass
class Table:
    """Ranks as threads of one process, which meet at a barrier."""

    size: int
    cards: list[tuple[Verdict, float, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cards = [(Verdict.DONE, 0.0, b"")] * self.size
        self.barrier = threading.Barrier(self.size, timeout=20)
        self.meetings = 0


@dataclass
class ThreadRank:
    table: Table
    rank: int

    @property
    def size(self) -> int:
        return self.table.size

    def meet(self, verdict: Verdict, *, now_ms: float = 0.0, news: bytes = b"") -> Meeting:
        self.table.cards[self.rank] = (verdict, now_ms, news)
        if self.table.barrier.wait() == 0:
            self.table.meetings += 1
        cards = list(self.table.cards)
        self.table.barrier.wait()
        return Meeting(verdict=max(card[0] for card in cards), now_ms=cards[0][1], news=cards[0][2])

    def prepare(self, spec: ModelSpec, dtype: torch.dtype, *, largest: int) -> None:
        pass

    def start_serving(self) -> None:
        pass

    def begin_pass(self, rows: int) -> TokenExchange | None:
        return None

    def end_pass(self) -> None:
        pass

    def smallest(self, number: int) -> int:
        return number


def together(size: int, work: Callable[[Boundary], object], *more: Command) -> list[object]:
    """The results of doing it on each rank at once; rank n's clock shows 100 n + 7. Rank 0 is told `more`."""
    table = Table(size=size)
    ranks = [ThreadRank(table, rank) for rank in range(size)]
    with ThreadPoolExecutor(size) as threads:
        made = [Boundary(lambda rank=rank: 100.0 * rank.rank + 7.0, rank) for rank in ranks]  # type: ignore[misc]
        for command in (Drop(session=S1, epoch=3), *more):
            made[0].submit(command)
        made[0].wish(S1, 1, Wish(running=True, since_ms=1.5, player=PLAYER))
        results = list(threads.map(work, made))
    return [*results, table.meetings]


def test_alone_everything_said_before_the_boundary_is_heard_at_it() -> None:
    """Also what came while a pass ran, and the newest wish only."""
    boundary = Boundary(lambda: 5.0)
    assert boundary.hear() == [] and boundary.now_ms == 5.0
    assert boundary.agree(Verdict.NO_MEMORY) is Verdict.NO_MEMORY
    boundary.submit(Drop(session=S1, epoch=1))
    for since_ms in (1.0, 2.0):
        boundary.wish(S1, 1, Wish(running=True, since_ms=since_ms, player=PLAYER))
    boundary.note_pass(PassTime(rows=2, kv_frames=3, ms=4.0))
    boundary.stop()
    (news,) = boundary.hear()
    assert news.commands == (Drop(session=S1, epoch=1),)
    assert [item.wish.since_ms for item in news.wishes] == [2.0]
    assert news.passes == (PassTime(rows=2, kv_frames=3, ms=4.0),) and boundary.stopping


def test_a_wish_is_heard_no_later_than_the_drop_that_follows_it() -> None:
    """Also when both come while the boundary listens. Or it would be kept for ever."""
    boundary, came = Boundary(lambda: 0.0), list[None]()

    class Inbox(deque[Command]):
        def __len__(self) -> int:
            if not came:
                came.append(None)
                boundary.wish(S1, 1, Wish(running=True, since_ms=1.0, player=PLAYER))
                boundary.submit(Drop(session=S1, epoch=1))
            return super().__len__()

    boundary._inbox = Inbox()
    news = [*boundary.hear(), *boundary.hear()]
    (dropped,) = [at for at, item in enumerate(news) if item.commands]
    (wished,) = [at for at, item in enumerate(news) if item.wishes]
    assert wished <= dropped


def test_all_ranks_hear_what_rank_0_was_told_and_read_its_clock() -> None:
    """In one meeting."""

    def work(boundary: Boundary) -> object:
        return boundary.hear(), boundary.now_ms

    *heard, meetings = together(3, work)
    assert heard[0] == heard[1] == heard[2]
    (news,), now_ms = heard[1]  # type: ignore[misc]
    assert news.commands == (Drop(session=S1, epoch=3),) and now_ms == 7.0  # type: ignore[has-type]
    assert meetings == 1


def test_the_news_come_with_the_agreement_on_a_pass() -> None:
    """So the boundary after it needs no meeting, unless a decode came between."""

    def work(boundary: Boundary) -> object:
        verdict = boundary.agree(Verdict.DONE)
        return verdict, boundary.hear()

    def work_and_decode(boundary: Boundary) -> object:
        verdict = boundary.agree(Verdict.DONE)
        boundary.expire()
        return verdict, boundary.hear()

    for case, expected in ((work, 1), (work_and_decode, 2)):
        first, second, meetings = together(2, case)
        assert first == second and meetings == expected
        verdict, (news,) = second  # type: ignore[misc]
        assert verdict is Verdict.DONE and len(news.commands) == 1  # type: ignore[has-type]


ORDER = {"session": S1, "epoch": 1, "migration_id": "m_1", "engine": EngineId("e_1"), "limit_ms": 9}
SHARES: tuple[Command, ...] = (
    MoveShare(order=MigrateSession(**ORDER, address="h:1"), meeting="h:2"),  # type: ignore[arg-type]
    MoveShare(order=ReceiveSession(**ORDER, takes_slot=True), meeting="h:2"),  # type: ignore[arg-type]
    *(Survey(session=S1, epoch=1, is_last=True), Freeze(session=S1, epoch=1, rebuild=True)),
    *(Thaw(session=S1, epoch=1), Reserve(migration_id="m_1", in_slot=True), Unreserve(migration_id="m_1")),
)


def test_migrations_are_news_and_each_rank_has_its_own_share_of_what_comes() -> None:
    """Rank 0 adopts the state that it has itself; the others are told of the adoption only."""
    state = SessionState(session=S1, epoch=2, slot=0, steering=Steering(seed=1), seq=0, frame=0)
    adopt = Adopt(migration_id="m_1", state=state, away=None, codec="vp9")

    def work(boundary: Boundary) -> object:
        return boundary.hear()

    (first,), (second,), _ = together(2, work, *SHARES, adopt)  # type: ignore[misc]
    assert first.commands[1:] == (*SHARES, adopt) and first.commands[-1].state is state  # type: ignore[has-type]
    assert second.commands[1:] == (*SHARES, AdoptShare(migration_id="m_1", codec="vp9"))  # type: ignore[has-type]


def test_the_worst_verdict_is_that_of_all() -> None:
    """Memory before anything else: then the batch is halved."""
    verdicts: queue.SimpleQueue[Verdict] = queue.SimpleQueue()
    for verdict in (Verdict.DONE, Verdict.NO_MEMORY, Verdict.FAILED):
        verdicts.put(verdict)
    *agreed, _ = together(3, lambda boundary: boundary.agree(verdicts.get()))
    assert agreed == [Verdict.NO_MEMORY] * 3


def test_only_what_rank_0_measures_is_kept() -> None:
    """Nobody ever asks the others: their times would pile up."""

    def work(boundary: Boundary) -> object:
        for _ in range(3):
            boundary.note_pass(PassTime(rows=1, kv_frames=3, ms=4.0))
        (news,) = boundary.hear()
        return len(news.passes), len(boundary._passes)

    assert together(2, work)[:2] == [(3, 0), (3, 0)]


def test_nobody_rests_on_what_was_told_while_ranks_agreed() -> None:
    """Where nothing is ready after that, nothing else would wake rank 0: it has been told already."""

    def work(boundary: Boundary) -> object:
        boundary.agree(Verdict.FAILED)
        boundary._wake.wait = pytest.fail  # type: ignore[method-assign, assignment]
        boundary.rest(None)
        return [news.commands for news in boundary.hear()]

    assert together(2, work)[:2] == [[(Drop(session=S1, epoch=3),)]] * 2


def test_a_follower_never_rests_by_itself() -> None:
    """It waits for rank 0 in the next meeting; were it to sleep, nobody would wake it."""
    follower = Boundary(lambda: 0.0, ThreadRank(Table(size=2), rank=1))
    follower.rest(None)


INPUTS = st.one_of(
    st.builds(PromptInput, text=st.text(max_size=20), id=st.none() | st.text(max_size=4)),
    st.builds(ResetInput, seed=st.none() | st.integers(0, 2**63 - 1)),
    st.builds(
        ControlInput,
        keys=st.lists(st.text(max_size=3), max_size=2).map(tuple),
        axes=st.none() | st.dictionaries(st.text(max_size=3), st.floats(-1, 1), max_size=2),
    ),
)
ENTRIES = st.lists(st.builds(LogEntry, entry=st.text(max_size=5), message=INPUTS), max_size=3).map(tuple)


@given(ENTRIES, st.floats(allow_nan=False), st.text())
def test_the_wire_keeps_every_bit(entries: tuple[LogEntry, ...], number: float, text: str) -> None:
    """Equal news on all ranks, infinities included."""
    steering = Steering(seed=1, text=text, held=ControlInput(keys=("a",)))
    news = News(
        commands=(
            Open(session=S1, epoch=1, steering=steering, pending=entries, seq=0, frame=0),
            Feed(session=S1, epoch=1, entries=entries),
        ),
        decodes_ms=(number,),
    )
    assert from_wire(to_wire(news), _WIRE_CLASSES) == news


@pytest.mark.parametrize("name", ["__class__", "bytes", "x"])
def test_a_client_may_name_its_axes_as_it_likes(name: str) -> None:
    """No name means anything to the wire."""
    entry = LogEntry(entry="1-0", message=ControlInput(axes={name: 0.5, "y": -1.0}))
    news = News(commands=(Feed(session=S1, epoch=1, entries=(entry,)),))
    assert from_wire(to_wire(news), _WIRE_CLASSES) == news


def test_a_checkpoint_travels_whole() -> None:
    """A session that is rebuilt is rebuilt on every rank."""
    bench = Bench()
    a = bench.open("s_a")
    bench.chunks(a, 2)
    state = bench.checkpoints(a)[2]
    command = Open(
        session=a, epoch=2, steering=Steering(seed=1), pending=(), seq=2, frame=24, checkpoint=state
    )
    read = from_wire(to_wire(News(commands=(command,)), _OPAQUE), _WIRE_CLASSES, _OPAQUE)
    assert isinstance(read, News) and isinstance(read.commands[0], Open)
    there = read.commands[0].checkpoint
    assert there is not None and there.header == state.header and there.buffers.keys() == state.buffers.keys()
    assert all(torch.equal(there.buffers[name], state.buffers[name]) for name in state.buffers)


def test_the_wire_refuses_what_it_does_not_know() -> None:
    """On writing as on reading."""
    with pytest.raises(TypeError):
        to_wire(object())
    with pytest.raises(KeyError):
        from_wire(to_wire(PLAYER), ())
