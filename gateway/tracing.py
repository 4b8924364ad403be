"""Sends the ways of chunks (`gateway/chunk_trace.py`) to OpenTelemetry, which is optional: turboserve[otel].

Where to is said by OpenTelemetry's own variables, such as OTEL_EXPORTER_OTLP_ENDPOINT.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gateway.chunk_trace import Way

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["Tracing", "make_tracing"]


class Tracing:
    """Exports in the background, in batches; what can't be delivered is dropped."""

    def __init__(self, share: float, gateway: str, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

        resource = Resource.create({"service.name": "turboserve", "service.instance.id": gateway})
        self._provider = TracerProvider(sampler=TraceIdRatioBased(share), resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("turboserve.gateway")
        self._offset_ns = time.time_ns() - time.perf_counter_ns()

    def export(self, ways: list[Way]) -> None:
        """One trace for each. Their times are of time.perf_counter(), in ms."""
        from opentelemetry.trace import set_span_in_context

        for way in ways:
            start_ns = self._ns(way.whole.start_ms)
            root = self._tracer.start_span(way.whole.name, start_time=start_ns, attributes=way.attributes)
            if root.is_recording():
                context = set_span_in_context(root)
                for span in way.spans:
                    started = self._tracer.start_span(span.name, context, start_time=self._ns(span.start_ms))
                    started.end(self._ns(span.end_ms))
            root.end(self._ns(way.whole.end_ms))

    def close(self) -> None:
        """Deliver what waits. Blocks, at most for OpenTelemetry's own limit."""
        self._provider.shutdown()

    def _ns(self, ms: float) -> int:
        return round(ms * 1e6) + self._offset_ns


def make_tracing(share: float, gateway: str) -> Tracing | None:
    """None for a share of nothing. Raises ValueError: OpenTelemetry is not installed."""
    if share == 0:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as exc:
        raise ValueError(
            f"trace_share is set, but OpenTelemetry is not installed ({exc}): pip install 'turboserve[otel]'"
        ) from exc
    return Tracing(share, gateway, OTLPSpanExporter())
