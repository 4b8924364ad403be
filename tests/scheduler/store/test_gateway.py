"""What gateways write, each refusal included."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from scheduler.keys import CLOSED_TTL_S, MIN_CLOSED_TTL_S
from scheduler.messages import (
    MAX_REMEMBERED_IDS,
    REPLAY_CHUNKS,
    CloseSession,
    ControlInput,
    ControllerChanged,
    DesiredEngine,
    EngineChanged,
    EngineId,
    GatewayId,
    Phase,
    PromptInput,
    SessionClosed,
    SessionId,
    SessionQueued,
    SessionRecord,
)
from scheduler.store import (
    START,
    AppliedRecord,
    BeyondGenerated,
    NoSuchEngine,
    NoSuchSession,
    PlacementRefused,
    QueuedCopy,
    QueueFull,
    QuotaReached,
    SessionCopy,
    SessionIsClosed,
    StaleController,
    Store,
)
from tests.scheduler.conftest import (
    E1,
    GATEWAY,
    HASH,
    S1,
    S2,
    S3,
    create,
    forget_everything,
    lead,
    placed,
    ready,
)

OTHER = GatewayId("g_00000002")


async def events(store: Store) -> list[object]:
    """All events so far."""
    return [event for _, event in await store.read_events(START)]


async def test_create_writes_record_log_and_event(store: Store) -> None:
    """A new session is queued, controlled by its creator, and its prompt heads the input log."""
    record = await create(store)
    assert (record.phase, record.epoch, record.controller_epoch) == (Phase.QUEUED, 0, 1)
    assert (record.gateway, record.active, record.opened, record.last_applied) == (
        GATEWAY,
        True,
        False,
        START,
    )
    inputs = await store.read_inputs({S1: START})
    assert [message for _, message in inputs[S1]] == [PromptInput(text="a red ball")]
    assert await events(store) == [SessionQueued(session=S1)]
    assert await store.list_sessions() == [record]


async def test_create_twice_is_refused(store: Store) -> None:
    """An id is never used twice."""
    await create(store)
    with pytest.raises(PlacementRefused):
        await create(store)


async def test_queue_limit_refuses_with_a_time(store: Store) -> None:
    """A full queue refuses with the expected time until a place is free, and writes nothing."""
    await create(store, S1, queue_limit=1)
    with pytest.raises(QueueFull) as refusal:
        await create(store, S2, queue_limit=1)
    assert refusal.value.retry_after_ms == await store.queue_eta_ms(1, model="shapes")
    assert await store.get_session(S2) is None


async def test_a_subject_leaves_others_as_much_of_the_queue_as_it_takes(store: Store) -> None:
    """However many sessions one starts, another one finds a place in the queue."""
    ids = [SessionId(f"s_{n:016x}") for n in range(8)]
    for id in ids[:4]:
        await create(store, id, queue_limit=8, subject="alice")
    with pytest.raises(QueueFull):
        await create(store, ids[4], queue_limit=8, subject="alice")
    for id in ids[4:6]:
        await create(store, id, queue_limit=8, subject="bob")
    with pytest.raises(QueueFull):
        await create(store, ids[6], queue_limit=8, subject="bob")
    await create(store, ids[6], queue_limit=8, subject="carol")
    await create(store, ids[7], queue_limit=8)
    assert len(await store.queue("shapes")) == 8


async def test_a_quota_counts_the_open_sessions_of_a_subject(store: Store) -> None:
    """Beyond it nothing is written; another subject is not hindered, and a closed session counts no more."""
    await create(store, S1, subject="alice", max_sessions=1)
    with pytest.raises(QuotaReached, match="1 sessions"):
        await create(store, S2, subject="alice", max_sessions=1)
    assert await store.get_session(S2) is None
    assert (await create(store, S3, subject="bob", max_sessions=1)).subject == "bob"
    await store.close_session(S1, "stopped")
    await create(store, S2, subject="alice", max_sessions=1)


async def test_queue_position_counts_per_model(store: Store) -> None:
    """Positions start at 1 and are those of the session's own model."""
    await create(store, S1)
    await create(store, S2)
    await create(store, S3, model="other")
    positions = [await store.queue_position(s) for s in (S1, S2, S3)]
    assert positions == [1, 2, 1]
    assert (await store.cluster_info()).queue == 3


async def test_no_position_outside_the_queue(store: Store) -> None:
    """Unknown and placed sessions have no position."""
    assert await store.queue_position(S2) is None
    await placed(store)
    assert await store.queue_position(S1) is None


