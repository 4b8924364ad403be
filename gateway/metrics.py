"""What `/metrics` shows. One registry per gateway, nothing global."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from scheduler.messages import EngineId, EngineRecord, EngineState, SessionState
from scheduler.store.values import ClusterInfo

_SECONDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10)
_RELAY_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)
_ENGINE_FIGURES: tuple[tuple[str, str, Callable[[EngineRecord], float]], ...] = (
    ("capacity", "Slots of an engine.", lambda engine: engine.capacity),
    ("sessions", "Sessions on an engine.", lambda engine: engine.sessions),
    ("load", "Busy share of an engine's compute thread.", lambda engine: engine.load),
    (
        "chunk_latency_seconds",
        "Mean latency of an engine's recent chunks.",
        lambda engine: engine.chunk_ms / 1000,
    ),
    (
        "worst_chunk_latency_seconds",
        "Largest latency of an engine's chunks of the last ten seconds.",
        lambda engine: engine.worst_ms / 1000,
    ),
)


class Metrics:
    """Counters, gauges and histograms of one gateway, and what it knows of the cluster."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.clients = ClientMetrics(self.registry)
        self.cluster = ClusterMetrics(self.registry)
        r = self.registry
        self.links = Gauge("turboserve_gateway_links", "Links to engines that are up.", registry=r)
        self.link_latency = Gauge(
            "turboserve_gateway_link_latency_seconds",
            "Round trip of the newest ping on the link to an engine.",
            ["engine"],
            registry=r,
        )
        self.relay = Histogram(
            "turboserve_gateway_relay_seconds",
            "From a chunk part's arrival on the link to its write to the client's socket.",
            buckets=_RELAY_SECONDS,
            registry=r,
        )
        self.parts = Counter("turboserve_gateway_parts", "Chunk parts relayed.", registry=r)
        self.media_bytes = Counter("turboserve_gateway_media_bytes", "Media bytes relayed.", registry=r)
        self.drops = Counter(
            "turboserve_gateway_dropped_parts", "Chunk parts that nobody was there for.", registry=r
        )
        self.recordings = Gauge(
            "turboserve_gateway_recordings_bytes", "On disk, of all sessions.", registry=r
        )
        self.recording_bytes = Counter(
            "turboserve_gateway_recorded_bytes", "Bytes added to recordings.", registry=r
        )
        self.recording_drops = Counter(
            "turboserve_gateway_recording_dropped_chunks",
            "Chunks left out of recordings: the disk was too slow, or refused them.",
            registry=r,
        )
        self.faults = Counter(
            "turboserve_gateway_faults",
            "Errors of the gateway's own code that it survived; its log has a traceback of each kind.",
            ["where"],
            registry=r,
        )
        self.tasks = Gauge("turboserve_gateway_tasks", "Asyncio tasks of the process.", registry=r)
        self.redis_up = Gauge("turboserve_gateway_redis_up", "1 while Redis answers.", registry=r)

    def set_link_latencies(self, latencies_s: Mapping[EngineId, float]) -> None:
        """Of the links that are up."""
        self.link_latency.clear()
        for engine, latency_s in latencies_s.items():
            self.link_latency.labels(engine).set(latency_s)

    def page(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)


