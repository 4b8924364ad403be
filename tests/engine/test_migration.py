"""Two compute loops and a real pair: the same picture after a migration at any chunk."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch

from engine.compute_messages import (
    Absent,
    Adopt,
    Command,
    ComputeEvent,
    Drop,
    Frozen,
    Reserved,
    Surveyed,
    Thaw,
)
from engine.credit import Player
from engine.handover import Arrival, HostFacts, Note, facts_of, send_note
from engine.hosted import Hosted, LogTail
from engine.incoming import Incoming
from engine.lifecycle import Life
from engine.outgoing import CalledOff, Outgoing, Timing, gather_ahead
from engine.pairs import PairLost, Pairs
from engine.precopy import Look
from engine.replay import Replay
from engine.state_format import StateHeader
from engine.state_io import model_key
from scheduler.messages import (
    EngineId,
    MigrateSession,
    Phase,
    PromptInput,
    ReceiveSession,
    Residence,
    SessionId,
    SessionRecord,
)
from tests.engine.harness import BATCHING_COSTS, Bench
from tests.engine.test_continuity import (
    CHUNKS,
    PLAIN,
    SCRIPTS,
    Picture,
    Script,
    play,
    same_picture,
    undisturbed,
)
from tests.engine.test_pairs import aside, meet
from tests.patience import PATIENCE_S

A, B = EngineId("e_0000000a"), EngineId("e_0000000b")
ID = "m_1"
LIMIT_MS = int(1000 * PATIENCE_S)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No step fails because this process stood still."""
    for side in ("incoming", "outgoing"):
        monkeypatch.setattr(f"engine.{side}.STEP_LIMIT_S", PATIENCE_S)


@dataclass
class End(Bench):
    """A loop that hears from migrations, and what they need of an engine."""

    hear: Callable[[ComputeEvent], None] = field(default=lambda _: None)
    slow_rebuild: bool = True
    arrival: Arrival | None = None
    on_commit: Callable[[], None] = field(default=lambda: None)
    commits: int = 0

    def _note(self, event: ComputeEvent) -> None:
        super()._note(event)
        self.hear(event)

    # SourceSide and TargetSide

    def submit(self, command: Command) -> None:
        self.loop.submit(command)

    def rebuild_ms(self, chunks: int) -> float:
        return 1e9 if self.slow_rebuild else 0.0

    async def settled(self, hosted: Hosted) -> HostFacts:
        return facts_of(hosted, self.now_ms)

    async def ping(self) -> None:
        pass

    async def commit(self, hosted: Hosted, migration_id: str, residence: Residence) -> int:
        self.commits += 1
        self.on_commit()
        return hosted.epoch + 1

    async def record(self, command: ReceiveSession) -> SessionRecord | None:
        return record_of(command.session)

    def adopt(self, arrival: Arrival) -> None:
        self.arrival = arrival
        self.loop.submit(
            Adopt(migration_id=arrival.migration_id, state=arrival.state, away=arrival.away, codec="h264")
        )

    def follow(self, session: SessionId, before: Bench) -> None:
        """Its player is here now."""
        self.clients[session] = replace(before.clients.pop(session), epoch=2)
        self._wish(session)


def record_of(session: SessionId) -> SessionRecord:
    return SessionRecord(
        **{"id": session, "model": "shapes", "phase": Phase.PLACED, "epoch": 1, "engine": A, "opened": True},
        **{"active": True, "paused": False, "seed": 3, "lead_ms": 1500, "codec": "h264", "resume_hash": ""},
        **{"controller_epoch": 1, "gateway": None, "next_seq": 0, "next_frame": 0, "rev": 0},
        **{"last_applied": "0-0", "slack_ms": 0, "created_ms": 0, "active_ms": 0, "reason": ""},
    )


def hosted_of(session: SessionId) -> Hosted:
    return Hosted(
        record=record_of(session),
        controller_epoch=1,
        player=Player(lead_ms=1500, chunk_ms=500),
        life=Life(),
        replay=Replay(),
        log=LogTail(position="0-0"),
        next_frame=0,
        rev=0,
        active_since_ms=0,
    )


async def migrate(
    source: End, target: End, session: SessionId, *, in_slot: bool = True, ranks: int = 1
) -> Timing:
    """Move it, both loops running; returns when both have done all that they were told.

    The target says that it has so many `ranks`.
    """
    loop = asyncio.get_running_loop()
    ends = [Pairs(engine, "127.0.0.1", torch.device("cpu")) for engine in (A, B)]
    outgoing = Outgoing(
        *(source.model, source.pool, ends[0], source, hosted_of(session)),
        MigrateSession(
            session=session, epoch=1, migration_id=ID, engine=B, address=ends[1].address, limit_ms=LIMIT_MS
        ),
        clock=source.clock,
    )
    order = ReceiveSession(
        session=session, epoch=1, migration_id=ID, engine=A, takes_slot=in_slot, limit_ms=LIMIT_MS
    )
    incoming = Incoming(target.model, target.pool, ends[1], target, order, ranks=ranks)

    def to_source(event: ComputeEvent) -> None:
        if isinstance(event, Surveyed | Frozen | Absent):
            loop.call_soon_threadsafe(outgoing.receive, event)

    def to_target(event: ComputeEvent) -> None:
        if isinstance(event, Reserved):
            loop.call_soon_threadsafe(incoming.receive, event)

    source.hear, target.hear = to_source, to_target
    receiving = asyncio.create_task(incoming.run())
    with running(source), running(target):
        try:
            _, timing = await outgoing.run()
        except CalledOff:
            outgoing.close()
            incoming.decide(is_ours=False)
            await receiving
            source.loop.submit(Thaw(session=session, epoch=1))
            raise
        source.loop.submit(Drop(session=session, epoch=1))
        await outgoing.tell_committed()
        assert await receiving
    for end in ends:
        end.close()
    return timing


