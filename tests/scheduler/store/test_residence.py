"""Slots as Redis counts them: who is resident, who gives a slot up, who gets one."""

from __future__ import annotations

import pytest

from scheduler.messages import (
    ActivateSession,
    EngineId,
    Residence,
    SessionChanged,
    SessionId,
    SessionRecord,
    SuspendSession,
)
from scheduler.store import START, PlacementRefused, StaleEpoch, StaleTerm, Store
from scheduler.store.values import SessionProgress
from tests.scheduler.conftest import E1, E2, S1, S2, S3, create, lead, ready


async def fill(store: Store, *sessions: SessionId, capacity: int = 1) -> int:
    """Sessions on E1; returns the leader's term."""
    await ready(store, capacity=capacity)
    term = await lead(store)
    for session in sessions:
        await create(store, session)
        await store.place_session(session, E1, expect_epoch=0, term=term)
    return term


async def publish(
    store: Store,
    session: SessionId,
    residence: Residence,
    *,
    active: bool = False,
    epoch: int = 1,
    asks_slot: bool = False,
) -> None:
    progress = SessionProgress(
        session=session,
        epoch=epoch,
        active=active,
        next_seq=3,
        next_frame=36,
        rev=0,
        slack_ms=0,
        residence=residence,
        asks_slot=asks_slot,
    )
    assert await store.publish_sessions(E1, [progress]) == []


async def record(store: Store, session: SessionId) -> SessionRecord:
    found = await store.get_session(session)
    assert found is not None
    return found


async def last_command(store: Store) -> object:
    return (await store.read_commands(E1, START))[-1][1]


async def test_a_placed_session_is_resident_and_fills_its_engine(store: Store) -> None:
    """One more than the capacity is refused."""
    term = await fill(store, S1)
    await create(store, S2)
    assert (await record(store, S1)).residence is Residence.RESIDENT
    with pytest.raises(PlacementRefused, match="full"):
        await store.place_session(S2, E1, expect_epoch=0, term=term)


@pytest.mark.parametrize("residence", [Residence.OFFLOADED, Residence.STORED])
async def test_who_left_its_slot_gives_room(store: Store, residence: Residence) -> None:
    """It stays placed, another one gets the slot, and it is refused a slot until there is one."""
    term = await fill(store, S1)
    await publish(store, S1, residence)
    await create(store, S2)
    await store.place_session(S2, E1, expect_epoch=0, term=term)
    engine = await store.get_engine(E1)
    assert engine is not None and engine.sessions == 2
    assert not await store.admit_session(E1, S1, 1)
    assert (await record(store, S1)).residence is residence
    await store.end_session(E1, S2, 1, "stopped")
    assert await store.admit_session(E1, S1, 1)
    assert (await record(store, S1)).residence is Residence.RESIDENT


async def test_what_is_published_late_takes_no_slot_back(store: Store) -> None:
    """Of one that asks for a slot: where it was then is not where it is now. Who was let in is active, or it
    would be the first to lose its slot."""
    term = await fill(store, S1)
    await publish(store, S1, Residence.OFFLOADED)
    assert await store.admit_session(E1, S1, 1)
    assert (await record(store, S1)).active
    await publish(store, S1, Residence.OFFLOADED, asks_slot=True)
    assert (await record(store, S1)).residence is Residence.RESIDENT
    await create(store, S2)
    with pytest.raises(PlacementRefused, match="full"):
        await store.place_session(S2, E1, expect_epoch=0, term=term)


async def test_who_asks_for_a_slot_may_still_lose_its_state(store: Store) -> None:
    """From host memory to its checkpoint: the leader must know."""
    await fill(store, S1)
    await publish(store, S1, Residence.OFFLOADED)
    await publish(store, S1, Residence.STORED, asks_slot=True)
    assert (await record(store, S1)).residence is Residence.STORED


async def test_admission_may_be_repeated(store: Store) -> None:
    """Whoever has a slot keeps it."""
    await fill(store, S1)
    assert await store.admit_session(E1, S1, 1) and await store.admit_session(E1, S1, 1)


async def test_only_the_owner_is_admitted(store: Store) -> None:
    """An older epoch and another engine are refused."""
    await fill(store, S1)
    for engine, epoch in ((E1, 0), (E2, 1)):
        with pytest.raises(StaleEpoch):
            await store.admit_session(EngineId(engine), S1, epoch)


