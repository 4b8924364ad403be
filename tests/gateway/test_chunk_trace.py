"""From due to drawn."""

from __future__ import annotations

from dataclasses import replace

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway import protocol as wire
from gateway.chunk_trace import MAX_OPEN, ChunkTrace, Span, Way
from gateway.config import GatewayConfig
from gateway.tracing import Tracing, make_tracing
from scheduler.messages import SessionId, Stats
from tests.gateway.gateway_fixtures import World, begin, client_of
from tests.gateway.scripted_engine import make_part

S = SessionId("s_0000000000000001")
OTLP = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
STATS = Stats(session=S, epoch=1, seq=0, latency_ms=200, gen_ms=150, slack_ms=0, batch=2)


def relayed(trace: ChunkTrace, seq: int, at_ms: float) -> None:
    """A chunk of 500 ms in two parts, 10 ms apart, each written 1 ms after it came; then its stats."""
    for part in range(2):
        arrived_ms = at_ms + 10 * part
        trace.receive_part(make_part(S, 1, seq, part, 2), 60, arrived_ms, arrived_ms + 1)
    trace.receive_stats(replace(STATS, seq=seq))


def test_a_chunk_that_is_drawn_later() -> None:
    """The player holds it whole and 300 ms before it: the ack comes 20 ms after the last byte was written."""
    trace = ChunkTrace()
    relayed(trace, 0, 1000)
    (way,) = trace.receive_ack(0, 800, "e_1", 1031)
    assert way.whole == Span(name="chunk", start_ms=810, end_ms=1331)
    assert way.spans == (
        Span(name="engine", start_ms=810, end_ms=1010),
        Span(name="relay", start_ms=1000, end_ms=1011),
        Span(name="deliver", start_ms=1011, end_ms=1031),
        Span(name="buffer", start_ms=1031, end_ms=1331),
    )
    assert way.attributes["turboserve.session"] == S and way.attributes["turboserve.gen_ms"] == 150
    assert way.attributes["turboserve.bytes"] == 120


def test_an_ack_of_several_chunks() -> None:
    """The first is on the screen already, the second follows it."""
    trace = ChunkTrace()
    relayed(trace, 0, 1000)
    relayed(trace, 1, 1300)
    ways = trace.receive_ack(1, 600, "e_1", 1400)
    assert [way.whole.end_ms for way in ways] == [1400, 1500]
    assert [span.name for span in ways[0].spans] == ["engine", "relay", "deliver"]
    assert trace.receive_ack(1, 500, "e_1", 1500) == []


def test_chunks_without_stats_or_ack_are_forgotten() -> None:
    trace = ChunkTrace()
    trace.receive_part(make_part(S, 1, 0, 0, 1), 120, 0, 1)
    assert trace.receive_ack(0, 0, "e_1", 5) == []
    for seq in range(MAX_OPEN + 2):
        relayed(trace, seq, 0)
    assert len(trace.receive_ack(MAX_OPEN + 1, 0, "e_1", 9)) == MAX_OPEN


def test_a_share_without_the_package_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, OTLP, None)
    with pytest.raises(ValueError, match=r"turboserve\[otel\]"):
        make_tracing(0.1, "g_1")
    assert make_tracing(0, "g_1") is None
    with pytest.raises(ValueError, match="trace_share"):
        GatewayConfig(redis="redis://h", link_secret="s", trace_share=1.5)


async def test_a_chunk_on_its_way_through_a_gateway(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it relays, what the engine tells and what the client acknowledges becomes one trace."""
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(f"{OTLP}.OTLPSpanExporter", lambda: exporter)
    async with world.engine() as engine, world.gateway(trace_share=1.0) as gateway:
        async with client_of(gateway) as client:
            session = SessionId((await begin(client, engine)).session)
            await engine.send_chunk(session, 0, parts=2)
            await engine.say(replace(STATS, session=session))
            await client.expect(wire.Stats, skip=(wire.ChunkHeader,))
            await client.send(wire.Ack(seq=0, buffer_ms=800), wire.Ping(t=1))
            await client.expect(wire.Pong)
        await gateway.close()
    *spans, chunk = exporter.get_finished_spans()
    assert (chunk.name, chunk.parent) == ("chunk", None)
    assert [span.name for span in spans] == ["engine", "relay", "deliver", "buffer"]
    assert all(span.parent.span_id == chunk.context.span_id for span in spans)
    told = {"session": session, "engine": engine.id, "epoch": 1, "seq": 0, "rev": 0, "bytes": 120}
    told |= {"latency_ms": 200, "gen_ms": 150, "batch": 2}
    assert dict(chunk.attributes) == {f"turboserve.{name}": value for name, value in told.items()}


def test_spans_reach_an_exporter() -> None:
    """One trace: the whole is the parent of its parts."""
    exporter = InMemorySpanExporter()
    tracing = Tracing(1.0, "g_1", exporter)
    whole, part = Span(name="chunk", start_ms=0, end_ms=5), Span(name="relay", start_ms=1, end_ms=2)
    tracing.export([Way(whole=whole, spans=(part,), attributes={"turboserve.seq": 3})])
    tracing.close()
    relay, chunk = exporter.get_finished_spans()
    assert (relay.name, chunk.name, chunk.attributes["turboserve.seq"]) == ("relay", "chunk", 3)
    assert relay.parent.span_id == chunk.context.span_id and chunk.parent is None
    assert (chunk.end_time - chunk.start_time, relay.start_time - chunk.start_time) == (5_000_000, 1_000_000)
