"""Slots, host memory and the copies between them: who is where, and that nothing is lost or held twice."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import pytest
import torch

from engine.compute_messages import (
    Absent,
    ComputeEvent,
    MoveDone,
    Open,
    Resided,
    SessionFailed,
    Surveyed,
)
from engine.encoder import EncoderPool, SessionEncoder
from engine.kv_pool import SlabPool
from engine.models.shapes.model import TINY, ShapesModel
from engine.offload import MAX_SLABS, Copier, HostPool, slab_bytes
from engine.precopy import Look
from engine.ranks import Verdict
from engine.residents import FAILURE_MESSAGE, Residents, Where
from engine.session_state import Stage
from engine.steering import LogEntry, Steering
from engine.stepper import Stepper
from scheduler.messages import PromptInput, Residence, SessionId

MODEL = ShapesModel.random(0, config=TINY)
PROMPT = LogEntry(entry="1-0", message=PromptInput(text="a red ball"))


class HeldCopier(Copier):
    """Copies when it is told to, so that a test decides what happens meanwhile."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Callable[[], None], Future[None], Callable[[], None]]] = []

    def submit(self, copy: Callable[[], None], on_done: Callable[[], None]) -> Future[None]:
        future: Future[None] = Future()
        self.waiting.append((copy, future, on_done))
        return future

    def finish(self, number: int = 0, error: Exception | None = None) -> None:
        copy, future, on_done = self.waiting.pop(number)
        if error is None:
            copy()
            future.set_result(None)
        else:
            future.set_exception(error)
        on_done()


@dataclass
class World:
    """The table with everything it uses; sessions never begin a chunk, so each is at a boundary."""

    slots: int = 2
    slabs: int = 2
    events: list[ComputeEvent] = field(default_factory=list)
    done: list[MoveDone] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pool = SlabPool(MODEL, slots=self.slots)
        self.host = HostPool(MODEL, budget_bytes=self.slabs * slab_bytes(MODEL))
        self.copier = HeldCopier()
        self.encoders = EncoderPool(threads=1)
        self.table = Residents(
            MODEL,
            self.pool,
            Stepper(MODEL, self.pool),
            host=self.host,
            copier=self.copier,
            encoders=self.encoders,
            make_encoder=lambda codec: SessionEncoder(width=32, height=32, fps=16),
            clock=lambda: 0.0,
            emit=self.events.append,
            post=self.done.append,
            agree=lambda verdict: verdict,
        )

    def open(self, number: int, epoch: int = 1) -> SessionId:
        id = SessionId(f"s_{number}")
        self.table.open(
            Open(session=id, epoch=epoch, steering=Steering(seed=number), pending=(PROMPT,), seq=0, frame=0)
        )
        return id

    def want(self, session: SessionId, in_slot: bool) -> None:
        self.table.want(session, 1, in_slot=in_slot)
        self.table.settle()

    def finish(self, number: int = 0, error: Exception | None = None) -> None:
        """A copy ends and the compute thread hears it."""
        self.copier.finish(number, error)
        self.table.finish_move(self.done.pop().number)
        self.table.settle()

    def said(self, session: SessionId) -> list[Residence]:
        return [e.residence for e in self.events if isinstance(e, Resided) and e.session == session]

    def where(self, session: SessionId) -> Where:
        return self.table[session].where

    def check(self) -> None:
        """The books are right."""
        self.pool.check_integrity()
        self.host.check_integrity()


@pytest.fixture
def world() -> World:
    return World()


def test_there_and_back(world: World) -> None:
    """The slot is free once the copy is made, the slab once it is back."""
    a = world.open(1)
    world.pool.kv[0].fill_(1.5)
    world.want(a, False)
    assert world.where(a) is Where.LEAVING and world.pool.num_free == 1
    world.finish()
    assert world.where(a) is Where.HOST and (world.pool.num_free, world.host.num_held) == (2, 1)
    world.want(a, True)
    assert world.where(a) is Where.RETURNING
    world.finish()
    assert world.where(a) is Where.SLOT and (world.pool.num_free, world.host.num_held) == (1, 0)
    assert world.said(a) == [Residence.OFFLOADED, Residence.RESIDENT]
    assert torch.all(world.pool.kv[world.table[a].state.slot] == 1.5)
    world.check()


def test_inputs_that_come_while_it_is_away_are_kept(world: World) -> None:
    """They wait for its next boundary, in order."""
    a = world.open(1)
    world.want(a, False)
    world.table.feed(a, 1, (LogEntry(entry="2-0", message=PromptInput(text="x")),))
    world.finish()
    world.table.feed(a, 1, (LogEntry(entry="3-0", message=PromptInput(text="y")),))
    world.want(a, True)
    world.table.feed(a, 1, (LogEntry(entry="4-0", message=PromptInput(text="z")),))
    world.finish()
    assert [item.entry for item in world.table[a].state.pending] == ["1-0", "2-0", "3-0", "4-0"]


