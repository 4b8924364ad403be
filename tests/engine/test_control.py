"""The engine's tasks that speak with Redis, with a real Redis and a recorded compute side."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from engine.compute_messages import Command, Feed, InputsTaken, Open, Resided, Wish
from engine.config import EngineConfig
from engine.control import Control
from engine.engine import EXIT_FAILED, EXIT_FENCED, _end_by, model_info
from engine.host import Host
from engine.lifecycle import LifeLimits
from engine.link import Link
from engine.loading import monotonic_ms
from engine.models.shapes.model import TINY, ShapesModel
from engine.progress import Progress
from engine.steering import AppliedInput
from scheduler.messages import (
    Closed,
    DesiredEngine,
    EngineChanged,
    EngineCosts,
    EngineId,
    EngineState,
    Moved,
    OpenSession,
    Pause,
    Phase,
    PromptInput,
    Residence,
    Resume,
    SessionClosed,
    SessionId,
    SessionOpened,
    SessionRecord,
    Stop,
    Subscribe,
    encode_json,
)
from scheduler.store import (
    AppliedRecord,
    CheckpointPointer,
    CheckpointsUnavailable,
    EngineGone,
    SessionCopy,
    Store,
    StoreUnavailable,
    open_checkpoints,
)
from scheduler.store.values import SessionProgress
from tests.engine.edges import S1, RecordedLink, made, until
from tests.engine.process import config, place
from tests.patience import PATIENCE_S
from tests.scheduler.conftest import S2, RedisServer, forget_everything, lead

E1, E2 = EngineId("e_00000001"), EngineId("e_00000002")
MODEL = ShapesModel.random(0, config=TINY)


class World:
    """A control and a host on a real Redis; the compute side only notes what it is told."""

    def __init__(self, store: Store, settings: EngineConfig) -> None:
        self.store = store
        self.commands: asyncio.Queue[Command] = asyncio.Queue()
        self.wishes: list[Wish] = []
        self.stopped = asyncio.Event()
        self.errors: list[BaseException] = []
        self.tasks: list[asyncio.Task[None]] = []
        """Of the control, the heartbeat first."""
        progress = Progress(monotonic_ms)
        progress.rest()
        checkpoints = open_checkpoints(store, settings.checkpoints, ttl_s=settings.checkpoint_ttl_s)
        self.control = Control(store, settings, progress, checkpoints=checkpoints, stop=self.stopped.set)
        self.host = Host(
            MODEL.spec,
            self,
            self.control,
            self.control.checkpointer,
            limits=LifeLimits(),
            clock=monotonic_ms,
            combine=MODEL.combine_prompts,
            fatal=self.errors.append,
        )
        self.control.host = self.host

    def submit(self, command: Command) -> None:
        self.commands.put_nowait(command)

    def wish(self, session: SessionId, epoch: int, wish: Wish) -> None:
        self.wishes.append(wish)

    async def command(self, kind: type[Open] | type[Feed]) -> Command:
        """The next command of this kind."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                command = await self.commands.get()
                if isinstance(command, kind):
                    return command

    async def event(self, kind: type[object], after: str = "0-0") -> object:
        """The first event of this kind."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                events = await self.store.read_events(after, block_ms=1_000)
                for _, event in events:
                    if isinstance(event, kind):
                        return event
                after = events[-1][0] if events else after

    def wait_for_records(self) -> None:
        """Whatever waits for Redis does so until it answers, also where this process has stood still."""
        patient = replace(self.control._config, record_wait_ms=int(1000 * PATIENCE_S))
        self.control._config = patient

    async def record(self) -> SessionRecord:
        found = await self.store.get_session(S1)
        assert found is not None
        return found


@asynccontextmanager
async def running(store: Store, url: str, cluster: str) -> AsyncIterator[World]:
    """Registered, all tasks running."""
    settings = replace(config(url, cluster, Path("none")), publish_ms=20, heartbeat_ms=50)
    world = World(store, settings)
    await world.control.register("ws://127.0.0.1:1/link", model_info(MODEL.spec), capacity=4)
    control = world.control
    work = (control.beat(), control.read_commands(), control.read_inputs(), control.publish())
    tasks = world.tasks = [asyncio.create_task(task) for task in work]
    try:
        yield world
    finally:
        for hosted in list(world.host.sessions.values()):
            world.host.lose(hosted.id)
        for task in tasks:
            task.cancel()
        world.errors += [
            e for e in await asyncio.gather(*tasks, return_exceptions=True) if isinstance(e, Exception)
        ]


@pytest.fixture
async def world(store: Store, redis_url: str, cluster: str) -> AsyncIterator[World]:
    async with running(store, redis_url, cluster) as world:
        yield world
    assert world.errors == []


def subscribe(world: World, link: RecordedLink) -> None:
    """A gateway wants everything from chunk 0."""
    world.host.receive_request(
        cast(Link, link), Subscribe(session=S1, epoch=1, controller_epoch=1, next_seq=0)
    )


async def opened(world: World) -> tuple[int, Open]:
    """A session that is placed here; (leader term, the compute side's order)."""
    term = await lead(world.store)
    await place(world.store, E1, S1, term=term)
    command = await world.command(Open)
    assert isinstance(command, Open)
    return term, command


async def test_registering_makes_the_engine_ready(world: World) -> None:
    """Redis knows url, capacity and model."""
    record = await world.store.get_engine(E1)
    assert record is not None and record.model is not None
    assert (record.state, record.url, record.capacity) == (EngineState.READY, "ws://127.0.0.1:1/link", 4)
    assert (record.model.width, record.model.chunk_frames) == (32, 12)


async def test_a_placed_session_is_opened_and_announced(world: World) -> None:
    """The order carries the start prompt and seed, and the cluster hears SessionOpened."""
    _, command = await opened(world)
    event = await world.event(SessionOpened)
    assert event == SessionOpened(session=S1, engine=E1, epoch=1)
    assert [entry.message for entry in command.pending] == [PromptInput(text="a red ball")]
    assert (command.steering.seed, command.seq) == (7, 0)


async def test_inputs_follow_once_each_in_order(world: World) -> None:
    """Prompts appended later reach the compute side by the blocking read, none twice."""
    await opened(world)
    texts = []
    for number in range(3):
        await world.store.append_input(S1, PromptInput(text=f"p{number}"), controller_epoch=1)
        fed = await world.command(Feed)
        assert isinstance(fed, Feed)
        texts += [entry.message.text for entry in fed.entries if isinstance(entry.message, PromptInput)]
    assert texts == ["p0", "p1", "p2"]


async def test_progress_is_published(world: World) -> None:
    """After a chunk the record shows next_seq and next_frame."""
    _, command = await opened(world)
    world.host.receive_event(made(0))
    async with asyncio.timeout(PATIENCE_S):
        while (record := await world.record()).next_seq == 0:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
    assert (record.next_seq, record.next_frame, record.active) == (1, 12, True)


async def test_no_slot_is_asked_for_while_a_residence_is_on_its_way(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis would learn of them in the wrong order, and count a slot that is taken as free."""
    _, link = await opened(world), RecordedLink()
    subscribe(world, link)
    goes_on, is_publishing, steps = asyncio.Event(), asyncio.Event(), list[str]()
    publish, admit = world.store.publish_sessions, world.store.admit_session

    async def slow_publish(engine: EngineId, sessions: Sequence[SessionProgress]) -> list[SessionId]:
        is_late = any(progress.residence is Residence.OFFLOADED for progress in sessions)
        if is_late:
            is_publishing.set()
            await goes_on.wait()
        stale = await publish(engine, sessions)
        steps.extend(["published"] * is_late)
        return stale

    async def noted_admit(engine: EngineId, session: SessionId, epoch: int) -> bool:
        is_granted = await admit(engine, session, epoch)
        steps.append("admitted")
        return is_granted

    monkeypatch.setattr(world.store, "publish_sessions", slow_publish)
    monkeypatch.setattr(world.store, "admit_session", noted_admit)
    world.host.receive_request(cast(Link, link), Pause(session=S1, controller_epoch=1))
    world.host.suspend(S1, 1)
    world.host.receive_event(Resided(session=S1, epoch=1, residence=Residence.OFFLOADED))
    await is_publishing.wait()
    world.host.receive_request(cast(Link, link), Resume(session=S1, controller_epoch=1))
    assert world.host.sessions[S1].asking
    goes_on.set()
    await until(lambda: world.host.sessions[S1].residence is Residence.RESIDENT)
    assert steps == ["published", "admitted"]


@pytest.mark.parametrize("has_free_slot", [True, False])
async def test_while_redis_is_away_only_a_slot_that_is_free_is_taken(
    has_free_slot: bool, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else Redis is asked when it is back: it would count one slot too many, and the leader take the session
    for one that needs none."""
    _, link = await opened(world), RecordedLink()
    subscribe(world, link)
    hosted, is_away, asked = world.host.sessions[S1], asyncio.Event(), asyncio.Queue[bool]()
    is_away.set()
    admit = world.store.admit_session

    async def admit_unless_away(engine: EngineId, session: SessionId, epoch: int) -> bool:
        asked.put_nowait(is_away.is_set())
        if is_away.is_set():
            raise StoreUnavailable("planted")
        return await admit(engine, session, epoch)

    monkeypatch.setattr(world.store, "admit_session", admit_unless_away)
    world.host.receive_request(cast(Link, link), Pause(session=S1, controller_epoch=1))
    world.host.suspend(S1, 1)
    world.host.receive_event(Resided(session=S1, epoch=1, residence=Residence.OFFLOADED))
    world.control._capacity = int(has_free_slot)
    world.host.receive_request(cast(Link, link), Resume(session=S1, controller_epoch=1))
    assert await asked.get()
    if has_free_slot:
        await until(lambda: hosted.residence is Residence.RESIDENT)
        return
    assert await asked.get()
    assert hosted.asking and hosted.residence is Residence.OFFLOADED
    is_away.clear()
    await until(lambda: hosted.residence is Residence.RESIDENT)
    assert not hosted.asking


async def test_what_is_unsaid_while_it_is_published_is_said_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader suspends a session; its engine, which is publishing it, says once more that it stays."""
    await opened(world)
    subscribe(world, RecordedLink())
    world.tasks[-1].cancel()  # of publications: these are the test's own
    publish, hosted = world.store.publish_sessions, world.host.sessions[S1]

    async def interrupted(engine: EngineId, sessions: Sequence[SessionProgress]) -> list[SessionId]:
        world.host.suspend(S1, 1)
        return await publish(engine, sessions)

    monkeypatch.setattr(world.store, "publish_sessions", interrupted)
    world.host.receive_event(made(0))
    await world.control._flush_progress()
    assert hosted.residence is Residence.RESIDENT and hosted.published is None


async def test_usage_is_counted_to_the_end(world: World) -> None:
    """What was made since the last publication is in the record that its end writes."""
    await opened(world)
    for seq in range(3):
        world.host.receive_event(made(seq))
    hosted = world.host.sessions[S1]
    await hosted.parts.join()
    world.control.ended(hosted, "stopped")
    world.host.close(S1, "stopped")
    await world.event(SessionClosed)
    ((usage,), _) = await world.store.read_usage("0")
    assert (usage.reason, usage.chunks, usage.frames) == ("stopped", 3, 36)
    assert (usage.engine_ms, usage.media_bytes) == (301, 36)


async def test_an_end_is_told_once_its_record_is_closed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that starts anew at once must not be refused for the session that it has just stopped."""
    await opened(world)
    world.wait_for_records()
    phases: list[Phase] = []
    end, told = world.store.end_session, asyncio.Event()

    async def noted(*args: object) -> bool:
        result = await end(*args)  # type: ignore[arg-type]
        phases.append(Phase.CLOSED)
        assert not told.is_set()
        return result

    monkeypatch.setattr(world.store, "end_session", noted)
    hosted = world.host.sessions[S1]
    world.host.close(S1, "stopped")
    world.control.ended(hosted, "stopped", told.set)
    await told.wait()
    assert phases == [Phase.CLOSED]


async def test_an_end_is_told_also_where_redis_does_not_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop works while Redis is away."""
    await opened(world)

    async def silent(*_: object) -> bool:
        await asyncio.Event().wait()
        return True

    monkeypatch.setattr(world.store, "end_session", silent)
    told, hosted = asyncio.Event(), world.host.sessions[S1]
    world.host.close(S1, "stopped")
    world.control.ended(hosted, "stopped", told.set)
    await told.wait()


async def test_usage_is_counted_up_to_a_migration(world: World) -> None:
    """What was made since the last publication counts when the session is another's."""
    term, _ = await opened(world)
    world.tasks[-1].cancel()  # of publications
    for engine in (E1, E2):
        await world.store.register_engine(
            engine, url="ws://h:1/l", model=model_info(MODEL.spec), capacity=1, transfer="h:2"
        )
    await world.store.begin_migration(S1, E2, expect_epoch=1, term=term, migration_id="m", limit_ms=60_000)
    hosted = world.host.sessions[S1]
    for seq in range(3):
        world.host.receive_event(made(seq))
    await hosted.parts.join()
    assert await world.control.commit_migration(hosted, "m", Residence.RESIDENT) == 2
    await world.store.close_session(S1, "stopped")
    ((usage,), _) = await world.store.read_usage("0")
    assert (usage.engine_ms, usage.media_bytes) == (301, 36)


async def test_applied_inputs_are_in_redis_before_the_chunk_leaves(world: World) -> None:
    """When the link sees the chunk, applied_history has the entry already."""
    _, command = await opened(world)
    world.wait_for_records()
    link = RecordedLink()
    subscribe(world, link)
    left = asyncio.Event()
    link.send_media = lambda data, on_sent=None: left.set()  # type: ignore[method-assign]
    entry = command.pending[0].entry
    world.host.receive_event(InputsTaken(session=S1, epoch=1, count=1))
    world.host.receive_event(made(0, applied=(AppliedInput(entry=entry, id=None, rev=0),)))
    await left.wait()
    assert await world.store.applied_history(S1) == [AppliedRecord(entry=entry, rev=0, seq=0)]
    assert (await world.record()).last_applied == entry


async def test_a_session_moved_away_is_dropped(world: World) -> None:
    """The release order takes it from here, with Moved to its subscriber."""
    term, _ = await opened(world)
    link = RecordedLink()
    subscribe(world, link)
    await world.store.register_engine(
        E2, url="ws://127.0.0.1:2/link", model=model_info(MODEL.spec), capacity=4
    )
    await world.store.place_session(S1, E2, expect_epoch=1, term=term)
    await until(lambda: S1 not in world.host.sessions)
    moved = link.sent[-1]
    assert isinstance(moved, Moved) and (moved.engine, moved.epoch) == (E2, 2)


async def test_an_engine_declared_gone_learns_it_by_its_heartbeat(
    store: Store, redis_url: str, cluster: str
) -> None:
    """EngineGone ends the beat task: the process must exit."""
    async with running(store, redis_url, cluster) as world:
        await world.store.lose_engine(E1, term=await lead(world.store), reason="test")
        with pytest.raises(EngineGone):
            async with asyncio.timeout(PATIENCE_S):
                await world.tasks[0]
    assert any(isinstance(error, EngineGone) for error in world.errors)


def test_an_engine_declared_gone_is_fenced_whoever_hears_it_first() -> None:
    """An errand for a session as well as the heartbeat: only another error counts as a crash."""
    ends: list[int] = []

    def end(status: int) -> bool:
        ends.append(status)
        return True

    for error in (EngineGone("declared gone"), RuntimeError("a fault")):
        _end_by(error, "an errand failed", end)
    assert ends == [EXIT_FENCED, EXIT_FAILED]


async def test_a_lost_ownership_found_by_a_write_drops_the_session(world: World) -> None:
    """StaleEpoch on publishing: the session is not ours."""
    term, _ = await opened(world)
    await world.event(SessionOpened)
    await world.store.requeue_session(S1, expect_epoch=1, term=term, reason="test")
    world.host.receive_event(made(0))
    await until(lambda: S1 not in world.host.sessions)


async def test_during_an_outage_chunks_leave_and_afterwards_all_is_written(
    own_redis: RedisServer, cluster: str
) -> None:
    """Redis is killed: an input's chunk leaves all the same, a stop works; then Redis catches up."""
    store = await Store.connect(own_redis.url, cluster=cluster)
    await store._redis.client.config_set("appendfsync", "always")  # what is lost is not left to chance
    async with running(store, own_redis.url, cluster) as world:
        _, command = await opened(world)
        await world.event(SessionOpened)
        link = RecordedLink()
        subscribe(world, link)
        own_redis.kill()
        left = asyncio.Event()
        link.send_media = lambda data, on_sent=None: left.set()  # type: ignore[method-assign]
        entry = command.pending[0].entry
        world.host.receive_event(made(0, applied=(AppliedInput(entry=entry, id=None, rev=0),)))
        async with asyncio.timeout(PATIENCE_S):
            await left.wait()
        assert [message.type for message in link.sent] == ["subscribed", "applied"]
        own_redis.start()
        await until(lambda: not world.host.sessions[S1].unrecorded)
        assert await store.applied_history(S1) == [AppliedRecord(entry=entry, rev=0, seq=0)]
        own_redis.kill()
        world.host.receive_request(cast(Link, link), Stop(session=S1, controller_epoch=1))
        await until(lambda: isinstance(link.sent[-1], Closed))
        own_redis.start()
        closed = await world.event(SessionClosed)
        assert closed == SessionClosed(session=S1, reason="stopped")
        assert (await world.record()).phase is Phase.CLOSED
    assert world.errors == []
    await store.close()


async def test_a_placement_that_redis_lost_is_written_again(world: World) -> None:
    """The record is back at an older epoch, in the queue: the larger epoch wins, and nobody else gets it."""
    await opened(world)
    await world.event(SessionOpened)
    key = world.store._key
    await world.store._redis.client.hset(
        key("session", S1),
        mapping={"epoch": 0, "engine": "", "phase": "queued", "queue_order": 1, "gateway": "g_later"},
    )
    await world.store._redis.client.zadd(key("queue", "shapes"), {S1: 1})
    world.host.receive_event(made(0))
    async with asyncio.timeout(PATIENCE_S):
        while (await world.record()).phase is not Phase.PLACED:  # noqa: ASYNC110 - no event tells when
            await asyncio.sleep(0.02)
    record = await world.record()
    assert (record.engine, record.epoch, record.next_seq, record.gateway) == (E1, 1, 1, "g_later")
    assert await world.store.queue_position(S1) is None
    assert S1 in world.host.sessions


async def test_a_session_of_another_owner_at_the_same_epoch_is_dropped(world: World) -> None:
    """Redis lost the placement, and the leader made another: one of the two goes on."""
    await opened(world)
    await world.event(SessionOpened)
    await world.store._redis.client.hset(world.store._key("session", S1), "engine", E2)
    world.host.receive_event(made(0))
    await until(lambda: S1 not in world.host.sessions)


async def test_redis_that_comes_back_empty_gets_everything_again(world: World) -> None:
    """Engine, session, checkpoint, what was applied, the log: inputs sent before have no second effect, new
    ones reach the engine, and a session taken over elsewhere is not this one."""
    store = world.store
    world.wait_for_records()
    _, command = await opened(world)
    await world.event(SessionOpened)
    subscribe(world, RecordedLink())
    start = command.pending[0].entry
    receipt = await store.append_input(S1, PromptInput(text="p", id="one"), controller_epoch=1)
    await world.command(Feed)
    applied = tuple(
        AppliedInput(entry=e, id=i, rev=r) for e, i, r in ((start, None, 0), (receipt.entry, "one", 1))
    )
    world.host.receive_event(made(0, applied=applied))
    async with asyncio.timeout(PATIENCE_S):
        while len(await store.applied_history(S1)) < len(applied):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.02)
    pointer = CheckpointPointer(epoch=1, seq=0, last_applied=start, text="a red ball", seed=7, rev=0, size=2)
    await world.control.write_checkpoint(S1, pointer, b"ab")
    before, history = await world.record(), await store.applied_history(S1)

    await forget_everything(store)
    await until(lambda: world.host.sessions[S1].published is not None)
    async with asyncio.timeout(PATIENCE_S):
        while await store.checkpoint_pointer(S1) is None:  # noqa: ASYNC110 - the last thing written
            await asyncio.sleep(0.02)
    after = await world.record()
    # Progress that the engine may or may not have published before; afterwards it has.
    # The engine knows only the first gateway that controlled it.
    changing = {"active_ms": 0, "slack_ms": 0, "rev": 0, "next_seq": 1, "next_frame": 12, "last_applied": ""}
    changing["gateway"] = None  # type: ignore[assignment]
    assert replace(after, **changing) == replace(before, **changing)  # type: ignore[arg-type]
    assert (after.next_seq, after.last_applied, after.gateway) == (1, receipt.entry, None)
    assert await store.applied_history(S1) == history
    assert await store.checkpoint_pointer(S1) == pointer
    assert await store.checkpoint_data(pointer.object_name(S1)) == b"ab"
    log = (await store.read_inputs({S1: "0-0"}))[S1]
    assert log == [(receipt.entry, PromptInput(text="p", id="one"))]
    repeat = await store.append_input(S1, PromptInput(text="p", id="one"), controller_epoch=1)
    assert repeat.repeat and repeat.applied == AppliedRecord(entry=receipt.entry, id="one", rev=1, seq=0)
    await store.append_input(S1, PromptInput(text="q"), controller_epoch=1)
    fed = await world.command(Feed)
    assert isinstance(fed, Feed) and [entry.message for entry in fed.entries] == [PromptInput(text="q")]
    (engine,) = await store.list_engines()
    assert (engine.id, engine.state, engine.sessions) == (E1, EngineState.READY, 1)


async def test_several_writes_refused_for_one_loss_keep_the_session(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second asks only after the first has written the session again, and finds it to be its own."""
    await opened(world)
    await world.event(SessionOpened)
    store, hosted, written = world.store, world.host.sessions[S1], asyncio.Event()
    restore = store.restore_session

    async def restore_and_wait(engine: EngineId, copy: SessionCopy) -> None:
        await restore(engine, copy)
        written.set()
        await second

    async def ask_again() -> None:
        await written.wait()
        await world.control.disowned(hosted)

    monkeypatch.setattr(store, "restore_session", restore_and_wait)
    second = asyncio.create_task(ask_again())
    await forget_everything(store)
    async with asyncio.timeout(PATIENCE_S):
        await second
    await until(lambda: hosted.published is not None)
    assert world.host.sessions == {S1: hosted}
    assert ((await world.record()).phase, (await world.record()).epoch) == (Phase.PLACED, 1)


@pytest.mark.parametrize("lost", ["answer", "checkpoint"])
async def test_a_checkpoint_follows_though_redis_fails_once_more(
    world: World, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """The session is there again by then. Its start prompt is in the checkpoint only."""
    _, command = await opened(world)
    await world.event(SessionOpened)
    store, checkpoints, start = world.store, world.control._checkpoints, command.pending[0].entry
    pointer = CheckpointPointer(epoch=1, seq=0, last_applied=start, text="a red ball", seed=7, rev=0, size=2)
    await world.control.write_checkpoint(S1, pointer, b"ab")
    restore, write, failures = store.restore_session, checkpoints.write, list[str]()

    async def restore_unheard(engine: EngineId, copy: SessionCopy) -> None:
        await restore(engine, copy)
        if lost == "answer" and not failures:
            failures.append(lost)
            raise StoreUnavailable("no answer in time")

    async def fail_to_write(
        engine: EngineId, session: SessionId, pointer: CheckpointPointer, data: bytes
    ) -> None:
        if lost == "checkpoint" and not failures:
            failures.append(lost)
            raise StoreUnavailable("no answer in time")
        await write(engine, session, pointer, data)

    monkeypatch.setattr(store, "restore_session", restore_unheard)
    monkeypatch.setattr(checkpoints, "write", fail_to_write)
    await forget_everything(store)
    async with asyncio.timeout(PATIENCE_S):
        while await store.checkpoint_pointer(S1) is None:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.02)
    assert failures == [lost]
    assert await store.checkpoint_pointer(S1) == pointer
    assert await store.checkpoint_data(pointer.object_name(S1)) == b"ab"


async def test_a_session_that_ends_while_it_is_written_again_stays_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis refuses to close what it has lost; then it must not get it back for ever."""
    await opened(world)
    await world.event(SessionOpened)
    restore, hosted = world.store.restore_session, world.host.sessions[S1]

    async def end_first(engine: EngineId, copy: SessionCopy) -> None:
        if S1 in world.host.sessions:
            world.host.close(S1, "stopped")
            world.control.ended(hosted, "stopped")
            await world.control.endings.flush()
        await restore(engine, copy)

    monkeypatch.setattr(world.store, "restore_session", end_first)
    await forget_everything(world.store)
    closed = await world.event(SessionClosed)
    assert isinstance(closed, SessionClosed) and closed.session == S1
    assert closed.reason in ("stopped", "ended")  # whether the first try to close it was still under way
    assert world.host.sessions == {}


async def test_the_same_placement_ordered_twice_keeps_the_session(world: World) -> None:
    """An open order for the epoch that is hosted already changes nothing and is announced again."""
    await opened(world)
    await world.event(SessionOpened)
    hosted, after = world.host.sessions[S1], await world.store.last_event_id()
    command = encode_json(OpenSession(session=S1, epoch=1)).decode()
    await world.store._redis.client.xadd(world.store._key("commands", E1), {"m": command})
    assert await world.event(SessionOpened, after) == SessionOpened(session=S1, engine=E1, epoch=1)
    assert world.host.sessions[S1] is hosted


@asynccontextmanager
async def unreadable(world: World, session: SessionId) -> AsyncIterator[asyncio.Event]:
    """What holds checkpoints does not answer for this session's; the event is set after the first try."""
    checkpoints, tried = world.control._checkpoints, asyncio.Event()
    read = checkpoints.read

    async def fail(wanted: SessionId) -> tuple[CheckpointPointer, bytes | None] | None:
        if wanted != session:
            return await read(wanted)
        tried.set()
        raise CheckpointsUnavailable("the directory does not answer")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "read", fail)
        yield tried


async def test_a_session_that_can_not_be_opened_yet_holds_up_no_other(world: World) -> None:
    """Its checkpoint is out of reach. Redis answers, so all else goes on; then it is opened too."""
    term = await lead(world.store)
    async with unreadable(world, S1) as tried:
        await place(world.store, E1, S1, term=term)
        await tried.wait()
        await place(world.store, E1, S2, term=term)
        command = await world.command(Open)
        assert isinstance(command, Open) and command.session == S2
        assert world.control._online and S1 not in world.host.sessions
    command = await world.command(Open)
    assert isinstance(command, Open) and command.session == S1


async def test_what_is_ordered_while_a_session_is_opened_comes_after(world: World) -> None:
    """Its slot is wanted before it is here: it hears of that."""
    term = await lead(world.store)
    async with unreadable(world, S1) as tried:
        await place(world.store, E1, S1, term=term)
        await tried.wait()
        await world.store.suspend_session(S1, expect_epoch=1, term=term)
        await until(lambda: bool(world.control._orders._waiting[S1]))
    await until(lambda: S1 in world.host.sessions)
    await until(lambda: world.control._orders._waiting == {})
    assert world.host.sessions[S1].life.suspended_ms is not None


async def test_one_that_is_closed_while_it_is_opened_is_not_opened(world: World) -> None:
    """Its checkpoint is still out of reach: nobody waits for that any longer."""
    term = await lead(world.store)
    async with unreadable(world, S1) as tried:
        await place(world.store, E1, S1, term=term)
        await tried.wait()
        await world.store.close_session(S1, "stopped")
        await until(lambda: world.control._orders._waiting == {})
    assert world.host.sessions == {}


async def test_an_order_for_an_older_ownership_changes_nothing(world: World) -> None:
    """The session has come by a newer one while its past was read."""
    await opened(world)
    await world.event(SessionOpened)
    hosted = world.host.sessions[S1]
    hosted.record = replace(hosted.record, epoch=2)
    await world.control.open(OpenSession(session=S1, epoch=1))
    assert world.host.sessions == {S1: hosted}


async def test_what_was_applied_is_recorded_before_the_past_is_read(world: World) -> None:
    """A state is forgotten whose newest input Redis does not know of: that input has no second effect."""
    _, command = await opened(world)
    world.tasks[-1].cancel()  # of publications, which would record it too
    hosted = world.host.sessions[S1]
    hosted.unrecorded = [AppliedRecord(entry=command.pending[0].entry, rev=0, seq=0)]
    hosted.at_compute, hosted.loading = False, True
    world.control.load(hosted)
    again = await world.command(Open)
    assert isinstance(again, Open) and again.pending == () and again.last_applied == command.pending[0].entry


async def test_an_engine_beats_while_it_loads(store: Store, redis_url: str, cluster: str) -> None:
    """Before it has a model, so before it has a host."""
    term = await lead(store)
    await store.write_desired(term, [DesiredEngine(id=E1, model="shapes")])
    control = World(store, config(redis_url, cluster, Path("none"))).control
    del control.host
    beating = asyncio.create_task(control.beat())
    try:
        async with asyncio.timeout(PATIENCE_S):
            while (await store.list_engines())[0].phase == "wanted":  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.01)
    finally:
        beating.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await beating


