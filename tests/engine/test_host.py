"""The host: sessions between links, compute thread and ledger, with the edges recorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import cast

import pytest

from engine.compute_messages import (
    CheckpointMade,
    Command,
    ComputeDied,
    Drop,
    Feed,
    InputsTaken,
    Offload,
    Open,
    Resided,
    Restore,
    SessionFailed,
    Wish,
)
from engine.credit import start_ms
from engine.host import Host
from engine.hosted import MAX_UNPUBLISHED_CHUNKS, Hosted
from engine.lifecycle import LifeLimits
from engine.link import Link
from engine.recovery import Past
from engine.state_format import ExportedState
from engine.steering import MAX_PENDING_INPUTS, AppliedInput, LogEntry
from scheduler.messages import (
    Accepted,
    Applied,
    ChooseRungs,
    ChunkPart,
    Closed,
    ControlInput,
    Credit,
    EngineId,
    ErrorCode,
    Moved,
    Pause,
    Phase,
    PromptInput,
    Refused,
    ReleaseSession,
    Residence,
    Resume,
    Rung,
    SessionId,
    SessionRecord,
    SessionState,
    StateChanged,
    Stats,
    Stop,
    Subscribe,
    Subscribed,
    Superseded,
    Unsubscribe,
    Unwatch,
    Watch,
)
from scheduler.store import AppliedRecord, CheckpointPointer
from tests.engine.edges import S1, SPEC, RecordedLink, made
from tests.engine.test_state_format import HEADER, SCALARS

OFFLOAD_MS = 5_000
LIMITS = LifeLimits(
    linger_ms=1_000, retain_ms=60_000, idle_close_ms=50_000, full_ms=2_000, offload_ms=OFFLOAD_MS
)
RECORD = SessionRecord(
    id=S1,
    model="shapes",
    phase=Phase.PLACED,
    epoch=1,
    engine=EngineId("e_00000001"),
    opened=False,
    active=True,
    paused=False,
    seed=7,
    lead_ms=1500,
    codec="h264",
    resume_hash="",
    controller_epoch=1,
    gateway=None,
    next_seq=0,
    next_frame=0,
    rev=0,
    last_applied="0-0",
    slack_ms=0,
    created_ms=0,
    active_ms=0,
    reason="",
)
LOG = (LogEntry(entry="1-0", message=PromptInput(text="a red ball")),)


class World:
    """A host and everything around it."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.commands: list[Command] = []
        self.wishes: list[Wish] = []
        self.recorded: list[AppliedRecord] = []
        self.may_record = asyncio.Event()
        self.may_record.set()
        self.ends: list[str] = []
        self.is_end_recorded = True
        self.fatal: list[BaseException] = []
        self.log_changes = 0
        self.offered: list[CheckpointMade] = []
        self.acknowledged: list[int] = []
        self.asked: list[SessionId] = []
        self.loads: list[SessionId] = []
        self.host = Host(
            SPEC,
            self,
            self,
            self,
            limits=LIMITS,
            clock=lambda: self.now_ms,
            combine=lambda shown, text: text,
            fatal=self.fatal.append,
        )
        self.link = RecordedLink()

    # Compute
    def submit(self, command: Command) -> None:
        self.commands.append(command)

    def wish(self, session: SessionId, epoch: int, wish: Wish) -> None:
        self.wishes.append(wish)

    # Ledger
    async def record_applied(self, hosted: Hosted, entries: Sequence[AppliedRecord]) -> None:
        await self.may_record.wait()
        self.recorded.extend(entries)

    def ended(self, hosted: Hosted, reason: str, tell: Callable[[], None]) -> None:
        self.ends.append(reason)
        self.tell_end = tell
        if self.is_end_recorded:
            tell()

    def changed(self) -> None:
        pass

    def log_wanted(self) -> None:
        self.log_changes += 1

    def adopted(self, hosted: Hosted) -> None:
        pass

    def ask_slot(self, hosted: Hosted) -> None:
        self.asked.append(hosted.id)

    def load(self, hosted: Hosted) -> None:
        self.loads.append(hosted.id)

    # Checkpoints
    def offer(self, made: CheckpointMade) -> None:
        self.offered.append(made)

    def acknowledge(self, session: SessionId, epoch: int, seq: int) -> None:
        self.acknowledged.append(seq)

    def forget(self, session: SessionId) -> None:
        pass

    # what tests do
    def open(self, **changes: object) -> Hosted:
        record = replace(RECORD, **changes)  # type: ignore[arg-type]
        return self.host.open(Past(record=record, log=LOG))

    def ask(self, request: object, link: RecordedLink | None = None) -> None:
        self.host.receive_request(cast(Link, link or self.link), request)  # type: ignore[arg-type]

    def subscribe(
        self,
        next_seq: int = 0,
        *,
        controller_epoch: int = 1,
        epoch: int = 1,
        link: RecordedLink | None = None,
        next_frame: int | None = None,
    ) -> None:
        request = Subscribe(
            session=S1,
            epoch=epoch,
            controller_epoch=controller_epoch,
            next_seq=next_seq,
            next_frame=next_frame,
        )
        self.ask(request, link)

    async def make(
        self, seq: int, *, applied: tuple[AppliedInput, ...] = (), parts: int = 1, epoch: int = 1
    ) -> None:
        """The compute side delivers chunk `seq`, from frame 12·seq on."""
        for part in range(parts):
            self.host.receive_event(made(seq, part=part, parts=parts, applied=applied, epoch=epoch))
        await self.settle()

    async def settle(self) -> None:
        """Let the emitters take what they have."""
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    for hosted in list(world.host.sessions.values()):
        world.host.close(hosted.id, "test over")
    assert world.fatal == []