class ClientMetrics:
    """What the clients of one gateway get."""

    def __init__(self, r: CollectorRegistry) -> None:
        self.connections = Gauge("turboserve_gateway_connections", "WebSocket connections.", registry=r)
        self.sessions = Gauge(
            "turboserve_gateway_sessions", "Sessions controlled here, by state.", ["state"], registry=r
        )
        self.viewers = Gauge("turboserve_gateway_viewers", "Connections that watch.", registry=r)
        self.ttfc = Histogram(
            "turboserve_gateway_ttfc_seconds",
            "From a start to its first chunk part.",
            buckets=_SECONDS,
            registry=r,
        )
        self.chunk_latency = Histogram(
            "turboserve_gateway_chunk_latency_seconds",
            "From due to the last byte handed to the gateway link, as engines tell it.",
            buckets=_SECONDS,
            registry=r,
        )
        self.played = Counter(
            "turboserve_gateway_played_seconds", "Time that players played, by their acks.", registry=r
        )
        self.stalled = Counter(
            "turboserve_gateway_stalled_seconds",
            "Time that players of active sessions stood still, by their acks.",
            registry=r,
        )
        self.gaps = Counter(
            "turboserve_gateway_gap_chunks", "Chunks that clients were told they will not get.", registry=r
        )
        self.low_rung = Gauge(
            "turboserve_gateway_low_rung_clients",
            "Clients that get the lower bitrate, because they fell behind.",
            registry=r,
        )
        self.rung_changes = Counter(
            "turboserve_gateway_rung_changes", "Changes of a client's bitrate.", ["to"], registry=r
        )
        self.errors = Counter("turboserve_gateway_errors", "Errors sent to clients.", ["code"], registry=r)
        self.closes = Counter(
            "turboserve_gateway_closes", "Connections closed by the gateway.", ["code"], registry=r
        )
        self.refused_connections = Counter(
            "turboserve_gateway_refused_connections",
            "Connections beyond what all, or one address, may hold open.",
            ["limit"],
            registry=r,
        )
        self.auth_failures = Counter(
            "turboserve_gateway_auth_failures", "Refused tokens and API keys.", registry=r
        )

    def set_sessions(self, states: Iterable[SessionState]) -> None:
        """States of the sessions that are controlled here now."""
        counts = dict.fromkeys(SessionState, 0)
        for state in states:
            counts[state] += 1
        for state, count in counts.items():
            self.sessions.labels(state.value).set(count)


class ClusterMetrics(Collector):
    """The whole cluster as Redis has it: the same from every gateway. What is kept becomes figures when it is
    asked for: those of hundreds of engines take tens of ms."""

    def __init__(self, r: CollectorRegistry) -> None:
        self.age = Gauge(
            "turboserve_cluster_age_seconds", "How old the figures of the cluster are.", registry=r
        )
        self._engines: Sequence[EngineRecord] = ()
        self._info: ClusterInfo | None = None
        self._now_ms = 0
        r.register(self)

    def set(self, engines: Sequence[EngineRecord], info: ClusterInfo, now_ms: int) -> None:
        """What was read at Redis time `now_ms`."""
        self._engines, self._info, self._now_ms = engines, info, now_ms

    def collect(self) -> Iterator[GaugeMetricFamily]:
        engines, info, now_ms = self._engines, self._info, self._now_ms
        yield _family("cluster_engines", "Engines, by state.", "state", _by_state(engines))
        budget, queue = (info.budget, info.queue) if info is not None else (0, 0)
        text = "Engines that the scheduler wants to exist."
        yield GaugeMetricFamily("turboserve_cluster_budget", text, value=budget)
        text = "Sessions that wait for a place."
        yield GaugeMetricFamily("turboserve_cluster_queue", text, value=queue)
        for name, text, read in _ENGINE_FIGURES:
            values = {str(engine.id): read(engine) for engine in engines}
            yield _family(f"engine_{name}", text, "engine", values)
        # Before it is ready an engine may not beat, up to its limit for that.
        heard = (engine for engine in engines if engine.state is not EngineState.STARTING)
        ages_s = {str(engine.id): (now_ms - engine.heartbeat_ms) / 1000 for engine in heard}
        text = "Time since an engine was heard of."
        yield _family("engine_heartbeat_age_seconds", text, "engine", ages_s)


def _by_state(engines: Iterable[EngineRecord]) -> dict[str, float]:
    counts = Tally(engine.state for engine in engines)
    return {state.value: counts[state] for state in EngineState}


def _family(name: str, text: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"turboserve_{name}", text, labels=[label])
    for of, value in values.items():
        family.add_metric([of], value)
    return family
