"""Live migration between two engines of two ranks each: both shares or nothing.

Each engine has room for one session, so that a place which is not given up is noticed by the next migration.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from engine.config import EngineConfig
from scheduler.messages import EngineId, Input, Pause, Phase, PromptInput, Residence, Resume, SessionId
from tests.cluster import until
from tests.faults.stage import SOURCE, TARGET, FaultyEngines, Script, Stage
from tests.scheduler.conftest import RedisServer

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]
CHUNKS = 24
"""More than a session here makes, but where the machine stands still while a client takes chunks."""


class PairedEngines(FaultyEngines):
    """Of two ranks each."""

    def settings(self, engine: EngineId) -> EngineConfig:
        return replace(super().settings(engine), ranks=2, capacity=1, offload_after_s=0.2)


@pytest.fixture(scope="module")
def latents_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the engines write the latents of each chunk, on each rank."""
    folder = tmp_path_factory.mktemp("latents")
    os.environ["LATENTS_FOLDER"] = str(folder)
    yield folder
    del os.environ["LATENTS_FOLDER"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engines(
    redis: RedisServer, latents_folder: Path, random_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[PairedEngines]:
    logs = tmp_path_factory.mktemp("ranks")
    async with PairedEngines.open(redis, "ranks", random_weights, logs) as engines:
        yield engines


Latents = dict[tuple[int, int], torch.Tensor]
"""(rank, seq) → of the chunk, whichever engine made it."""


async def latents(folder: Path, session: SessionId, *, chunks: int) -> Latents:
    """Of so many chunks, on both ranks. Rank 1 may be about to write what the client has seen of rank 0."""
    found: dict[tuple[int, int], Path] = {}

    def are_there() -> bool:
        for path in (folder / session).glob("*.pt"):
            _, rank, seq = path.stem.rsplit("-", 2)
            found[int(rank), int(seq)] = path
        return all(key in found for key in itertools.product(range(2), range(chunks)))

    await until(are_there)
    return {key: torch.load(path, weights_only=True) for key, path in found.items()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def undisturbed(engines: PairedEngines, latents_folder: Path) -> Latents:
    return await at_one_place(engines, latents_folder, chunks=CHUNKS)


async def at_one_place(
    engines: PairedEngines, folder: Path, *, chunks: int, inputs: Sequence[Input] = ()
) -> Latents:
    """What a session makes that stays where it is."""
    script = Script(engines)
    stage = await script.start(inputs=inputs)
    await stage.goes_on(chunks)
    await script.end()
    return await latents(folder, stage.session, chunks=chunks)


async def offloaded(stage: Stage) -> None:
    """Wait until Redis knows that the session's state is in host memory."""
    position = "0-0"
    while (await stage.record()).residence is not Residence.OFFLOADED:
        events = await stage.store.read_events(position, block_ms=200)
        position = events[-1][0] if events else position


async def assert_undisturbed(
    engines: PairedEngines, script: Script, stage: Stage, undisturbed: Latents, folder: Path
) -> None:
    """What it made is what one makes that stays where it is. Ends it: each engine has one place."""
    chunks = stage.client.next_seq
    found = await latents(folder, stage.session, chunks=chunks)
    await script.end()
    expected = undisturbed if chunks <= CHUNKS else await at_one_place(engines, folder, chunks=chunks)
    assert_same(found, expected, chunks=chunks)


def assert_same(found: Latents, expected: Latents, *, chunks: int) -> None:
    """To the bit, on either rank."""
    for key in itertools.product(range(2), range(chunks)):
        assert torch.equal(found[key], expected[key]), f"(rank, chunk) {key} differs"


async def test_moved_again_and_again_changes_no_bit(
    engines: PairedEngines, script: Script, undisturbed: Latents, latents_folder: Path
) -> None:
    """While chunks are made, then with the past out of the window, then over cached groups, and at last from
    host memory to host memory."""
    stage = await script.start()
    ends = itertools.cycle((stage, replace(stage, source=stage.target, target=stage.source)))
    for epoch in range(1, 4):
        here = next(ends)
        await here.begin(epoch, expect_epoch=epoch)
        record = await here.over()
        assert (record.engine, record.epoch, record.failed_moves) == (here.target.id, epoch + 1, 0)
        await here.goes_on(4 if epoch == 1 else 1)
        await here.follows(record)
    assert stage.client.link is not None
    await stage.client.link.send(Pause(session=stage.session, controller_epoch=1))
    await offloaded(stage)
    here, left = next(ends), stage.client.link
    await here.begin(4, expect_epoch=4)
    record = await here.over()
    assert (record.engine, record.residence) == (here.target.id, Residence.OFFLOADED)
    await until(lambda: stage.client.link is not left)
    await stage.client.link.send(Resume(session=stage.session, controller_epoch=1))
    await stage.goes_on()
    await assert_undisturbed(engines, script, stage, undisturbed, latents_folder)


ON_THE_WAY = (
    (PromptInput(text="a large blue square"), "send:prompt", "applied", 0),
    (PromptInput(text="a green star on white"), "send:prompt", "applied", 1),
    (PromptInput(text="two yellow balls", transition="blend", blend_chunks=3), "send:final", "fed", 0),
    (PromptInput(text="a red triangle", transition="blend", blend_chunks=3), "send:final", "fed", 1),
)
"""(prompt, step that waits for it, until what has become of it, rank). At first the source makes a chunk with
it while the K/V of the prompt before goes ahead: that must not be used. Then it comes when the session rests
already: the target has to apply it, and a blend that is begun twice shows."""


async def test_prompts_that_come_while_it_moves_are_applied_once(
    engines: PairedEngines, script: Script, latents_folder: Path
) -> None:
    """All that is made is what a session that stays makes with these prompts at these chunks."""
    stage = await script.start()
    ends = itertools.cycle((stage, replace(stage, source=stage.target, target=stage.source)))
    for epoch, (prompt, step, fate, rank) in enumerate(ON_THE_WAY, 1):
        here = next(ends)
        engines.arm(here.source.id, step, fate, rank=rank)
        await here.begin(epoch, expect_epoch=epoch)
        await until(partial(engines.has_struck, here.source.id))
        await stage.store.append_input(stage.session, replace(prompt, id=f"p{epoch}"), controller_epoch=1)
        record = await here.over()
        assert (record.engine, record.epoch, record.failed_moves) == (here.target.id, epoch + 1, 0)
        await stage.goes_on(3)
    _, *applied = await stage.store.applied_history(stage.session)
    await script.end()
    assert [(item.id, item.rev) for item in applied] == [("p1", 1), ("p2", 2), ("p3", 3), ("p4", 4)]
    epochs = {seq: epoch for seq, _, epoch in stage.client.seen}
    assert [epochs[item.seq] for item in applied] == [1, 2, 4, 5]
    chunks = stage.client.next_seq
    found = await latents(latents_folder, stage.session, chunks=chunks)
    inputs = [
        replace(prompt, id=f"at-{item.seq}") for (prompt, *_), item in zip(ON_THE_WAY, applied, strict=True)
    ]
    expected = await at_one_place(engines, latents_folder, chunks=chunks, inputs=inputs)
    assert_same(found, expected, chunks=chunks)


async def test_over_a_slow_link_both_ranks_of_the_target_rebuild(
    engines: PairedEngines, script: Script, undisturbed: Latents, latents_folder: Path
) -> None:
    """Exactly: the client takes no more before anything is evicted."""
    stage = await script.start(SOURCE, "sent-ahead", "rebuild")
    client = stage.client
    client.buffer_ms = 60_000.0
    await stage.begin(chunks=1)
    left = client.link
    record = await stage.over()
    assert (record.engine, record.epoch, record.failed_moves) == (stage.target.id, 2, 0)
    await until(lambda: '"rebuild": true' in stage.source.log.read_text())  # told once it is committed
    await until(lambda: client.link is not left)
    assert client.link is not None
    client.buffer_ms = 0.0
    await client.acknowledge(client.link)
    await stage.goes_on()
    await assert_undisturbed(engines, script, stage, undisturbed, latents_folder)


@pytest.mark.parametrize(
    ("faulty", "step", "fault"),
    [(SOURCE, "send:final", "cut"), (TARGET, "send:verified", "cut"), (TARGET, "send:verified", "hang")],
)
async def test_the_share_of_one_rank_lost(script: Script, faulty: str, step: str, fault: str) -> None:
    """That of rank 0 was verified for nothing: the session stays whole, and moves at the next try."""
    stage = await script.start(faulty, step, fault, rank=1)
    await stage.begin()
    record = await stage.over()
    assert (record.engine, record.epoch, record.failed_moves) == (stage.source.id, 1, 1)
    await stage.goes_on()
    await stage.begin(2)
    assert ((await stage.over()).engine, (await stage.record()).epoch) == (stage.target.id, 2)
    await stage.goes_on()


async def test_a_rank_of_the_target_killed(script: Script) -> None:
    """With its share in place, but not verified: the source goes on."""
    stage = await script.start(TARGET, "send:verified", "kill", rank=1)
    await stage.begin()
    assert await stage.target.exit_status() != 0
    record = await stage.over()
    assert (record.engine, record.epoch) == (stage.source.id, 1)
    await stage.goes_on()


async def test_a_rank_of_the_source_killed(script: Script) -> None:
    """Its engine goes with it, and nothing is committed: the target holds nothing, and rebuilds it."""
    stage = await script.start(SOURCE, "send:final", "kill", rank=1)
    await stage.begin()
    assert await stage.source.exit_status() != 0
    await stage.store.lose_engine(stage.source.id, term=stage.term, reason="killed")
    record = await stage.over()
    assert (record.phase, record.epoch) == (Phase.QUEUED, 2)
    await stage.store.place_session(stage.session, stage.target.id, expect_epoch=2, term=stage.term)
    await stage.goes_on()
    record = await stage.record()
    assert (record.engine, record.epoch) == (stage.target.id, 3)
