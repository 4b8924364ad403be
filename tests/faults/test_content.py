"""kill -9 of an engine, judged by what the client sees: the frames of an undisturbed run, chunk for chunk."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Container, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from scheduler.messages import PromptInput, ResetInput
from tests.cluster import Cluster, running_cluster
from tests.engine.harness import Bench
from tests.patience import PATIENT
from tests.reference import Reference, Shown, distance, is_like, is_same, owners_from, seam, shown
from tests.viewer import Viewer, watching

pytestmark = [pytest.mark.cluster, pytest.mark.faults, pytest.mark.timeout(240)]
PROMPT = "a red ball moving left on white"
NEXT = "a large blue square moving right on black"
BLEND = PromptInput(text=NEXT, transition="blend", blend_chunks=2)


@pytest.fixture(scope="module")
def wounded() -> Iterator[Cluster]:
    """Its policy moves no session of its own accord: it is where the engine is that is killed."""
    with running_cluster("--policy", "least_loaded", "--capacity", "2", *PATIENT) as running:
        yield running


@pytest.fixture
def victim(wounded: Cluster) -> Cluster:
    wounded.wait_ready(2)
    return wounded


def kill(cluster: Cluster, viewer: Viewer, engine: str) -> int:
    """Kill it; returns how many chunks of the session were acknowledged, its checkpoint is no newer."""
    os.kill(cluster.pids("")[f"engine-{engine}"], signal.SIGKILL)
    return viewer.session.next_seq


def assert_undisturbed(viewer: Viewer, reference: Reference, *held: int) -> None:
    """Every frame is the reference's. Where the machine stood still so long that the past had left the window
    when an engine was lost, frames from that move on are only like them.

    held: the chunks that each rebuild may have begun with.
    """
    seen = [shown(chunk) for chunk in viewer.taken]
    late = [number for number in held if number - reference.beginning(number) > reference.window_chunks]
    moves = [seq for seq in sorted(owners_from(viewer.taken)) if late and seq >= late[0]]
    exact = moves[0] if moves else len(seen)
    assert is_same(seen[:exact], reference) and is_like(seen[exact:], reference)


async def steer(viewer: Viewer, message: PromptInput | ResetInput) -> int:
    """Send an input while chunks come; returns the first chunk that shows it."""
    session = viewer.session
    if isinstance(message, PromptInput):
        sending = session.prompt(
            message.text, transition=message.transition, blend_chunks=message.blend_chunks
        )
    else:
        sending = session.reset(seed=message.seed)
    applied = asyncio.create_task(sending)
    while not applied.done():
        await viewer.take(1)
    return (await applied).seq


async def test_the_frames_are_those_of_an_undisturbed_run(victim: Cluster) -> None:
    """A prompt was blended in just before the kill; nothing of the past has left the window yet."""
    async with watching(victim.url, PROMPT, seed=11, mode="viewer") as viewer:
        (first,) = await viewer.take(1)
        at = await steer(viewer, BLEND)
        held = kill(victim, viewer, first.engine)
        await viewer.take_until_engine(other_than=first.engine)
        await viewer.take(3)
        await viewer.take_to(at)
    encoders = owners_from(viewer.taken)
    reference = Reference(prompt=PROMPT, seed=11, script={at: (BLEND,)}, encoders=encoders)
    assert_undisturbed(viewer, reference, held)


async def test_inputs_after_the_checkpoint_apply_at_their_chunks_again(victim: Cluster) -> None:
    """Reset and prompt lie between what was acknowledged and the kill; a second kill comes soon after."""
    async with watching(victim.url, PROMPT, seed=12, mode="viewer") as viewer:
        (first, *_) = await viewer.take(3)
        script: dict[int, tuple[PromptInput | ResetInput, ...]] = {}
        reset = ResetInput(seed=5)
        script[await steer(viewer, reset)] = (reset,)
        held = [kill(victim, viewer, first.engine)]
        second = await viewer.take_until_engine(other_than=first.engine)
        at = await steer(viewer, BLEND)
        script[at] = (*script.get(at, ()), BLEND)
        victim.wait_ready(2)  # nothing is acknowledged meanwhile
        held.append(kill(victim, viewer, second.engine))
        await viewer.take_until_engine(other_than=second.engine)
        await viewer.take(2)
        await viewer.take_to(at)
    reference = Reference(prompt=PROMPT, seed=12, script=dict(script), encoders=owners_from(viewer.taken))
    assert_undisturbed(viewer, reference, *held)


async def test_after_the_past_has_left_the_window_the_picture_goes_on(victim: Cluster) -> None:
    """The rebuild is an approximation then: no jump at the seam, and closer to the undisturbed run than a
    picture that starts afresh."""
    async with watching(victim.url, PROMPT, seed=13) as viewer:
        (*_, last) = await viewer.take(9)
        kill(victim, viewer, last.engine)
        moved = await viewer.take_until_engine(other_than=last.engine)
        await viewer.take(1)
    reference = Reference(prompt=PROMPT, seed=13)
    seen = [shown(chunk) for chunk in viewer.taken]
    assert is_same(seen[: moved.seq], reference)
    assert_no_jump(seen, moved.seq, [reference.chunk(n) for n in range(moved.seq + 1)])
    afresh = Reference(prompt=PROMPT, seed=13).chunk(0)
    theirs = reference.chunk(moved.seq)
    assert distance(seen[moved.seq].frames, theirs.frames) < 0.5 * distance(afresh.frames, theirs.frames)


def assert_no_jump(seen: list[Shown], moved: int, normal: list[Shown], cuts: Container[int] = ()) -> None:
    """The seam at the move is as those in `normal`. Those of `cuts` are left out: a prompt made them."""
    jumps = [seam(a.frames, b.frames) for a, b in pairwise(normal) if b.seq not in cuts]
    assert moved in cuts or seam(seen[moved - 1].frames, seen[moved].frames) <= 2 * max(jumps)


async def test_checkpoints_in_a_directory(tmp_path: Path) -> None:
    """Nothing of them is in the control Redis; the picture is the same."""
    kept = tmp_path / "checkpoints"
    with running_cluster("--checkpoints", str(kept), "--capacity", "1", *PATIENT) as cluster:
        async with watching(cluster.url, PROMPT, seed=14, mode="viewer") as viewer:
            (first, *_) = await viewer.take(3)
            held = kill(cluster, viewer, first.engine)
            await viewer.take_until_engine(other_than=first.engine)
            await viewer.take(1)
        # The newest one, those of the seconds before, and those that the killed engine had no time to remove.
        assert 1 <= len(os.listdir(kept)) <= 16
    encoders = owners_from(viewer.taken)
    assert_undisturbed(viewer, Reference(prompt=PROMPT, seed=14, encoders=encoders), held)


def lost_kv_frame(bench: Bench, seq: int) -> None:
    if seq == 3:
        bench.pool.kv[0][:, :, 5].zero_()


def stale_decoder_tail(bench: Bench, seq: int) -> None:
    if seq == 3:
        bench.pool.decoder[0].copy_(bench.model.initial_decoder_state())


def wrong_rev(bench: Bench, seq: int) -> None:
    if seq == 3:
        bench.feed(next(iter(bench.clients)), PromptInput(text=PROMPT))


def picture_afresh(bench: Bench, seq: int) -> None:
    if seq == 3:
        (state,) = bench.loop.states()
        bench.pool.clear(0)
        state.index = 0


def skipped_chunk(bench: Bench, seq: int) -> None:
    if seq == 3:
        next(iter(bench.loop.states())).index += 1


@pytest.fixture(scope="module")
def right() -> Reference:
    """Advanced by whoever asks first."""
    return Reference(prompt=PROMPT, seed=11)


@pytest.mark.parametrize("bug", [lost_kv_frame, stale_decoder_tail, wrong_rev, picture_afresh, skipped_chunk])
def test_a_planted_bug_is_seen(right: Reference, bug: Callable[[Bench, int], None]) -> None:
    """The comparison of the tests above is not blind to any of these, after H.264 as before."""
    wrong = Reference(prompt=PROMPT, seed=11, damage=bug)
    seen = [wrong.chunk(seq) for seq in range(5)]
    assert is_same(seen[:3], right)
    assert not is_same(seen, right)
    assert len({np.asarray(chunk.frames).shape for chunk in seen}) == 1