def kinds(link: RecordedLink) -> list[str]:
    return [message.type for message in link.sent]


async def test_a_new_session_is_given_to_the_compute_thread_at_once(world: World) -> None:
    """It does not wait for a subscriber; the start prompt is its first pending input."""
    world.open()
    (command,) = world.commands
    assert isinstance(command, Open)
    assert (command.seq, command.frame, command.pending, command.steering.text) == (0, 0, LOG, None)
    assert world.wishes[-1].running


async def test_a_subscriber_gets_what_was_made_before_it_came(world: World) -> None:
    """Subscribed, the Applied of the start prompt, its chunk, then live parts."""
    world.open()
    await world.make(0, applied=(AppliedInput(entry="1-0", id=None, rev=0),), parts=3)
    world.subscribe()
    await world.make(1)
    assert kinds(world.link) == ["subscribed", "applied", "chunk", "chunk", "chunk", "chunk", "stats"]
    last = world.link.of(ChunkPart)[2]
    assert isinstance(last, ChunkPart)
    assert (last.part, last.key, last.pts_ms, last.gen_ms) == (2, False, 500.0, 5.0)


async def test_half_a_chunk_is_completed_for_a_new_subscriber(world: World) -> None:
    """Parts emitted before the subscription are sent again, the rest follows live, each once."""
    world.open()
    world.host.receive_event(made(0, part=0, parts=2))
    await world.settle()
    world.subscribe()
    world.host.receive_event(made(0, part=1, parts=2))
    await world.settle()
    assert [cast(ChunkPart, part).part for part in world.link.of(ChunkPart)] == [0, 1]


async def test_resume_sends_from_next_seq_or_the_oldest_that_is_left(world: World) -> None:
    """start_seq tells the gateway what is lost."""
    world.open()
    for seq in range(20):
        await world.make(seq)
    world.subscribe(18)
    late = RecordedLink()
    world.subscribe(1, link=late)
    assert cast(Subscribed, world.link.sent[0]).start_seq == 18
    assert [cast(ChunkPart, part).seq for part in world.link.of(ChunkPart)] == [18, 19]
    assert cast(Subscribed, late.sent[0]).start_seq == 4
    assert len(late.of(ChunkPart)) == 16


async def test_a_next_seq_in_the_future_is_refused(world: World) -> None:
    """bad_state, and the session is untouched."""
    world.open()
    await world.make(0)
    world.subscribe(2)
    (refused,) = world.link.sent
    assert isinstance(refused, Refused) and refused.code is ErrorCode.BAD_STATE
    assert world.host.sessions[S1].link is None


async def test_strangers_and_stale_epochs_are_refused(world: World) -> None:
    """A session that is not here, or is here with another epoch."""
    world.subscribe()
    world.open()
    world.subscribe(epoch=2)
    codes = [cast(Refused, message).code for message in world.link.sent]
    assert codes == [ErrorCode.NO_SUCH_SESSION, ErrorCode.BAD_STATE]


async def test_a_higher_controller_epoch_takes_over(world: World) -> None:
    """The older link hears Superseded and gets no more; its late requests are ignored."""
    world.open()
    world.subscribe()
    newer = RecordedLink()
    world.subscribe(controller_epoch=2, link=newer)
    world.ask(Pause(session=S1, controller_epoch=1))
    await world.make(0)
    assert kinds(world.link) == ["subscribed", "superseded"]
    assert cast(Superseded, world.link.sent[1]).controller_epoch == 2
    assert kinds(newer) == ["subscribed", "chunk", "stats"]
    world.subscribe(controller_epoch=1)
    assert isinstance(world.link.sent[-1], Superseded)


async def test_answers_name_whose_request_they_answer(world: World) -> None:
    """Several connections of one gateway may ask for one session: each finds its own."""
    world.open()
    world.subscribe(7)
    world.subscribe(controller_epoch=3)
    world.ask(Pause(session=S1, controller_epoch=3, id="p"))
    answers = [m for m in world.link.sent if isinstance(m, Subscribed | Refused | Accepted)]
    assert [(m.type, m.controller_epoch) for m in answers] == [
        ("refused", 1),
        ("subscribed", 3),
        ("accepted", 3),
    ]


