"""kill -9 of one process after another: sessions go on, and nothing else is started again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.client import SessionEnded
from scheduler.messages import DesiredEngine, GatewayId, SessionId
from scheduler.store import Store
from tests.cluster import SCALE, Cluster, free_port, is_running, running_cluster, until, wait_for
from tests.faults.test_migration import arrives, migrate
from tests.scheduler.conftest import connected, recovered
from tests.viewer import watching

pytestmark = [pytest.mark.cluster, pytest.mark.faults, pytest.mark.timeout(240)]


SECRET = "link-secret"


@pytest.fixture(scope="module")
def wounded() -> Iterator[Cluster]:
    """One cluster for all tests here: each starts when two engines are ready, whatever came before.

    Its policy moves no session of its own accord, however busy the machine is: what moves, a fault has moved.
    """
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TURBOSERVE_LINK_SECRET", SECRET)
        settings = ("--policy", "least_loaded", "--capacity", "2", "--stop-timeout-s", "20")
        with running_cluster(*settings) as running:
            yield running


@pytest.fixture
def victim(wounded: Cluster) -> Cluster:
    wounded.wait_ready(2)
    wait_for("the same two in run.json", lambda: is_whole(wounded))
    return wounded


def is_whole(cluster: Cluster) -> bool:
    """Do two engines run, and both take sessions?"""
    running = cluster.pids("engine-")
    ready = {f"engine-{id}" for id in cluster.engines()}
    return len(running) == 2 and running.keys() == ready and all(map(is_running, running.values()))


async def killed(cluster: Cluster, name: str, number: signal.Signals = signal.SIGKILL) -> dict[str, int]:
    """Kill one process by its name in `run.json`; returns all processes as they were before."""
    before = cluster.pids("")
    os.kill(before[name], number)
    return before


async def back(cluster: Cluster, name: str, before: dict[str, int]) -> None:
    """Return when a process of that name runs again, a Redis when it has read its file; nothing else has
    been touched."""
    await until(lambda: cluster.pids(name).get(name, before[name]) != before[name])
    assert not is_running(before[name])
    now = cluster.pids("")
    assert now | {name: 0} == before | {name: 0}
    assert is_running(now[name])
    if name == "redis":  # until then a gateway answers a start with `unavailable`
        await wanted_engines(cluster)


async def wanted_engines(cluster: Cluster) -> tuple[DesiredEngine, ...]:
    """The engines that Redis says are wanted, as soon as it answers."""
    store = await connected(cluster.run_json()["redis"])
    try:
        async with asyncio.timeout(30 * SCALE):
            await recovered(store)
        return (await store.read_desired())[1]
    finally:
        await store.close()


class Balancer:
    """One address in front of several gateways: a new connection goes to the first that takes it."""

    def __init__(self) -> None:
        self.ports: list[int] = []
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        for port in self.ports:
            with contextlib.suppress(OSError):
                back_reader, back_writer = await asyncio.open_connection("127.0.0.1", port)
                await asyncio.gather(self._copy(reader, back_writer), self._copy(back_reader, writer))
                return
        writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(65_536):
                    writer.write(data)
                    await writer.drain()
        finally:
            writer.close()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for connection in tuple(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await asyncio.sleep(0)  # transports that were closed let go of their sockets now


@contextlib.contextmanager
def second_gateway(cluster: Cluster, id: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`turboserve gateway` beside the cluster's own one; (its process, its port)."""
    port = free_port()
    settings = {"--redis": cluster.run_json()["redis"], "--port": str(port), "--gateway-id": id}
    arguments = [item for pair in settings.items() for item in pair]
    process = subprocess.Popen(
        [sys.executable, "-m", "launch", "gateway", *arguments],
        env=os.environ | {"TURBOSERVE_LINK_SECRET": SECRET},
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process, port
    finally:
        process.kill()
        process.wait()


async def test_gateways_behind_one_address(victim: Cluster) -> None:
    """Any of them serves any session: one is killed, then the other, and the client goes on with the next
    chunk at the one that is left."""
    store = await Store.connect(victim.run_json()["redis"])
    balancer = Balancer()
    url = await balancer.start()
    with second_gateway(victim, "g_00000002") as (second, port):
        await until(lambda: answers(port))
        balancer.ports = [port]
        async with watching(url) as viewer:
            session = SessionId(viewer.session.id)
            await viewer.take(2)
            assert await gateway_of(store, session) == "g_00000002"
            balancer.ports = [victim.port]
            second.kill()
            while await gateway_of(store, session) == "g_00000002":
                await viewer.take(1)  # those on their way come first
            with second_gateway(victim, "g_00000003") as (_, port):
                await until(lambda: answers(port))
                balancer.ports = [port]
                before = await killed(victim, "gateway-0")
                while await gateway_of(store, session) != "g_00000003":
                    await viewer.take(1)
                await viewer.take(2)
                await viewer.session.stop()
                await back(victim, "gateway-0", before)
    await balancer.stop()
    await store.close()


async def gateway_of(store: Store, session: SessionId) -> GatewayId | None:
    record = await store.get_session(session)
    assert record is not None
    return record.gateway


def answers(port: int) -> bool:
    """Does something listen there?"""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_scheduler_killed(victim: Cluster) -> None:
    """Running sessions notice nothing, their epoch stays; new ones start as soon as another leads."""
    async with watching(victim.url) as viewer:
        (first, *_) = await viewer.take(2)
        before = await killed(victim, "scheduler-0")
        async with watching(victim.url, "a blue square", seed=2) as second:
            await second.take(2)
        (*_, last) = await viewer.take(3)
        assert last.engine == first.engine
        await back(victim, "scheduler-0", before)
        (session,) = (s for s in victim.listed("sessions") if s["id"] == viewer.session.info.session)
        assert session["epoch"] == 1


async def test_prompts_sent_while_redis_and_scheduler_are_away(victim: Cluster) -> None:
    """Both stop for a few chunks: the stream goes on where it is, and the prompts apply once, in order."""
    async with watching(victim.url) as viewer:
        await viewer.take(2)
        pids = [victim.pids(name)[name] for name in ("redis", "scheduler-0")]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        texts = ("a green triangle", "two small stars", "a blue circle")
        edits = [asyncio.create_task(viewer.session.prompt(text)) for text in texts]
        (*_, last) = await viewer.take(6)
        assert last.rev == 0 and not any(edit.done() for edit in edits)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        while not all(edit.done() for edit in edits):
            await viewer.take(1)
        assert [(await edit).rev for edit in edits] == [1, 2, 3]
        assert len({chunk.engine for chunk in viewer.taken}) == 1


async def test_redis_comes_back_empty(victim: Cluster) -> None:
    """Its data is gone: engines and sessions are written again, nobody starts or stops an engine, every
    session stays where it is, a prompt sent before anybody could know is applied once, new ones placed."""
    async with watching(victim.url) as one, watching(victim.url, "a blue square", seed=2) as two:
        viewers = (one, two)
        await asyncio.gather(one.take(2), two.take(2))
        before = victim.pids("")
        shutil.rmtree(victim.dir / "redis")
        os.kill(before["redis"], signal.SIGKILL)
        edits = [asyncio.create_task(viewer.session.prompt("a green triangle")) for viewer in viewers]
        while not all(edit.done() for edit in edits):
            await asyncio.gather(one.take(1), two.take(1))
        assert [(await edit).rev for edit in edits] == [1, 1]
        async with watching(victim.url, "a red star", seed=3) as three:
            await asyncio.gather(three.take(2), one.take(2), two.take(2))
        await back(victim, "redis", before)
        sessions = {session["id"]: session for session in victim.listed("sessions")}
        for viewer, edit in zip(viewers, edits, strict=True):
            while viewer.taken[-1].seq < (await edit).seq:  # some may have come that it has not taken
                await viewer.take(1)
            assert (viewer.taken[-1].rev, len({chunk.engine for chunk in viewer.taken})) == (1, 1)
            assert sessions[viewer.session.info.session]["epoch"] == 1


async def test_redis_comes_back_older(victim: Cluster) -> None:
    """As from a replica that was cut off for a while, its term as it was: an engine that has come since, of
    which it knows nothing, is not ended, the one that went is not started again, and the session goes on."""
    data, older = victim.dir / "redis", victim.dir / "redis.older"
    async with watching(victim.url) as viewer:
        (first,) = await viewer.take(1)
        spare = victim.other_engine(first.engine)
        shutil.copytree(data, older, ignore=shutil.ignore_patterns("*.sock"))
        await replaced(victim, spare, await killed(victim, f"engine-{spare}"))
        for path in filter(Path.is_file, older.rglob("*")):
            path.replace(data / path.relative_to(older))  # what the server still writes is in none of them
        before = await killed(victim, "redis")
        await back(victim, "redis", before)
        async with watching(victim.url, "a red star", seed=3) as another:  # the leader has decided
            await asyncio.gather(viewer.take(2), another.take(2))
        await until(lambda: {f"engine-{id}" for id in victim.engines()} == victim.pids("engine-").keys())
        assert victim.pids("engine-") == {n: pid for n, pid in before.items() if n.startswith("engine-")}
        assert {chunk.engine for chunk in viewer.taken} == {first.engine}


async def test_engine_killed(victim: Cluster) -> None:
    """Its session goes on elsewhere with the next chunk; a session of the other engine notices nothing."""
    async with watching(victim.url) as one, watching(victim.url, "a blue square", seed=2) as other:
        (first,), (undisturbed,) = await one.take(1), await other.take(1)
        if first.engine == undisturbed.engine:  # the other measured itself as much slower while both started
            free = victim.other_engine(first.engine)
            assert migrate(victim, other, free) == 202
            await arrives(victim, other, free)
            undisturbed = other.taken[-1]
        before = await killed(victim, f"engine-{first.engine}")
        moved = await one.take_until_engine(other_than=first.engine)
        assert moved.engine != first.engine
        assert {chunk.engine for chunk in await other.take(3)} == {undisturbed.engine}
    await replaced(victim, first.engine, before)


async def test_a_session_that_engines_crash_with(victim: Cluster) -> None:
    """An engine that is killed, then one that crashes, cost it a moment; a second crash in a row ends it."""
    async with watching(victim.url) as viewer:
        (chunk,) = await viewer.take(1)
        session = viewer.session.info.session
        ended = [chunk.engine]
        os.kill(victim.pids("engine-")[f"engine-{chunk.engine}"], signal.SIGKILL)
        for _ in range(2):
            engine = await placed_on(victim, session, other_than=ended)
            os.kill(victim.pids("engine-")[f"engine-{engine}"], signal.SIGSEGV)  # as a fault of its own would
            ended.append(engine)
        with pytest.raises(SessionEnded) as caught:
            await viewer.take(100)
    assert "engine_crashed" in str(caught.value)


async def placed_on(cluster: Cluster, session: str, *, other_than: list[str]) -> str:
    """The next engine that has the session, as soon as it is known."""
    found: list[str] = []

    def is_placed() -> bool:
        sessions = cluster.listed("sessions")
        found.extend(s["engine"] for s in sessions if s["id"] == session and s["engine"])
        return bool(found) and found[-1] not in other_than

    await until(is_placed, 60 * SCALE)
    return found[-1]


async def test_engine_hangs(victim: Cluster) -> None:
    """A stopped engine counts as dead after some time without a heartbeat; when it wakes up before it is
    killed, it ends."""
    async with watching(victim.url) as viewer:
        (first,) = await viewer.take(1)
        before = await killed(victim, f"engine-{first.engine}", signal.SIGSTOP)
        await viewer.take_until_engine(other_than=first.engine)
        os.kill(before[f"engine-{first.engine}"], signal.SIGCONT)
        await viewer.take(2)
    await replaced(victim, first.engine, before)


async def replaced(cluster: Cluster, engine: str, before: dict[str, int]) -> None:
    """Return when another engine is ready in the place of one; every other process still is what it was."""
    name = f"engine-{engine}"
    await until(lambda: not is_running(before[name]) and name not in cluster.pids(""))
    await until(lambda: len(cluster.pids("engine-")) == 2)
    (fresh,) = cluster.pids("").keys() - before.keys()
    await until(lambda: fresh.removeprefix("engine-") in cluster.engines())
    unchanged = before.keys() - {name}
    assert {n: cluster.pids("")[n] for n in unchanged} == {n: before[n] for n in unchanged}


async def test_what_redis_says_outlives_it(victim: Cluster) -> None:
    """The desired engines are the same after the restart: no engine was given up."""
    engines = await wanted_engines(victim)
    before = await killed(victim, "redis")
    await back(victim, "redis", before)
    assert await wanted_engines(victim) == engines


async def test_engine_drained(victim: Cluster) -> None:
    """By order: its sessions move to another engine, it ends by itself, another takes its place."""
    async with watching(victim.url) as viewer:
        (first,) = await viewer.take(1)
        before = victim.pids("")
        assert victim.order("drain", engine=first.engine) in (200, 202, 204)
        await viewer.take_until_engine(other_than=first.engine)
    await replaced(victim, first.engine, before)
