"""The links of this gateway, one per engine, made when first needed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.faults import Faults
from gateway.link import EngineLink, Follower
from gateway.metrics import Metrics
from scheduler.messages import EngineId, LinkRequest, SessionId
from scheduler.store import Store, StoreUnavailable

RETRY_S = 1.0


class Relay:
    """Follow an engine, speak to it. `close` ends all links, which tells engines that the clients are
    gone."""

    def __init__(self, store: Store, secret: str, metrics: Metrics, faults: Faults) -> None:
        self._store = store
        self._faults = faults
        self._secret = secret
        self._links: dict[EngineId, EngineLink] = {}
        self._tasks: dict[EngineId, asyncio.Task[None]] = {}
        self._urls: dict[EngineId, str] = {}
        self._retries: dict[EngineId, asyncio.TimerHandle] = {}
        """Of links that failed for a reason that nobody has thought of."""
        self._count_drop: Callable[[], None] = metrics.drops.inc
        # In one step, because the metrics page is made in a thread.
        metrics.links.set_function(lambda: sum(link.is_up() for link in tuple(self._links.values())))

    def follow(self, engine: EngineId, session: SessionId, follower: Follower) -> None:
        """Hand what the engine says about `session` to `follower`."""
        link = self._links.get(engine)
        if link is None:
            link = self._links[engine] = self._make_link(engine)
            link.add(session, follower)
            self._start(engine, link)
            return
        link.add(session, follower)

    def unfollow(self, engine: EngineId, session: SessionId, follower: Follower) -> None:
        if (link := self._links.get(engine)) is not None:
            link.remove(session, follower)

    def send(self, engine: EngineId, request: LinkRequest) -> None:
        """Send on the link, if it is up."""
        if (link := self._links.get(engine)) is not None:
            link.send(request)

    def latencies_s(self) -> dict[EngineId, float]:
        """Round trips of the links that are up; 0 before the first ping."""
        return {engine: link.latency_s for engine, link in self._links.items() if link.is_up()}

    async def close(self) -> None:
        for timer in self._retries.values():
            timer.cancel()
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _make_link(self, engine: EngineId) -> EngineLink:
        return EngineLink(engine, self._find_url, self._secret, self._count_drop, self._faults)

    def _start(self, engine: EngineId, link: EngineLink) -> None:
        self._retries.pop(engine, None)
        task = self._tasks[engine] = asyncio.get_running_loop().create_task(link.run())
        task.add_done_callback(lambda task: self._end(engine, link, task))

    def _end(self, engine: EngineId, link: EngineLink, task: asyncio.Task[None]) -> None:
        exc = None if task.cancelled() else task.exception()
        if exc is not None:
            self._faults.note("link", f"the link to {engine} failed", exc)
        if task.cancelled() or not link.is_used():
            del self._links[engine], self._tasks[engine]
            self._urls.pop(engine, None)
        elif exc is None:  # followed in the very moment it gave up
            self._start(engine, link)
        else:
            loop = asyncio.get_running_loop()
            self._retries[engine] = loop.call_later(RETRY_S, self._start, engine, link)

    async def _find_url(self, engine: EngineId) -> str | None:
        """From the engine's record; remembered, so that a link comes back during a Redis outage."""
        if engine not in self._urls:
            try:
                record = await self._store.get_engine(engine)
            except StoreUnavailable:
                return None
            if record is None or not record.url:
                return None
            self._urls[engine] = record.url
        return self._urls[engine]