async def test_a_registration_that_redis_lost_is_made_again(world: World) -> None:
    """The record is back at starting: without this the engine would be lost at its start's time limit."""
    await opened(world)
    await world.event(SessionOpened)
    after = await world.store.last_event_id()
    await world.store._redis.client.hset(world.store._key("engine", E1), "state", "starting")
    changed = await world.event(EngineChanged, after)
    assert isinstance(changed, EngineChanged) and changed.state is EngineState.READY
    assert await world.event(SessionOpened, after) == SessionOpened(session=S1, engine=E1, epoch=1)


async def test_after_an_outage_progress_is_published_again(own_redis: RedisServer, cluster: str) -> None:
    """Redis comes back without what was published last, and gets it though nothing changed here."""
    store = await Store.connect(own_redis.url, cluster=cluster)
    await store._redis.client.config_set("appendfsync", "always")  # what is lost is not left to chance
    async with running(store, own_redis.url, cluster) as world:
        await opened(world)
        world.host.receive_event(made(0))
        await until(lambda: world.host.sessions[S1].published is not None)
        await store._redis.client.hset(store._key("session", S1), "next_seq", 0)
        own_redis.kill()
        await until(lambda: not world.control._online)
        own_redis.start()
        async with asyncio.timeout(PATIENCE_S):
            while (await world.record()).next_seq != 1:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.02)
    assert world.errors == []
    await store.close()


