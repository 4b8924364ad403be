"""Idle sessions give their slot to others and come back with the same picture."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from gateway.client import Session
from scheduler.messages import Residence, SessionId, SessionRecord
from scheduler.store import Store
from tests.cluster import SCALE, Cluster, running_cluster
from tests.reference import Reference, is_same, owners_from, shown
from tests.viewer import Viewer, watching

pytestmark = [pytest.mark.cluster, pytest.mark.faults, pytest.mark.timeout(240)]
PROMPT = "a red ball moving left on white"
SETTINGS = ("--capacity", "1", "--offload-after-s", "0.2")


@pytest.fixture(scope="module")
def narrow() -> Iterator[Cluster]:
    """One engine with one slot."""
    with running_cluster(*SETTINGS, engines=1) as running:
        yield running


@pytest.fixture(scope="module")
def without_host_memory() -> Iterator[Cluster]:
    """The same; idle sessions keep nothing but their checkpoint."""
    with running_cluster(*SETTINGS, "--offload-mib", "0", engines=1) as running:
        yield running


@pytest.fixture(scope="module")
def patient() -> Iterator[Cluster]:
    """One slot, and idle sessions may keep it for long."""
    with running_cluster("--capacity", "1", "--offload-after-s", "600", engines=1) as running:
        yield running


@asynccontextmanager
async def records(cluster: Cluster) -> AsyncIterator[Store]:
    store = await Store.connect(cluster.run_json()["redis"])
    yield store
    await store.close()


async def becomes(store: Store, session: Session, *residences: Residence) -> SessionRecord:
    """The record once the session's state is in one of these places."""
    position = await store.last_event_id()
    async with asyncio.timeout(30 * SCALE):
        while True:
            record = await store.get_session(SessionId(session.info.session))
            assert record is not None
            if record.residence in residences:
                return record
            events = await store.read_events(position, block_ms=500)
            position = events[-1][0] if events else position


def assert_undisturbed(viewer: Viewer, seed: int, encoders: frozenset[int]) -> None:
    reference = Reference(prompt=PROMPT, seed=seed, encoders=encoders | owners_from(viewer.taken))
    assert is_same([shown(chunk) for chunk in viewer.taken], reference)


@pytest.mark.parametrize(
    ("kind", "residence"), [("narrow", Residence.OFFLOADED), ("without_host_memory", Residence.STORED)]
)
async def test_a_paused_session_lends_its_slot(
    request: pytest.FixtureRequest, kind: str, residence: Residence
) -> None:
    """Another session plays in the only slot meanwhile; afterwards every frame is what it would have been."""
    cluster: Cluster = request.getfixturevalue(kind)
    async with records(cluster) as store, watching(cluster.url, PROMPT, seed=21, mode="viewer") as viewer:
        await viewer.take(2)
        await viewer.session.pause()
        await becomes(store, viewer.session, residence)
        async with watching(cluster.url, "a blue square", seed=22) as other:
            await other.take(3)
        seen = viewer.next_seq
        await viewer.session.resume()
        await viewer.take(3)
    # Some chunks may have been made ahead when it paused: the new encoder began with one of these.
    assert any(same_with_encoder_at(viewer, 21, at) for at in range(seen, viewer.next_seq))


def same_with_encoder_at(viewer: Viewer, seed: int, at: int) -> bool:
    reference = Reference(prompt=PROMPT, seed=seed, encoders=frozenset({at}))
    return is_same([shown(chunk) for chunk in viewer.taken], reference)


async def test_who_resumes_without_a_free_slot_waits_in_front_of_the_queue(narrow: Cluster) -> None:
    """It is told so, and goes on from its checkpoint when the other one ends."""
    async with records(narrow) as store, watching(narrow.url, PROMPT, seed=23, mode="viewer") as viewer:
        await viewer.take(2)
        await viewer.session.pause()
        await becomes(store, viewer.session, Residence.OFFLOADED)
        async with watching(narrow.url, "a blue square", seed=24) as other:
            await other.take(1)
            await viewer.session.resume()
            await queued(store, viewer.session)
            await other.take(1)
        await viewer.take(3)
    assert any(same_with_encoder_at(viewer, 23, at) for at in range(2, viewer.next_seq))


async def queued(store: Store, session: Session) -> None:
    """Return when the session waits for a place."""
    async with asyncio.timeout(30 * SCALE):
        position = await store.last_event_id()
        while await store.queue_position(SessionId(session.info.session)) is None:
            events = await store.read_events(position, block_ms=200)
            position = events[-1][0] if events else position


async def test_a_session_that_waits_gets_the_slot_of_an_idle_one_at_once(patient: Cluster) -> None:
    """Long before offload_after_s: the leader suspends who is idle, and who left."""
    async with records(patient) as store, watching(patient.url, PROMPT, seed=25, mode="viewer") as viewer:
        await viewer.take(1)
        await viewer.session.pause()
        async with watching(patient.url, "a blue square", seed=26) as other:
            await other.take(1)
            record = await store.get_session(SessionId(viewer.session.info.session))
            assert record is not None and record.residence is Residence.OFFLOADED


async def test_a_session_resumes_while_redis_is_out_of_reach(patient: Cluster) -> None:
    """Nobody can give its slot to others meanwhile, so its engine takes it."""
    redis = patient.pids("redis")["redis"]
    async with records(patient) as store, watching(patient.url, PROMPT, seed=28, mode="viewer") as viewer:
        await viewer.take(2)
        await viewer.session.pause()
        async with watching(patient.url, "a blue square", seed=29) as other:
            await other.take(1)
        await becomes(store, viewer.session, Residence.OFFLOADED)
        os.kill(redis, signal.SIGSTOP)
        try:
            await viewer.session.resume()
            await viewer.take(3)
        finally:
            os.kill(redis, signal.SIGCONT)
        await becomes(store, viewer.session, Residence.RESIDENT)
        await viewer.take(1)


async def test_an_engine_killed_while_its_session_is_offloaded(narrow: Cluster) -> None:
    """The host memory is gone with it; the checkpoint is not."""
    async with records(narrow) as store, watching(narrow.url, PROMPT, seed=27, mode="viewer") as viewer:
        (first, *_) = await viewer.take(2)
        await viewer.session.pause()
        await becomes(store, viewer.session, Residence.OFFLOADED)
        os.kill(narrow.pids("")[f"engine-{first.engine}"], signal.SIGKILL)
        record = await becomes(store, viewer.session, Residence.STORED)
        assert record.epoch > 1
        await viewer.session.resume()
        await viewer.take_until_engine(other_than=first.engine)
        await viewer.take(2)
    assert_undisturbed(viewer, 27, frozenset())