async def test_recovery_waits_for_the_first_subscriber_and_goes_on_from_its_seq(world: World) -> None:
    """Fresh model state, the asked seq, the gateway's frame count, the prompt that was in force."""
    record = replace(RECORD, epoch=3, next_seq=40, next_frame=470, last_applied="5-0", rev=1)
    log = (*LOG, LogEntry(entry="5-0", message=PromptInput(text="blue")))
    log = (*log, LogEntry(entry="6-0", message=PromptInput(text="green", id="g")))
    world.host.open(Past(record=record, log=tuple(log)))
    assert world.commands == []
    world.subscribe(41, epoch=3, next_frame=482)
    (command,) = world.commands
    assert isinstance(command, Open)
    assert (command.seq, command.frame, command.steering.text, command.steering.rev) == (41, 482, "blue", 1)
    assert [entry.entry for entry in command.pending] == ["6-0"]
    assert cast(Subscribed, world.link.sent[0]).start_seq == 41


@pytest.mark.parametrize(("next_seq", "start"), [(56, 56), (24, 24), (23, 24), (0, 24)])
async def test_recovery_goes_on_with_what_the_client_lacks_or_leaves_a_gap(
    world: World, next_seq: int, start: int
) -> None:
    """As from the replay window of an owner that is still there: who asks for older chunks is told where it
    goes on. The first chunk had three frames less."""
    world.open(epoch=2, next_seq=40, next_frame=477)
    world.subscribe(next_seq, epoch=2)
    (subscribed,) = world.link.of(Subscribed)
    assert isinstance(subscribed, Subscribed) and subscribed.start_seq == start
    command = world.commands[0]
    assert isinstance(command, Open)
    assert (command.seq, command.frame) == (start, start * SPEC.chunk_frames - 3)


@pytest.mark.parametrize("published", [0, 40])
async def test_recovery_goes_on_after_chunks_that_redis_never_heard_of(world: World, published: int) -> None:
    """The last owner sent them while Redis was away, or faster than it published."""
    last = published + MAX_UNPUBLISHED_CHUNKS
    world.open(epoch=2, next_seq=published, next_frame=published * SPEC.chunk_frames)
    world.subscribe(last + 1, epoch=2)
    world.subscribe(last, epoch=2)
    refused, subscribed = world.link.sent[0], world.link.sent[1]
    assert isinstance(refused, Refused) and refused.code is ErrorCode.BAD_STATE
    assert isinstance(subscribed, Subscribed) and subscribed.start_seq == last


async def test_a_checkpoint_says_what_the_client_had_at_least(world: World) -> None:
    """It is newer than what was published: a client is not refused for having more than that."""
    record = replace(RECORD, epoch=2, next_seq=40, next_frame=480)
    seq = 40 + 2 * MAX_UNPUBLISHED_CHUNKS
    world.host.open(Past(record=record, log=LOG, checkpoint=made_checkpoint(seq=seq)))
    world.subscribe(seq + 1, epoch=2)
    command = world.commands[-1]
    assert isinstance(command, Open) and command.seq == seq + 1


async def test_without_the_gateways_frame_count_it_is_estimated(world: World) -> None:
    """Full chunks between the published seq and the asked one."""
    world.open(epoch=2, next_seq=40, next_frame=470)
    world.subscribe(42, epoch=2)
    command = world.commands[0]
    assert isinstance(command, Open) and command.frame == 470 + 2 * SPEC.chunk_frames


async def test_a_gateway_that_is_ahead_of_an_unpublished_owner_waits(world: World) -> None:
    """The record says 0 but chunks had been sent: they are made again, and not sent a second time."""
    world.open(epoch=2)
    world.subscribe(2, epoch=2)
    for seq in range(3):
        await world.make(seq, epoch=2)
    assert [cast(ChunkPart, part).seq for part in world.link.of(ChunkPart)] == [2]


async def test_inputs_are_recorded_before_their_chunk_leaves(world: World) -> None:
    """The part waits for the ledger; Applied comes before it."""
    world.open()
    world.subscribe()
    world.may_record.clear()
    await_made = asyncio.create_task(world.make(0, applied=(AppliedInput(entry="1-0", id="p", rev=0),)))
    await asyncio.sleep(0)
    await await_made
    assert kinds(world.link) == ["subscribed"]
    world.may_record.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert world.recorded == [AppliedRecord(entry="1-0", id="p", rev=0, seq=0)]
    assert kinds(world.link) == ["subscribed", "applied", "chunk", "stats"]
    assert cast(Applied, world.link.sent[1]).id == "p"


