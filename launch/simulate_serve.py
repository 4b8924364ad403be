"""`turboserve simulate --serve`: the cluster page on a simulation, played at a chosen speed, in a loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import web_demo
from gateway.cluster_feed import SAMPLE_S, ClusterFeed
from gateway.cluster_reader import ClusterSource
from gateway.config import GatewayConfig
from gateway.guard import is_host_allowed, is_origin_allowed
from gateway.http import Request, Response, json_response, text_response
from gateway.listener import Listener
from gateway.pages import Pages
from gateway.routes import CLUSTER_PATH, WATCH_CLUSTER_PATH
from gateway.websocket import Receiver
from scheduler.config import SchedulerConfig
from scheduler.latency import play_ms, round_ms
from scheduler.messages import EngineRecord, Phase
from scheduler.policy.base import (
    Action,
    Activate,
    CallOff,
    Changes,
    DrainEngine,
    LoseEngine,
    Memory,
    Migrate,
    Place,
    Plan,
    Policy,
    Requeue,
    SetDesired,
    StopDrained,
    Suspend,
    Sweep,
)
from scheduler.sim.cluster import START_MS
from scheduler.sim.engine import SimSession
from scheduler.sim.simulate import Scenario, Simulation
from scheduler.store.values import ClusterInfo, Decision, SessionOutline
from scheduler.trace import Trace
from scheduler.view import LOADS, View

__all__ = ["ClusterOnly", "SimulatedCluster", "serve"]

logger = logging.getLogger("launch.simulate_serve")

HOST: Final = "127.0.0.1"
STEP_S: Final = 0.1
DECISIONS: Final = 50


class _Overheard:
    """A policy, and what it decided lately."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.decisions: deque[tuple[int, str]] = deque(maxlen=DECISIONS)
        """(simulated ms, sentence), oldest first."""

    @property
    def name(self) -> str:
        return self._policy.name

    def plan(
        self, view: View, changes: Changes, memory: Memory, now_ms: int, config: SchedulerConfig
    ) -> Plan:
        plan = self._policy.plan(view, changes, memory, now_ms, config)
        self.decisions.extend((now_ms, _sentence(action)) for action in plan[0])
        return plan


_VERBS: Final = {
    CallOff: "called off the migration of",
    Requeue: "queued again",
    Suspend: "suspending",
    Activate: "activating",
    Sweep: "closing",
    LoseEngine: "lost engine",
    DrainEngine: "draining engine",
    StopDrained: "stopping engine",
}


def _sentence(action: Action) -> str:
    match action:
        case Migrate(session=session, target=target):
            return f"migrating {session} to {target}: {action.why}"
        case Place(session=session, engine=engine):
            return f"placing {session} on {engine}: {action.why}"
        case SetDesired(engines=engines):
            return f"{len(engines)} engines are wanted: {action.why}"
        case LoseEngine(engine=engine) | DrainEngine(engine=engine) | StopDrained(engine=engine):
            return f"{_VERBS[type(action)]} {engine}: {action.why}"
        case _:
            return f"{_VERBS[type(action)]} {action.session}: {action.why}"


class SimulatedCluster:
    """A simulation as the source of a cluster feed. `advance` plays it; at the trace's end it begins anew."""

    def __init__(self, trace: Trace, scenario: Scenario, *, began_ms: int) -> None:
        self._trace = trace
        self._policy = _Overheard(scenario.policy)
        self._scenario = replace(scenario, policy=self._policy)
        self._began_ms = began_ms
        """What the clock shows when the trace begins."""
        self._simulation = Simulation(trace, self._scenario)

    def advance(self, by_s: float) -> None:
        """Play so many more seconds of the trace."""
        at_s = (self._simulation.cluster.now_ms - START_MS) / 1000 + by_s
        if at_s > self._trace.duration_s:
            at_s -= self._trace.duration_s
            self._began_ms += round(1000 * self._trace.duration_s)
            self._policy.decisions.clear()
            self._simulation = Simulation(self._trace, self._scenario)
        self._simulation.advance(at_s)

    def _shown_ms(self, simulated_ms: float) -> int:
        return self._began_ms + round(simulated_ms - START_MS)

    # --- ClusterSource ---

    async def now_ms(self) -> int:
        return self._shown_ms(self._simulation.cluster.now_ms)

    async def list_engines(self) -> list[EngineRecord]:
        cluster = self._simulation.cluster
        placed = dict.fromkeys(cluster.records, 0)
        active = dict.fromkeys(cluster.records, 0)
        for session in cluster.sessions.values():
            engine = session.record.engine
            if engine in placed:
                placed[engine] += 1
                active[engine] += session.active
        return [_with_load(record, placed[id], active[id]) for id, record in sorted(cluster.records.items())]

    async def count_sessions(self) -> int:
        return len(self._simulation.cluster.sessions)

    async def read_outlines(self) -> AsyncIterator[list[SessionOutline]]:
        cluster = self._simulation.cluster
        yield [_as_now(session, cluster.now_ms) for session in cluster.sessions.values()]

    async def cluster_info(self) -> ClusterInfo:
        cluster = self._simulation.cluster
        waiting = sum(session.record.phase is Phase.QUEUED for session in cluster.sessions.values())
        return ClusterInfo(
            policy=self._policy.name,
            budget=len(cluster.engines),
            queue=waiting,
            release_interval_ms=0,
            start_ms=0,
            term=1,
        )

    async def decisions(self, count: int) -> list[Decision]:
        newest = list(self._policy.decisions)[-count:][::-1]
        return [Decision(at_ms=self._shown_ms(at_ms), text=text) for at_ms, text in newest]


