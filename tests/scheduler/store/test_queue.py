"""The order in which sessions wait, told from Redis, against the one that policies use."""

from __future__ import annotations

import random

from scheduler.messages import Phase, SessionId
from scheduler.policy.seating import waiting
from scheduler.store import Store
from scheduler.table import build_table
from tests.scheduler.conftest import E1, GATEWAY, HASH, create, lead, ready

SUBJECTS = ("", "alice", "alice", "alice", "bob", "carol")
MODELS = ("shapes", "shapes", "other")


async def used_by_policies(store: Store) -> dict[str, list[SessionId]]:
    """Who waits for each model, in the order in which a plan of this moment seats them."""
    sessions = await store.list_sessions()
    view = build_table(await store.list_engines(), sessions, ()).view()
    model_of = {record.id: record.model for record in sessions}
    ids = [view.sessions.ids[row] for rows in waiting(view) for row in rows]
    return {model: [id for id in ids if model_of[id] == model] for model in MODELS}


async def change(store: Store, draw: random.Random, number: int, term: int) -> None:
    """One thing that happens to somebody, if it can."""
    sessions = await store.list_sessions()
    if len(sessions) < 6 or draw.random() < 0.4:
        id = SessionId(f"s_{draw.getrandbits(32):08x}{number:08}")
        await create(store, id, subject=draw.choice(SUBJECTS), model=draw.choice(MODELS))
        return
    one = draw.choice(sessions)
    can_place = one.phase is Phase.QUEUED and one.model == "shapes"
    match draw.choice(("place", "place", "requeue", "leave", "return", "close")):
        case "place" if can_place:
            await store.place_session(one.id, E1, expect_epoch=one.epoch, term=term)
        case "requeue" if one.phase is Phase.PLACED:
            await store.requeue_session(one.id, expect_epoch=one.epoch, term=term, reason="test")
        case "leave":
            await store.leave_session(one.id, controller_epoch=one.controller_epoch)
        case "return":
            await store.take_control(one.id, gateway=GATEWAY, resume_hash=HASH)
        case "close":
            await store.close_session(one.id, "stopped")


async def test_clients_are_told_the_order_that_is_used(store: Store) -> None:
    """Whoever comes, gets a place, loses it, leaves, comes back and ends."""
    draw = random.Random(1)
    await ready(store, capacity=1_000)
    term = await lead(store)
    is_fair_order_another = False
    for number in range(60):
        await change(store, draw, number, term)
        if number % 5 < 4:
            continue
        for model, used in (await used_by_policies(store)).items():
            line = await store.queue(model)
            assert line == used
            records = await store.get_sessions(line)
            orders = [record.queue_order for record in records.values() if record is not None]
            is_fair_order_another |= orders != sorted(orders)
    assert is_fair_order_another


async def test_a_subject_with_many_sessions_holds_up_nobody(store: Store) -> None:
    """Places go to subjects in turn; one that has a place already comes after one that has none."""
    ids = [SessionId(f"s_{n:016x}") for n in range(6)]
    for id in ids[:4]:
        await create(store, id, subject="alice")
    await create(store, ids[4], subject="bob")
    assert await store.queue("shapes") == [ids[0], ids[4], ids[1], ids[2], ids[3]]
    await ready(store)
    await store.place_session(ids[0], E1, expect_epoch=0, term=await lead(store))
    await create(store, ids[5], subject="carol")
    assert await store.queue("shapes") == [ids[4], ids[5], ids[1], ids[2], ids[3]]
    assert await store.queue_position(ids[1]) == 3


async def test_who_is_not_there_takes_nobody_a_turn(store: Store) -> None:
    """A session that nobody controls counts as none of its subject's until somebody does again."""
    gone, mine, other = (SessionId(f"s_{n:016x}") for n in range(3))
    await create(store, gone, subject="alice")
    await ready(store)
    await store.place_session(gone, E1, expect_epoch=0, term=await lead(store))
    await create(store, mine, subject="alice")
    await create(store, other, subject="bob")
    assert await store.queue("shapes") == [other, mine]
    await store.leave_session(gone, controller_epoch=1)
    assert await store.queue("shapes") == [mine, other]
    await store.take_control(gone, gateway=GATEWAY, resume_hash=HASH)
    assert await store.queue("shapes") == [other, mine]
    await store.close_session(gone, "stopped")
    assert await store.queue("shapes") == [mine, other]


async def test_without_tokens_first_come_first_served(store: Store) -> None:
    """Sessions that belong to nobody wait in the order in which they came."""
    ids = [SessionId(f"s_{n:016x}") for n in (3, 1, 2)]
    for id in ids:
        await create(store, id)
    assert await store.queue("shapes") == ids