async def test_pause_resume_and_stop(world: World) -> None:
    """Each is accepted by id and takes effect; the client hears the state."""
    world.open()
    world.subscribe()
    world.ask(Pause(session=S1, controller_epoch=1, id="1"))
    assert not world.wishes[-1].running
    world.ask(Resume(session=S1, controller_epoch=1, id="2"))
    assert world.wishes[-1].running
    world.ask(Stop(session=S1, controller_epoch=1, id="3"))
    assert [m.id for m in world.link.sent if isinstance(m, Accepted)] == ["1", "2", "3"]
    states = [m.state for m in world.link.sent if isinstance(m, StateChanged)]
    assert states == [SessionState.IDLE, SessionState.ACTIVE]
    assert cast(Closed, world.link.sent[-1]).reason == "stopped"
    assert world.ends == ["stopped"] and S1 not in world.host.sessions
    assert isinstance(world.commands[-1], Drop)


async def test_the_end_is_told_when_it_is_recorded(world: World) -> None:
    """To who listened, viewers too: who comes back or starts anew then finds the session closed."""
    world.open()
    world.subscribe()
    viewer = RecordedLink()
    world.ask(Watch(session=S1, epoch=1), viewer)
    world.is_end_recorded = False
    world.ask(Stop(session=S1, controller_epoch=1, id="3"))
    assert world.ends == ["stopped"] and S1 not in world.host.sessions
    assert "closed" not in (*kinds(world.link), *kinds(viewer))
    world.tell_end()
    assert kinds(world.link)[-1] == kinds(viewer)[-1] == "closed"


async def test_a_session_paused_before_it_was_opened_starts_idle(world: World) -> None:
    """The record's paused counts from the first moment: no state is made before it resumes."""
    world.open(paused=True)
    world.subscribe()
    assert world.commands == []
    world.ask(Resume(session=S1, controller_epoch=1))
    assert isinstance(world.commands[0], Open) and world.wishes[-1].running


async def test_credit_reaches_the_compute_thread(world: World) -> None:
    """An ack moves the playhead of the next wish."""
    world.open()
    world.subscribe()
    await world.make(0)
    world.now_ms = 100.0
    world.ask(Credit(session=S1, controller_epoch=1, seq=0, buffer_ms=250.0))
    player = world.wishes[-1].player
    assert (player.playhead_ms(100.0), player.acked_seq, player.emitted_seq) == (500.0, 1, 1)


async def test_chunks_count_as_delivered_when_the_link_took_them(world: World) -> None:
    """Not when they were queued."""
    world.open()
    world.link.blocked = True
    world.subscribe()
    await world.make(0)
    assert world.wishes[-1].player.delivered_seq == 0
    world.now_ms = 70.0
    world.link.waiting.pop()()
    assert world.wishes[-1].player.delivered_seq == 1
    stats = world.link.sent[-1]
    assert isinstance(stats, Stats) and stats.latency_ms == 70.0
    latency = world.host.latency
    assert (latency.mean_ms, latency.worst_ms) == (70.0, 70.0)
    world.now_ms = 11_000.0
    assert (latency.mean_ms, latency.worst_ms) == (70.0, 0.0)


async def test_what_an_older_subscription_took_no_longer_counts(world: World) -> None:
    """After a new Subscribe only its own deliveries move the player."""
    world.open()
    world.link.blocked = True
    world.subscribe()
    await world.make(0)
    other = RecordedLink()
    other.blocked = True
    world.subscribe(link=other)
    world.link.waiting.pop()()
    assert world.wishes[-1].player.delivered_seq == 0
    other.waiting.pop()()
    assert world.wishes[-1].player.delivered_seq == 1


async def test_a_lost_link_lingers_then_idles_then_closes(world: World) -> None:
    """The watcher follows the session's life by its own timers."""
    world.open()
    world.subscribe()
    world.host.receive_link_lost(cast(Link, world.link))
    hosted = world.host.sessions[S1]
    assert hosted.active and hosted.next_look_ms == 1_000.0
    world.now_ms = 1_000.0
    await look(world)
    assert (hosted.active, hosted.reason, world.wishes[-1].running) == (False, "disconnected", False)
    world.now_ms = 51_000.0
    await look(world)
    assert world.ends == ["idle"] and world.host.sessions == {}


@pytest.mark.parametrize(("paused", "told"), [(False, ("active", "")), (True, ("idle", "paused"))])
async def test_who_comes_is_not_told_that_nobody_was_there(
    world: World, paused: bool, told: tuple[str, str]
) -> None:
    """The answer to a subscription says how the session is with it."""
    world.open(active=not paused, paused=paused)
    world.subscribe()
    world.host.receive_link_lost(cast(Link, world.link))
    world.now_ms = 1_000.0
    await look(world)
    world.subscribe()
    answers = [(m.state.value, m.reason) for m in world.link.sent if isinstance(m, Subscribed)]
    assert answers == [told, told]


async def look(world: World) -> None:
    """One round of the watcher."""
    watcher = asyncio.create_task(world.host.watch())
    for _ in range(5):
        await asyncio.sleep(0)
    watcher.cancel()
    await asyncio.gather(watcher, return_exceptions=True)