async def test_suspend_orders_and_keeps_the_slot_until_it_is_left(store: Store) -> None:
    """The engine hears it once; the slot is free when the engine says so."""
    term = await fill(store, S1)
    await create(store, S2)
    await store.suspend_session(S1, expect_epoch=1, term=term)
    assert await last_command(store) == SuspendSession(session=S1, epoch=1)
    assert (await record(store, S1)).residence is Residence.LEAVING
    with pytest.raises(PlacementRefused):
        await store.place_session(S2, E1, expect_epoch=0, term=term)
    with pytest.raises(PlacementRefused):
        await store.suspend_session(S1, expect_epoch=1, term=term)
    await publish(store, S1, Residence.OFFLOADED)
    await store.place_session(S2, E1, expect_epoch=0, term=term)


async def test_a_suspended_session_that_is_used_again_says_that_it_stays(store: Store) -> None:
    """Then the leader may ask another one."""
    term = await fill(store, S1)
    await store.suspend_session(S1, expect_epoch=1, term=term)
    await publish(store, S1, Residence.RESIDENT, active=True)
    assert (await record(store, S1)).residence is Residence.RESIDENT


async def test_activate_gives_a_slot_and_tells_the_engine(store: Store) -> None:
    """Not beyond the capacity, not twice."""
    term = await fill(store, S1, capacity=1)
    await publish(store, S1, Residence.STORED, active=True)
    await store.activate_session(S1, expect_epoch=1, term=term)
    assert await last_command(store) == ActivateSession(session=S1, epoch=1)
    assert (await record(store, S1)).residence is Residence.RESIDENT
    with pytest.raises(PlacementRefused, match="has a slot"):
        await store.activate_session(S1, expect_epoch=1, term=term)
    await publish(store, S1, Residence.STORED, active=True)
    await create(store, S2)
    await store.place_session(S2, E1, expect_epoch=0, term=term)
    with pytest.raises(PlacementRefused, match="full"):
        await store.activate_session(S1, expect_epoch=1, term=term)


async def test_orders_of_another_term_or_epoch_change_nothing(store: Store) -> None:
    """As every write of a leader."""
    term = await fill(store, S1)
    for order in (store.suspend_session, store.activate_session):
        with pytest.raises(StaleTerm):
            await order(S1, expect_epoch=1, term=term + 1)
        with pytest.raises(PlacementRefused):
            await order(S1, expect_epoch=2, term=term)
        with pytest.raises(PlacementRefused):
            await order(S3, expect_epoch=1, term=term)
    assert (await record(store, S1)).residence is Residence.RESIDENT


async def test_an_idle_session_is_placed_without_a_slot(store: Store) -> None:
    """Lost with its engine, it goes to a full one, as stored."""
    term = await fill(store, S1)
    await publish(store, S1, Residence.OFFLOADED)
    await ready(store, E2, capacity=0)
    await store.lose_engine(E1, term=term, reason="test")
    epoch = (await record(store, S1)).epoch
    await store.place_session(S1, E2, expect_epoch=epoch, term=term)
    placed = await record(store, S1)
    assert (placed.engine, placed.residence) == (E2, Residence.STORED)


async def test_leaving_and_coming_back_are_news(store: Store) -> None:
    """The leader plans again; a repeat is no news."""
    await fill(store, S1)
    after = await store.last_event_id()
    await publish(store, S1, Residence.LEAVING)
    await publish(store, S1, Residence.OFFLOADED)
    await publish(store, S1, Residence.OFFLOADED)
    await store.admit_session(E1, S1, 1)
    events = [event for _, event in await store.read_events(after)]
    away, back = SessionChanged(session=S1, active=False), SessionChanged(session=S1, active=True)
    assert events == [away, away, back]


async def test_a_closed_or_moved_session_is_not_counted(store: Store) -> None:
    """Nothing stays behind in the sets of its engine."""
    term = await fill(store, S1, S2, capacity=2)
    for session in (S1, S2):
        await publish(store, session, Residence.OFFLOADED)
    await store.end_session(E1, S1, 1, "stopped")
    await store.requeue_session(S2, expect_epoch=1, term=term, reason="test")
    for session in (S3, SessionId("s_0000000000000004")):
        await create(store, session)
        await store.place_session(session, E1, expect_epoch=0, term=term)
    await create(store, SessionId("s_0000000000000005"))
    with pytest.raises(PlacementRefused, match="full"):
        await store.place_session(SessionId("s_0000000000000005"), E1, expect_epoch=0, term=term)
