"""The same picture whatever happens to the state: offloaded and back, or rebuilt from a checkpoint.

The judge of every test is `same_picture`, on clean latents and decoded frames; its own tests plant bugs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from engine.compute_messages import ComputeDied, PartMade
from engine.ranks import RanksLost
from engine.session_state import Stage
from engine.state_format import ExportedState
from engine.steering import LogEntry, RecordedInput
from scheduler.messages import ControlInput, Input, PromptInput, ResetInput, SessionId
from tests.engine.harness import BATCHING_COSTS, Bench, RecordingModel

CHUNKS = 8
NOT_EVICTED = 4
"""Boundaries up to this one have their whole past in the window."""
Script = dict[int, tuple[Input, ...]]
"""Chunk → inputs that it is the first to show."""
PLAIN: Script = {}
STEERED: Script = {
    1: (PromptInput(text="a blue square", transition="blend", blend_chunks=3),),
    3: (PromptInput(text="a green star on white"),),
    5: (PromptInput(text="a yellow ring", transition="blend", blend_chunks=2),),
}
PUSHED: Script = {
    1: (ControlInput(keys=("ArrowLeft",)),),
    3: (PromptInput(text="a blue square"), ControlInput(axes={"x": 0.5, "y": -1.0})),
    6: (ControlInput(),),
}
"""Keys stay held over all that happens in between."""
RESTARTED: Script = {2: (ResetInput(seed=5),), 3: (PromptInput(text="a blue square"), ResetInput())}
SCRIPTS = pytest.mark.parametrize(
    "script", [PLAIN, STEERED, PUSHED, RESTARTED], ids=["plain", "steered", "pushed", "restarted"]
)


@dataclass(frozen=True)
class Picture:
    """What a session showed, from chunk `first` on."""

    first: int
    latents: list[Tensor]
    frames: list[Tensor]
    revs: list[int]


def same_picture(ours: Picture, undisturbed: Picture) -> bool:
    """Equal to the bit from `ours.first` on, latents, frames and revisions."""
    first, last = ours.first, ours.first + len(ours.latents)
    return (
        first < last <= len(undisturbed.latents)
        and all(map(torch.equal, ours.latents, undisturbed.latents[first:last]))
        and all(map(torch.equal, ours.frames, undisturbed.frames[first:last]))
        and ours.revs == undisturbed.revs[first:last]
    )


def entries(script: Script, seq: int) -> tuple[LogEntry, ...]:
    inputs = script.get(seq, ())
    return tuple(LogEntry(entry=f"{seq + 10}-{n}", message=message) for n, message in enumerate(inputs))


def play(
    bench: Bench, session: SessionId, script: Script, chunks: range, at: Callable[[int], None] | None = None
) -> None:
    """Make these chunks; each one's inputs come at the boundary before it, where `at` is called first."""
    for seq in chunks:
        bench.to_boundary(session)
        if at is not None:
            at(seq)
        if seq in script and seq not in bench.fed:
            bench.feed_entries(session, entries(script, seq))
        bench.run(session, True)
        while bench.made(session) <= seq:
            bench.step(1)


def picture(bench: Bench, session: SessionId, *, first: int = 0, skip: int = 0) -> Picture:
    """What a bench with one session has shown since its `skip`-th decode."""
    parts = [e for e in bench.events if isinstance(e, PartMade) and e.session == session and e.seq >= first]
    return Picture(
        first=first,
        latents=bench.model.latents[skip:],
        frames=bench.model.frames[skip:],
        revs=[part.rev for part in parts],
    )


_known: dict[str, tuple[Picture, dict[int, ExportedState]]] = {}


def undisturbed(script: Script) -> tuple[Picture, dict[int, ExportedState]]:
    """The picture and the checkpoints of a session that nothing happens to."""
    key = repr(script)
    if key not in _known:
        _known[key] = _undisturbed(script)
    return _known[key]


def _undisturbed(script: Script) -> tuple[Picture, dict[int, ExportedState]]:
    bench = Bench(costs=BATCHING_COSTS)
    session = bench.open("s_a", seed=3)
    play(bench, session, script, range(CHUNKS))
    bench.encoders.close()
    return picture(bench, session), bench.checkpoints(session)