async def test_unsubscribe_and_return_within_linger_stays_active(world: World) -> None:
    """Nothing is said, nothing changes."""
    world.open()
    world.subscribe()
    world.ask(Unsubscribe(session=S1, controller_epoch=1))
    world.now_ms = 900.0
    world.subscribe(controller_epoch=2)
    world.now_ms = 5_000.0
    await look(world)
    assert world.host.sessions[S1].active


async def test_a_player_that_takes_no_more_makes_the_session_idle_until_it_acks(world: World) -> None:
    """Eight chunks without an ack, then full_ms of silence; an ack wakes it."""
    world.open(lead_ms=10_000)
    world.subscribe()
    for seq in range(8):
        await world.make(seq)
    hosted = world.host.sessions[S1]
    world.now_ms = 2_000.0
    await look(world)
    assert (hosted.active, hosted.reason) == (False, "player_full")
    world.ask(Credit(session=S1, controller_epoch=1, seq=7, buffer_ms=0.0))
    assert hosted.active and world.wishes[-1].running


async def test_a_player_that_stands_with_a_full_buffer_makes_the_session_idle_until_it_plays(
    world: World,
) -> None:
    """Who stops the picture and goes away, with a player that goes on acking, holds no slot for ever."""
    world.open()
    world.subscribe()
    for seq in range(3):
        await world.make(seq)
    hosted = world.host.sessions[S1]

    def stand_until(end_ms: float) -> None:
        while world.now_ms < end_ms:
            world.now_ms += 500.0
            world.ask(Credit(session=S1, controller_epoch=1, seq=2, buffer_ms=2_000.0))

    stand_until(2_000.0)
    assert hosted.active
    stand_until(2_500.0)
    assert (hosted.active, hosted.reason) == (False, "player_full")
    stand_until(2_500.0 + OFFLOAD_MS)
    assert isinstance(world.commands[-1], Offload)
    world.host.receive_event(resided(Residence.STORED, 3))
    stand_until(10_000.0)
    assert not hosted.active and world.asked == []
    world.ask(Credit(session=S1, controller_epoch=1, seq=2, buffer_ms=1_900.0))
    assert hosted.active and world.asked == [S1]


async def test_a_resumed_session_is_not_idle_for_a_player_that_stood_in_the_pause(world: World) -> None:
    """What it told while paused says nothing of what it wants now."""
    world.open()
    world.subscribe()
    for seq in range(3):
        await world.make(seq)
    world.ask(Pause(session=S1, controller_epoch=1))
    for _ in range(10):
        world.now_ms += 500.0
        world.ask(Credit(session=S1, controller_epoch=1, seq=2, buffer_ms=2_000.0))
    world.ask(Resume(session=S1, controller_epoch=1))
    assert world.host.sessions[S1].active


async def test_a_released_session_says_where_it_is(world: World) -> None:
    """Moved with the new owner, and the slot is freed; a stale release does nothing."""
    world.open(epoch=2)
    world.subscribe(epoch=2)
    world.host.release(ReleaseSession(session=S1, epoch=2, engine=None))
    assert S1 in world.host.sessions
    world.host.release(ReleaseSession(session=S1, epoch=3, engine=EngineId("e_00000002")))
    moved = world.link.sent[-1]
    assert isinstance(moved, Moved)
    assert (moved.epoch, moved.engine, moved.next_seq) == (3, "e_00000002", 0)
    assert isinstance(world.commands[-1], Drop) and world.ends == []


async def test_a_failed_session_is_closed_as_internal(world: World) -> None:
    """The client hears that it ended, the record is closed; late parts are ignored."""
    world.open()
    world.subscribe()
    world.host.receive_event(SessionFailed(session=S1, epoch=1, message="broken"))
    world.host.receive_event(made(0))
    assert cast(Closed, world.link.sent[-1]).reason == "internal"
    assert world.ends == ["internal"]


async def test_the_end_of_the_compute_thread_is_fatal(world: World) -> None:
    """The engine must not pretend to serve."""
    error = RuntimeError("no device")
    world.host.receive_event(ComputeDied(error=error))
    assert world.fatal.pop() is error


async def test_pending_inputs_are_counted(world: World) -> None:
    """The reader stops at the limit and is woken below it."""
    hosted = world.open()
    world.host.receive_event(InputsTaken(session=S1, epoch=1, count=1))
    inputs = [LogEntry(entry=f"2-{n}", message=PromptInput(text="x")) for n in range(MAX_PENDING_INPUTS)]
    world.host.feed(hosted, [*inputs[:-1], LogEntry(entry="9-9", message=ControlInput())])
    assert hosted.log.is_full
    assert isinstance(world.commands[-1], Feed) and len(world.commands[-1].entries) == MAX_PENDING_INPUTS
    before = world.log_changes
    world.host.receive_event(InputsTaken(session=S1, epoch=1, count=MAX_PENDING_INPUTS))
    assert not hosted.log.is_full and world.log_changes == before + 1


