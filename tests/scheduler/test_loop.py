"""The control loop against a real Redis: one leader, takeovers, lost engines, outages, drains."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from scheduler.config import SchedulerConfig
from scheduler.loop import Scheduler
from scheduler.messages import (
    DesiredChanged,
    EngineChanged,
    EngineId,
    EngineState,
    Event,
    GatewayId,
    OpenSession,
    Phase,
    SessionClosed,
    SessionId,
    SessionLeft,
    SessionPlaced,
    SessionQueued,
    StopEngine,
)
from scheduler.policy.registry import ALL
from scheduler.policy.upkeep import find_lost_gateways, settling_ms
from scheduler.store import START, EngineGone, Store, StoreUnavailable
from tests.cluster import until
from tests.scheduler.conftest import (
    E1,
    E2,
    GATEWAY,
    HASH,
    S1,
    S2,
    S3,
    RedisServer,
    create,
    forget_everything,
    ready,
    recovered,
    restore,
    snapshot,
)

G2 = GatewayId("g_00000002")

QUICK = {"lease_ttl_ms": 600, "tick_ms": 50, "heartbeat_ms": 50, "heartbeat_timeout_ms": 1_000}
"""The last is more than LATE_S: a shorter stop of this process, which the scheduler does not notice, is no
silence of the engines."""


@asynccontextmanager
async def scheduling(store: Store, config: SchedulerConfig) -> AsyncIterator[Scheduler]:
    """A scheduler in this process."""
    stop, scheduler = asyncio.Event(), Scheduler(store, config)
    task = asyncio.create_task(scheduler.run(stop))
    try:
        yield scheduler
    finally:
        stop.set()
        await task


@pytest.fixture
def config(redis_url: str, cluster: str) -> SchedulerConfig:
    """Two engines; engines that never beat are not lost within a test, nor is a lease, by standing still."""
    return SchedulerConfig(
        redis=redis_url, cluster=cluster, heartbeat_timeout_ms=600_000, lease_ttl_ms=60_000
    )


async def wait_for(store: Store, want: Callable[[Event], bool], after: str = START) -> Event:
    """The first event after an id that fits."""
    while True:
        events = await store.read_events(after, block_ms=1_000)
        for _, event in events:
            if want(event):
                return event
        after = events[-1][0] if events else after


async def wait_until(store: Store, condition: Callable[[], Awaitable[bool]]) -> None:
    """Return when the condition holds; looked at after each event."""
    after = await store.last_event_id()
    while not await condition():
        events = await store.read_events(after, block_ms=1_000)
        after = events[-1][0] if events else after


async def listening(scheduler: Scheduler) -> None:
    """Return when it lets engines speak first. With the fixture's limit it does so until `decide`, however
    long they take."""
    await until(lambda: scheduler._settles_s is not None)


def decide(scheduler: Scheduler) -> None:
    """The time in which engines may speak is over."""
    scheduler._settles_s = 0.0


def is_placed(session: SessionId, on: EngineId | None = None) -> Callable[[Event], bool]:
    """Predicate: this session was placed (on this engine)."""
    return lambda e: isinstance(e, SessionPlaced) and e.session == session and on in (None, e.engine)


@asynccontextmanager
async def beating(store: Store, *engines: EngineId) -> AsyncIterator[set[EngineId]]:
    """Real engine heartbeats, as long as an engine is in the yielded set. Outages are ridden out."""
    alive = set(engines)

    async def beat() -> None:
        while True:
            for engine in sorted(alive):
                try:
                    await store.heartbeat_engine(engine, load=0, chunk_ms=0, phase="idle", deadline_ms=None)
                except StoreUnavailable:
                    break
                except EngineGone:
                    alive.discard(engine)
            await asyncio.sleep(0.05)

    task = asyncio.create_task(beat())
    try:
        yield alive
    finally:
        task.cancel()


async def test_a_new_session_is_placed(store: Store, config: SchedulerConfig) -> None:
    """Create, and the event wakes the scheduler, which places it."""
    await ready(store)
    async with scheduling(store, config):
        await create(store)
        placed = await wait_for(store, is_placed(S1))
    assert placed == SessionPlaced(session=S1, engine=E1, epoch=1)
    assert (await store.read_commands(E1, START))[0][1] == OpenSession(session=S1, epoch=1)


@pytest.mark.parametrize("policy", sorted(ALL))
async def test_every_policy_places(store: Store, config: SchedulerConfig, policy: str) -> None:
    """All that can be chosen run in the same loop."""
    await ready(store, E1)
    await ready(store, E2)
    async with scheduling(store, replace(config, policy=policy)):
        for session in (S1, S2):
            await create(store, session)
            await wait_for(store, is_placed(session))
    assert (await store.cluster_info()).policy == policy


async def test_a_waiting_session_gets_the_place_that_becomes_free(
    store: Store, config: SchedulerConfig
) -> None:
    """A full cluster queues; a close places the next."""
    await ready(store, capacity=1)
    async with scheduling(store, config):
        await create(store, S1)
        await wait_for(store, is_placed(S1))
        await create(store, S2)
        await store.close_session(S1, "stop")
        await wait_for(store, is_placed(S2))


async def test_engines_are_asked_for_and_replaced(store: Store, config: SchedulerConfig) -> None:
    """The desired set has the budget's engines; one that dies at its start is replaced under a new id."""
    async with scheduling(store, config):
        await wait_for(store, lambda e: isinstance(e, DesiredChanged))
        _, first = await store.read_desired()
        assert len(first) == 2
        cursor = await store.last_event_id()
        await store.report_exit(first[0].id, "exit status 1", crashed=True)
        await wait_for(store, lambda e: isinstance(e, DesiredChanged), cursor)
        _, second = await store.read_desired()
    assert len(second) == 2 and first[1] in second and first[0] not in second
    info = await store.cluster_info()
    assert (info.policy, info.budget) == ("slack", 2)


