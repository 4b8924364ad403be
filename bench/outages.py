"""30 s without Redis, a scheduler that is killed for 60 s: do running streams notice, are prompts kept?

A real cluster (two CPU engines) on a Redis that this bench starts, kills and starts again with its data;
real-time viewers. The scheduler is killed with kill -9, and again whenever `turboserve up` has started it,
until its time is over. While either is away each viewer sends a prompt every --every seconds; afterwards each
must have been applied once, in order, as the revisions tell. Chunks are checked as in bench/chaos.py.

    stall       the longest that any viewer stood still, added up over the interval. `undisturbed` is one
                of the same length with the same prompts and nothing killed: what the machine itself costs
    applied     s from the end of the interval to the last answer `applied`

With --model paced (bench/paced) passes wait for their declared time instead of computing: what is left of the
stalls is what the outages cause, also on a busy machine. Exit status 1 if a promise was broken.

Run: .venv/bin/python -m bench.outages [--redis-s 30] [--scheduler-s 60] [--viewers 2] [--model shapes-fast]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.chaos import PROMPTS, Viewer, watch
from bench.cluster import running_cluster
from bench.plugin import PACED, plugged_in
from bench.stats import machine, print_json, print_table
from gateway.protocol import Applied
from launch import redis_server

ENGINES = 2
SETTLE_S = 15.0
"""After each outage, so that a stall which it causes late is counted to it."""
POLL_S = 0.02


class Redis:
    """A server of this bench."""

    def __init__(self, folder: Path) -> None:
        files = redis_server.prepare(folder)
        self.url = files.url
        self._command = redis_server.command(redis_server.find_server(), files)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """It loads its data while this returns."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None, "not started"
        self._process.kill()
        self._process.wait()


