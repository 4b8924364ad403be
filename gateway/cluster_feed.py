"""The cluster as a stream of server-sent events: one reader of the store for all who watch.

A watcher gets `history` once (samples of the last ten minutes), then `cluster` twice a second: what
`/v1/cluster` answers, and `t_ms`, Redis time. Nothing is queued: who reads slowly gets the newest state next.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import Final, Protocol

from gateway.cluster_view import describe_cluster
from gateway.http import Response, error_response
from gateway.metrics import ClusterMetrics
from scheduler.messages import EngineRecord, EngineState, ErrorCode, SessionRecord
from scheduler.store import StoreError
from scheduler.store.values import ClusterInfo, Decision

__all__ = ["ClusterFeed", "ClusterSource", "describe_history", "event"]

logger = logging.getLogger("gateway.cluster_feed")

EVENT_STREAM: Final = "text/event-stream"
EVERY_S: Final = 0.5
"""The store is read so often while anybody watches."""
SAMPLE_S: Final = 5.0
"""A sample for `history`, also while nobody watches."""
HISTORY_S: Final = 600.0
QUIET_S: Final = 5.0
"""Something is sent at least so often: so a watcher who is gone is noticed."""
MAX_WATCHERS: Final = 32
DECISIONS: Final = 50

Sample = tuple[int, int, float, float, int, int]
"""(Redis time in ms, budget, mean load 0 to 1, worst chunk latency in ms, sessions, queue)."""


class ClusterSource(Protocol):
    """Where the state comes from: the store, or a simulation. Its methods may raise StoreError."""

    async def now_ms(self) -> int: ...
    async def list_engines(self) -> list[EngineRecord]: ...
    async def list_sessions(self) -> list[SessionRecord]: ...
    async def cluster_info(self) -> ClusterInfo: ...
    async def decisions(self, count: int) -> list[Decision]: ...


class ClusterFeed:
    """`run` in the background; `respond` for each watcher."""

    def __init__(
        self,
        source: ClusterSource,
        *,
        sample_s: float = SAMPLE_S,
        metrics: ClusterMetrics | None = None,
    ) -> None:
        """Each sample is also written to `metrics`."""
        self._source = source
        self._metrics = metrics
        self._sampled_s: float | None = None
        self._sample_s = sample_s
        self._history: deque[Sample] = deque(maxlen=round(HISTORY_S / SAMPLE_S))
        self._newest = b""
        self._version = 0
        self._news = asyncio.Event()
        """Replaced at each version: all who wait for this one wake up."""
        self._watchers = 0
        self._watched = asyncio.Event()
        self._is_closed = False

    def respond(self) -> Response:
        """A stream that lasts until the watcher leaves or `close`; 503 when too many watch."""
        if self._watchers >= MAX_WATCHERS or self._is_closed:
            text = "too many watch the cluster here"
            return error_response(503, ErrorCode.CAPACITY, text, ("Retry-After", "5"))
        headers = (("Cache-Control", "no-store"), ("X-Accel-Buffering", "no"))
        return Response(body=self._stream(), content_type=EVENT_STREAM, headers=headers)

    def close(self) -> None:
        """End every stream."""
        self._is_closed = True
        self._tell()

    async def run(self) -> None:
        """Until cancelled: read often while somebody watches, else only for the history."""
        loop = asyncio.get_running_loop()
        sample_at = loop.time()
        while True:
            try:
                if loop.time() >= sample_at:
                    sample_at = loop.time() + self._sample_s
                    self._history.append(await self._sample())
                if self._watchers:
                    await self._read()
            except StoreError as exc:
                logger.debug("the cluster's state is not known: %s", exc)
            await self._rest(EVERY_S if self._watchers else sample_at - loop.time())

    async def _rest(self, seconds: float) -> None:
        if self._watchers:
            await asyncio.sleep(seconds)
            return
        self._watched.clear()
        try:
            await asyncio.wait_for(self._watched.wait(), max(0.0, seconds))
        except TimeoutError:
            pass

    def sample_age_s(self) -> float:
        """Time since the newest sample; infinite before the first."""
        return time.monotonic() - self._sampled_s if self._sampled_s is not None else math.inf

    async def _sample(self) -> Sample:
        now_ms, info = await self._source.now_ms(), await self._source.cluster_info()
        engines = await self._source.list_engines()
        if self._metrics is not None:
            self._metrics.set(engines, info, now_ms)
        self._sampled_s = time.monotonic()
        return sample(now_ms, engines, info)

    async def _read(self) -> None:
        self._newest = event("cluster", {"t_ms": await self._source.now_ms(), **await self.describe()})
        self._tell()

    async def describe(self) -> dict[str, object]:
        """What `/v1/cluster` answers. Raises StoreError."""
        source = self._source
        engines, sessions = await source.list_engines(), await source.list_sessions()
        info, decisions = await source.cluster_info(), await source.decisions(DECISIONS)
        return describe_cluster(engines, sessions, info, decisions)

    def _tell(self) -> None:
        self._version += 1
        self._news.set()
        self._news = asyncio.Event()

    async def _stream(self) -> AsyncGenerator[bytes, None]:
        self._watchers += 1
        try:
            self._watched.set()
            yield event("history", describe_history(self._history))
            seen = self._version
            while not self._is_closed:
                news = self._news
                if seen == self._version:
                    try:
                        await asyncio.wait_for(news.wait(), QUIET_S)
                    except TimeoutError:
                        yield b": still here\n\n"
                        continue
                seen = self._version
                if self._newest and not self._is_closed:
                    yield self._newest
        finally:
            self._watchers -= 1


def sample(now_ms: int, engines: Sequence[EngineRecord], info: ClusterInfo) -> Sample:
    """What the history keeps of one moment."""
    ready = [engine for engine in engines if engine.state is not EngineState.STARTING]
    load = sum(engine.load for engine in ready) / len(ready) if ready else 0.0
    worst_ms = max((engine.chunk_ms for engine in ready if engine.sessions), default=0.0)
    sessions = sum(engine.sessions for engine in engines)
    return now_ms, info.budget, round(load, 3), round(worst_ms, 1), sessions, info.queue


def describe_history(samples: Sequence[Sample] | deque[Sample]) -> dict[str, object]:
    """As `history` carries it."""
    columns = ["t_ms", "budget", "load", "chunk_ms", "sessions", "queue"]
    return {"columns": columns, "samples": [list(values) for values in samples]}


def event(name: str, value: object) -> bytes:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps(value, separators=(',', ':'))}\n\n".encode()
