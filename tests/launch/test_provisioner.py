"""Following the desired set, with a real Redis."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Collection, Sequence

import pytest

from launch.provisioner import Provisioner
from scheduler.messages import DesiredEngine, EngineId, EngineState, ModelInfo
from scheduler.store import Store
from tests.cluster import SCALE
from tests.scheduler.conftest import forget_everything, restore, snapshot

A, B = (DesiredEngine(id=EngineId(f"e_0000000{n}"), model="shapes") for n in "ab")
MODEL = ModelInfo(
    name="shapes",
    weights_hash="0",
    state_version=1,
    width=96,
    height=96,
    fps=24,
    chunk_frames=12,
    controls=False,
)
serial = itertools.count()


class Engines:
    """Takes down what it is told."""

    def __init__(self) -> None:
        self.sets: asyncio.Queue[list[EngineId]] = asyncio.Queue()
        self.running: set[EngineId] = set()
        self.ready: asyncio.Queue[EngineId] = asyncio.Queue()
        self.lost: list[EngineId] = []

    def owned(self) -> Collection[EngineId]:
        return self.running

    def reconcile(self, desired: Sequence[DesiredEngine]) -> None:
        self.sets.put_nowait([engine.id for engine in desired])

    async def mark_ready(self, engine: EngineId) -> None:
        self.ready.put_nowait(engine)

    def mark_lost(self, engine: EngineId) -> None:
        self.lost.append(engine)


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    store = await Store.connect(redis_url, cluster=f"provisioner-{next(serial)}")
    yield store
    await store.close()


@pytest.fixture
async def engines() -> Engines:
    return Engines()


@pytest.fixture
async def provisioner(store: Store, engines: Engines) -> AsyncIterator[Provisioner]:
    provisioner = Provisioner(store, engines, name="p_1", newer_than=0)
    following = asyncio.create_task(provisioner.follow())
    yield provisioner
    following.cancel()
    await asyncio.wait((following,))


async def lead(store: Store) -> int:
    term = await store.acquire_lease("test", 60_000)
    assert term is not None
    return term


@pytest.mark.usefixtures("provisioner")
async def test_each_new_set_is_reconciled(store: Store, engines: Engines) -> None:
    """As soon as the leader writes it."""
    term = await lead(store)
    await store.write_desired(term, [A])
    assert await engines.sets.get() == [A.id]
    await store.write_desired(term, [A, B])
    assert await engines.sets.get() == [A.id, B.id]


async def test_a_set_from_before_is_not_for_us(store: Store, engines: Engines) -> None:
    """What an earlier cluster's leader wanted is ignored; the next leader's word counts."""
    term = await lead(store)
    await store.write_desired(term, [A])
    following = asyncio.create_task(Provisioner(store, engines, name="p_1", newer_than=term).follow())
    await store.release_lease("test", term)
    await store.write_desired(await lead(store), [B])
    assert await engines.sets.get() == [B.id]
    following.cancel()
    await asyncio.wait((following,))


@pytest.mark.usefixtures("provisioner")
async def test_a_leader_that_began_anew_is_obeyed_only_above_the_old_terms(
    store: Store, engines: Engines
) -> None:
    """Redis and the scheduler lost everything, and Redis its time: the set of a term below is refused, that
    of a term above obeyed."""
    term = await store.acquire_lease("test", 60_000, floor=2_000_000_000)  # later than now
    assert term is not None
    await store.write_desired(term, [A])
    assert await engines.sets.get() == [A.id]
    await forget_everything(store)
    fresh = await lead(store)
    assert fresh < term
    await store.write_desired(fresh, [B])
    async with asyncio.timeout(20 * SCALE):
        while await store.renew_lease("test", fresh, 60_000):  # noqa: ASYNC110 - until it is taken away
            await asyncio.sleep(0.02)
    newer = await lead(store)
    assert newer > term and await store.read_desired() == (0, ())
    assert engines.sets.empty()
    await store.write_desired(newer, [A, B])
    assert await engines.sets.get() == [A.id, B.id]


@pytest.mark.usefixtures("provisioner")
async def test_what_an_older_redis_wants_is_not_obeyed(store: Store, engines: Engines) -> None:
    """It came back with the same term, from before B was wanted: the leader must begin anew, B goes on."""
    term = await lead(store)
    await store.mark_settled(term)
    await store.write_desired(term, [A])
    assert await engines.sets.get() == [A.id]
    older = await snapshot(store)
    await store.write_desired(term, [A, B])
    assert await engines.sets.get() == [A.id, B.id]
    engines.running |= {A.id, B.id}
    await restore(store, older)
    await store.write_desired(term, [A])  # a leader that has noticed nothing
    async with asyncio.timeout(20 * SCALE):
        while await store.renew_lease("test", term, 60_000):  # noqa: ASYNC110 - until it is taken away
            await asyncio.sleep(0.02)
    newer = await lead(store)
    assert newer > term and not await store.is_settled()
    assert engines.sets.empty()
    await store.write_desired(newer, [A, B])
    assert await engines.sets.get() == [A.id, B.id]


async def test_engines_that_went_are_forgotten(
    store: Store, engines: Engines, provisioner: Provisioner
) -> None:
    """Neither wanted nor here any more: a set that names one again would be an old one."""
    term = await lead(store)
    await store.write_desired(term, [A])
    await engines.sets.get()
    engines.running.add(A.id)
    await store.write_desired(term, [B])
    await engines.sets.get()
    assert provisioner._ours == {A.id, B.id}
    engines.running.clear()
    await store.write_desired(term, [B])
    await engines.sets.get()
    assert provisioner._ours == {B.id}


@pytest.mark.usefixtures("provisioner")
async def test_engines_started_elsewhere_are_left_alone(store: Store, engines: Engines) -> None:
    """One that had registered before the leader wanted it has a process already."""
    await store.register_engine(A.id, url="ws://h:1/link", model=MODEL, capacity=1)
    await store.write_desired(await lead(store), [A, B])
    assert await engines.sets.get() == [B.id]


async def test_an_id_is_started_once(store: Store, engines: Engines) -> None:
    """What `turboserve engine` has taken elsewhere is left to it, and it gets nothing of ours."""
    await store.write_desired(await lead(store), [A, B])
    assert await store.claim_engine("elsewhere") == A.id
    following = asyncio.create_task(Provisioner(store, engines, name="p_1", newer_than=0).follow())
    assert await engines.sets.get() == [B.id]
    assert await store.claim_engine("elsewhere too") is None
    following.cancel()
    await asyncio.wait((following,))


async def test_claims_of_a_provisioner_that_died_are_its_successors(store: Store, engines: Engines) -> None:
    """It had claimed an engine and not started it yet."""
    await store.write_desired(await lead(store), [A])
    await store.claim_engine("p_1", A.id)
    following = asyncio.create_task(Provisioner(store, engines, name="p_1", newer_than=0).follow())
    assert await engines.sets.get() == [A.id]
    following.cancel()
    await asyncio.wait((following,))


async def test_engines_of_an_earlier_provisioner_are_kept(store: Store, engines: Engines) -> None:
    """One that is ready and runs here stays in the set that is reconciled."""
    engines.running.add(A.id)
    await store.register_engine(A.id, url="ws://h:1/link", model=MODEL, capacity=1)
    await store.write_desired(await lead(store), [A, B])
    following = asyncio.create_task(Provisioner(store, engines, name="p_1", newer_than=0).follow())
    assert await engines.sets.get() == [A.id, B.id]
    following.cancel()
    await asyncio.wait((following,))


@pytest.mark.usefixtures("provisioner")
async def test_readiness_is_passed_on(store: Store, engines: Engines) -> None:
    """An engine's registration makes it ready."""
    await store.write_desired(await lead(store), [A])
    await engines.sets.get()
    await store.register_engine(A.id, url="ws://h:1/link", model=MODEL, capacity=1)
    assert await engines.ready.get() == A.id