class running:
    """The loop steps on a thread of its own meanwhile, and hears everything before it ends."""

    def __init__(self, bench: Bench) -> None:
        self._bench, self._stop = bench, False
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop = True
        while self._thread.is_alive():
            self._bench.loop._boundary._wake.set()  # or it rests
            self._thread.join(0.01)
        for news in self._bench.loop._boundary.hear():
            self._bench.loop._take_in(news)

    @torch.inference_mode()
    def _run(self) -> None:
        while not self._stop:
            self._bench.loop.step()


def joined(first: Bench, second: Bench) -> Picture:
    """What both showed, one after the other."""
    parts = [*first.parts(SessionId("s_a")), *second.parts(SessionId("s_a"))]
    return Picture(
        first=0,
        latents=[*first.model.latents, *second.model.latents],
        frames=[*first.model.frames, *second.model.frames],
        revs=[part.rev for part in parts],
    )


def stage(**options: bool) -> tuple[End, End, SessionId]:
    source, target = End(costs=BATCHING_COSTS, **options), End(costs=BATCHING_COSTS)
    target.pool.kv.fill_(float("nan"))
    return source, target, source.open("s_a", seed=3)


@SCRIPTS
@pytest.mark.parametrize("at", range(1, CHUNKS))
async def test_migrated_at_any_chunk_changes_no_bit(script: Script, at: int) -> None:
    """Also in the middle of a blend, after resets, and with the past out of the window."""
    source, target, session = stage()
    play(source, session, script, range(at))
    source.to_boundary(session)
    await migrate(source, target, session)
    target.follow(session, source)
    play(target, session, script, range(at, CHUNKS))
    for bench in (source, target):
        bench.encoders.close()
        bench.pool.check_integrity()
    assert source.pool.num_free == source.slots
    assert same_picture(joined(source, target), undisturbed(script)[0])


@pytest.mark.parametrize("passes", range(1, 40, 6))
async def test_migrated_while_it_generates_changes_no_bit(passes: int) -> None:
    """Frames go ahead while passes write others; whatever is written meanwhile goes again."""
    source, target, session = stage()
    source.step(passes)
    free = replace(source.clients[session].player, emitted_seq=999, delivered_seq=999, acked_seq=999)
    source.clients[session].player = free
    source._wish(session)
    timing = await migrate(source, target, session)
    target.follow(session, source)
    made = len(source.model.latents)
    play(target, session, PLAIN, range(made, made + 2))
    for bench in (source, target):
        bench.encoders.close()
    assert timing.final_bytes and not timing.rebuild
    plain = End(costs=BATCHING_COSTS)
    play(plain, plain.open("s_a", seed=3), PLAIN, range(made + 2))
    plain.encoders.close()
    assert same_picture(joined(source, target), joined(plain, End()))


@pytest.mark.parametrize("at", [1, 3])
async def test_over_a_slow_link_the_target_rebuilds(at: int) -> None:
    """Exactly, while nothing was evicted; the K/V stays at home."""
    source, target, session = stage(slow_rebuild=False)
    play(source, session, PLAIN, range(at))
    source.to_boundary(session)
    timing = await migrate(source, target, session)
    assert timing.rebuild
    target.follow(session, source)
    target.model.latents.clear()  # those of the decoder's tail
    target.model.frames.clear()
    play(target, session, PLAIN, range(at, CHUNKS))
    for bench in (source, target):
        bench.encoders.close()
    assert same_picture(joined(source, target), undisturbed(PLAIN)[0])


async def test_an_offloaded_session_moves_to_host_memory() -> None:
    """And comes back into a slot there."""
    source, target, session = stage()
    play(source, session, PLAIN, range(3))
    source.to_boundary(session)
    source.offload(session)
    await migrate(source, target, session, in_slot=False)
    assert source.host.num_held == 0 and target.host.num_held == 1
    target.follow(session, source)
    target.restore(session)
    play(target, session, PLAIN, range(3, CHUNKS))
    for bench in (source, target):
        bench.encoders.close()
    assert same_picture(joined(source, target), undisturbed(PLAIN)[0])