async def lose(world: World, server: RedisServer, **fields: str | int) -> None:
    """Redis comes back, and its newest words on the session are lost: its record says `fields`."""
    client, key = world.store._redis.client, world.store._key
    await client.hset(key("session", S1), mapping=fields)
    await client.persist(key("session", S1))
    await client.sadd(key("placed", E1), S1)
    server.kill()
    await until(lambda: not world.control._online)
    server.start()
    await until(lambda: world.control._online)


async def test_a_session_that_redis_says_is_here_is_opened_again(
    own_redis: RedisServer, cluster: str
) -> None:
    """It was taken from here, and Redis comes back without that: nobody else would ever open it."""
    store = await Store.connect(own_redis.url, cluster=cluster)
    await store._redis.client.config_set("appendfsync", "always")  # what is lost is not left to chance
    async with running(store, own_redis.url, cluster) as world:
        term, _ = await opened(world)
        await world.event(SessionOpened)
        await store.requeue_session(S1, expect_epoch=1, term=term, reason="test")
        await until(lambda: S1 not in world.host.sessions)
        await lose(world, own_redis, phase="placed", epoch=1, engine=E1)
        command = await world.command(Open)
        assert isinstance(command, Open) and (command.session, command.epoch) == (S1, 1)
    assert world.errors == []
    await store.close()