@pytest.mark.usefixtures("provisioner")
@pytest.mark.parametrize(
    ("reason", "is_lost"),
    [
        ("exited with status 1", True),
        ("was killed by SIGKILL", True),
        ("not ready for 120001 ms, limit 120000 ms", True),
        ("exited with status 0", False),
        ("exited", False),
    ],
)
async def test_losses_are_passed_on(store: Store, engines: Engines, reason: str, is_lost: bool) -> None:
    """Whoever told of them, before the engine is not wanted any more; orderly ends are none."""
    term = await lead(store)
    await store.write_desired(term, [A, B])
    await engines.sets.get()
    await store.report_exit(A.id, reason, crashed=False)
    await store.write_desired(term, [B])
    assert await engines.sets.get() == [B.id]
    assert engines.lost == ([A.id] if is_lost else [])


@pytest.mark.usefixtures("provisioner")
async def test_an_engine_that_is_not_wanted_any_more_is_not_lost(store: Store, engines: Engines) -> None:
    """It was still starting."""
    term = await lead(store)
    await store.write_desired(term, [A, B])
    await engines.sets.get()
    await store.write_desired(term, [B])
    assert await engines.sets.get() == [B.id]
    assert engines.lost == []


async def test_a_reported_exit_makes_the_engine_gone(
    store: Store, engines: Engines, provisioner: Provisioner
) -> None:
    """At once, without waiting for missed heartbeats."""
    await store.write_desired(await lead(store), [A])
    await engines.sets.get()
    after = await store.last_event_id()
    provisioner.report_exit(A.id, "was killed by SIGKILL", crashed=False)
    await store.read_events(after, block_ms=30_000)
    record = await store.get_engine(A.id)
    assert record is not None and record.state is EngineState.GONE
