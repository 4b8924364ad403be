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
from tests.patience import PATIENT
from tests.reference import Reference, is_like, is_same, owners_from, shown
from tests.viewer import Viewer, watching

pytestmark = [pytest.mark.cluster, pytest.mark.faults, pytest.mark.timeout(240)]
PROMPT = "a red ball moving left on white"
SETTINGS = ("--capacity", "1", "--offload-after-s", "0.2", *PATIENT)


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
    with running_cluster("--capacity", "1", "--offload-after-s", "600", *PATIENT, engines=1) as running:
        yield running


@asynccontextmanager
async def records(cluster: Cluster) -> AsyncIterator[Store]:
    store = await Store.connect(cluster.run_json()["redis"])
    try:
        yield store
    finally:
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
        held = (await becomes(store, viewer.session, residence)).next_seq
        async with watching(cluster.url, "a blue square", seed=22) as other:
            await other.take(3)
        await viewer.session.resume()
        await viewer.take_to(max(4, held + 1))
    assert_undisturbed(viewer, 21, held, is_rebuilt=residence is Residence.STORED)


def assert_undisturbed(viewer: Viewer, seed: int, held: int, *, is_rebuilt: bool) -> None:
    """Every frame is what it would have been, but for the new encoder, which began with the first chunk that
    was not made when it paused. Where the machine stood still so long that the past had left the window, a
    rebuild shows frames like them.

    held: the chunks made by then, as far as Redis knew.
    """
    seen = [shown(chunk) for chunk in viewer.taken]

    def with_encoder_at(at: int) -> Reference:
        return Reference(prompt=PROMPT, seed=seed, encoders=frozenset({at}))

    reference = with_encoder_at(held)
    if is_rebuilt and held > reference.window_chunks:
        assert is_same(seen[:held], reference) and is_like(seen[held:], reference)
    else:
        later = (with_encoder_at(at) for at in range(held + 1, viewer.next_seq))
        assert is_same(seen, reference) or any(is_same(seen, other) for other in later)


async def test_who_resumes_without_a_free_slot_waits_in_front_of_the_queue(narrow: Cluster) -> None:
    """It is told so, and goes on from its checkpoint when the other one ends."""
    async with records(narrow) as store, watching(narrow.url, PROMPT, seed=23, mode="viewer") as viewer:
        await viewer.take(2)
        await viewer.session.pause()
        held = (await becomes(store, viewer.session, Residence.OFFLOADED)).next_seq
        async with watching(narrow.url, "a blue square", seed=24) as other:
            await other.take(1)
            await viewer.session.resume()
            await queued(store, viewer.session)
            await other.take(1)
        await viewer.take_to(max(4, held + 1))
    assert_undisturbed(viewer, 23, held, is_rebuilt=True)


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
        held = (await becomes(store, viewer.session, Residence.OFFLOADED)).next_seq
        os.kill(narrow.pids("")[f"engine-{first.engine}"], signal.SIGKILL)
        record = await becomes(store, viewer.session, Residence.STORED)
        assert record.epoch > 1
        await viewer.session.resume()
        await viewer.take_until_engine(other_than=first.engine)
        await viewer.take(2)
    (moved,) = owners_from(viewer.taken)
    assert_undisturbed(viewer, 27, max(held, moved), is_rebuilt=True)
