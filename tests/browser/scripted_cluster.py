"""A cluster that is what a test says, behind the real feed, listener and page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

from gateway.http import Request, Response, text_response
from gateway.listener import Listener
from gateway.routes import WATCH_CLUSTER_PATH
from launch.simulate_serve import ClusterOnly
from scheduler.domain import EngineId, EngineRecord, EngineState, Phase, SessionId
from scheduler.sim.profile import find_profile
from scheduler.sim.record import new_engine
from scheduler.store.values import ClusterInfo, Decision, SessionOutline


class ScriptedSource:
    """A `ClusterSource`. Its clock runs with each look."""

    def __init__(self, *, step_ms: int = 500) -> None:
        """`step_ms`: by how much the clock goes on at each look."""
        self.clock_ms = 1_000_000
        self._step_ms = step_ms
        self.engines: dict[EngineId, EngineRecord] = {}
        self.sessions: dict[SessionId, SessionOutline] = {}
        self.said: list[Decision] = []

    def engine(
        self,
        id: EngineId,
        state: EngineState = EngineState.READY,
        *,
        load: float = 0.5,
        worst_ms: float = 300.0,
    ) -> None:
        record = new_engine(id, find_profile("paper"), 0)
        self.engines[id] = replace(record, state=state, load=load, worst_ms=worst_ms)

    def session(self, id: str, engine: EngineId | None, *, active: bool = True) -> None:
        phase = Phase.QUEUED if engine is None else Phase.PLACED
        self.sessions[SessionId(id)] = SessionOutline(
            id=SessionId(id), phase=phase, active=active, engine=engine, epoch=1, next_seq=0, slack_ms=0
        )

    async def now_ms(self) -> int:
        self.clock_ms += self._step_ms
        return self.clock_ms

    async def list_engines(self) -> list[EngineRecord]:
        counts = {id: sum(s.engine == id for s in self.sessions.values()) for id in self.engines}
        return [replace(record, sessions=counts[id]) for id, record in self.engines.items()]

    async def count_sessions(self) -> int:
        return len(self.sessions)

    async def read_outlines(self) -> AsyncIterator[list[SessionOutline]]:
        yield list(self.sessions.values())

    async def cluster_info(self) -> ClusterInfo:
        waiting = sum(s.phase is Phase.QUEUED for s in self.sessions.values())
        return ClusterInfo(
            policy="slack", budget=len(self.engines), queue=waiting, release_interval_ms=1, start_ms=1, term=1
        )

    async def decisions(self, count: int) -> list[Decision]:
        return self.said[:count]


class Guarded(ClusterOnly):
    """As a gateway with auth answers: 401 to a token that it does not know, 403 to one that may not."""

    tokens: Mapping[str, bool] = {}
    """Those that it knows; may they see the cluster?"""

    async def respond(self, request: Request) -> Response:
        if request.path == WATCH_CLUSTER_PATH:
            token = (request.header("authorization") or "").removeprefix("Bearer ")
            if not self.tokens.get(token):
                return text_response(403 if token in self.tokens else 401, "refused")
        return await super().respond(request)


@asynccontextmanager
async def served(
    source: ScriptedSource, port: int = 0, *, tokens: Mapping[str, bool] | None = None
) -> AsyncIterator[int]:
    """The page on this source, to everybody or with `tokens`; yields the port."""
    application = ClusterOnly(source)
    if tokens is not None:
        application = Guarded(source)
        application.tokens = tokens
    listener = Listener(application)
    bound = await listener.start("127.0.0.1", port)
    feed = asyncio.get_running_loop().create_task(application.feed.run())
    try:
        yield bound
    finally:
        application.feed.close()
        feed.cancel()
        await asyncio.gather(feed, return_exceptions=True)
        await listener.close()


def url(port: int) -> str:
    return f"http://127.0.0.1:{port}/cluster"
