"""Everything that the connections of one gateway share, and who of them wants which session's news."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.access import Access
from gateway.calls import Forgetter, Pauses
from gateway.catalog import Catalog
from gateway.cluster_feed import ClusterFeed
from gateway.config import GatewayConfig
from gateway.faults import Faults
from gateway.metrics import Metrics
from gateway.prompt_hook import PromptHook, load_hook
from gateway.recorder import MIB, Recorder
from gateway.relay import Relay
from gateway.tracing import make_tracing
from scheduler.messages import ChooseRungs, GatewayId, Rung, SessionId
from scheduler.store import Store

if TYPE_CHECKING:
    from gateway.connection import ClientConnection


class Hub:
    """Plain references plus the registry of connections by session."""

    def __init__(self, config: GatewayConfig, gateway: GatewayId, store: Store, metrics: Metrics) -> None:
        self.config = config
        self.gateway = gateway
        self.store = store
        self.metrics = metrics
        self.access = Access(config, metrics)
        self.prompt_hook = _load_prompt_hook(config)
        self.tracing = make_tracing(config.trace_share, gateway)
        self.faults = Faults(lambda where: metrics.faults.labels(where).inc())
        self.relay = Relay(store, config.link_secret, metrics, self.faults)
        self.pauses = Pauses()
        self.forgetter = Forgetter(store, gateway, self.is_held)
        self.cluster_feed = ClusterFeed(store, metrics=metrics.cluster)
        self.recorder = _make_recorder(config, store, metrics)
        self.catalog = Catalog(default=config.model, codecs=config.codecs)
        self.connections: set[ClientConnection] = set()
        self.queue_changed: Callable[[], None] = _do_nothing
        """Call it when queue positions may have changed; the queue watcher takes it over."""
        self.redis_back_s: float | None = None
        """When Redis began to answer, by the loop's clock; None while it does not."""
        self._by_session: dict[SessionId, set[ClientConnection]] = {}

    def redis_up_s(self) -> float:
        """For how long Redis has answered without a break, as far as this gateway has seen."""
        return asyncio.get_running_loop().time() - self.redis_back_s if self.redis_back_s is not None else 0.0

    def register(self, session: SessionId, connection: ClientConnection) -> None:
        self._by_session.setdefault(session, set()).add(connection)

    def unregister(self, session: SessionId, connection: ClientConnection) -> None:
        connections = self._by_session.get(session, set())
        connections.discard(connection)
        if not connections:
            self._by_session.pop(session, None)

    def of(self, session: SessionId) -> tuple[ClientConnection, ...]:
        """The connections that want news of this session."""
        return tuple(self._by_session.get(session, ()))

    def is_held(self, session: SessionId, controller_epoch: int) -> bool:
        """Does a connection here control the session by that epoch, or is it about to get another?"""
        machines = (connection.machine for connection in self.of(session))
        return any(not m.is_watching() and m.controller_epoch in (0, controller_epoch) for m in machines)

    def choose_rungs(self, session: SessionId) -> None:
        """Tell who has the session at which rungs the clients here get it."""
        connections = self.of(session)
        wanted = {connection.rung for connection in connections}
        request = ChooseRungs(session=session, rungs=tuple(rung for rung in Rung if rung in wanted))
        engines = {connection.engine for connection in connections if connection.engine is not None}
        for engine in engines:
            self.relay.send(engine, request)


def _load_prompt_hook(config: GatewayConfig) -> PromptHook | None:
    if config.prompt_hook is None:
        return None
    hook = load_hook(config.prompt_hook)
    return PromptHook(hook, timeout_s=config.prompt_hook_timeout_s, fail_open=config.prompt_hook_fail_open)


def _make_recorder(config: GatewayConfig, store: Store, metrics: Metrics) -> Recorder | None:
    if config.recordings is None or config.recording_mib == 0:
        return None
    return Recorder(
        Path(config.recordings),
        store,
        metrics,
        session_bytes=config.recording_mib * MIB,
        total_bytes=config.recordings_mib * MIB,
    )


def _do_nothing() -> None:
    pass
