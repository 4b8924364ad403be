"""Half an hour of sessions that come and go: does anything grow that should not?

A real cluster with one engine of the model `paced` (bench/paced: its passes wait instead of computing) and
`--sessions` clients at once. A client starts a session, watches some chunks, steers, pauses for a while, now
and then loses its connection and attaches again, and in the end stops the session, or walks away without a
word; then it starts the next one. About `--active` of them play at any time, the others are paused: that is
how much load the machine gets.

    memory      resident bytes of each process, a line through the second half of the run: slope in % per
                ten minutes. Redis: `used_memory`, which holds closed sessions for ten minutes (CLOSED_TTL_S)
                and up to MAX_EVENTS events, so that it is flat only in runs of half an hour and more
    files       open files of each process, after everybody left, less those after a first wave of clients
                (`--warm-minutes`) had left
    tasks       asyncio tasks of the gateway, and threads of each process, in the same way
    keys        Redis keys that do not expire, in the same way, by kind

Run: .venv/bin/python -m bench.soak [--minutes 30] [--sessions 200] [--active 20]. Exit status 1 when
something grew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from bench.cluster import BenchCluster, running_cluster
from bench.plugin import PACED, install, python_path
from bench.stats import machine, print_json, print_table
from gateway.client import ClientError, Session, connect

COSTS = {"buckets": [12], "pass_ms": [[2.0] * 64], "decode_ms": 1.0}
"""Of the model: so little that nobody waits."""
CHUNK_S = 0.75
PLAYED_CHUNKS = 6
RETAIN_S = 20
"""For which the cluster keeps sessions whose client walked away."""
SETTLE_S = 60.0
"""After the last client, until what it left must be gone."""
SAMPLE_S = 10.0
MAX_SLOPE = 1.0
"""% per ten minutes."""
ID = re.compile(r"\b([segm]_)[0-9a-f]+")


@dataclass(slots=True, kw_only=True)
class Tally:
    """What the clients did."""

    started: int = 0
    stopped: int = 0
    abandoned: int = 0
    cut: int = 0
    chunks: int = 0
    errors: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """What there is at one moment."""

    files: dict[str, int]
    threads: dict[str, int]
    tasks: int
    keys: Counter[str]


class Client:
    """One of many; lives until `until_s`."""

    def __init__(self, url: str, seed: int, pause_s: float, until_s: float, tally: Tally) -> None:
        self._url = url
        self._random = random.Random(seed)
        self._pause_s = pause_s
        self._until_s = until_s
        self._tally = tally

    async def live(self) -> None:
        """Session after session."""
        await asyncio.sleep(self._random.random() * min(60.0, 2 * self._pause_s))
        while time.monotonic() < self._until_s:
            try:
                await self._session()
            except (ClientError, TimeoutError) as exc:
                self._tally.errors[f"{type(exc).__name__}: {ID.sub('x', str(exc))}"[:90]] += 1
                await asyncio.sleep(1.0)

    async def _session(self) -> None:
        r = self._random
        async with connect(self._url) as client:
            session = await client.start(f"a red ball, number {r.randrange(1000)}", seed=r.randrange(1000))
            self._tally.started += 1
            for _ in range(r.randint(1, 4)):
                await self._play(session)
                if time.monotonic() >= self._until_s:
                    break
                await self._rest(session)
            if r.random() < 0.7:
                await session.stop()
                self._tally.stopped += 1
            else:
                self._tally.abandoned += 1

    async def _play(self, session: Session) -> None:
        steer_at = self._random.randrange(2 * PLAYED_CHUNKS)
        for number in range(self._random.randint(PLAYED_CHUNKS - 2, PLAYED_CHUNKS + 2)):
            await anext(session)
            self._tally.chunks += 1
            if number == steer_at:
                await session.submit_prompt(f"a blue star, number {self._random.randrange(1000)}")

    async def _rest(self, session: Session) -> None:
        await session.pause()
        rest_s = self._pause_s * (0.5 + self._random.random())
        await asyncio.sleep(max(0.0, min(rest_s, self._until_s - time.monotonic())))
        if self._random.random() < 0.2:
            session.cut()
            self._tally.cut += 1
        await session.resume()


def processes(cluster: BenchCluster) -> dict[str, int]:
    """Name → pid of everything but Redis; engines without their ids."""
    content = json.loads((cluster.folder / "run.json").read_text())
    return {ID.sub("x", entry["name"]): entry["pid"] for entry in content["processes"]}


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def gateway_tasks(url: str) -> int:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.search(r"^turboserve_gateway_tasks (\S+)$", text, re.MULTILINE)
    assert found is not None, "the gateway does not export its tasks"
    return int(float(found[1]))


async def census(cluster: BenchCluster, redis: Redis) -> Census:
    pids = processes(cluster)
    keys: Counter[str] = Counter()
    async for key in redis.scan_iter(count=1000):
        if await redis.ttl(key) == -1:
            keys[ID.sub(r"\1x", key.decode())] += 1
    return Census(
        files={name: len(os.listdir(f"/proc/{pid}/fd")) for name, pid in pids.items()},
        threads={name: len(os.listdir(f"/proc/{pid}/task")) for name, pid in pids.items()},
        tasks=await asyncio.to_thread(gateway_tasks, cluster.url),
        keys=keys,
    )


async def sample(
    cluster: BenchCluster, redis: Redis, until_s: float, out: dict[str, list[tuple[float, float]]]
) -> None:
    """Memory of each process, in MiB, with the time in s, until `until_s`."""
    began_s = time.monotonic()
    while (now_s := time.monotonic()) < until_s:
        for name, pid in processes(cluster).items():
            if name == "redis":
                mib = (await redis.info("memory"))["used_memory"] / 2**20
            else:
                mib = resident_mib(pid)
            out.setdefault(name, []).append((now_s - began_s, mib))
        await asyncio.sleep(SAMPLE_S)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """% of the mean per ten minutes, of a straight line through the points."""
    n = len(points)
    mean_t, mean = sum(t for t, _ in points) / n, sum(v for _, v in points) / n
    spread = sum((t - mean_t) ** 2 for t, _ in points)
    per_s = sum((t - mean_t) * (v - mean) for t, v in points) / spread if spread else 0.0
    return 100 * per_s * 600 / mean


def grown(before: dict[str, int] | Counter[str], after: dict[str, int] | Counter[str]) -> dict[str, int]:
    return {name: after[name] - before.get(name, 0) for name in after if after[name] > before.get(name, 0)}


async def soak(cluster: BenchCluster, options: argparse.Namespace) -> dict[str, Any]:
    content = json.loads((cluster.folder / "run.json").read_text())
    redis = Redis.from_url(content["redis"])
    tally, memory = Tally(), dict[str, list[tuple[float, float]]]()
    await visit(cluster, options, options.warm_minutes, Tally())  # fills pools of connections and threads
    before = await census(cluster, redis)
    until_s = time.monotonic() + 60 * options.minutes
    sampler = asyncio.create_task(sample(cluster, redis, until_s, memory))
    await visit(cluster, options, options.minutes, tally)
    await sampler
    after = await census(cluster, redis)
    await redis.aclose()
    return report(options, tally, memory, before, after)


async def visit(cluster: BenchCluster, options: argparse.Namespace, minutes: float, tally: Tally) -> None:
    """Clients for so long, then until what they left is gone."""
    until_s = time.monotonic() + 60 * minutes
    pause_s = PLAYED_CHUNKS * CHUNK_S * (options.sessions / options.active - 1)
    clients = [Client(cluster.url, n, pause_s, until_s, tally) for n in range(options.sessions)]
    await asyncio.gather(*(client.live() for client in clients))
    await asyncio.sleep(SETTLE_S)


def report(
    options: argparse.Namespace,
    tally: Tally,
    memory: dict[str, list[tuple[float, float]]],
    before: Census,
    after: Census,
) -> dict[str, Any]:
    halves = {name: points[len(points) // 2 :] for name, points in memory.items()}
    slopes = {name: round(slope(points), 2) for name, points in halves.items()}
    rows = [
        [
            name,
            f"{memory[name][0][1]:.1f}",
            f"{points[0][1]:.1f}",
            f"{points[-1][1]:.1f}",
            f"{slopes[name]:+.2f}",
            f"{before.files.get(name)} / {after.files.get(name)}",
            f"{before.threads.get(name)} / {after.threads.get(name)}",
        ]
        for name, points in halves.items()
    ]
    columns = ["process", "MiB at first", "half-way", "at the end", "% per 10 min", "files", "threads"]
    print_table(columns, rows)
    leaks = {
        "files": grown(before.files, after.files),
        "threads": grown(before.threads, after.threads),
        "tasks": max(0, after.tasks - before.tasks),
        "keys": grown(before.keys, after.keys),
    }
    return {
        "bench": "soak",
        "minutes": options.minutes,
        "sessions": options.sessions,
        "active": options.active,
        "started": tally.started,
        "stopped": tally.stopped,
        "abandoned": tally.abandoned,
        "cut": tally.cut,
        "chunks": tally.chunks,
        "errors": dict(tally.errors),
        "slope_percent_per_10_min": slopes,
        "grown": leaks,
        "is_flat": not any(leaks.values()) and all(value <= MAX_SLOPE for value in slopes.values()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--warm-minutes", type=float, default=3.0, help="before anything is counted")
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--active", type=int, default=20)
    options = parser.parse_args()
    print(f"machine: {machine()}, load {os.getloadavg()[0]:.2f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="ts-soak-") as folder:
        install(PACED, Path(folder))
        os.environ.update(python_path(Path(folder)))
        costs = Path(folder) / "costs.json"
        costs.write_text(json.dumps(COSTS))
        arguments = ["--model", "paced", "--weights", str(costs), "--retain-s", str(RETAIN_S)]
        arguments += ["--linger-s", "5", "--offload-after-s", "5", "--queue-limit", str(options.sessions)]
        with running_cluster(*arguments, engines=1, capacity=2 * options.active) as cluster:
            result = asyncio.run(soak(cluster, options))
    print_json(result)
    return 0 if result["is_flat"] else 1


if __name__ == "__main__":
    sys.exit(main())
