"""kill -9 under load: do all sessions survive, in order and without a gap, and for how long does each stall?

A real cluster (two CPU engines), real-time viewers that also edit their prompt now and then, and every
--every seconds the end of one process: gateway, scheduler, redis, an engine's rank, a torchrun agent, each as
often as the others, in an order drawn by --seed. Every viewer checks that each chunk is the next one, begins
where the one before ended, and decodes to as many frames as it says, and that each prompt is applied once.

    stall       by kind of victim: the longest that any viewer stood still until the next kill
    CPR         played / (played + stalled), per viewer over the whole run
    lost        sessions that ended before the run did, with the reason

The load is at most half of what the engines hold, so that one of them can carry all for a while. Exit
status 1 if a promise was broken or the mean CPR is below 0.95.
Run: .venv/bin/python -m bench.chaos [--kills 30] [--every 20] [--viewers 3] [--seed 1]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.cluster import running_cluster
from bench.stats import machine, print_json, print_table
from gateway.client import ClientError, Session, connect

KINDS = ("gateway", "scheduler", "redis", "rank", "agent")
PROMPTS = (
    "a red ball bouncing on blue",
    "a green star spinning on black",
    "two small yellow squares on grey",
)
EDIT_EVERY_CHUNKS = 16
ENGINES = 2
MIN_CPR = 0.95


@dataclass(slots=True)
class Viewer:
    """What one client saw."""

    session: Session | None = None
    chunks: int = 0
    playing: asyncio.Event = field(default_factory=asyncio.Event)
    edits: int = 0
    wrong: list[str] = field(default_factory=list)
    """Broken promises, in words; the end of the session too."""

    def stalled_ms(self) -> float:
        """So far."""
        if self.session is None:
            return 0.0
        self.session.playhead.buffer_ms(time.monotonic() * 1000)
        return self.session.playhead.stalled_ms

    def cpr(self) -> float:
        """Of the time since the first chunk."""
        assert self.session is not None
        stalled_ms = self.stalled_ms()
        return self.session.playhead.played_ms / max(1.0, self.session.playhead.played_ms + stalled_ms)


async def watch(url: str, viewer: Viewer, number: int, *, edits: bool = True) -> None:
    """Play until cancelled, and edit the prompt now and then."""
    try:
        async with connect(url) as client:
            viewer.session = await client.start(PROMPTS[number % len(PROMPTS)], seed=number)
            await _check(viewer, viewer.session, edits)
    except ClientError as exc:
        viewer.wrong.append(f"the session ended: {exc}")


async def _check(viewer: Viewer, session: Session, edits: bool) -> None:
    pts_ms = 0.0
    edit: asyncio.Task[object] | None = None
    async for chunk in session:
        if chunk.seq != viewer.chunks:
            viewer.wrong.append(f"chunk {chunk.seq} came where {viewer.chunks} was due")
        if abs(chunk.pts_ms - pts_ms) > 1e-3:
            viewer.wrong.append(f"chunk {chunk.seq} begins at {chunk.pts_ms} ms, not at {pts_ms} ms")
        if len(list(chunk.frames())) != chunk.num_frames:
            viewer.wrong.append(f"chunk {chunk.seq} does not decode to {chunk.num_frames} frames")
        viewer.chunks, pts_ms = chunk.seq + 1, chunk.pts_ms + chunk.duration_ms
        viewer.playing.set()
        if edit is not None and edit.done():
            applied = edit.result()
            viewer.edits += 1
            if getattr(applied, "rev", None) != viewer.edits:
                viewer.wrong.append(f"edit {viewer.edits} was applied as {applied}")
            edit = None
        if edits and edit is None and chunk.seq % EDIT_EVERY_CHUNKS == EDIT_EVERY_CHUNKS - 1:
            edit = asyncio.create_task(session.prompt(random.choice(PROMPTS)))


def drawn_kinds(draw: random.Random, kills: int) -> list[str]:
    """What to kill, one after the other: each kind as often as the others, in any order."""
    kinds = [KINDS[index % len(KINDS)] for index in range(kills)]
    draw.shuffle(kinds)
    return kinds


def kill(folder: Path, kind: str, draw: random.Random, *, among: Collection[str] | None = None) -> str:
    """End one process of that kind, an engine's only if its id is in `among`; returns its name."""
    processes: Mapping[str, int] = {
        entry["name"]: entry["pid"] for entry in json.loads((folder / "run.json").read_text())["processes"]
    }
    prefix = {"gateway": "gateway-", "scheduler": "scheduler-", "redis": "redis"}.get(kind, "engine-")
    names = sorted(name for name in processes if name.startswith(prefix))
    if among is not None and prefix == "engine-":
        names = [name for name in names if name.removeprefix(prefix) in among]
    name = draw.choice(names)
    pid = processes[name]
    if kind == "agent":
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(pid, signal.SIGKILL)
    return name


async def torment(
    folder: Path, viewers: list[Viewer], options: argparse.Namespace
) -> dict[str, list[tuple[float, float]]]:
    """Kill one process after the other; by kind: (longest stall, sum of stalls) of each interval, seconds."""
    draw = random.Random(options.seed)
    stalls: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for kind in drawn_kinds(draw, options.kills):
        before = [viewer.stalled_ms() for viewer in viewers]
        name = kill(folder, kind, draw)
        await asyncio.sleep(options.every)
        added = [(v.stalled_ms() - ms) / 1000 for v, ms in zip(viewers, before, strict=True)]
        stalls[kind].append((max(added), sum(added)))
        print(f"{kind:10} {name:18} longest stall {max(added):5.2f} s", flush=True)
    return stalls


async def run(url: str, folder: Path, options: argparse.Namespace) -> bool:
    """The whole run; prints. Is all well?"""
    viewers = [Viewer() for _ in range(options.viewers)]
    watching = [asyncio.create_task(watch(url, viewer, n)) for n, viewer in enumerate(viewers)]
    await asyncio.gather(*(viewer.playing.wait() for viewer in viewers))
    stalls = await torment(folder, viewers, options)
    wrong = [f"viewer {n}: {text}" for n, viewer in enumerate(viewers) for text in viewer.wrong]
    wrong += [f"viewer {n} has ended" for n, task in enumerate(watching) if task.done()]
    cprs = [viewer.cpr() for viewer in viewers]
    for task in watching:
        task.cancel()
    await asyncio.gather(*watching, return_exceptions=True)
    print_table(
        ["victim", "kills", "longest stall s", "mean of the longest s"],
        [
            [kind, len(s), max(a for a, _ in s), sum(a for a, _ in s) / len(s)]
            for kind, s in sorted(stalls.items())
        ],
    )
    for text in wrong:
        print(text)
    print_json(
        {
            "bench": "chaos",
            "kills": options.kills,
            "every_s": options.every,
            "viewers": options.viewers,
            "chunks": sum(viewer.chunks for viewer in viewers),
            "edits": sum(viewer.edits for viewer in viewers),
            "cpr_mean": round(sum(cprs) / len(cprs), 4),
            "cpr_min": round(min(cprs), 4),
            "wrong": len(wrong),
        }
    )
    return not wrong and sum(cprs) / len(cprs) >= MIN_CPR


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--every", type=float, default=20.0)
    parser.add_argument("--viewers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(f"machine: {machine()}")
    with running_cluster(engines=ENGINES, capacity=max(4, options.viewers)) as cluster:
        is_well = asyncio.run(run(cluster.url, cluster.folder, options))
    raise SystemExit(not is_well)


if __name__ == "__main__":
    main()