async def test_controls_are_not_kept_for_a_model_that_takes_none(world: World) -> None:
    """They change nothing, so they do not fill the queue."""
    world.host._spec = replace(SPEC, action_dim=0)
    hosted = world.open()
    pending, fed = hosted.log.num_pending, len(world.commands)
    world.host.feed(hosted, [LogEntry(entry="1-9", message=ControlInput())])
    assert (hosted.log.num_pending, len(world.commands)) == (pending, fed)


async def test_chunks_are_made_up_to_a_subscriber_that_is_far_ahead(world: World) -> None:
    """An earlier owner sent six unpublished chunks: nothing made here before counts as unplayed."""
    world.open(epoch=2, lead_ms=100)
    world.subscribe(next_seq=6, epoch=2)
    for seq in range(6):
        player = world.wishes[-1].player
        made_ms = seq * player.chunk_ms
        assert start_ms(player, next_seq=seq, made_ms=made_ms) is not None, f"chunk {seq} never starts"
        await world.make(seq, epoch=2)
    assert world.link.of(ChunkPart) == []


# --- slots ------------------------------------------------------------------------------------------------


def resided(residence: Residence, seq: int | None = 1) -> Resided:
    frame = 0 if seq is None else seq * SPEC.chunk_frames
    return Resided(session=S1, epoch=1, residence=residence, seq=seq, frame=frame)


def pause(world: World) -> None:
    world.ask(Pause(session=S1, controller_epoch=1))


def resume(world: World) -> None:
    world.ask(Resume(session=S1, controller_epoch=1))


async def idle_and_away(world: World, residence: Residence = Residence.OFFLOADED) -> Hosted:
    """A session that made chunk 0, paused, and left its slot."""
    hosted = world.open()
    world.subscribe()
    await world.make(0)
    pause(world)
    world.now_ms += OFFLOAD_MS
    world.host._refresh(hosted)
    world.host.receive_event(resided(residence))
    return hosted


async def test_an_idle_session_leaves_its_slot_after_a_while(world: World) -> None:
    """Not before; it is leaving until the compute thread says that it has left."""
    hosted = world.open()
    world.subscribe()
    pause(world)
    assert hosted.next_look_ms == OFFLOAD_MS and hosted.residence is Residence.RESIDENT
    world.now_ms += OFFLOAD_MS
    world.host._refresh(hosted)
    assert isinstance(world.commands[-1], Offload) and hosted.residence is Residence.LEAVING
    world.host.receive_event(resided(Residence.OFFLOADED))
    assert hosted.residence is Residence.OFFLOADED


async def test_resumed_while_it_leaves_it_stays(world: World) -> None:
    """Redis has not given its slot away: nobody is asked. What comes late about its leaving is old."""
    hosted = world.open()
    world.subscribe()
    pause(world)
    world.now_ms += OFFLOAD_MS
    world.host._refresh(hosted)
    resume(world)
    assert isinstance(world.commands[-1], Restore) and hosted.residence is Residence.RESIDENT
    world.host.receive_event(resided(Residence.OFFLOADED))
    assert hosted.residence is Residence.RESIDENT and world.asked == []


async def test_resumed_while_it_is_away_it_asks_for_a_slot_once(world: World) -> None:
    """It comes back when the slot is granted."""
    hosted = await idle_and_away(world)
    resume(world)
    world.subscribe(1)
    assert world.asked == [S1] and not isinstance(world.commands[-1], Restore)
    world.host.admit(S1, 1)
    assert isinstance(world.commands[-1], Restore) and hosted.residence is Residence.RESIDENT


async def test_paused_again_before_it_was_granted_it_asks_anew_later(world: World) -> None:
    """One question per wish."""
    await idle_and_away(world)
    resume(world)
    pause(world)
    resume(world)
    assert world.asked == [S1, S1]


async def test_a_slot_that_comes_when_it_is_idle_again_is_given_back(world: World) -> None:
    """The leader may have given it to another already: Redis is told once more that it is not taken."""
    hosted = await idle_and_away(world)
    resume(world)
    pause(world)
    hosted.published = hosted.news()
    world.host.admit(S1, 1)
    assert not isinstance(world.commands[-1], Restore) and hosted.residence is Residence.OFFLOADED
    assert hosted.published is None
    resume(world)
    world.host.admit(S1, 1)
    assert isinstance(world.commands[-1], Restore) and hosted.residence is Residence.RESIDENT