async def test_append_dedupes_by_message_id(store: Store) -> None:
    """A repeated id gets the first answer and has no second effect."""
    await create(store)
    first = await store.append_input(S1, PromptInput(text="blue", id="m1"), controller_epoch=1)
    again = await store.append_input(S1, PromptInput(text="blue", id="m1"), controller_epoch=1)
    assert (first.repeat, again.repeat, again.entry) == (False, True, first.entry)
    assert len((await store.read_inputs({S1: START}))[S1]) == 2


async def test_a_write_whose_answer_was_lost_is_not_appended_twice(store: Store) -> None:
    """Without a message id its name tells the newest write; ids that are remembered are not pushed out."""
    await create(store, id="m0")
    prompt = PromptInput(text="blue")
    first = await store.append_input(S1, prompt, controller_epoch=1, write="1-1")
    again = await store.append_input(S1, prompt, controller_epoch=1, write="1-1")
    other = await store.append_input(S1, prompt, controller_epoch=1, write="1-2")
    assert (first.repeat, again.repeat, other.repeat) == (False, True, False)
    assert again.entry == first.entry != other.entry
    assert len((await store.read_inputs({S1: START}))[S1]) == 3
    for n in range(MAX_REMEMBERED_IDS):
        await store.append_input(S1, prompt, controller_epoch=1, write=f"1-{n + 3}")
    assert (await store.append_input(S1, PromptInput(text="x", id="m0"), controller_epoch=1)).repeat


async def test_repeat_answers_where_it_was_applied(store: Store) -> None:
    """Once recorded as applied, a repeat says with which rev and chunk."""
    _, epoch = await placed(store)
    receipt = await store.append_input(S1, PromptInput(text="blue", id="m1"), controller_epoch=1)
    applied = AppliedRecord(entry=receipt.entry, id="m1", rev=1, seq=9)
    await store.record_applied(E1, S1, epoch, [applied])
    again = await store.append_input(S1, PromptInput(text="blue", id="m1"), controller_epoch=1)
    assert (again.repeat, again.applied) == (True, applied)


async def test_the_start_prompts_id_is_remembered(store: Store) -> None:
    """The id of `start` counts as used."""
    await create(store, id="m0")
    receipt = await store.append_input(S1, PromptInput(text="x", id="m0"), controller_epoch=1)
    assert receipt.repeat


async def test_merged_messages_share_their_answers(store: Store) -> None:
    """A repeat of one that went into another's entry is known, and answered with what applied it."""
    _, epoch = await placed(store)
    control = ControlInput(keys=("a",), id="c3")
    receipt = await store.append_input(S1, control, merged_ids=("c1", "c2"), controller_epoch=1)
    await store.record_applied(E1, S1, epoch, [AppliedRecord(entry=receipt.entry, id="c3", rev=0, seq=4)])
    again = await store.append_input(S1, ControlInput(id="c1"), controller_epoch=1)
    assert (again.entry, again.repeat) == (receipt.entry, True)
    assert again.applied == AppliedRecord(entry=receipt.entry, id="c1", rev=0, seq=4)


async def test_only_the_last_ids_are_remembered(store: Store) -> None:
    """The oldest id is forgotten when MAX_REMEMBERED_IDS newer ones came."""
    await create(store, id="m0")
    for n in range(MAX_REMEMBERED_IDS):
        await store.append_input(S1, PromptInput(text="x", id=f"n{n}"), controller_epoch=1)
    newest = await store.append_input(S1, PromptInput(text="x", id="n0"), controller_epoch=1)
    oldest = await store.append_input(S1, PromptInput(text="x", id="m0"), controller_epoch=1)
    assert (newest.repeat, oldest.repeat) == (True, False)


async def test_attaches_at_once_have_an_epoch_each(store: Store) -> None:
    """None takes the epoch of a newer one, whose record it may read: only one of them is the newest."""
    await create(store)
    attaches = (store.take_control(S1, gateway=OTHER, resume_hash=HASH) for _ in range(5))
    records = await asyncio.gather(*attaches)
    assert sorted(record.controller_epoch for record in records) == [2, 3, 4, 5, 6]


async def test_take_control_fences_the_older_connection(store: Store) -> None:
    """After an attach the late writes of the older connection are refused."""
    await create(store)
    record = await store.take_control(S1, gateway=OTHER, resume_hash=HASH)
    assert (record.controller_epoch, record.gateway) == (2, OTHER)
    assert ControllerChanged(session=S1, controller_epoch=2, gateway=OTHER) in await events(store)
    with pytest.raises(StaleController):
        await store.append_input(S1, PromptInput(text="x"), controller_epoch=1)
    with pytest.raises(StaleController):
        await store.set_paused(S1, True, controller_epoch=1)
    with pytest.raises(StaleController):
        await store.close_session(S1, "stop", controller_epoch=1)
    await store.append_input(S1, PromptInput(text="x"), controller_epoch=2)


