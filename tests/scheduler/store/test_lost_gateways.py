"""Gateways that end without a word, and what becomes of those who wait through them."""

from __future__ import annotations

import pytest

from scheduler.messages import GatewayId, SessionId, SessionLeft, SessionRecord
from scheduler.store import START, QuotaReached, Store
from tests.scheduler.conftest import E1, GATEWAY, HASH, S1, S2, S3, create, lead, ready

OTHER = GatewayId("g_00000002")


async def record_of(store: Store, session: SessionId) -> SessionRecord:
    record = await store.get_session(session)
    assert record is not None
    return record


async def attach(store: Store, session: SessionId, gateway: GatewayId = OTHER) -> int:
    """Returns the new controller_epoch."""
    return (await store.take_control(session, gateway=gateway, resume_hash=HASH)).controller_epoch


async def line(store: Store) -> list[SessionId]:
    return await store.queue("shapes")


@pytest.fixture
async def term(store: Store) -> int:
    """Of a leader. S1 and S2 wait through a gateway that never beats, S3 through another one."""
    for session in (S1, S2, S3):
        await create(store, session, subject="alice")
    await attach(store, S3)
    return await lead(store)


async def test_who_waits_through_a_silent_gateway_is_left(store: Store, term: int) -> None:
    """All of them in one step, once; they stand in nobody's way, and are open until they are swept."""
    after = await store.last_event_id()
    assert await store.lose_gateway(GATEWAY, term=term) == 2
    assert await line(store) == [S3]
    left = [event for _, event in await store.read_events(after)]
    assert left == [SessionLeft(session=S1), SessionLeft(session=S2)]
    assert await store.lose_gateway(GATEWAY, term=term) == 0
    with pytest.raises(QuotaReached):
        await create(store, SessionId("s_0000000000000004"), subject="alice", max_sessions=3)
    left_ms = (await record_of(store, S1)).left_ms
    assert left_ms is not None
    assert await store.sweep_session(S1, left_ms=left_ms, term=term, reason="left")


async def test_a_gateway_that_beats_is_not_lost(store: Store, term: int) -> None:
    """The plan was made before it was heard."""
    await store.heartbeat_gateway(GATEWAY, {})
    assert await store.lose_gateway(GATEWAY, term=term) == 0
    assert await line(store) == [S1, S2, S3]


async def test_who_streams_through_a_silent_gateway_is_not_left(store: Store, term: int) -> None:
    """Its engine knows better: the gateway may only have lost Redis."""
    await ready(store)
    await store.place_session(S1, E1, expect_epoch=0, term=term)
    assert await store.lose_gateway(GATEWAY, term=term) == 1
    assert (await record_of(store, S1)).left_ms is None


async def test_who_attaches_elsewhere_has_the_old_place(store: Store, term: int) -> None:
    """And keeps it, whatever becomes of the gateway before: also one that lost it as well has no say."""
    await store.lose_gateway(GATEWAY, term=term)
    await attach(store, S1)
    assert await line(store) == [S1, S3]
    await store.lose_gateway(OTHER, term=term)
    await store.heartbeat_gateway(GATEWAY, {})
    assert await line(store) == [S2]
    await store.heartbeat_gateway(OTHER, {})
    assert await line(store) == [S1, S2, S3]
    assert (await record_of(store, S1)).gateway == OTHER


async def test_a_gateway_that_is_heard_again_has_its_clients_back(store: Store, term: int) -> None:
    """In their old places: it was stopped for a while, or Redis was out of its reach. Not who left since."""
    await store.lose_gateway(GATEWAY, term=term)
    await store.leave_session(S2, controller_epoch=1)
    await store.heartbeat_gateway(GATEWAY, {})
    assert await line(store) == [S1, S3]
    record = await record_of(store, S1)
    assert (record.gateway, record.left_ms, record.controller_epoch) == (GATEWAY, None, 1)
    await store.leave_session(S1, controller_epoch=1)
    await store.heartbeat_gateway(GATEWAY, {})
    assert await line(store) == [S3]
    await store.lose_gateway(GATEWAY, term=term)


async def test_a_closed_session_does_not_come_back(store: Store, term: int) -> None:
    """It was stopped while its gateway was silent."""
    await store.lose_gateway(GATEWAY, term=term)
    await store.close_session(S1, "stopped")
    await store.heartbeat_gateway(GATEWAY, {})
    assert await line(store) == [S2, S3]


@pytest.mark.parametrize("is_known_to_be_lost", [False, True])
async def test_a_process_that_takes_the_id_of_another(
    store: Store, term: int, is_known_to_be_lost: bool
) -> None:
    """None of the connections is left, though the id beats again, maybe before anybody missed it."""
    if is_known_to_be_lost:
        await store.lose_gateway(GATEWAY, term=term)
    else:
        await store.heartbeat_gateway(GATEWAY, {})
    await store.start_gateway(GATEWAY)
    await store.heartbeat_gateway(GATEWAY, {})
    assert await store.list_gateways() == [GATEWAY]
    assert await line(store) == [S3]
    assert [event for _, event in await store.read_events(START)][-2:] == [
        SessionLeft(session=S1),
        SessionLeft(session=S2),
    ]