@contextmanager
def running_redis() -> Iterator[Redis]:
    """Started; killed at the end."""
    with tempfile.TemporaryDirectory(prefix="ts-redis-") as folder:
        redis = Redis(Path(folder))
        redis.start()
        try:
            yield redis
        finally:
            redis.kill()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an interval cost the viewers."""

    name: str
    away_s: float
    stalled_s: float
    chunks: int
    prompts: int
    applied_s: float
    wrong: list[str]


@asynccontextmanager
async def nothing() -> AsyncIterator[None]:
    """The interval without a fault."""
    yield


@asynccontextmanager
async def without_redis(redis: Redis) -> AsyncIterator[None]:
    """Killed, and started again with its data."""
    redis.kill()
    try:
        yield
    finally:
        redis.start()


@asynccontextmanager
async def without_scheduler(folder: Path) -> AsyncIterator[None]:
    """Killed as often as it is started."""

    async def kill() -> None:
        killed = 0
        while True:
            processes = json.loads((folder / "run.json").read_text())["processes"]
            pid = next((p["pid"] for p in processes if p["name"] == "scheduler-0"), killed)
            if pid != killed:
                os.kill(pid, signal.SIGKILL)
                killed = pid
            await asyncio.sleep(POLL_S)

    killing = asyncio.create_task(kill())
    try:
        yield
    finally:
        killing.cancel()
        await asyncio.wait((killing,))


async def measure(
    name: str, fault: AbstractAsyncContextManager[None], away_s: float, viewers: list[Viewer], every_s: float
) -> Outcome:
    """One interval: the fault, prompts meanwhile, and the time after it."""
    before_ms = [viewer.stalled_ms() for viewer in viewers]
    before_wrong = [len(viewer.wrong) for viewer in viewers]
    chunks = sum(viewer.chunks for viewer in viewers)
    revs = [viewer.edits for viewer in viewers]
    prompts: list[list[asyncio.Task[Applied]]] = [[] for _ in viewers]
    async with fault:
        end_s = time.monotonic() + away_s
        while (left_s := end_s - time.monotonic()) > 0:
            for viewer, sent in zip(viewers, prompts, strict=True):
                assert viewer.session is not None
                sent.append(asyncio.create_task(viewer.session.prompt(PROMPTS[len(sent) % len(PROMPTS)])))
            await asyncio.sleep(min(every_s, left_s))
    back_s = time.monotonic()
    answers: list[list[Applied]] = [[await prompt for prompt in sent] for sent in prompts]
    applied_s = time.monotonic() - back_s
    await asyncio.sleep(max(0.0, SETTLE_S - applied_s))
    wrong: list[str] = []
    for number, (viewer, applied, rev) in enumerate(zip(viewers, answers, revs, strict=True)):
        got = [(answer.rev, answer.seq) for answer in applied]
        if [r for r, _ in got] != list(range(rev + 1, rev + 1 + len(applied))) or got != sorted(got):
            wrong.append(f"{name}: prompts of viewer {number} were applied as {got}")
        wrong += [f"{name}: viewer {number}: {text}" for text in viewer.wrong[before_wrong[number] :]]
        viewer.edits += len(applied)
    return Outcome(
        name=name,
        away_s=away_s,
        stalled_s=max(v.stalled_ms() - ms for v, ms in zip(viewers, before_ms, strict=True)) / 1000,
        chunks=sum(viewer.chunks for viewer in viewers) - chunks,
        prompts=sum(map(len, answers)),
        applied_s=applied_s,
        wrong=wrong,
    )


async def run(url: str, folder: Path, redis: Redis, options: argparse.Namespace) -> bool:
    """The whole run; prints. Were all promises kept?"""
    viewers = [Viewer() for _ in range(options.viewers)]
    watching = [asyncio.create_task(watch(url, v, n, edits=False)) for n, v in enumerate(viewers)]
    await asyncio.gather(*(viewer.playing.wait() for viewer in viewers))
    await asyncio.sleep(SETTLE_S)
    outcomes = []
    for name, fault, away_s in (
        ("undisturbed", nothing(), options.redis_s),
        ("no Redis", without_redis(redis), options.redis_s),
        ("no scheduler", without_scheduler(folder), options.scheduler_s),
        ("undisturbed", nothing(), options.scheduler_s),
    ):
        outcomes.append(await measure(name, fault, away_s, viewers, options.every))
        print(outcomes[-1], flush=True)
    ended = [f"viewer {number} has ended" for number, task in enumerate(watching) if task.done()]
    for task in watching:
        task.cancel()
    await asyncio.gather(*watching, return_exceptions=True)
    print_table(
        ["interval", "s", "longest stall s", "chunks", "prompts", "applied s", "wrong"],
        [[o.name, o.away_s, o.stalled_s, o.chunks, o.prompts, o.applied_s, len(o.wrong)] for o in outcomes],
    )
    for text in (*ended, *(text for outcome in outcomes for text in outcome.wrong)):
        print(text)
    num_wrong = len(ended) + sum(len(o.wrong) for o in outcomes)
    print_json(
        {
            "bench": "outages",
            "viewers": options.viewers,
            "model": options.model,
            "intervals": [
                {
                    "name": o.name,
                    "s": o.away_s,
                    "stalled_s": round(o.stalled_s, 3),
                    "prompts": o.prompts,
                    "applied_s": round(o.applied_s, 3),
                }
                for o in outcomes
            ],
            "wrong": num_wrong,
        }
    )
    return not num_wrong


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--redis-s", type=float, default=30.0)
    parser.add_argument("--scheduler-s", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=5.0)
    parser.add_argument("--viewers", type=int, default=2)
    parser.add_argument("--model", default="shapes-fast")
    options = parser.parse_args()
    print(f"machine: {machine()}")
    capacity = max(4, options.viewers)
    with running_redis() as redis, plugged_in(PACED):
        arguments = ("--redis", redis.url, "--model", options.model)
        with running_cluster(*arguments, engines=ENGINES, capacity=capacity) as cluster:
            is_kept = asyncio.run(run(cluster.url, cluster.folder, redis, options))
    raise SystemExit(not is_kept)


if __name__ == "__main__":
    main()
