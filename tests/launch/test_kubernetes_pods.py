"""Engines as pods: the official client library against an HTTP stand-in of the API, the rest real."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from kubernetes.aio import client

from launch.kubernetes_pods import Pods
from launch.provisioner import Provisioner
from scheduler.messages import DesiredEngine, EngineId, EngineState
from scheduler.store import START, Store
from tests.cluster import until
from tests.launch.kubernetes_api import NAMESPACE, Api, running_api
from tests.launch.test_pods import TEMPLATE, A, B, C
from tests.launch.test_provisioner import MODEL, lead

serial = itertools.count()
Death = Callable[..., Awaitable[None]]
POD_A, POD_B, POD_C = (f"pods-e-0000000{n}" for n in "abc")


class Stage:
    """Pods that follow an API."""

    def __init__(self, api: Api, kubernetes: client.ApiClient, cluster: str) -> None:
        self.api = api
        self.ends: asyncio.Queue[tuple[EngineId, str]] = asyncio.Queue()
        self.pods = Pods(
            client.CoreV1Api(kubernetes),
            TEMPLATE,
            namespace=NAMESPACE,
            cluster=cluster,
            on_exit=lambda *end: self.ends.put_nowait(end),
        )

    async def want(self, *engines: DesiredEngine) -> None:
        """Return when exactly these have pods."""
        self.pods.reconcile(engines)
        await self.have(*engines)

    async def have(self, *engines: DesiredEngine) -> None:
        names = {f"pods-{engine.id.replace('_', '-')}" for engine in engines}
        await self.api.until(lambda: self.api.pods.keys() == names)
        await until(lambda: set(self.pods.owned()) == {engine.id for engine in engines})


@asynccontextmanager
async def staged(api: Api, cluster: str = "pods") -> AsyncIterator[Stage]:
    async with client.ApiClient(client.Configuration(host=api.url)) as kubernetes:
        stage = Stage(api, kubernetes, cluster)
        running = asyncio.create_task(stage.pods.run())
        yield stage
        running.cancel()
        await asyncio.wait((running,))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """After what failed."""
    monkeypatch.setattr("launch.backoff._FIRST_DELAY_S", 0.02)


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with running_api() as api:
        yield api


@pytest.fixture
async def stage(api: Api) -> AsyncIterator[Stage]:
    async with staged(api) as stage:
        yield stage


async def test_exactly_the_wanted_pods_run(stage: Stage) -> None:
    """Each new set is made so; scale-in removes the one that is not wanted, whichever it is."""
    await stage.want(A, B)
    await stage.want(A, B, C)
    await stage.want(A, C)
    await stage.want()
    assert stage.ends.empty()


@pytest.mark.parametrize("method", ["GET", "POST", "WATCH"])
@pytest.mark.parametrize("status", [500, 429, 403])
async def test_api_errors_are_outlasted(api: Api, method: str, status: int) -> None:
    """What failed is done again, after a pause."""
    api.fail(method, status, times=3)
    async with staged(api) as stage:
        await stage.want(A)
        await stage.want(A, B)
        await api.until(lambda: not api._failures)


async def test_a_failed_delete_is_done_again(stage: Stage) -> None:
    """And does not keep others from being made."""
    await stage.want(A, B)
    stage.api.fail("DELETE", 500, times=2)
    await stage.want(A, C)


async def test_a_lost_answer_makes_no_second_pod(stage: Stage) -> None:
    """The pod was made, the connection cut: the repeat is answered 409, which is good news."""
    stage.api.fail("POST", 0)
    await stage.want(A)
    await stage.want(A, B)
    assert stage.ends.empty()


async def test_an_eviction_is_reported_at_once(stage: Stage) -> None:
    """Its reason goes to the scheduler, the pod is deleted, and its id gets no second one."""
    await stage.want(A, B)
    await stage.api.set_status(POD_A, phase="Failed", reason="Evicted", message="low on memory")
    assert await stage.ends.get() == (A.id, "pod Evicted: low on memory")
    await stage.have(B)
    await stage.want(B, C)
    assert stage.api.count("POST") == 3
    assert stage.ends.empty()


async def test_a_pod_that_vanishes_is_reported(stage: Stage) -> None:
    """Somebody deleted it, or its node is gone."""
    await stage.want(A, B)
    await stage.api.remove(POD_A)
    assert await stage.ends.get() == (A.id, f"pod {POD_A} was deleted")
    await stage.have(B)


async def test_what_was_missed_is_found_by_listing(stage: Stage) -> None:
    """The watch fell behind (410 Gone): pods that vanished meanwhile are reported."""
    await stage.want(A, B)
    await stage.api.remove(POD_A, silently=True)
    await stage.api.compact()
    assert await stage.ends.get() == (A.id, f"pod {POD_A} was deleted")
    await stage.want(B, C)


async def test_the_next_provisioner_finds_the_pods(api: Api) -> None:
    """Labels say which are ours; those of another cluster stay untouched."""
    async with staged(api) as first:
        await first.want(A, B)
    async with staged(api, cluster="other") as other:
        other.pods.reconcile([])
        await other.pods.listed.wait()
        assert not other.pods.owned()
    async with staged(api) as second:
        await second.pods.listed.wait()
        assert set(second.pods.owned()) == {A.id, B.id}
        await second.want(B)
    assert api.count("POST") == 2


async def test_a_pod_that_ends_slowly_is_told_once(stage: Stage) -> None:
    """Until its grace period is over it is left alone."""
    await stage.want(A, B)
    stage.api.ends_at_once = False
    stage.pods.reconcile([B])
    await stage.api.until(lambda: stage.api.count("DELETE") == 1)
    stage.pods.reconcile([B, C])
    await stage.api.until(lambda: POD_C in stage.api.pods)
    await stage.api.remove(POD_A)
    await stage.have(B, C)
    assert stage.api.count("DELETE") == 1


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    store = await Store.connect(redis_url, cluster=f"pods-{next(serial)}")
    yield store
    await store.close()


@pytest.fixture
async def provisioner(store: Store, stage: Stage) -> AsyncIterator[Provisioner]:
    """Keeps the stage's pods equal to the desired set in Redis."""
    provisioner = Provisioner(store, stage.pods, name="pods", newer_than=0)
    following = asyncio.create_task(provisioner.follow())
    yield provisioner
    following.cancel()
    await asyncio.wait((following,))