async def test_a_stored_session_is_loaded_and_goes_on_where_it_was(world: World) -> None:
    """With its first chunk that is not made, and the inputs that came meanwhile once."""
    hosted = await idle_and_away(world, Residence.STORED)
    late = LogEntry(entry="2-0", message=PromptInput(text="a blue square"))
    world.host.feed(hosted, (late,))
    resume(world)
    world.host.admit(S1, 1)
    assert world.loads == [S1]
    record = replace(RECORD, next_seq=1, next_frame=12, last_applied="1-0")
    world.host.load(hosted, Past(record=record, log=(*LOG, late)))
    command = world.commands[-1]
    assert isinstance(command, Open) and command.pending == (late,)
    assert (command.seq, command.frame) == (1, 12)
    await world.make(1)
    assert [part.seq for part in world.link.of(ChunkPart)] == [0, 1]  # type: ignore[union-attr]


@pytest.mark.parametrize("log", [(), LOG])
async def test_an_input_that_comes_while_the_past_is_read_is_applied_once(
    world: World, log: tuple[LogEntry, ...]
) -> None:
    """Also when nothing else is left of the log."""
    hosted = await idle_and_away(world, Residence.STORED)
    hosted.kept.inputs.clear()  # a checkpoint made them unneeded
    resume(world)
    world.host.admit(S1, 1)
    assert world.loads == [S1]
    late = LogEntry(entry="2-0", message=PromptInput(text="a blue square"))
    hosted.log.position = late.entry
    world.host.feed(hosted, (late,))
    record = replace(RECORD, next_seq=1, next_frame=12, last_applied="1-0")
    world.host.load(hosted, Past(record=record, log=log))
    command = world.commands[-1]
    assert isinstance(command, Open) and command.pending == (late,)
    assert (hosted.log.position, hosted.log.num_pending) == (late.entry, 1)


async def test_of_two_checkpoints_the_newer_is_kept(world: World) -> None:
    """The older one is written again just then, and is done later: the log has what follows the newer."""
    hosted = world.open()
    pointer = CheckpointPointer(epoch=1, seq=4, last_applied="1-0", text="a red ball", seed=7, rev=0, size=2)
    hosted.kept.written(replace(pointer, seq=5), b"cd")
    hosted.kept.written(pointer, b"ab")
    assert hosted.kept.checkpoint == (replace(pointer, seq=5), b"cd")


async def test_what_a_checkpoint_holds_is_not_read_from_the_log_again(world: World) -> None:
    """Its newest entry stays in the log; all that follows is still to come."""
    pointer = CheckpointPointer(epoch=1, seq=4, last_applied="1-0", text="a red ball", seed=7, rev=0, size=2)
    record = replace(RECORD, epoch=2, next_seq=5, next_frame=60, last_applied="1-0")
    checkpoint = made_checkpoint(seq=4)
    hosted = world.host.open(Past(record=record, log=LOG, pointer=pointer, checkpoint=checkpoint, data=b"ab"))
    assert (hosted.log.position, hosted.log.num_pending) == ("1-0", 0)


async def test_a_subscriber_of_a_stored_session_gets_what_is_in_the_replay_window(world: World) -> None:
    """The encoded chunks stay when the state goes."""
    await idle_and_away(world, Residence.STORED)
    link = RecordedLink()
    world.subscribe(0, controller_epoch=2, link=link)
    assert [part.seq for part in link.of(ChunkPart)] == [0]  # type: ignore[union-attr]


async def test_forgotten_just_when_it_was_to_come_back_it_is_loaded(world: World) -> None:
    """The slot is granted already."""
    await idle_and_away(world)
    resume(world)
    world.host.admit(S1, 1)
    world.host.receive_event(resided(Residence.STORED))
    assert world.loads == [S1]


@pytest.mark.parametrize("left", [False, True])
async def test_suspended_by_the_leader(world: World, left: bool) -> None:
    """Whoever left gives up its slot at once; whoever watches keeps it, and Redis is told so."""
    hosted = world.open()
    world.subscribe()
    if left:
        world.ask(Unsubscribe(session=S1, controller_epoch=1))
    world.host.suspend(S1, 1)
    assert isinstance(world.commands[-1], Offload) == left
    assert hosted.residence is (Residence.LEAVING if left else Residence.RESIDENT)
    assert hosted.published is None
    if left:
        world.host.receive_event(resided(Residence.OFFLOADED, seq=0))
        world.subscribe(0, controller_epoch=2)
        assert world.asked == [S1]


async def test_an_idle_session_that_is_placed_is_stored_until_it_is_used(world: World) -> None:
    """It subscribes, pauses on, and asks for a slot when it resumes."""
    checkpoint = made_checkpoint(seq=4)
    record = replace(
        RECORD, epoch=1, next_seq=5, next_frame=60, active=False, paused=True, residence=Residence.STORED
    )
    world.host.open(Past(record=record, log=LOG, checkpoint=checkpoint))
    world.subscribe(5)
    assert world.commands == [] and world.asked == []
    resume(world)
    world.host.admit(S1, 1)
    command = world.commands[-1]
    assert isinstance(command, Open) and command.checkpoint is checkpoint
    assert (command.seq, command.frame) == (5, 60)