async def test_a_session_that_ended_here_is_not_opened_again(own_redis: RedisServer, cluster: str) -> None:
    """Redis comes back without its end: it gets it again."""
    store = await Store.connect(own_redis.url, cluster=cluster)
    await store._redis.client.config_set("appendfsync", "always")  # what is lost is not left to chance
    async with running(store, own_redis.url, cluster) as world:
        await opened(world)
        subscribe(world, link := RecordedLink())
        world.host.receive_request(cast(Link, link), Stop(session=S1, controller_epoch=1))
        await world.event(SessionClosed)
        await lose(world, own_redis, phase="placed", epoch=1, engine=E1)
        async with asyncio.timeout(PATIENCE_S):
            while (await world.record()).phase is not Phase.CLOSED:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.02)
        assert S1 not in world.host.sessions
    assert world.errors == []
    await store.close()


async def test_costs_are_published_when_they_change_by_more_than_noise(
    store: Store, redis_url: str, cluster: str
) -> None:
    """With the heartbeats after registration; a drift of some percent is not told."""
    async with running(store, redis_url, cluster) as world:
        world.tasks[0].cancel()  # the only heartbeats are those below: one on its way would overtake them
        await asyncio.wait(world.tasks[:1])
        costs = EngineCosts(
            buckets=(12,), pass_ms=((10.0,),), decode_ms=5.0, chunk_passes=5, first_chunk_passes=9
        )
        published: list[EngineCosts | None] = []
        for decode_ms in (5.0, 5.1, 6.0):
            world.control.costs = partial(replace, costs, decode_ms=decode_ms)
            await world.control._beat_once()
            record = await store.get_engine(E1)
            assert record is not None
            published.append(record.costs)
        assert [c.decode_ms for c in published if c is not None] == [5.0, 5.0, 6.0]
