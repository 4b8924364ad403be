"""The cluster as a stream of server-sent events: one reader of the store for all who watch.

A watcher gets `history` once (samples of the last ten minutes), then `cluster` at most twice a second: what
`/v1/cluster` answers (sessions only while they are few), `num_sessions`, and `t_ms`, Redis time. Nothing is
queued: who reads slowly gets the newest state next.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Final

import orjson

from gateway.cluster_reader import EVERY_S, ClusterReader, ClusterSource, rest_s
from gateway.http import JSON, Response, error_response
from gateway.metrics import ClusterMetrics
from scheduler.messages import EngineRecord, EngineState, ErrorCode
from scheduler.store import StoreError
from scheduler.store.values import ClusterInfo

logger = logging.getLogger("gateway.cluster_feed")

EVENT_STREAM: Final = "text/event-stream"
SAMPLE_S: Final = 5.0
"""A sample for `history`, also while nobody watches."""
HISTORY_S: Final = 600.0
QUIET_S: Final = 5.0
"""Something is sent at least so often: so a watcher who is gone is noticed."""
MAX_WATCHERS: Final = 32

Sample = tuple[int, int, float, float, int, int, float]
"""(Redis time in ms, budget, mean load 0 to 1, mean chunk latency in ms of the slowest engine, sessions,
queue, worst chunk latency in ms)."""


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
        self._reader = ClusterReader(source)
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
        self._reader.close()
        self._tell()

    async def answer(self) -> Response:
        """Of `/v1/cluster`. Raises StoreError."""
        pieces = tuple((await self._reader.read_whole()).pieces())
        length = sum(map(len, pieces))
        return Response(body=_each(pieces), content_type=JSON, length=length)

    async def run(self) -> None:
        """Until cancelled: read often while somebody watches, else only for the history."""
        loop = asyncio.get_running_loop()
        sample_at = loop.time()
        while True:
            pause_s = 0.0
            try:
                if loop.time() >= sample_at:
                    sample_at = loop.time() + self._sample_s
                    self._history.append(await self._sample())
                if self._watchers:
                    pause_s = EVERY_S
                    pause_s = rest_s(await self._read())
            except StoreError as exc:
                logger.debug("the cluster's state is not known: %s", exc)
            await asyncio.sleep(pause_s)  # also from one watcher to the next, who may be the same
            if not self._watchers:
                await self._await_watcher(sample_at - loop.time())

    async def _await_watcher(self, seconds: float) -> None:
        self._watched.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self._watched.wait()

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

    async def _read(self) -> int:
        """How many records were read."""
        snapshot = await self._reader.read_shown()
        pieces = snapshot.pieces(t_ms=snapshot.now_ms, num_sessions=snapshot.num_sessions)
        self._newest = event("cluster", b"".join(pieces))
        self._tell()
        return snapshot.num_records

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
                        async with asyncio.timeout(QUIET_S):
                            await news.wait()
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
    used = [engine for engine in ready if engine.sessions]
    slowest_ms = max((engine.chunk_ms for engine in used), default=0.0)
    worst_ms = max((engine.worst_ms for engine in used), default=0.0)
    sessions = sum(engine.sessions for engine in engines)
    return (
        now_ms,
        info.budget,
        round(load, 3),
        round(slowest_ms, 1),
        sessions,
        info.queue,
        round(worst_ms, 1),
    )


def describe_history(samples: Iterable[Sample]) -> bytes:
    """As `history` carries it."""
    columns = ["t_ms", "budget", "load", "chunk_ms", "sessions", "queue", "worst_ms"]
    return orjson.dumps({"columns": columns, "samples": list(samples)})


def event(name: str, data: bytes) -> bytes:
    """One server-sent event of JSON."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


async def _each(pieces: Sequence[bytes]) -> AsyncGenerator[bytes, None]:
    for piece in pieces:
        yield piece