@pytest.mark.parametrize(("session", "resume_hash"), [(S2, HASH), (S1, "00" * 32)])
async def test_take_control_needs_the_token(store: Store, session: SessionId, resume_hash: str) -> None:
    """An unknown session and a wrong token are not told apart."""
    await create(store)
    with pytest.raises(NoSuchSession):
        await store.take_control(session, gateway=OTHER, resume_hash=resume_hash)


async def test_an_attach_of_the_future_takes_nothing(store: Store) -> None:
    """Far beyond the newest chunk it is refused, and the connection that controls the session keeps it."""
    await create(store)
    with pytest.raises(BeyondGenerated):
        await store.take_control(S1, gateway=OTHER, resume_hash=HASH, next_seq=REPLAY_CHUNKS + 1)
    await store.append_input(S1, PromptInput(text="x"), controller_epoch=1)
    record = await store.take_control(S1, gateway=OTHER, resume_hash=HASH, next_seq=REPLAY_CHUNKS)
    assert record.controller_epoch == 2


async def test_leave_marks_the_time_once(store: Store) -> None:
    """Leaving clears the gateway; attach clears the mark; a stale leave has no effect."""
    await create(store)
    await store.leave_session(S1, controller_epoch=1)
    record = await store.get_session(S1)
    assert record is not None and record.gateway is None and record.left_ms is not None
    back = await store.take_control(S1, gateway=OTHER, resume_hash=HASH)
    assert back.left_ms is None
    await store.leave_session(S1, controller_epoch=1)
    assert await store.get_session(S1) == back


async def test_pause_while_queued_starts_idle(store: Store) -> None:
    """A session that is paused in the queue is not active; resume makes it so."""
    await create(store)
    await store.set_paused(S1, True, controller_epoch=1)
    record = await store.get_session(S1)
    assert record is not None and (record.paused, record.active) == (True, False)
    await store.set_paused(S1, False, controller_epoch=1)
    record = await store.get_session(S1)
    assert record is not None and (record.paused, record.active) == (False, True)


async def test_pauses_are_remembered_among_the_other_ids(store: Store) -> None:
    """A later connection learns them in order, a repeat moves nothing, and the oldest ids are forgotten."""
    await create(store)
    await store.set_paused(S1, True, ids=["p1", "p2"], controller_epoch=1)
    await store.append_input(S1, PromptInput(text="x", id="n"), controller_epoch=1)
    await store.set_paused(S1, False, ids=["p3", "p1"], controller_epoch=1)
    assert await store.remembered_ids(S1) == (("p1", "p2", "p3"), ("n",))
    repeat = await store.append_input(S1, PromptInput(text="x", id="p2"), controller_epoch=1)
    assert repeat.repeat and repeat.applied is None
    many = [f"m{number}" for number in range(MAX_REMEMBERED_IDS)]
    await store.set_paused(S1, True, ids=many, controller_epoch=1)
    assert await store.remembered_ids(S1) == (tuple(many), ())


async def test_close_is_idempotent_and_tells_why(store: Store) -> None:
    """Close removes queue place and log, and later writers learn the reason."""
    await create(store)
    assert await store.close_session(S1, "stop", controller_epoch=1)
    assert not await store.close_session(S1, "again")
    assert (await events(store))[-1] == SessionClosed(session=S1, reason="stop")
    assert await store.list_sessions() == []
    assert await store.read_inputs({S1: START}) == {}
    with pytest.raises(SessionIsClosed) as closed:
        await store.take_control(S1, gateway=OTHER, resume_hash=HASH)
    assert closed.value.reason == "stop"
    with pytest.raises(SessionIsClosed):
        await store.append_input(S1, PromptInput(text="x"), controller_epoch=1)


async def test_close_of_unknown_session(store: Store) -> None:
    """Nothing to close is an error, not silence."""
    with pytest.raises(NoSuchSession):
        await store.close_session(S1, "stop")


async def test_close_tells_the_owner_and_frees_its_place(store: Store) -> None:
    """The engine of a placed session gets the command and has room again."""
    await placed(store)
    await store.close_session(S1, "stop")
    commands = [command for _, command in await store.read_commands(E1, START)]
    assert commands[-1] == CloseSession(session=S1, reason="stop")
    engine = await store.get_engine(E1)
    assert engine is not None and engine.sessions == 0


async def test_order_drain_marks_the_engine(store: Store) -> None:
    """The order is on record for a later leader too, and wakes the present one."""
    await ready(store)
    await store.order_drain(E1)
    engine = await store.get_engine(E1)
    assert engine is not None and engine.drain_ordered
    last = (await events(store))[-1]
    assert isinstance(last, EngineChanged) and last.reason == "drain ordered"