def test_wanted_again_during_the_copy_it_stays(world: World) -> None:
    """Its slot was never given up."""
    a = world.open(1)
    world.want(a, False)
    world.want(a, True)
    world.finish()
    assert world.where(a) is Where.SLOT and world.said(a) == [Residence.RESIDENT]
    assert (world.pool.num_free, world.host.num_held) == (1, 0)


def test_unwanted_again_during_its_return_it_leaves_again(world: World) -> None:
    """One copy after the other."""
    a = world.open(1)
    world.want(a, False)
    world.finish()
    world.want(a, True)
    world.want(a, False)
    world.finish()
    assert world.where(a) is Where.LEAVING
    world.finish()
    assert world.where(a) is Where.HOST
    world.check()


def test_only_at_a_boundary(world: World) -> None:
    """A chunk in work is finished first."""
    a = world.open(1)
    world.table[a].state.stage = Stage.DENOISE
    world.want(a, False)
    assert world.where(a) is Where.SLOT
    world.table[a].state.stage = Stage.BOUNDARY
    world.table.settle()
    assert world.where(a) is Where.LEAVING


def test_of_a_session_that_is_rebuilt_nothing_can_go_ahead(world: World) -> None:
    """Its passes write frames of other chunks than the one in work."""
    a = world.open(1)
    for stage in (Stage.REBUILD, Stage.BOUNDARY):
        world.table[a].state.stage = stage
        world.table.survey(a, 1)
    looks = [event.look for event in world.events if isinstance(event, Surveyed)]
    assert looks == [None, Look(place=(world.table[a].state.slot, 0), index=0)]


def test_wanted_before_it_reached_the_boundary_it_says_that_it_stays(world: World) -> None:
    """Whoever asked must hear that nothing happened."""
    a = world.open(1)
    world.table[a].state.stage = Stage.DENOISE
    world.want(a, False)
    world.want(a, True)
    assert world.said(a) == [Residence.RESIDENT]


@pytest.mark.parametrize("was_away", [False, True])
def test_dropped_during_a_copy(world: World, was_away: bool) -> None:
    """What the copy uses is held until it ends; the same session may be opened again meanwhile."""
    a = world.open(1)
    world.want(a, False)
    if was_away:
        world.finish()
        world.want(a, True)
    world.table.drop(a, 1)
    assert (world.pool.num_free, world.host.num_held) == (1, 1)
    again = world.open(1, epoch=2)
    world.finish()
    assert world.where(again) is Where.SLOT
    assert (world.pool.num_free, world.host.num_held) == (1, 0)
    world.check()


def test_dropped_while_away(world: World) -> None:
    """Its slab is free at once."""
    a = world.open(1)
    world.want(a, False)
    world.finish()
    world.table.drop(a, 1)
    assert (world.pool.num_free, world.host.num_held) == (2, 0)
    assert world.said(a) == [Residence.OFFLOADED]


