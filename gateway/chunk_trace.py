"""The way of each chunk from due to drawn, as its gateway knows it. Pure.

The engine tells a chunk's latency in `stats`; parts and acks pass here. So all times are of one clock, and
what the network to the engine takes counts to the engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from scheduler.messages import ChunkPart, Stats

MAX_OPEN = 64
"""Chunks of a session that wait for their ack; of a client that never acks the oldest are forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of a chunk's way, ms."""

    name: str
    start_ms: float
    end_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A chunk that was drawn, or is about to be: `whole`, and what it consists of."""

    whole: Span
    spans: tuple[Span, ...]
    attributes: dict[str, str | int | float]


@dataclass(slots=True, kw_only=True)
class _Open:
    """A chunk that was not acknowledged yet."""

    first_ms: float
    """Its first part was here."""
    part: ChunkPart
    """The newest."""
    media_start_ms: float
    num_bytes: int = 0
    arrived_ms: float = 0.0
    written_ms: float = 0.0
    told: dict[str, float] = field(default_factory=dict)


class ChunkTrace:
    """One session at one connection. `engine` is who made a part."""

    def __init__(self) -> None:
        self._open: dict[int, _Open] = {}

    def receive_part(self, part: ChunkPart, num_bytes: int, arrived_ms: float, written_ms: float) -> None:
        """A part was relayed."""
        chunk = self._open.get(part.seq)
        if chunk is None or part.part == 0:
            chunk = _Open(first_ms=arrived_ms, part=part, media_start_ms=part.pts_ms)
            self._open[part.seq] = chunk
            while len(self._open) > MAX_OPEN:
                del self._open[min(self._open)]
        chunk.part, chunk.arrived_ms, chunk.written_ms = part, arrived_ms, written_ms
        chunk.num_bytes += num_bytes

    def receive_stats(self, stats: Stats) -> None:
        """What the engine says about a chunk, right behind its last part."""
        if (chunk := self._open.get(stats.seq)) is not None:
            chunk.told = {"latency_ms": stats.latency_ms, "gen_ms": stats.gen_ms, "batch": stats.batch}

    def receive_ack(self, seq: int, buffer_ms: float, engine: str, now_ms: float) -> list[Way]:
        """The client has everything up to `seq`, and `buffer_ms` of it are still to be played."""
        acked = self._open.get(seq)
        done = [self._open.pop(known) for known in sorted(self._open) if known <= seq]
        if acked is None:
            return []
        media_now_ms = acked.part.pts_ms + acked.part.duration_ms - max(0.0, buffer_ms)
        return [
            _way(chunk, engine, now_ms, now_ms + chunk.media_start_ms - media_now_ms)
            for chunk in done
            if chunk.told
        ]


def _way(chunk: _Open, engine: str, acked_ms: float, drawn_ms: float) -> Way:
    due_ms = chunk.arrived_ms - chunk.told["latency_ms"]
    drawn_ms = max(drawn_ms, chunk.written_ms)
    spans = [
        Span(name="engine", start_ms=due_ms, end_ms=chunk.arrived_ms),
        Span(name="relay", start_ms=chunk.first_ms, end_ms=chunk.written_ms),
        Span(name="deliver", start_ms=chunk.written_ms, end_ms=acked_ms),
    ]
    if drawn_ms > acked_ms:
        spans.append(Span(name="buffer", start_ms=acked_ms, end_ms=drawn_ms))
    part = chunk.part
    return Way(
        whole=Span(name="chunk", start_ms=due_ms, end_ms=max(drawn_ms, acked_ms)),
        spans=tuple(spans),
        attributes={
            "turboserve.session": part.session,
            "turboserve.engine": engine,
            "turboserve.epoch": part.epoch,
            "turboserve.seq": part.seq,
            "turboserve.rev": part.rev,
            "turboserve.bytes": chunk.num_bytes,
            **{f"turboserve.{name}": value for name, value in chunk.told.items()},
        },
    )
