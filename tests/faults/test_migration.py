"""Live migration in a real cluster, judged by the frames at the client."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator

import pytest

from scheduler.messages import PromptInput, SessionId, SessionRecord
from scheduler.store import Store
from tests.cluster import Cluster, running_cluster, until
from tests.patience import PATIENT
from tests.reference import Reference, is_same, owners_from, shown
from tests.viewer import Viewer, watching

pytestmark = [pytest.mark.cluster, pytest.mark.faults, pytest.mark.timeout(300)]
PROMPT = "a red ball moving left on white"
BLEND = PromptInput(text="a large blue square moving right on black", transition="blend", blend_chunks=2)
ORDERED_EVERY = 16
"""Chunks."""


@pytest.fixture(scope="module")
def pair() -> Iterator[Cluster]:
    with running_cluster("--policy", "least_loaded", "--capacity", "2", *PATIENT) as running:
        yield running


def migrate(cluster: Cluster, viewer: Viewer, engine: str) -> int:
    """Order it; returns the status."""
    return cluster.order("migrate", session=viewer.session.info.session, engine=engine)


async def arrives(cluster: Cluster, viewer: Viewer, engine: str) -> None:
    """Take chunks until one is of the engine that it was told to move to. Of an engine that stands still for
    3 s no session comes: the move is called off, and ordered again."""
    while (await viewer.take(1))[0].engine != engine:
        if viewer.next_seq % ORDERED_EVERY == 0:  # refused while it is on its way, and once it is there
            assert migrate(cluster, viewer, engine) in (202, 409)


async def record(cluster: Cluster, session: str) -> SessionRecord:
    store = await Store.connect(cluster.run_json()["redis"])
    found = await store.get_session(SessionId(session))
    await store.close()
    assert found is not None
    return found


def undisturbed(viewer: Viewer, seed: int, script: dict[int, tuple[PromptInput, ...]]) -> bool:
    reference = Reference(prompt=PROMPT, seed=seed, script=dict(script), encoders=owners_from(viewer.taken))
    return is_same([shown(chunk) for chunk in viewer.taken], reference)


async def test_the_frames_are_those_of_an_undisturbed_run(pair: Cluster) -> None:
    """There and back again, the second time with the past out of the window: still equal to the bit. A prompt
    is sent while the session is on its way."""
    async with watching(pair.url, PROMPT, seed=31, mode="viewer") as viewer:
        (first,) = await viewer.take(1)
        second = pair.other_engine(first.engine)
        assert migrate(pair, viewer, second) == 202
        applied = asyncio.create_task(viewer.session.prompt(BLEND.text, transition="blend", blend_chunks=2))
        await arrives(pair, viewer, second)
        while not applied.done():
            await viewer.take(1)
        await viewer.take(8)
        assert migrate(pair, viewer, first.engine) == 202
        await arrives(pair, viewer, first.engine)
        await viewer.take(2)
        now = await record(pair, viewer.session.info.session)
    assert (now.epoch, now.in_flight, now.failed_moves) == (3, None, 0)
    assert undisturbed(viewer, 31, {(await applied).seq: (BLEND,)})


async def test_paused_while_it_moves(pair: Cluster) -> None:
    """Whoever owns the session in the end knows of it: no chunk comes before the resume."""
    async with watching(pair.url, PROMPT, seed=32) as viewer:
        (first,) = await viewer.take(1)
        engine = first.engine
        for _ in range(6):
            engine = pair.other_engine(engine)
            assert migrate(pair, viewer, engine) == 202
            await viewer.session.pause()
            await until(lambda: [s["state"] for s in pair.listed("sessions")] == ["idle"])
            await viewer.session.resume()
            await arrives(pair, viewer, engine)
            await viewer.take(2)


async def test_stopped_while_it_moves(pair: Cluster) -> None:
    """The order to move does not bring it back."""
    async with watching(pair.url, PROMPT, seed=33) as viewer:
        (first,) = await viewer.take(1)
        assert migrate(pair, viewer, pair.other_engine(first.engine)) == 202
        await viewer.session.stop()
    await until(lambda: not pair.listed("sessions"))


MOVES = int(os.environ.get("TEST_MOVES", "24"))
"""200 and more by hand."""
SESSIONS = 3
CODECS = ("h264", "vp9", "mjpeg")


@pytest.mark.timeout(900)
async def test_many_random_moves_under_load() -> None:
    """Migrations, pauses long enough to be offloaded, resumes and prompts, at random, of several sessions:
    each client gets every chunk once, in order, decodable, in its codec; every prompt applies once."""
    with running_cluster("--capacity", "4", "--offload-after-s", "0.2", *PATIENT) as cluster:
        engines = cluster.engines()
        left = [MOVES]
        await asyncio.gather(*(wander(cluster, engines, number, left) for number in range(SESSIONS)))
        await until(lambda: not cluster.listed("sessions"))  # one may stop while it moves
    assert left[0] <= 0


async def wander(cluster: Cluster, engines: list[str], number: int, left: list[int]) -> None:
    """One session, until all moves are done; the viewer checks each chunk that it takes."""
    rng = random.Random(number)
    prompts, shown_at = 0, 0
    async with watching(cluster.url, PROMPT, seed=number, codec=CODECS[number]) as viewer:
        await viewer.take(1)
        while left[0] > 0:
            left[0] -= 1
            kind = rng.choice(["migrate", "migrate", "migrate", "pause", "prompt"])
            if kind == "migrate":
                assert migrate(cluster, viewer, rng.choice(engines)) in (202, 409)
            elif kind == "pause":
                await viewer.session.pause()
                await asyncio.sleep(rng.choice([0.0, 0.5]))  # shorter and longer than until offload
                if rng.random() < 0.5:
                    migrate(cluster, viewer, rng.choice(engines))
                await viewer.session.resume()
            else:
                applied = asyncio.create_task(viewer.session.prompt(f"a blue square {prompts}"))
                while not applied.done():
                    await viewer.take(1)
                prompts += 1
                assert (await applied).rev == prompts
                shown_at = (await applied).seq
            await viewer.take(rng.randrange(1, 3))
        await viewer.take_to(shown_at)
        assert viewer.taken[-1].rev == prompts