def rebuilt(
    checkpoint: ExportedState,
    script: Script,
    *,
    seq: int,
    last: int,
    damage: Callable[[Bench], None] | None = None,
) -> Picture:
    """The picture from chunk `seq` on, made again from a checkpoint at or before it; then comes `damage`."""
    assert checkpoint.header.scalars is not None
    start = checkpoint.header.scalars.seq
    recorded = tuple(
        RecordedInput(seq=at, entry=entry) for at in range(start, seq) for entry in entries(script, at)
    )
    bench = Bench(costs=BATCHING_COSTS)
    session = bench.reopen("s_a", checkpoint, seq=seq, recorded=recorded, pending=entries(script, seq))
    bench.fed.add(seq)
    with torch.inference_mode():
        bench.run(session, False)
        bench.loop.step()
        while any(state.stage is Stage.REBUILD for state in bench.loop.states()):
            bench.loop.step()
        bench.run(session, True)
    if damage is not None:
        damage(bench)
    tail = len(bench.model.latents) if bench.made(session) == start else 1
    play(bench, session, script, range(seq, last))
    bench.encoders.close()
    return picture(bench, session, first=seq, skip=tail + seq - start)


def test_the_scripts_differ_in_what_they_show() -> None:
    """Else equality would say nothing about inputs."""
    pictures = [undisturbed(script)[0] for script in (PLAIN, STEERED, PUSHED, RESTARTED)]
    for number, picture in enumerate(pictures):
        assert not any(same_picture(picture, other) for other in pictures[number + 1 :])


@SCRIPTS
@pytest.mark.parametrize("at", range(1, CHUNKS))
def test_offloaded_and_back_at_any_chunk_changes_no_bit(script: Script, at: int) -> None:
    """Other sessions take its slot meanwhile."""
    bench = Bench(costs=BATCHING_COSTS, slots=1)
    session = bench.open("s_a", seed=3)

    def away(seq: int) -> None:
        if seq == at:
            bench.offload(session)
            bench.pool.kv.fill_(float("nan"))
            bench.pool.decoder.fill_(float("nan"))
            bench.pool.prompt_kv.fill_(float("nan"))
            bench.restore(session)

    play(bench, session, script, range(CHUNKS), away)
    bench.encoders.close()
    assert same_picture(picture(bench, session), undisturbed(script)[0])


@SCRIPTS
@pytest.mark.parametrize("start", range(1, NOT_EVICTED + 1))
@pytest.mark.parametrize("lost", [0, 1, 3])
def test_a_rebuild_changes_no_bit_while_nothing_was_evicted(script: Script, start: int, lost: int) -> None:
    """Also when chunks after the checkpoint have to be made again, with their inputs at the same chunks."""
    plain, checkpoints = undisturbed(script)
    ours = rebuilt(checkpoints[start], script, seq=start + lost, last=CHUNKS)
    assert len(ours.latents) == CHUNKS - start - lost
    assert same_picture(ours, plain)


@pytest.mark.parametrize("start", range(NOT_EVICTED + 1, CHUNKS))
def test_a_rebuild_after_evictions_is_close(start: int) -> None:
    """What was evicted had an influence that the window does not hold: the next chunks differ, but little."""
    plain, checkpoints = undisturbed(STEERED)
    ours = rebuilt(checkpoints[start], STEERED, seq=start, last=CHUNKS)
    assert not same_picture(ours, plain)
    for latents, original in zip(ours.latents, plain.latents[start:], strict=True):
        assert (latents - original).pow(2).mean() < 0.05 * original.pow(2).mean()
    assert ours.revs == plain.revs[start:]


def lose_kv_frame(bench: Bench) -> None:
    bench.pool.kv[0][:, :, 4].zero_()


def stale_decoder(bench: Bench) -> None:
    bench.pool.decoder[0].copy_(bench.model.initial_decoder_state())


def wrong_rev(bench: Bench) -> None:
    (state,) = bench.loop.states()
    state.steering = replace(state.steering, rev=state.steering.rev + 1)


def older_prompt(bench: Bench) -> None:
    bench.pool.prompt_kv[0].copy_(bench.model.prompt_kv(bench.model.encode_prompts(["a red ball"]))[0])


def wrong_index(bench: Bench) -> None:
    next(iter(bench.loop.states())).index += 1


def forgotten_blend(bench: Bench) -> None:
    next(iter(bench.loop.states())).blend = None


