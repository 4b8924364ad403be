"""A gateway process: builds everything, runs until SIGTERM or SIGINT, stops in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import uvloop

from gateway.calls import finish_calls
from gateway.config import GatewayConfig
from gateway.events import EventReader, QueueWatcher, beat
from gateway.hub import Hub
from gateway.listener import Listener, ListenerLimits
from gateway.metrics import Metrics
from gateway.routes import Routes
from gateway.websocket import SocketLimits
from scheduler.messages import GatewayId
from scheduler.store import Store, StoreError, StoreUnavailable

logger = logging.getLogger("gateway")

RETRY_S = 0.5
FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 10.0
GOODBYE_S = 2.0
"""For clients to answer the close frame, and for Redis to hear that they are gone."""


class Gateway:
    """`start`, then `close`. Tests run several in one process; a process runs one."""

    def __init__(self, config: GatewayConfig, store: Store) -> None:
        """The config names `gateway_id`."""
        assert config.gateway_id is not None, "who starts it draws it"
        self.hub = Hub(config, GatewayId(config.gateway_id), store, Metrics())
        self.url = ""
        """Where it listens, known after `start`."""
        self._reader = EventReader(self.hub)
        self._watcher = QueueWatcher(self.hub)
        self._tasks: list[asyncio.Task[None]] = []
        refused = self.hub.metrics.clients.refused_connections
        self.listener = Listener(
            Routes(self.hub),
            limits=ListenerLimits(
                max_connections=config.max_connections,
                address_connections=config.address_connections,
                request_timeout_s=config.start_timeout_s,
            ),
            sockets=SocketLimits(
                ping_interval_s=config.ping_interval_s, send_timeout_s=config.send_timeout_s
            ),
            tls=_load_tls(config),
            holder_of=self.hub.access.holder_of,
            count_refused=lambda limit: refused.labels(limit.value).inc(),
        )

    async def start(self) -> None:
        """Read the cluster's state and listen.

        Raises:
            StoreUnavailable: nothing has begun, call it again.
            OSError: the port is taken.
        """
        await self._reader.prepare()
        await self.hub.store.start_gateway(self.hub.gateway)
        config = self.hub.config
        port = await self.listener.start(config.host, config.port)
        shown = f"[{config.host}]" if ":" in config.host else config.host
        self.url = f"{'https' if config.tls_cert else 'http'}://{shown}:{port}"
        self._spawn(self._reader.run)
        self._spawn(self._watcher.run)
        self._spawn(self.hub.forgetter.run)
        self._spawn(self.hub.cluster_feed.run)
        if self.hub.recorder is not None:
            self._spawn(self.hub.recorder.run)
        self._spawn(partial(beat, self.hub, self.url))
        logger.info("%s listens at %s", self.hub.gateway, self.url)
        if config.is_exposed:
            logger.warning("insecure: whoever reaches %s may use it, there is no authentication", self.url)

    async def close(self) -> None:
        """Send every client away with 1012, hang up the links, tell the store."""
        self.listener.stop_accepting()
        self.hub.cluster_feed.close()
        connections = tuple(self.hub.connections)
        for connection in connections:
            connection.receive_shutdown()
        await self._wait_for_goodbyes()
        await self.listener.close()
        await self.hub.relay.close()
        calls = [task for connection in connections for task in connection.calls_tasks]
        await finish_calls(calls, within_s=GOODBYE_S)
        with contextlib.suppress(TimeoutError):  # a session may have begun whose client is gone
            async with asyncio.timeout(GOODBYE_S):
                await self.hub.forgetter.drained()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.hub.recorder is not None:
            await self.hub.recorder.close()
        with contextlib.suppress(StoreError):
            await self.hub.store.remove_gateway(self.hub.gateway)
        if self.hub.tracing is not None:
            await asyncio.to_thread(self.hub.tracing.close)

    def receive_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What a callback or a task of the event loop raised and nobody caught."""
        exc = context.get("exception")
        if isinstance(exc, Exception):
            self.hub.faults.note("loop", str(context.get("message")), exc)
        else:
            loop.default_exception_handler(context)

    async def _wait_for_goodbyes(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                await self.hub.forgetter.drained()
                await self.listener.drained()

    def _spawn(self, job: Callable[[], Awaitable[None]]) -> None:
        """Run it until `close`; whatever it raises, it begins again."""
        self._tasks.append(asyncio.get_running_loop().create_task(self._keep_running(job)))

    async def _keep_running(self, job: Callable[[], Awaitable[None]]) -> None:
        now_s, backoff_s = asyncio.get_running_loop().time, FIRST_BACKOFF_S
        while True:
            began_s = now_s()
            try:
                await job()
            except Exception as exc:
                self.hub.faults.note("task", "a background task begins again", exc)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
            if now_s() - began_s > MAX_BACKOFF_S:
                backoff_s = FIRST_BACKOFF_S
            await asyncio.sleep(backoff_s)


def _load_tls(config: GatewayConfig) -> ssl.SSLContext | None:
    """Raises OSError (with ssl.SSLError) when the files can't be used."""
    if config.tls_cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(config.tls_cert, config.tls_key)
    return context


async def serve(config: GatewayConfig) -> None:
    """Run a gateway until a signal asks it to stop. Waits for Redis. Raises OSError (port taken)."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    gateway = await _start(config, stop)
    if gateway is None:
        return
    await stop.wait()
    logger.info("stopping")
    await gateway.close()
    await gateway.hub.store.close()


async def _start(config: GatewayConfig, stop: asyncio.Event) -> Gateway | None:
    """A listening gateway, or None when the stop signal came first."""
    gateway: Gateway | None = None
    while not stop.is_set():
        try:
            if gateway is None:
                gateway = Gateway(config, await Store.connect(config.redis, cluster=config.cluster))
            await gateway.start()
            asyncio.get_running_loop().set_exception_handler(gateway.receive_loop_error)
            return gateway
        except StoreUnavailable as exc:
            logger.warning("waiting for Redis: %s", exc)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RETRY_S):
                await stop.wait()
    if gateway is not None:
        await gateway.hub.store.close()
    return None


def run(config: GatewayConfig) -> None:
    """The process's main function; returns after an orderly stop. Raises OSError when the port is taken."""
    uvloop.run(serve(config))
