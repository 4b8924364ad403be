"""What `/metrics` shows. One registry per gateway, nothing global."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10)
_RELAY_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)


class Metrics:
    """Counters, gauges and histograms of one gateway."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.connections = Gauge("turboserve_gateway_connections", "WebSocket connections.", registry=r)
        self.sessions = Gauge(
            "turboserve_gateway_sessions", "Sessions controlled here, by state.", ["state"], registry=r
        )
        self.links = Gauge("turboserve_gateway_links", "Links to engines that are up.", registry=r)
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
        self.errors = Counter("turboserve_gateway_errors", "Errors sent to clients.", ["code"], registry=r)
        self.closes = Counter(
            "turboserve_gateway_closes", "Connections closed by the gateway.", ["code"], registry=r
        )
        self.auth_failures = Counter(
            "turboserve_gateway_auth_failures", "Refused tokens and API keys.", registry=r
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
        self.redis_up = Gauge("turboserve_gateway_redis_up", "1 while Redis answers.", registry=r)

    def page(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)