def test_a_failed_copy_costs_the_copy_and_not_the_engine(world: World) -> None:
    """The session is stored: it can be rebuilt from its checkpoint."""
    a = world.open(1)
    world.want(a, False)
    world.finish(error=RuntimeError("no"))
    assert world.said(a) == [Residence.STORED] and world.table.find(a, 1) is None
    assert (world.pool.num_free, world.host.num_held) == (2, 0)


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has the device no room for what this function of `residents` makes."""

    def plant(name: str) -> None:
        def fail(*_: object, **__: object) -> None:
            raise torch.OutOfMemoryError("planted")

        monkeypatch.setattr(f"engine.residents.{name}", fail)

    return plant


def test_without_memory_to_leave_or_return_a_session_is_stored(
    world: World, no_memory: Callable[[str], None]
) -> None:
    """The engine goes on, and so does the session, from its checkpoint."""
    a, b = world.open(1), world.open(2)
    world.want(a, False)
    world.finish()
    no_memory("export_state")
    no_memory("load_scalars")
    world.want(b, False)
    assert world.said(b) == [Residence.STORED]
    world.want(a, True)
    assert world.said(a) == [Residence.OFFLOADED, Residence.STORED]
    assert (world.pool.num_free, world.host.num_held) == (2, 0)
    world.check()


def test_without_memory_a_session_that_shall_move_says_so(
    world: World, no_memory: Callable[[str], None]
) -> None:
    """Once; it goes on here when it is told."""
    a = world.open(1)
    world.events.clear()
    no_memory("export_state")
    world.table.freeze(a, 1, on=True)
    for _ in range(2):
        world.table.settle()
    assert world.events == [Absent(session=a, epoch=1)]
    world.table.freeze(a, 1, on=False)
    assert not world.table[a].is_held


@pytest.mark.parametrize("failed", ["open", "leave", "return", "copy"])
def test_what_fails_on_another_rank_alone_is_not_done_here_either(failed: str) -> None:
    """All ranks keep the same books."""
    world = World()
    a = world.open(1)
    if failed == "return":
        world.want(a, False)
        world.finish()
    if failed == "copy":
        world.want(a, False)
    world.table._agree = lambda verdict: Verdict.FAILED
    match failed:
        case "open":
            b = world.open(2)
            assert world.table.find(b, 1) is None and world.pool.num_free == 1
            assert SessionFailed(session=b, epoch=1, message=FAILURE_MESSAGE) in world.events
        case "leave" | "return":
            world.want(a, failed == "return")
            assert world.said(a)[-1] is Residence.STORED and world.pool.num_free == 2
        case "copy":
            world.finish()
            assert world.said(a) == [Residence.STORED] and world.pool.num_free == 2
    assert world.host.num_held == 0
    world.check()


def test_when_host_memory_is_short_the_longest_away_is_stored(world: World) -> None:
    """The others keep what they have."""
    sessions = []
    for number in range(3):
        sessions.append(world.open(number))
        world.want(sessions[-1], False)
        world.finish()
    assert [world.said(session)[-1] for session in sessions] == [
        Residence.STORED,
        Residence.OFFLOADED,
        Residence.OFFLOADED,
    ]
    world.check()


def test_without_host_memory_a_session_is_stored_at_once() -> None:
    """Its slot is free. A wish to have it back crosses that news, and a second one would open it twice."""
    world = World(slabs=0)
    a = world.open(1)
    world.want(a, False)
    world.want(a, True)
    assert world.said(a) == [Residence.STORED] and world.pool.num_free == 2


def test_who_returns_waits_for_a_slot(world: World) -> None:
    """Openings and returns take slots as they become free."""
    a = world.open(1)
    world.want(a, False)
    world.finish()
    b, c, d = world.open(2), world.open(3), world.open(4)
    world.want(a, True)
    assert world.where(a) is Where.HOST and world.table.find(d, 1) is None
    world.table.drop(b, 1)
    world.table.settle()
    assert world.where(a) is Where.RETURNING
    world.finish()
    world.table.drop(c, 1)
    world.table.settle()
    assert world.where(d) is Where.SLOT
    world.check()


def test_unwanted_or_dropped_while_it_waits_for_its_first_slot(world: World) -> None:
    """Its state never came: it is stored, or just gone."""
    world.open(1)
    world.open(2)
    c, d = world.open(3), world.open(4)
    world.want(c, False)
    world.table.drop(d, 1)
    assert world.said(c) == [Residence.STORED] and world.said(d) == []
    assert not any(isinstance(event, SessionFailed) for event in world.events)


class Life:
    """A random life of many sessions, copies ending in any order."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.world = World(slots=3, slabs=2)
        self.alive: dict[SessionId, int] = {}

    def step(self, number: int) -> None:
        action = self.rng.choice(
            (self.open, self.drop, self.wish, self.wish, self.wish, self.copy, self.copy)
        )
        action(number)
        for event in self.world.events:
            if isinstance(event, Resided) and event.residence is Residence.STORED:
                if self.alive.get(event.session) == event.epoch:
                    del self.alive[event.session]
        self.world.events.clear()
        self.world.table.settle()
        self.world.check()

    def open(self, number: int) -> None:
        if len(self.alive) < 6 and SessionId(f"s_{number % 8}") not in self.alive:
            self.alive[self.world.open(number % 8, epoch=number)] = number

    def drop(self, number: int) -> None:
        if self.alive:
            session = self.rng.choice(sorted(self.alive))
            self.world.table.drop(session, self.alive.pop(session))

    def wish(self, number: int) -> None:
        if self.alive:
            session = self.rng.choice(sorted(self.alive))
            self.world.table.want(session, self.alive[session], in_slot=self.rng.random() < 0.5)

    def copy(self, number: int) -> None:
        if self.world.copier.waiting:
            failed = RuntimeError("no") if self.rng.random() < 0.1 else None
            self.world.finish(self.rng.randrange(len(self.world.copier.waiting)), failed)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_nothing_is_lost_or_held_twice(seed: int) -> None:
    """The books are right after every step, and at the end all is free."""
    life = Life(seed)
    world = life.world
    for number in range(300):
        life.step(number)
    for session, epoch in life.alive.items():
        world.table.drop(session, epoch)
    while world.copier.waiting:
        world.finish()
    assert (world.pool.num_free, world.host.num_held, world.table.num_moves) == (3, 0, 0)
    assert list(world.table.all()) == [] and world.encoders._lanes == [set()]


def test_a_budget_is_not_cut_into_more_slabs_than_an_engine_can_use() -> None:
    """Of a tiny model, a gigabyte would be tens of thousands."""
    assert HostPool(MODEL, budget_bytes=2 * MAX_SLABS * slab_bytes(MODEL)).num_slabs == MAX_SLABS
