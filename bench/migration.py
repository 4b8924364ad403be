"""Live migration: how long a session stands still, and what moves.

    shapes      two real engines, viewers on both so that both compute all the time; one session moves back
                and forth. From the source's log: boundary to commit, and each step. At the client: how much
                later than its cadence the last byte of the next chunk comes, as a share of the chunk's play
                duration (targets: boundary to commit p50 <= 5 ms, p99 <= 20 ms; added delay p99 <= 15 %).
                With --ranks each engine has so many processes: each moves its share, bytes are those of the
                first one's
    synthetic   states of a wanted size with a window of 21 frames and 3 frames a chunk, moved over a pair on
                this machine, 3 frames at a time: all of it at rest (stop-and-copy) against the 3 dirty frames
                at rest after the others went ahead (target: <= 1/4). Checksums on both sides included

Added delay is against the median interval of the session's other chunks; a chunk that comes early counts 0.
Bounded by the CPU: checksums and copies take the cores that the passes want. Clients run on the same machine.
Run: .venv/bin/python -m bench.migration [--moves 60] [--viewers 2] [--ranks 1] [--mib 256,1024]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from bench.cluster import BenchCluster, running_cluster
from bench.offload import Slabs
from bench.stats import machine, percentile, print_json, print_table
from engine.kv_pool import SlabPool
from engine.link_probe import LinkProbe
from engine.models.registry import load_model
from gateway.client import connect

PROMPT = "a red ball bouncing on a blue background"
BETWEEN_MOVES = 2
"""Chunks that a moved session makes at least before it moves again."""
ROUNDS = 7
WINDOW, CHUNK = 21, 3
STEPS = ("meet_ms", "precopy_ms", "wait_ms", "verify_ms", "commit_ms")


@dataclass(frozen=True)
class Came:
    """A chunk at the client."""

    at_ms: float
    duration_ms: float
    engine: str


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)


def order(cluster: BenchCluster, session: str, engine: str) -> None:
    body = json.dumps({"session": session, "engine": engine}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{cluster.url}/v1/admin/migrate", body, headers)
    urllib.request.urlopen(request, timeout=5).close()


async def moved_session(cluster: BenchCluster, moves: int) -> list[Came]:
    """A viewer whose session is moved again and again."""
    engines = [engine["id"] for engine in get(f"{cluster.url}/v1/cluster")["engines"]]
    came: list[Came] = []
    async with connect(cluster.url) as client:
        session = await client.start(PROMPT, seed=1)
        ordered_at, done = 0, 0
        wanted = ""
        async for chunk in session:
            came.append(Came(time.monotonic() * 1000, chunk.duration_ms, chunk.engine))
            if wanted and chunk.engine != wanted and len(came) - ordered_at < 40:
                continue
            if wanted == chunk.engine and came[-2].engine != wanted:
                done, ordered_at = done + 1, len(came)
            if done >= moves:
                break
            if len(came) - ordered_at >= BETWEEN_MOVES:
                (wanted,) = {*engines} - {chunk.engine}
                ordered_at = len(came)
                await asyncio.to_thread(order, cluster, session.info.session, wanted)
    return came


async def keep_watching(cluster: BenchCluster, seed: int) -> None:
    async with connect(cluster.url) as client:
        async for _ in await client.start(PROMPT, seed=seed):
            pass


async def watch(cluster: BenchCluster, moves: int, viewers: int) -> list[Came]:
    others = [asyncio.create_task(keep_watching(cluster, seed + 2)) for seed in range(viewers)]
    try:
        return await moved_session(cluster, moves)
    finally:
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


def added_shares(came: Sequence[Came]) -> list[float]:
    """Added delay of the first chunk of each new owner, share of its play duration."""
    late = [(b.at_ms - a.at_ms, b) for a, b in pairwise(came)]
    is_move = [a.engine != b.engine for a, b in pairwise(came)]
    usual = percentile([gap for (gap, _), moved in zip(late, is_move, strict=True) if not moved][4:], 0.5)
    return [
        max(0.0, gap - usual) / chunk.duration_ms
        for (gap, chunk), moved in zip(late, is_move, strict=True)
        if moved
    ]


def timings(folder: Path) -> list[dict[str, Any]]:
    """What the sources logged."""
    lines = [line for log in (folder / "logs").glob("*.log") for line in log.read_text().splitlines()]
    return [json.loads(line.partition("migrated ")[2]) for line in lines if " migrated {" in line]


def shapes(moves: int, viewers: int, ranks: int) -> dict[str, Any]:
    with running_cluster("--ranks", str(ranks), engines=2, capacity=viewers + 2) as cluster:
        came = asyncio.run(watch(cluster, moves, viewers))
        taken = timings(cluster.folder)
    pauses = [t["verify_ms"] + t["commit_ms"] for t in taken]
    shares = added_shares(came)
    print_table(
        ["step", "p50 ms", "p99 ms"],
        [
            [step.removesuffix("_ms"), *(percentile([t[step] for t in taken], q) for q in (0.5, 0.99))]
            for step in STEPS
        ],
    )
    return {
        "moves": len(taken),
        "viewers": viewers + 1,
        "ranks": ranks,
        "pause_ms": {"p50": round(percentile(pauses, 0.5), 2), "p99": round(percentile(pauses, 0.99), 2)},
        "stall_share": {"p50": round(percentile(shares, 0.5), 3), "p99": round(percentile(shares, 0.99), 3)},
        "precopy_bytes": round(percentile([t["precopy_bytes"] for t in taken], 0.5)),
        "final_bytes": round(percentile([t["final_bytes"] for t in taken], 0.5)),
        "rebuilds": sum(t["rebuild"] for t in taken),
    }


def synthetic(mib: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    model = load_model("shapes", device=torch.device("cpu"), weights=None)
    spec = replace(model.spec, window_frames=WINDOW, chunk_latent_frames=CHUNK, sink_frames=0)
    per_token = 2 * spec.layers * WINDOW * spec.heads * spec.head_dim * model.dtype.itemsize
    spec = replace(spec, tokens_per_frame=max(1, round(mib * 2**20 / per_token)))
    slabs: Any = Slabs(spec=spec, device=model.device, dtype=model.dtype)
    pool = SlabPool(slabs, slots=2)
    pool.kv[0].uniform_()
    with LinkProbe(slabs, pool, source=0, target=1) as probe:
        pieces = [range(first, first + CHUNK) for first in range(0, WINDOW, CHUNK)]
        for piece in pieces:
            probe.move(piece)  # warm-up, and what went ahead
        assert torch.equal(pool.kv[0], pool.kv[1])
        dirty = [probe.move(pieces[0]) for _ in range(ROUNDS)]
        whole = [sum(map(probe.move, pieces)) for _ in range(ROUNDS)]
    pause, stop = percentile(dirty, 0.5), percentile(whole, 0.5)
    return {
        "mib": round(pool.kv[0].nbytes / 2**20),
        "precopy_pause_ms": round(pause, 1),
        "stop_and_copy_ms": round(stop, 1),
        "ratio": round(pause / stop, 3),
        "gb_per_s": round(pool.kv[0].nbytes / stop / 1e6, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--moves", type=int, default=60)
    parser.add_argument("--viewers", type=int, default=2, help="besides the one that is moved")
    parser.add_argument("--ranks", type=int, default=1, help="of each of the two engines")
    parser.add_argument("--mib", default="256,1024")
    options = parser.parse_args()
    print(f"machine: {machine()}")
    result: dict[str, Any] = {"bench": "migration"}
    if options.moves:
        result["shapes"] = shapes(options.moves, options.viewers, options.ranks)
    sizes = [synthetic(int(mib)) for mib in options.mib.split(",") if mib]
    if sizes:
        print_table(list(sizes[0]), [list(size.values()) for size in sizes])
    print_json({**result, "synthetic": sizes})


if __name__ == "__main__":
    main()
