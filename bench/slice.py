"""The first slice end to end: time to first chunk, what the gateway adds, sessions held in real time.

A real cluster (two CPU engines of one thread each, if not told otherwise) and real WebSocket clients, all on
this machine: the clients take their share of the same cores, so the figures are on the safe side.

    TTFC             `start` to the first complete chunk at the client, one session at a time, warm engines
    gateway          link receive to socket write of each chunk part, from the gateway's own histogram: the
                     p99 is the upper edge of the bucket that holds it
    sessions held    N viewers at once for a minute; CPR = played / (played + stalled), at each client from
                     its first chunk on; held when every one of them has CPR >= 0.99

Bounded by the engines' compute; read it together with the cost per chunk that `stats` reports (`gen_ms`).
Run: make bench, or .venv/bin/python -m bench.slice [--seconds 60] [--sessions 2,4,6]
     … --device cuda --engines 1 --model wan-1.3b-random      # real shape, random weights (bench/random_wan)
"""

from __future__ import annotations

import argparse
import asyncio
import re
import time
import urllib.request
from dataclasses import dataclass

from bench.cluster import running_cluster
from bench.plugin import RANDOM_WAN, plugged_in
from bench.stats import machine, percentile, print_json, print_table
from gateway.client import connect
from scheduler.results import play_ratio

PROMPTS = (
    "a red ball bouncing on a blue background",
    "a green star spinning on a black background",
    "a small yellow square drifting left on grey",
    "a white triangle orbiting on a blue background",
)
BUCKET = re.compile(r'^turboserve_gateway_relay_seconds_bucket\{.*?le="([^"]+)".*?\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One viewer's minute."""

    ttfc_ms: float
    cpr: float
    chunks: int
    latency_ms: tuple[float, ...]


async def time_to_first_chunk(url: str, seed: int) -> float:
    """Milliseconds from `start` to the first complete chunk."""
    async with connect(url) as client:
        began = time.monotonic()
        session = await client.start(PROMPTS[seed % len(PROMPTS)], seed=seed)
        async for _ in session:
            return (time.monotonic() - began) * 1000
    raise RuntimeError("the session ended before its first chunk")


async def view(url: str, seed: int, seconds: float) -> Held:
    """Watch one session in real time for `seconds` from its first chunk."""
    async with connect(url) as client:
        began = time.monotonic()
        session = await client.start(PROMPTS[seed % len(PROMPTS)], seed=seed)
        first: float | None = None
        chunks, latency = 0, []
        async for chunk in session:
            now = time.monotonic()
            first = now if first is None else first
            chunks += 1
            if session.stats is not None and session.stats.seq >= chunk.seq - 1:
                latency.append(session.stats.latency_ms)
            if now - first >= seconds:
                break
        assert first is not None, "the session ended before its first chunk"
        session.playhead.buffer_ms(time.monotonic() * 1000)
        played, stalled = session.playhead.played_ms, session.playhead.stalled_ms
        return Held(
            ttfc_ms=(first - began) * 1000,
            cpr=play_ratio(played, stalled) or 0.0,
            chunks=chunks,
            latency_ms=tuple(latency),
        )


async def view_many(url: str, count: int, seconds: float) -> list[Held]:
    return await asyncio.gather(*(view(url, seed, seconds) for seed in range(count)))


def relay_p99_ms(url: str) -> float:
    """Upper edge, in ms, of the histogram bucket that holds the p99 of the gateway's relay latency."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    buckets = sorted((float(edge), float(count)) for edge, count in BUCKET.findall(text))
    total = buckets[-1][1]
    return next(edge for edge, count in buckets if count >= 0.99 * total) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--sessions", default="2,4,6")
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each engine")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    counts = [int(count) for count in options.sessions.split(",")]
    print(f"machine: {machine()}")
    with (
        plugged_in(RANDOM_WAN),
        running_cluster(
            "--model",
            options.model,
            engines=options.engines,
            capacity=max(counts),
            threads=options.threads,
            device=options.device,
        ) as cluster,
    ):
        asyncio.run(time_to_first_chunk(cluster.url, 0))  # warm-up
        ttfc = [asyncio.run(time_to_first_chunk(cluster.url, seed)) for seed in range(options.starts)]
        held = {count: asyncio.run(view_many(cluster.url, count, options.seconds)) for count in counts}
        relay = relay_p99_ms(cluster.url)
    print_table(
        ["sessions", "CPR min", "CPR mean", "chunk latency p50 ms", "p99 ms", "TTFC worst ms"],
        [_row(count, views) for count, views in held.items()],
    )
    held_counts = [count for count, views in held.items() if min(view.cpr for view in views) >= 0.99]
    print_json(
        {
            "bench": "slice",
            "model": options.model,
            "cluster_ready_s": round(cluster.started_s, 2),
            "ttfc_ms": {"p50": round(percentile(ttfc, 0.5)), "p99": round(percentile(ttfc, 0.99))},
            "gateway_added_ms_p99": relay,
            "sessions_held": max(held_counts, default=0),
            "cpr_min": {count: round(min(v.cpr for v in views), 4) for count, views in held.items()},
        }
    )


def _row(count: int, views: list[Held]) -> list[object]:
    latency = [value for view in views for value in view.latency_ms]
    cpr = [view.cpr for view in views]
    worst = max(view.ttfc_ms for view in views)
    return [
        count,
        f"{min(cpr):.4f}",
        f"{sum(cpr) / len(cpr):.4f}",
        f"{percentile(latency, 0.5):.0f}",
        f"{percentile(latency, 0.99):.0f}",
        f"{worst:.0f}",
    ]


if __name__ == "__main__":
    main()