def _with_load(record: EngineRecord, placed: int, active: int) -> EngineRecord:
    """Its load and latency are those that the policy predicts."""
    chunk_ms = float(round_ms(record)[min(active, LOADS - 1)])
    load = min(1.0, chunk_ms / play_ms(record))
    return replace(record, sessions=placed, chunk_ms=chunk_ms, worst_ms=chunk_ms, load=load)


def _as_now(session: SimSession, now_ms: float) -> SessionOutline:
    record = session.record
    return SessionOutline(
        id=record.id,
        phase=record.phase,
        active=session.active,
        engine=record.engine,
        epoch=record.epoch,
        next_seq=round(session.got_ms / session.play_ms),
        slack_ms=int(session.slack_ms(now_ms)),
    )


class ClusterOnly:
    """The page, `/v1/cluster` and its stream on a source; nothing can be changed."""

    def __init__(self, source: ClusterSource, *, sample_s: float = SAMPLE_S) -> None:
        self.feed = ClusterFeed(source, sample_s=sample_s)
        self._pages = Pages(Path(web_demo.__path__[0]))
        self._config = GatewayConfig(redis="unix:///simulated", link_secret="simulated")

    def check(self, request: Request) -> Response | None:
        host = request.header("host")
        if not is_host_allowed(host, self._config):
            return text_response(403, "this Host name is not served")
        if not is_origin_allowed(request.header("origin"), host, self._config):
            return text_response(403, "pages of this Origin may not use this server")
        if request.method not in ("GET", "HEAD"):
            return _refusal("this is a simulation: it can only be watched")
        return None

    async def respond(self, request: Request) -> Response:
        if request.path == CLUSTER_PATH:
            return await self.feed.answer()
        if request.path == WATCH_CLUSTER_PATH:
            return self.feed.respond()
        if request.path == "/":
            return Response(status=302, headers=(("Location", "/cluster"),))
        return self._pages.respond(request)

    def fail(self, request: Request, exc: Exception) -> Response:
        logger.error("not answered: %s", request.path, exc_info=exc)
        return text_response(500, "internal error")

    def accept(self, request: Request) -> Receiver | Response:
        return _refusal("this is a simulation: there is no video")


def _refusal(text: str) -> Response:
    return json_response({"error": {"code": "unsupported", "message": text}}, status=405)


async def serve(trace: Trace, scenario: Scenario, *, port: int, speed: float) -> None:
    """Until SIGINT or SIGTERM. `speed`: seconds of the trace per second. Raises OSError (port taken)."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    cluster = SimulatedCluster(trace, scenario, began_ms=round(time.time() * 1000))
    application = ClusterOnly(cluster, sample_s=SAMPLE_S / speed)
    listener = Listener(application)
    bound = await listener.start(HOST, port)
    feed = loop.create_task(application.feed.run())
    print(f"the simulation plays at http://{HOST}:{bound}/cluster, {speed:g} times as fast", flush=True)
    played = loop.time()
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), STEP_S)
        now = loop.time()
        # Too much for this machine: it plays more slowly, rather than being deaf to its readers.
        cluster.advance(speed * min(now - played, 2 * STEP_S))
        played = now
    application.feed.close()
    feed.cancel()
    await asyncio.gather(feed, return_exceptions=True)
    await listener.close()