async def test_order_drain_of_no_engine(store: Store) -> None:
    """Unknown and gone engines can't be drained."""
    with pytest.raises(NoSuchEngine):
        await store.order_drain(E1)
    await ready(store)
    await store.remove_engine(E1)
    with pytest.raises(NoSuchEngine):
        await store.order_drain(E1)


async def test_gateways_come_and_go(store: Store) -> None:
    """A beating gateway is listed until it is removed."""
    await store.heartbeat_gateway(GATEWAY, {"url": "http://x", "connections": 3})
    assert await store.list_gateways() == [GATEWAY]
    await store.remove_gateway(GATEWAY)
    assert await store.list_gateways() == []


@pytest.mark.parametrize(("retain_s", "kept_s"), [(None, CLOSED_TTL_S), (90, 90), (0, MIN_CLOSED_TTL_S)])
async def test_closed_sessions_are_known_for_as_long_as_the_leader_says(
    store: Store, retain_s: int | None, kept_s: int
) -> None:
    """Whoever closes them. A minute at least, for who has still to hear of it."""
    if retain_s is not None:
        term = await lead(store)
        await store.publish_cluster(
            term, policy="slack", budget=1, release_interval_ms=1, start_ms=1, retain_s=retain_s
        )
    await create(store)
    await store.close_session(S1, "stopped", controller_epoch=1)
    assert kept_s - 5 <= await store._redis.client.ttl(f"{store.prefix}session:{S1}") <= kept_s


async def test_release_interval_sets_the_eta(store: Store) -> None:
    """The queue's ETA is position times what the leader published."""
    term = await lead(store)
    await store.publish_cluster(
        term, policy="least_loaded", budget=2, release_interval_ms=4_000, start_ms=600_000
    )
    assert await store.queue_eta_ms(3, model="shapes") == 12_000
    await store.write_desired(term, [DesiredEngine(id=EngineId("e_00000009"), model="shapes")])
    assert await store.queue_eta_ms(1, model="shapes") == 4_000
    await store.publish_cluster(term, policy="slack", budget=2, release_interval_ms=4_000, start_ms=3_000)
    assert 0 < await store.queue_eta_ms(1, model="shapes") <= 3_000
    assert await store.queue_eta_ms(1, model="another") == 4_000


async def test_who_left_is_not_in_the_line(store: Store) -> None:
    """Without a connection a queued session counts for nobody; coming back, it has its old place."""
    await create(store, S1)
    await create(store, S2)
    await store.leave_session(S1, controller_epoch=1)
    assert (await store.queue_position(S1), await store.queue_position(S2)) == (None, 1)
    await store.take_control(S1, gateway=GatewayId("g_2"), resume_hash=HASH)
    assert (await store.queue_position(S1), await store.queue_position(S2)) == (1, 2)


async def test_who_left_and_made_room_is_not_in_the_line(store: Store) -> None:
    """A left session that is queued again stands in nobody's way; coming back, it is first."""
    term, _ = await placed(store)
    await store.leave_session(S1, controller_epoch=1)
    await store.requeue_session(S1, expect_epoch=1, term=term, reason="made_room")
    await create(store, S2)
    assert await store.queue_position(S2) == 1
    await store.take_control(S1, gateway=GatewayId("g_2"), resume_hash=HASH)
    assert (await store.queue_position(S1), await store.queue_position(S2)) == (1, 2)


@pytest.mark.parametrize("was_placed", [False, True])
async def test_a_session_written_again_still_counts_against_its_quota(store: Store, was_placed: bool) -> None:
    """Redis came back empty: whoever knows the session writes it again, with the subject it belongs to."""
    await (placed if was_placed else create)(store)
    record = replace(await _known(store, S1), subject="alice")
    await forget_everything(store)
    if was_placed:
        await ready(store, E1)
        await store.restore_session(E1, SessionCopy(record=record, left_age_ms=None, position=START))
    else:
        await store.restore_queued(_queued_copy(record), gateway=GATEWAY)
    assert (await _known(store, S1)).subject == "alice"
    with pytest.raises(QuotaReached):
        await create(store, S2, subject="alice", max_sessions=1)
    await create(store, S2, subject="alice")
    await create(store, S3, subject="bob")
    assert (await store.queue("shapes"))[-2:] == [S3, S2], "it counts in alice's turns"


async def _known(store: Store, session: SessionId) -> SessionRecord:
    record = await store.get_session(session)
    assert record is not None
    return record


def _queued_copy(record: SessionRecord) -> QueuedCopy:
    return QueuedCopy(
        session=record.id,
        model=record.model,
        prompt=PromptInput(text="a red ball"),
        seed=record.seed,
        lead_ms=record.lead_ms,
        codec=record.codec,
        resume_hash=record.resume_hash,
        subject=record.subject,
        created_ms=record.created_ms,
        inputs=[],
    )
