"""bench/chaos.py in short: kill -9 of every kind of process under the same two sessions."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest

from bench.chaos import KINDS, drawn_kinds, kill
from scheduler.messages import PromptInput
from tests.cluster import Cluster, running_cluster, until
from tests.faults.test_content import NEXT, PROMPT, assert_no_jump, steer
from tests.faults.test_kill import back, replaced
from tests.patience import PATIENT
from tests.reference import REBUILT, Reference, distance, owners_from, shown
from tests.viewer import Viewer, watching

pytestmark = [pytest.mark.cluster, pytest.mark.faults, pytest.mark.timeout(240)]

SEED = 5
"""Draws gateway, scheduler, an engine's rank, Redis, an engine's agent."""
ROUNDING = 0.5
"""Grey levels, on average over a chunk. Sums in another order, as in a batch of two, are a twentieth; every
bug that test_content.py plants is more."""


@pytest.fixture
def victim() -> Iterator[Cluster]:
    """One of its own: after engines that died young others wait before they start."""
    with running_cluster("--capacity", "2", *PATIENT) as running:
        yield running


async def test_one_after_the_other(victim: Cluster) -> None:
    """Each kind of process is killed, in an order drawn by a seed, the next when the cluster is whole again
    and has taken a prompt of each session. Every session goes on with the next chunk, prompts apply once, and
    the picture is like that of an undisturbed run, without a jump.
    """
    draw, seeds = random.Random(SEED), (21, 22)
    async with AsyncExitStack() as stack:
        viewers = [
            await stack.enter_async_context(watching(victim.url, PROMPT, seed=seed, mode="viewer"))
            for seed in seeds
        ]
        scripts: list[dict[int, tuple[PromptInput]]] = [{} for _ in viewers]
        await asyncio.gather(*(viewer.take(2) for viewer in viewers))
        for rev, kind in enumerate(drawn_kinds(draw, len(KINDS)), 1):
            whole = asyncio.Event()
            playing = [asyncio.create_task(play(viewer, whole)) for viewer in viewers]
            await strike(victim, kind, draw, among={viewer.taken[-1].engine for viewer in viewers})
            whole.set()
            await asyncio.gather(*playing)
            edit = PromptInput(text=(PROMPT, NEXT)[rev % 2])
            places = await asyncio.gather(*(steer(viewer, edit) for viewer in viewers))
            for viewer, script, at in zip(viewers, scripts, places, strict=True):
                script[at] = (edit,)
                await viewer.take_to(at)  # what was made before the kill may have waited for long
        await asyncio.gather(*(viewer.take(2) for viewer in viewers))
    assert {viewer.taken[-1].rev for viewer in viewers} == {len(KINDS)}
    assert any(owners_from(viewer.taken) for viewer in viewers)
    for viewer, script, seed in zip(viewers, scripts, seeds, strict=True):
        judge(viewer, Reference(prompt=PROMPT, seed=seed, script={**script}))


async def play(viewer: Viewer, enough: asyncio.Event) -> None:
    while not enough.is_set():
        await viewer.take(1)


async def strike(cluster: Cluster, kind: str, draw: random.Random, *, among: set[str]) -> None:
    """Kill one process of that kind; return when the cluster is as it was, but for that process."""
    before = cluster.pids("")
    led = num_led(cluster)
    name = kill(cluster.dir, kind, draw, among=among)
    if name.startswith("engine-"):
        await replaced(cluster, name.removeprefix("engine-"), before)
        return
    await back(cluster, name, before)
    if kind == "scheduler":
        await until(lambda: num_led(cluster) > led)
    await until(lambda: len(cluster.engines()) == 2)


def num_led(cluster: Cluster) -> int:
    """How often a scheduler has begun to lead."""
    return (cluster.dir / "logs" / "scheduler-0.log").read_text().count(" leads, ")


def judge(viewer: Viewer, reference: Reference) -> None:
    """By what it saw: the undisturbed run up to the first move, like it there, and no jump at any move."""
    seen, moves = [shown(chunk) for chunk in viewer.taken], sorted(owners_from(viewer.taken))
    first = moves[0] if moves else len(seen)
    # With chunks of either prompt, even where its policy has moved it before the second was there.
    whole = max(first, sorted(reference.script)[1])
    normal = [reference.chunk(seq) for seq in range(min(whole + 1, len(seen)))]
    for ours, theirs in zip(seen[: first + 1], normal, strict=False):
        limit = ROUNDING if ours.seq < first else REBUILT
        assert ours.rev == theirs.rev and distance(ours.frames, theirs.frames) < limit, f"chunk {ours.seq}"
    for moved in moves:
        assert_no_jump(seen, moved, normal, reference.script)