async def crash(store: Store, stage: Stage, provisioner: Provisioner, engine: EngineId, term: int) -> None:
    """`turboserve engine` says it, and then its pod ends."""
    await store.report_exit(engine, "exited with status 1", crashed=True)


async def give_up(store: Store, stage: Stage, provisioner: Provisioner, engine: EngineId, term: int) -> None:
    """The leader does, on an engine that hangs as it starts."""
    await store.lose_engine(engine, term=term, reason="not ready for 120001 ms, limit 120000 ms")


async def evict(store: Store, stage: Stage, provisioner: Provisioner, engine: EngineId, term: int) -> None:
    """Kubernetes says it, and the provisioner passes it on."""
    await stage.api.set_status(f"pods-{engine.replace('_', '-')}", phase="Failed", reason="Evicted")
    provisioner.report_exit(*await stage.ends.get(), crashed=False)


async def end(store: Store, stage: Stage, provisioner: Provisioner, engine: EngineId, term: int) -> None:
    """In order."""
    await store.report_exit(engine, "exited with status 0", crashed=False)


@pytest.mark.parametrize(
    ("die", "times", "is_bad"),
    [
        pytest.param(crash, 3, True, id="crashes"),
        pytest.param(give_up, 3, True, id="hanging starts"),
        pytest.param(evict, 3, True, id="evictions"),
        pytest.param(evict, 2, False, id="told twice, counted once"),
        pytest.param(end, 3, False, id="orderly ends"),
    ],
)
async def test_flapping_nodes_are_avoided(
    store: Store, stage: Stage, provisioner: Provisioner, die: Death, times: int, is_bad: bool
) -> None:
    """After three engines that died young on one node the next pods prefer others. As with real pods the
    leader hears of each end, and drops the engine, before its pod is gone."""
    term = await lead(store)
    for n in range(times):
        engine = DesiredEngine(id=EngineId(f"e_1000000{n}"), model="shapes")
        await store.write_desired(term, [engine])
        await stage.have(engine)
        await stage.api.bind(f"pods-e-1000000{n}", "bad")
        await until(lambda id=engine.id: stage.pods._pods[id].node == "bad")  # type: ignore[misc]
        await die(store, stage, provisioner, engine.id, term)
        await until_gone(store, engine.id)
        await store.write_desired(term, [])
        await stage.have()
    await store.write_desired(term, [A])
    await stage.have(A)
    assert ("bad" in str(stage.api.pods[POD_A]["spec"].get("affinity"))) is is_bad


async def until_gone(store: Store, engine: EngineId) -> None:
    """Return when Redis knows that the engine is gone."""
    after = START
    while (record := await store.get_engine(engine)) is None or record.state is not EngineState.GONE:
        events = await store.read_events(after, block_ms=1_000)
        after = events[-1][0] if events else after


async def test_a_pod_that_was_gone_already_leaves_nothing(stage: Stage) -> None:
    """The API answers 404 to its end: nobody will tell of it."""
    await stage.want(A)
    await stage.pods.mark_ready(A.id)
    await stage.api.remove(POD_A, silently=True)
    stage.pods.reconcile([])
    await until(lambda: not stage.pods.owned())
    assert not stage.pods._ready_s


async def test_the_scheduler_hears_of_a_lost_pod(
    store: Store, stage: Stage, provisioner: Provisioner
) -> None:
    """The whole way: desired set in Redis → pods → engine record gone, its replacement is made."""
    term = await lead(store)
    await store.write_desired(term, [A, B])
    await stage.have(A, B)
    await store.register_engine(A.id, url="ws://h:1/link", model=MODEL, capacity=1)
    after = await store.last_event_id()
    await stage.api.remove(POD_A)
    provisioner.report_exit(*await stage.ends.get(), crashed=False)
    await store.read_events(after, block_ms=30_000)
    record = await store.get_engine(A.id)
    assert record is not None and record.state is EngineState.GONE
    await store.write_desired(term, [B, C])
    await stage.have(B, C)