async def test_a_silent_engine_is_lost_and_its_session_goes_on(
    store: Store, redis_url: str, cluster: str
) -> None:
    """Heartbeats stop: the session is placed elsewhere with a higher epoch, the engine is fenced."""
    config = SchedulerConfig(redis=redis_url, cluster=cluster, **QUICK)  # type: ignore[arg-type]
    await ready(store, E1, capacity=2)
    await ready(store, E2, capacity=1)
    async with beating(store, E1, E2) as alive, scheduling(store, config):
        await create(store)
        await wait_for(store, is_placed(S1, E1))
        alive.discard(E1)
        placed = await wait_for(store, is_placed(S1, E2))
        assert isinstance(placed, SessionPlaced) and placed.epoch == 3
        with pytest.raises(EngineGone):
            await store.heartbeat_engine(E1, load=0, chunk_ms=0, phase="idle", deadline_ms=None)
        engine = await store.get_engine(E2)
        assert engine is not None and engine.state is EngineState.READY


async def test_who_waits_through_a_silent_gateway_gives_up_the_place(
    store: Store, config: SchedulerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known from before the scheduler came, or since: both are left, and who comes behind them is first. They
    are in the line again when the gateway is heard."""
    monkeypatch.setattr("scheduler.policy.upkeep.GATEWAY_TTL_S", 0.3)
    await store.heartbeat_gateway(G2, {})
    await create(store, S1)
    async with scheduling(store, config):
        await wait_for(store, lambda e: e == SessionLeft(session=S1))
        await create(store, S2)
        await create(store, S3)
        await store.take_control(S3, gateway=G2, resume_hash=HASH)
        await wait_for(store, lambda e: e == SessionLeft(session=S2))
        assert await store.queue("shapes") == [S3]
        done = [decision.text for decision in await store.decisions(10)]
        assert any("lost gateway g_00000001, 1 sessions left" in text for text in done)
        await ready(store, capacity=2)
        await wait_for(store, is_placed(S3))
        await store.heartbeat_gateway(GATEWAY, {})
        await wait_for(store, is_placed(S1))
    assert await store.queue("shapes") == [S2]


def test_silence_of_gateways_counts_while_redis_is_reachable() -> None:
    """From then on each has its whole time to be heard; who is heard, or serves nobody, is not lost."""
    waiting, ttl_ms = [GATEWAY, G2, GATEWAY], 10_000
    assert find_lost_gateways(waiting, {GATEWAY, G2}, 50_000, 0) == []
    assert find_lost_gateways(waiting, {G2}, 50_000, 50_001 - ttl_ms) == []
    (lost,) = find_lost_gateways(waiting, {G2}, 50_000, 50_000 - ttl_ms)
    assert lost.gateway == GATEWAY


async def test_an_overdue_phase_loses_an_engine_that_beats(
    store: Store, config: SchedulerConfig, redis_url: str, cluster: str
) -> None:
    """A hung compute thread is found although the heartbeats go on."""
    config = SchedulerConfig(redis=redis_url, cluster=cluster, **QUICK)  # type: ignore[arg-type]
    await ready(store)
    async with scheduling(store, config):

        async def beat_overdue() -> None:
            while True:
                await store.heartbeat_engine(E1, load=1, chunk_ms=0, phase="pass", deadline_ms=-1)
                await asyncio.sleep(0.02)

        with pytest.raises(EngineGone):
            await beat_overdue()


async def test_drain_moves_sessions_then_stops_the_engine(store: Store, config: SchedulerConfig) -> None:
    """An ordered drain: replacement wanted, sessions moved, engine told to stop, dropped from the set. These
    engines have no address for migrations: sessions go by their checkpoints."""
    await ready(store, E1)
    await ready(store, E2)
    async with scheduling(store, config):
        await create(store)
        await wait_for(store, is_placed(S1, E1))
        await store.order_drain(E1)
        await wait_for(store, is_placed(S1, E2))

        async def is_dropped() -> bool:
            _, desired = await store.read_desired()
            ids = {engine.id for engine in desired}
            return E1 not in ids and E2 in ids and len(ids) == 2

        await wait_until(store, is_dropped)
    commands = [command for _, command in await store.read_commands(E1, START)]
    assert isinstance(commands[-1], StopEngine)


async def test_an_ordered_drain_ends_where_there_is_no_other_engine(
    store: Store, config: SchedulerConfig
) -> None:
    """Also across leaders. The session waits, and goes on with the next engine."""
    static = replace(config, provisioner="static", engines=1, drain_timeout_s=1)
    await ready(store, E1)
    async with scheduling(store, static):
        await create(store)
        await wait_for(store, is_placed(S1, E1))
        await store.order_drain(E1)
        await wait_for(store, lambda e: isinstance(e, EngineChanged) and e.state is EngineState.DRAINING)
    async with scheduling(store, static):
        queued = await wait_for(store, lambda e: isinstance(e, SessionQueued) and bool(e.reason))
        assert queued == SessionQueued(session=S1, reason="engine_drained")
        await wait_until(store, lambda: is_desired(store, E1, wanted=False))
        await ready(store, E2)
        await wait_for(store, is_placed(S1, E2))
    commands = [command for _, command in await store.read_commands(E1, START)]
    assert isinstance(commands[-1], StopEngine)


async def test_abandoned_queued_sessions_are_swept(store: Store, redis_url: str, cluster: str) -> None:
    """A queued session whose connection left for retain_s is closed."""
    config = SchedulerConfig(redis=redis_url, cluster=cluster, retain_s=0, engines=0)
    await create(store, S1)
    await create(store, S2)
    await store.leave_session(S1, controller_epoch=1)
    async with scheduling(store, config):
        await wait_for(store, lambda e: isinstance(e, SessionClosed) and e.session == S1)
    record = await store.get_session(S2)
    assert record is not None and record.phase is Phase.QUEUED


# --- processes


class Processes:
    """Schedulers as real processes."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._config = config
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Start one more."""
        settings = {f: getattr(self._config, f) for f in self._config.__dataclass_fields__}
        variable = json.dumps({**settings, "scheduler_id": name})
        process = subprocess.Popen(
            [sys.executable, "-m", "scheduler"], env={**os.environ, "TURBOSERVE_SCHEDULER_CONFIG": variable}
        )
        self.running.append(process)
        return process

    def end(self) -> None:
        """Kill what is left."""
        for process in self.running:
            process.kill()
            process.wait()


@pytest.fixture
def processes(redis_url: str, cluster: str) -> Iterator[Processes]:
    """Schedulers with a short lease."""
    config = SchedulerConfig(
        redis=redis_url, cluster=cluster, lease_ttl_ms=600, tick_ms=100, heartbeat_timeout_ms=600_000
    )
    group = Processes(config)
    yield group
    group.end()


async def test_a_standby_takes_over_without_double_placement(store: Store, processes: Processes) -> None:
    """kill -9 of the leader: the standby leads with a higher term; each session was placed exactly once."""
    await ready(store, E1, capacity=30)
    await ready(store, E2, capacity=30)
    leader = processes.start("first")
    await create(store, S1)
    await wait_for(store, is_placed(S1))
    first_term = await newest_term(store)
    standby = processes.start("second")
    sessions = [SessionId(f"s_{n:016x}") for n in range(100, 140)]
    for session in sessions[:20]:
        await create(store, session)
    leader.kill()
    for session in sessions[20:]:
        await create(store, session)
    for session in sessions:
        await wait_for(store, is_placed(session))
    assert standby.poll() is None and await newest_term(store) > first_term
    records = await store.list_sessions()
    assert {r.epoch for r in records} == {1} and len(records) == 41
    events = [e for _, e in await store.read_events(START) if isinstance(e, SessionPlaced)]
    assert len(events) == len({e.session for e in events}) == 41


async def newest_term(store: Store) -> int:
    """Of whoever led last."""
    return int(await store._redis.client.get(store._key("term")))


async def test_orderly_end_hands_over_at_once(store: Store, processes: Processes) -> None:
    """SIGTERM: exit status 0, and the lease is free."""
    await ready(store)
    process = processes.start("first")
    await create(store)
    await wait_for(store, is_placed(S1))
    process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait) == 0
    assert await store.acquire_lease("next", 600) is not None


# --- Redis in trouble


async def test_a_frozen_redis_costs_no_engine(own_redis: RedisServer) -> None:
    """SIGSTOP of Redis for longer than the heartbeat timeout: on its return nobody is declared gone."""
    await check_outage(own_redis, freeze)


async def test_a_restarted_redis_costs_no_engine(own_redis: RedisServer) -> None:
    """kill -9 of Redis, down for longer than the timeout: on its return nobody is declared gone."""
    await check_outage(own_redis, restart)


async def test_after_a_loss_of_data_engines_may_speak_first(store: Store, config: SchedulerConfig) -> None:
    """The scheduler asks for no engines before those that outlived the loss could register again."""
    for engine in (E1, E2):
        await ready(store, engine)
    async with beating(store, E1, E2) as alive, scheduling(store, config) as scheduler:
        await wait_until(store, lambda: is_desired(store, E2))
        term, _ = await store.read_desired()
        alive.clear()
        await forget_everything(store)
        await listening(scheduler)
        for engine in (E1, E2):
            await ready(store, engine)
        await create(store)
        alive.update((E1, E2))
        decide(scheduler)
        await wait_for(store, is_placed(S1))
        again, desired = await store.read_desired()
        assert again > term and {engine.id for engine in desired} == {E1, E2}
        assert {engine.id for engine in await store.list_engines()} == {E1, E2}


async def test_after_a_loss_under_the_same_term_engines_may_speak_first(
    store: Store, config: SchedulerConfig
) -> None:
    """Redis comes back older, with lease and term as they were: an engine that came since is not dropped."""
    await ready(store, E1)
    async with beating(store, E1) as alive, scheduling(store, config) as scheduler:
        await wait_until(store, lambda: is_desired(store, E1))
        older = await snapshot(store)
        await ready(store, E2)
        alive.add(E2)
        await wait_until(store, lambda: is_desired(store, E2))
        term, _ = await store.read_desired()
        alive.clear()
        await restore(store, older)
        await listening(scheduler)
        for engine in (E1, E2):
            await ready(store, engine)
        alive.update((E1, E2))
        decide(scheduler)
        await wait_until(store, lambda: is_desired(store, E2))
        again, desired = await store.read_desired()
        assert again > term and {engine.id for engine in desired} >= {E1, E2}
        assert {engine.id for engine in await store.list_engines()} >= {E1, E2}


async def test_after_a_loss_of_data_a_drain_goes_on(store: Store, config: SchedulerConfig) -> None:
    """The engine is not given up with the session that has no other place, but stays until it is empty."""
    await ready(store, E1, capacity=1)
    async with beating(store, E1), scheduling(store, replace(config, engines=1)) as scheduler:
        await create(store)
        await wait_for(store, is_placed(S1, E1))
        await store.order_drain(E1)
        await wait_until(store, lambda: is_in(store, E1, EngineState.DRAINING))
        older = await snapshot(store)
        await create(store, S2)
        await restore(store, older)
        await listening(scheduler)
        decide(scheduler)
        while len(desired := (await store.read_desired())[1]) < 2:
            assert not desired or [engine.id for engine in desired] == [E1]
            await asyncio.sleep(0.02)
        assert E1 in [engine.id for engine in desired]
        record = await store.get_session(S1)
        assert record is not None and (record.engine, record.epoch) == (E1, 1)


async def is_in(store: Store, engine: EngineId, state: EngineState) -> bool:
    """Is it there, and in that state?"""
    record = await store.get_engine(engine)
    return record is not None and record.state is state


async def freeze(server: RedisServer, outage_s: float) -> None:
    """The process stops answering, its connections stay."""
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(outage_s)  # the length of the outage is what is tested
    server.process.send_signal(signal.SIGCONT)


async def restart(server: RedisServer, outage_s: float) -> None:
    """The process dies and comes back with its append-only file."""
    server.kill()
    await asyncio.sleep(outage_s)
    await asyncio.to_thread(server.start)


async def check_outage(server: RedisServer, cause: Callable[..., object]) -> None:
    """Placed before, outage, then: engines alive, session untouched, and new sessions are placed again."""
    store = await Store.connect(server.url)
    await store.mark_new()
    config = SchedulerConfig(redis=server.url, engines=1, **QUICK)  # type: ignore[arg-type]
    await ready(store)
    try:
        async with beating(store, E1) as alive, scheduling(store, config):
            await create(store)
            await wait_for(store, is_placed(S1))
            await written(store)
            # The engine is heard again only after the scheduler had a look and found it long silent.
            alive.discard(E1)
            await cause(server, 1.5)  # type: ignore[misc]
            await recovered(store)
            await create(store, S2)
            await wait_for(store, is_placed(S2))
            alive.add(E1)
            await create(store, S3)
            await wait_for(store, is_placed(S3))
            await asyncio.sleep(2 * config.heartbeat_timeout_ms / 1000)  # time enough to be declared gone
            record = await store.get_session(S1)
            assert record is not None and (record.engine, record.epoch) == (E1, 1)
            events = [e for _, e in await store.read_events(START)]
            assert not [e for e in events if isinstance(e, EngineChanged) and e.state is EngineState.GONE]
    finally:
        await store.close()


async def written(store: Store) -> None:
    """Return when what Redis was told so far would outlive it: it may keep more while it syncs its file."""
    while (await store._redis.client.info("persistence"))["aof_buffer_length"]:  # noqa: ASYNC110 - no event
        await asyncio.sleep(0.02)


# --- configuration


@pytest.mark.parametrize(
    ("variable", "sentence"),
    [
        ("nonsense", "must be a JSON object"),
        ('{"redis": "redis://x", "colour": 1}', "unknown settings: colour"),
        ('{"redis": "x"}', "redis must be a URL"),
        ('{"redis": "redis://x", "engines": "two"}', "'engines' must be an integer"),
        ('{"redis": "redis://x", "policy": "best"}', "policy 'best' does not exist"),
    ],
)
def test_bad_configuration_stops_with_a_sentence(variable: str, sentence: str) -> None:
    """Exit status 2 and one line that says which setting and why."""
    done = subprocess.run(
        [sys.executable, "-m", "scheduler"],
        env={**os.environ, "TURBOSERVE_SCHEDULER_CONFIG": variable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr


async def test_a_takeover_that_redis_interrupts_is_finished(
    store: Store, config: SchedulerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is held, but the first read of the memory fails: the next step reads it again and places."""
    await ready(store)
    await create(store)
    calls = []

    async def fail() -> bytes | None:
        calls.append(1)
        if len(calls) == 1:
            raise StoreUnavailable("planted")
        return None

    monkeypatch.setattr(store, "load_memory", fail)
    async with scheduling(store, config):
        assert await wait_for(store, is_placed(S1))


async def test_a_step_of_the_redis_clock_loses_no_engine(
    store: Store, config: SchedulerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis time jumps by an hour between two heartbeats: nobody is declared silent for an hour."""
    await ready(store)
    scheduler = Scheduler(store, replace(config, tick_ms=10))
    await scheduler.step()
    scheduler._reachable_ms = 0
    real, step_ms = store.now_ms, 3_600_000

    async def later() -> int:
        return await real() + step_ms

    monkeypatch.setattr(store, "now_ms", later)
    for _ in range(5):
        await scheduler.step()
    engine = await store.get_engine(E1)
    assert engine is not None and engine.state is EngineState.READY


async def test_time_without_redis_is_known(
    store: Store, config: SchedulerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While engines start: they are not to be charged for it. Of many breaks only those are kept."""
    clock_s, stop = 1_000.0, asyncio.Event()
    config = replace(config, tick_ms=10, lease_ttl_ms=600_000)
    scheduler = Scheduler(store, config, clock=lambda: clock_s)
    await scheduler.step()
    await scheduler.step()
    _, starting = await store.read_desired()
    assert starting and scheduler._breaks == []
    real, calls = store.read_events, 0

    async def fail_once(after: str, *, block_ms: int = 0, count: int = 1_000) -> list[tuple[str, Event]]:
        nonlocal calls, clock_s
        calls += 1
        if calls == 1:
            clock_s += 10
            raise StoreUnavailable("planted")
        stop.set()
        return await real(after, block_ms=block_ms, count=count)

    with monkeypatch.context() as patch:
        patch.setattr(store, "read_events", fail_once)
        await scheduler.run(stop)
    ((until_ms, took_ms),) = scheduler._breaks
    assert until_ms <= await store.now_ms() and 9_900 <= took_ms <= 10_000
    for engine in starting:
        await ready(store, engine.id)
    await scheduler.step()
    await scheduler.step()
    assert scheduler._breaks == []


async def test_redis_time_set_back_while_engines_may_speak(
    store: Store, config: SchedulerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader decides when the wait is over by its own clock, not an hour later."""
    await store._redis.client.delete(store._key("settled"))
    clock_s = 1_000.0
    config = replace(config, tick_ms=10, lease_ttl_ms=600_000, heartbeat_timeout_ms=2_000)
    scheduler = Scheduler(store, config, clock=lambda: clock_s)
    await scheduler.step()
    assert not await store.is_settled()
    real = store.now_ms

    async def earlier() -> int:
        return await real() - 3_600_000

    monkeypatch.setattr(store, "now_ms", earlier)
    for _ in range(2):
        clock_s += settling_ms(config) / 1000
        await scheduler.step()
    assert await store.is_settled()


async def test_static_engines_are_taken_as_they_come(store: Store, config: SchedulerConfig) -> None:
    """However many register, none is asked for; a drained one goes without a replacement."""
    static = replace(config, provisioner="static", engines=2)
    async with scheduling(store, static):
        for engine in (E1, E2, EngineId("e_00000003")):
            await ready(store, engine)
            await wait_until(store, lambda id=engine: is_desired(store, id))  # type: ignore[misc]
        await store.order_drain(E1)
        await wait_until(store, lambda: is_desired(store, E1, wanted=False))
        _, desired = await store.read_desired()
        assert {engine.id for engine in desired} == {E2, "e_00000003"}
        record = await store.get_engine(E2)
        assert record is not None and record.state is EngineState.READY


async def is_desired(store: Store, engine: EngineId, *, wanted: bool = True) -> bool:
    """Is it in the desired set (or out of it)?"""
    _, desired = await store.read_desired()
    return (engine in [each.id for each in desired]) is wanted