@pytest.mark.parametrize(
    ("damage", "start"),
    [
        (lose_kv_frame, 4),
        (stale_decoder, 4),
        (wrong_rev, 4),
        (older_prompt, 4),
        (wrong_index, 4),
        (forgotten_blend, 2),
    ],
)
def test_a_planted_bug_changes_the_picture(damage: Callable[[Bench], None], start: int) -> None:
    """What the tests above compare is not blind to any of these."""
    plain, checkpoints = undisturbed(STEERED)
    assert same_picture(rebuilt(checkpoints[start], STEERED, seq=start, last=CHUNKS), plain)
    damaged = rebuilt(checkpoints[start], STEERED, seq=start, last=CHUNKS, damage=damage)
    assert len(damaged.latents) == CHUNKS - start
    assert not same_picture(damaged, plain)


def test_an_input_repeated_or_lost_changes_the_picture() -> None:
    """Recorded inputs are applied at their chunks, not before, not after, not twice."""
    plain, checkpoints = undisturbed(STEERED)
    assert same_picture(rebuilt(checkpoints[1], STEERED, seq=4, last=CHUNKS), plain)
    lost = {seq: inputs for seq, inputs in STEERED.items() if seq != 3}
    late = lost | {2: STEERED[3]}
    for other in (lost, late):
        assert not same_picture(rebuilt(checkpoints[1], other, seq=4, last=CHUNKS), plain)


def test_a_rebuild_lets_others_run_between_its_passes() -> None:
    """A session that streams loses at most one pass time to a rebuild before each of its own passes."""
    _, checkpoints = undisturbed(PLAIN)
    bench = Bench(costs=BATCHING_COSTS)
    bench.open("s_b", seed=4)
    bench.step(4)
    bench.reopen("s_a", checkpoints[4], seq=4)
    before = len(bench.model.batches)
    bench.step(8)
    sigmas = [float(batch.sigma.max()) for batch in bench.model.batches[before:]]
    rebuilds = [place for place, sigma in enumerate(sigmas) if sigma == 0.0]
    assert len(rebuilds) >= 4
    assert all(second - first >= 2 for first, second in zip(rebuilds[:3], rebuilds[1:4], strict=True))


def test_a_window_that_is_written_for_a_new_prompt_does_not_wait_for_rebuilds() -> None:
    """Somebody watches that session; who is rebuilt has been waiting anyway."""
    _, checkpoints = undisturbed(PLAIN)
    model = RecordingModel()
    model.spec = replace(model.spec, recaches_prompts=True)
    bench = Bench(model=model, costs=BATCHING_COSTS)
    live = bench.open("s_z", seed=4)
    play(bench, live, {}, range(2))
    bench.to_boundary(live)
    bench.feed(live, PromptInput(text="a blue square"))
    bench.reopen("s_a", checkpoints[4], seq=4)
    bench.run(live, True)
    before = len(model.batches)
    bench.step(4)
    frames = [batch.x.shape[1] for batch in model.batches[before:]]
    span = model.spec.chunk_latent_frames
    assert frames[:2] == [span, 2 * span], "of a chunk of the one, of both chunks of the other"


def test_a_decoder_tail_that_fails_closes_its_session_alone() -> None:
    """Before its first pass; its slot is free again."""
    _, checkpoints = undisturbed(PLAIN)
    bench = Bench(costs=BATCHING_COSTS)
    bench.open("s_b", seed=4)
    bench.step(1)
    bench.model.decode_errors.append(RuntimeError("no"))
    bad = bench.reopen("s_a", checkpoints[4], seq=4)
    bench.step(1)
    assert bench.failed() == [bad] and bench.pool.num_free == bench.slots - 1


def test_a_rebuild_that_fails_closes_its_session_alone() -> None:
    """Its slot is free again."""
    _, checkpoints = undisturbed(PLAIN)
    bench = Bench(costs=BATCHING_COSTS)
    good = bench.open("s_b", seed=4)
    bench.step(1)
    bad = bench.reopen("s_a", checkpoints[4], seq=4)
    bench.model.poisoned_slot = 1
    bench.chunks(good, 2)
    assert bench.failed() == [bad]
    bench.pool.check_integrity()
    assert bench.pool.num_free == bench.slots - 1


def test_a_rank_that_is_lost_in_a_rebuild_closes_no_session() -> None:
    """The engine ends, and its sessions go on elsewhere: the one that was being written again as well."""
    _, checkpoints = undisturbed(PLAIN)
    bench = Bench(costs=BATCHING_COSTS)
    bench.reopen("s_a", checkpoints[4], seq=4)
    lost = RanksLost("rank 1 is gone")
    bench.model.errors.append(lost)
    bench.loop.run()
    assert [event.error for event in bench.events if isinstance(event, ComputeDied)] == [lost]
    assert bench.failed() == []