@pytest.mark.parametrize("is_offloaded", [False, True])
async def test_moved_before_its_first_chunk_it_waits_for_its_prompt(is_offloaded: bool) -> None:
    """Its start prompt is in the input log, which its new owner reads once the session is there."""
    source, target, session = stage()
    source.to_boundary(session)
    if is_offloaded:
        source.offload(session)
    await migrate(source, target, session, in_slot=not is_offloaded)
    target.follow(session, source)
    if is_offloaded:
        target.restore(session)
    target.run(session, True)
    other = target.open("s_b", seed=4)
    while target.made(other) == 0:
        target.step(1)
    target.drop(other)
    assert target.made(session) == 0 and target.failed() == []
    target.model.latents.clear()  # those of the other
    target.model.frames.clear()
    target.feed(session, PromptInput(text="a red ball"))
    play(target, session, PLAIN, range(CHUNKS))
    for bench in (source, target):
        bench.encoders.close()
    assert same_picture(joined(source, target), undisturbed(PLAIN)[0])


async def test_without_a_place_the_source_goes_on() -> None:
    source, target, session = stage()
    for number in range(target.slots):
        target.open(f"s_{number}", seed=number)
    target.step(1)
    play(source, session, PLAIN, range(2))
    for client in target.clients.values():
        client.running = False
    with pytest.raises(CalledOff, match="no place"):
        await migrate(source, target, session)
    play(source, session, PLAIN, range(2, 4))
    source.encoders.close()
    assert source.commits == 0 and len(source.model.latents) == 4


async def test_from_a_slot_nothing_moves_into_host_memory() -> None:
    """Redis may have known of an older place: not all of its state would come."""
    source, target, session = stage()
    play(source, session, PLAIN, range(2))
    with pytest.raises(CalledOff):
        await migrate(source, target, session, in_slot=False)
    play(source, session, PLAIN, range(2, 4))
    source.encoders.close()
    assert source.commits == 0 and len(source.model.latents) == 4


async def test_who_waits_for_its_first_slot_does_not_move() -> None:
    """It has no state; who asks hears that, and waits for no limit."""
    source, target, _ = stage()
    for number in range(1, source.slots):
        source.open(f"s_{number}", seed=number)
    waiting = source.open("s_waiting", seed=9)
    for client in source.clients.values():
        client.running = False
    source.step(1)
    with pytest.raises(CalledOff, match="not in this engine's memory"):
        await migrate(source, target, waiting)
    source.encoders.close()


async def test_an_engine_of_another_number_of_ranks_is_no_target() -> None:
    """Each of its ranks would have other heads: the session goes by its checkpoint."""
    source, target, session = stage()
    play(source, session, PLAIN, range(2))
    with pytest.raises(CalledOff, match="2 ranks, this engine 1"):
        await migrate(source, target, session, ranks=2)
    play(source, session, PLAIN, range(2, 4))
    source.encoders.close()
    assert source.commits == 0 and target.pool.num_free == target.slots


async def test_a_migration_that_is_called_off_holds_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its source never calls: the target hears that it is off before any limit is reached."""
    monkeypatch.setattr("engine.incoming.STEP_LIMIT_S", 600.0)
    _, target, session = stage()
    pairs = Pairs(B, "127.0.0.1", torch.device("cpu"))
    order = ReceiveSession(
        session=session, epoch=1, migration_id=ID, engine=A, takes_slot=True, limit_ms=600_000
    )
    incoming = Incoming(target.model, target.pool, pairs, target, order)
    reserved, loop = asyncio.Event(), asyncio.get_running_loop()

    def hear(event: ComputeEvent) -> None:
        if isinstance(event, Reserved):
            loop.call_soon_threadsafe(reserved.set)

    target.hear = hear
    receiving = asyncio.create_task(incoming.run())
    with running(target):
        await reserved.wait()
        assert target.pool.num_free == target.slots - 1
        incoming.decide(is_ours=False)
        assert not await receiving
    assert target.pool.num_free == target.slots
    pairs.close()


async def test_a_place_that_was_given_up_is_not_written_to() -> None:
    """The helper thread gets frames after the migration took too long: another session may be there."""
    source, target, session = stage()
    play(source, session, PLAIN, range(2))
    source.encoders.close()
    ends = tuple(Pairs(engine, "127.0.0.1", torch.device("cpu")) for engine in (A, B))
    there, here = meet((ends[0], ends[1]), ID)
    order = ReceiveSession(
        session=session, epoch=1, migration_id=ID, engine=A, takes_slot=True, limit_ms=LIMIT_MS
    )
    incoming = Incoming(target.model, target.pool, ends[1], target, order)
    slot = target.pool.allocate()
    incoming._drop()
    header = StateHeader(model=model_key(source.model.spec), session=session, epoch=1)
    sent = gather_ahead(source.pool, header, Look(place=(0, 0), index=2), (0, 1, 2))
    assert sent.buffers["kv"].any()
    sending = aside(
        lambda: send_note(
            there, Note(kind="frames", migration_id=ID, header=sent.header), sent.buffers, limit_s=PATIENCE_S
        )
    )
    with pytest.raises(PairLost, match="off"):
        incoming._receive(here, record_of(session), Reserved(migration_id=ID, slot=slot))
    sending.result()
    assert not target.pool.kv[slot].any()
    for end in (there, here, *ends):
        end.close()