async def test_a_checkpoint_beyond_what_the_client_has_leaves_a_gap(world: World) -> None:
    """Chunks before it can't be made any more; the subscriber is told where it goes on."""
    record = replace(RECORD, epoch=1, next_seq=5, next_frame=60)
    world.host.open(Past(record=record, log=LOG, checkpoint=made_checkpoint(seq=4)))
    world.subscribe(2)
    (subscribed,) = world.link.of(Subscribed)
    assert isinstance(subscribed, Subscribed) and subscribed.start_seq == 4
    command = world.commands[-1]
    assert isinstance(command, Open) and (command.seq, command.frame) == (4, 48)


async def test_checkpoints_are_offered_with_what_the_client_has(world: World) -> None:
    """Every ack counts, and what a subscriber asks for."""
    hosted = world.open()
    world.subscribe()
    await world.make(0)
    checkpoint = made_checkpoint(seq=1)
    world.host.receive_event(CheckpointMade(session=S1, epoch=1, seq=1, state=checkpoint))
    world.ask(Credit(session=S1, controller_epoch=1, seq=0, buffer_ms=0))
    world.subscribe(1, controller_epoch=2)
    assert [made.seq for made in world.offered] == [1]
    assert world.acknowledged == [0, 0, 1, 1]
    assert hosted.player.acked_seq == 1


def made_checkpoint(seq: int) -> ExportedState:
    scalars = replace(SCALARS, seq=seq, frame=seq * SPEC.chunk_frames, last_applied="1-0", rev=0)
    return ExportedState(header=replace(HEADER, scalars=scalars, buffers=()))


async def test_viewers_get_one_copy_per_gateway(world: World) -> None:
    """Their link gets what is made from then on, controlled or not; no link gets anything twice."""
    hosted, viewers, stale = world.open(), RecordedLink(), RecordedLink()
    world.subscribe()
    await world.make(0)
    world.ask(Watch(session=S1, epoch=1), viewers)
    world.ask(Watch(session=S1, epoch=1))
    world.ask(Watch(session=S1, epoch=2), stale)
    await world.make(1)
    assert [cast(ChunkPart, part).seq for part in world.link.of(ChunkPart)] == [0, 1]
    world.host.receive_link_lost(cast(Link, world.link))
    await world.make(2)
    world.ask(Unwatch(session=S1), viewers)
    await world.make(3)
    assert kinds(viewers) == ["state_changed", "chunk", "chunk"] and not stale.sent
    assert [cast(ChunkPart, part).seq for part in viewers.of(ChunkPart)] == [1, 2]
    assert not hosted.watchers


async def test_a_session_is_encoded_at_what_gateways_have_chosen(world: World) -> None:
    """At FULL for who chose nothing, and for nobody; a choice ends with its link or subscription."""
    hosted, viewers = world.open(), RecordedLink()
    low = ChooseRungs(session=S1, rungs=(Rung.LOW,))
    world.ask(low)
    world.subscribe()
    assert world.wishes[-1].rungs == (Rung.FULL,)  # it had no client
    world.ask(low)
    assert world.wishes[-1].rungs == (Rung.LOW,)
    world.ask(Watch(session=S1, epoch=1), viewers)
    assert world.wishes[-1].rungs == (Rung.FULL, Rung.LOW)
    world.ask(low, viewers)
    assert world.wishes[-1].rungs == (Rung.LOW,)
    world.subscribe()
    assert world.wishes[-1].rungs == (Rung.FULL, Rung.LOW)
    world.ask(Unwatch(session=S1), viewers)
    assert world.wishes[-1].rungs == (Rung.FULL,)
    world.ask(low)
    world.host.receive_link_lost(cast(Link, world.link))
    assert world.wishes[-1].rungs == (Rung.FULL,) and hosted.rungs == (Rung.FULL,)


async def test_a_copy_at_the_lower_rung_goes_out_and_counts_for_nothing(world: World) -> None:
    """Each link gets both; who comes later gets the FULL one, as the only one there is."""
    hosted, late = world.open(), RecordedLink()
    world.subscribe()
    start = AppliedInput(entry="1-0", id=None, rev=0)
    for part in range(2):
        for rung in (Rung.LOW, Rung.FULL):
            world.host.receive_event(made(0, part=part, parts=2, rung=rung, applied=(start,)))
    await world.settle()
    assert kinds(world.link) == ["subscribed", "applied", "chunk", "chunk", "chunk", "chunk", "stats"]
    got = [cast(ChunkPart, part) for part in world.link.of(ChunkPart)]
    assert [(part.part, part.rung) for part in got] == [
        (part, rung) for part in range(2) for rung in (Rung.LOW, Rung.FULL)
    ]
    assert hosted.media_bytes == SPEC.chunk_frames and hosted.replay.next_seq == 1
    world.subscribe(link=late)
    got = [cast(ChunkPart, part) for part in late.of(ChunkPart)]
    assert [(part.part, part.rung) for part in got] == [(0, None), (1, None)]
