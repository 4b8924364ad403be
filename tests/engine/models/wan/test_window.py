"""A session of Wan in the engine's loop: the window is written again for a new prompt, and its sink in time.

`stream.safetensors` and `infinity.safetensors` hold what the code of LongLive 1.0 computes (their metadata
say with which settings): its transformer with its own cache, re-cache after a switch, and scheduler, in
float32, on weights made from their names (tests/golden/wan/generate.py) and the engine's noise. For the
second it keeps keys unrotated and turns them by their place in the window at each pass.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from engine.models.wan.config import TINY, WanConfig
from engine.models.wan.model import WanModel
from engine.session_state import Stage
from engine.state_format import ExportedState
from engine.steering import LogEntry, RecordedInput
from scheduler.messages import PromptInput, SessionId
from tests.engine.harness import BATCHING_COSTS, Bench, RecordingModel
from tests.golden.wan.generate import weights_of

GOLDEN = Path(__file__).parents[3] / "golden" / "wan"
SMALL = replace(TINY, dit=replace(TINY.dit, latent_shape=(16, 4, 4)))
SEED = 5
SPAN = 3


def small(config: WanConfig = SMALL) -> RecordingModel:
    """Weights by their names, which make a transformer that listens to its prompt."""
    model = WanModel.random(0, config=config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model._dit.state_dict().items()}
    model._dit.load_state_dict(weights_of(shapes))
    return RecordingModel(inner=model)


def cut(seq: int, text: str) -> LogEntry:
    return LogEntry(entry=f"{seq + 10}-0", message=PromptInput(text=text))


def make(bench: Bench, session: SessionId, chunks: range, prompts: Mapping[int, str]) -> list[Tensor]:
    """Latents [F, C, h, w] of these chunks; a prompt comes at the boundary before its chunk."""
    before = len(bench.model.latents)
    for seq in chunks:
        bench.to_boundary(session)
        if seq in prompts and seq > chunks.start:
            bench.feed_entries(session, (cut(seq, prompts[seq]),))
        bench.run(session, True)
        while bench.made(session) <= seq:
            bench.step(1)
    return bench.model.latents[before:]


def streamed(
    config: WanConfig, prompts: Mapping[int, str], count: int
) -> tuple[Bench, list[Tensor], Mapping[int, ExportedState]]:
    """A session from its start on: its bench, latents and checkpoints."""
    bench = Bench(model=small(config), costs=BATCHING_COSTS)
    session = bench.open("s_a", text=prompts[0], seed=SEED)
    latents = make(bench, session, range(count), prompts)
    bench.encoders.close()
    return bench, latents, bench.checkpoints(session)


def rebuilt(
    config: WanConfig, checkpoint: ExportedState, prompts: Mapping[int, str], seq: int, last: int
) -> list[Tensor]:
    """Latents of chunks `seq` up to `last` after a rebuild; a prompt of `seq` was recorded."""
    bench = Bench(model=small(config), costs=BATCHING_COSTS)
    recorded = (RecordedInput(seq=seq, entry=cut(seq, prompts[seq])),) if seq in prompts else ()
    session = bench.reopen("s_a", checkpoint, seq=seq, recorded=recorded)
    with torch.inference_mode():
        bench.run(session, False)
        bench.loop.step()
        while any(state.stage is Stage.REBUILD for state in bench.loop.states()):
            bench.loop.step()
    bench.model.latents.clear()
    latents = make(bench, session, range(seq, last), prompts)
    bench.encoders.close()
    return latents


def read(name: str) -> tuple[Tensor, dict[int, str]]:
    """Latents [chunks, F, C, h, w], and which prompt comes before which chunk."""
    with safe_open(GOLDEN / name, framework="pt") as file:
        prompts = json.loads(file.metadata()["prompts"])
        return file.get_tensor("latents"), {int(seq): text for seq, text in prompts.items()}


@pytest.fixture(scope="module")
def golden() -> tuple[Tensor, dict[int, str]]:
    """Of `stream.safetensors`."""
    return read("stream.safetensors")


def test_a_session_equals_the_reference(golden: tuple[Tensor, dict[int, str]]) -> None:
    """Window, sink, schedule, clean pass, and the re-cache for a new prompt while the window fills (sink
    included) and once it is full (without it)."""
    wanted, prompts = golden
    _, latents, _ = streamed(SMALL, prompts, len(wanted))
    assert wanted.std() > 0.5
    torch.testing.assert_close(torch.stack(latents), wanted, rtol=1e-4, atol=1e-4)
    _, other, _ = streamed(replace(SMALL, recaches_prompts=False), prompts, len(wanted))
    assert (other[-1] - wanted[-1]).abs().max() > 5e-3


def test_a_sink_that_always_moves_is_the_infinite_reference() -> None:
    """With no more reach than the window, positions are those within it; the new prompt fits in as well."""
    wanted, prompts = read("infinity.safetensors")
    config = replace(SMALL, sink_reach=SMALL.dit.window_frames)
    _, latents, _ = streamed(config, prompts, len(wanted))
    torch.testing.assert_close(torch.stack(latents), wanted, rtol=1e-4, atol=1e-4)
    _, other, _ = streamed(SMALL, prompts, len(wanted))
    assert (other[4] - wanted[4]).abs().max() > 0.02


def test_a_rebuilt_session_repeats_the_recache(golden: tuple[Tensor, dict[int, str]]) -> None:
    """Before it, by the recorded prompt; after it, by the pass that wrote the chunks together: to the bit."""
    _, prompts = golden
    prompts = {seq: text for seq, text in prompts.items() if seq < 4}
    _, latents, checkpoints = streamed(SMALL, prompts, 4)
    for seq in (2, 3):
        again = rebuilt(SMALL, checkpoints[seq], prompts, seq, 4)
        assert len(again) == 4 - seq and all(map(torch.equal, again, latents[seq:]))


def test_a_recache_without_memory_is_left_out(golden: tuple[Tensor, dict[int, str]]) -> None:
    """The session goes on with the window as it was."""
    _, prompts = golden
    bench = Bench(model=small(), costs=BATCHING_COSTS)
    session = bench.open("s_a", text=prompts[0], seed=SEED)
    make(bench, session, range(2), prompts)
    bench.to_boundary(session)
    bench.model.errors = [torch.OutOfMemoryError("none for so many frames")]
    bench.feed_entries(session, (cut(2, prompts[2]),))
    bench.run(session, True)
    while bench.made(session) <= 2:
        bench.step(1)
    bench.encoders.close()
    plain = streamed(replace(SMALL, recaches_prompts=False), prompts, 3)[1]
    assert not bench.failed() and torch.equal(bench.model.latents[-1], plain[-1])


def test_a_window_that_fits_in_no_one_pass_is_rebuilt_chunk_by_chunk(
    golden: tuple[Tensor, dict[int, str]],
) -> None:
    """It was written so once, where there was memory, or was to be: a session is not lost for that."""
    _, prompts = golden
    _, latents, checkpoints = streamed(SMALL, prompts, 4)
    bench = Bench(model=small(), costs=BATCHING_COSTS)
    bench.model.errors = [torch.OutOfMemoryError("none for so many frames")]
    session = bench.reopen("s_a", checkpoints[3], seq=3)
    again = make(bench, session, range(3, 4), {})[-1]
    bench.encoders.close()
    assert not bench.failed()
    tried, *written = [batch.rows[0].write for batch in bench.model.batches]
    assert tried == (0, 1, 2, 3, 4, 5)
    assert written[:4] == [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11)]
    assert (again - latents[3]).pow(2).mean() < 0.05 * latents[3].pow(2).mean()


def sink_distances(bench: Bench) -> list[int]:
    """Latent frames from the sink to the newest frame in each denoising or clean pass of a chunk."""
    start, found = 0, []
    for batch in bench.model.batches:
        (row,) = batch.rows
        if row.write == (0, 1, 2):
            start = row.frame_start
        else:
            found.append(row.frame_start + SPAN - 1 - start)
    return found


def test_the_sink_stays_within_reach() -> None:
    """Written again nearer whenever it would be further away than was trained, and only then."""
    reach = 18
    bench, _, _ = streamed(replace(SMALL, sink_reach=reach), {0: "a red fox"}, 14)
    moves = [batch for batch in bench.model.batches if batch.rows[0].write == (0, 1, 2)][5:]  # after chunk 0
    assert [batch.rows[0].frame_start for batch in moves] == [9, 18, 27]
    assert all(batch.rows[0].num_valid == SPAN and not batch.sigma.any() for batch in moves)
    distances = sink_distances(bench)
    assert max(distances) == reach - 1 and distances.count(reach - 1) == 15
    free, _, _ = streamed(replace(SMALL, sink_reach=None), {0: "a red fox"}, 14)
    assert max(sink_distances(free)) == 14 * SPAN - 1


def test_the_sink_looks_the_same_wherever_it_is() -> None:
    """Its keys are those of before, turned: the values are equal, and the picture hardly changes."""
    one, kept, _ = streamed(replace(SMALL, sink_reach=18), {0: "a red fox"}, 7)
    two, free, _ = streamed(replace(SMALL, sink_reach=None), {0: "a red fox"}, 7)
    assert all(map(torch.equal, kept[:6], free[:6])) and not torch.equal(kept[6], free[6])
    (keys, values), (old_keys, old_values) = (b.pool.kv[0].unbind(1) for b in (one, two))
    torch.testing.assert_close(values[:, :SPAN], old_values[:, :SPAN], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        keys[:, :SPAN].norm(dim=-1), old_keys[:, :SPAN].norm(dim=-1), rtol=1e-3, atol=1e-4
    )
    assert (keys[:, :SPAN] - old_keys[:, :SPAN]).abs().max() > 0.1


def test_each_chunk_of_a_sink_that_moves_keeps_its_prompt() -> None:
    """The first was made with another one than is in force, the second with that."""
    one_frame = replace(SMALL.dit, chunk_frames=1, window_frames=6)
    config = replace(SMALL, dit=one_frame, sink_frames=2, recaches_prompts=False)
    prompts = {0: "a red fox", 1: "two blue fish"}
    moved, _, _ = streamed(replace(config, sink_reach=8), prompts, 9)
    rows = [batch.rows[0] for batch in moved.model.batches]
    assert [row.frame_start for row in rows if row.write == (1,)][-1] > 1
    free, _, _ = streamed(replace(config, sink_reach=None), prompts, 9)
    values, wanted = (bench.pool.kv[0, :, 1, :2] for bench in (moved, free))
    torch.testing.assert_close(values, wanted, rtol=1e-3, atol=1e-4)


def test_a_rebuilt_session_has_its_sink_where_it_was() -> None:
    """A checkpoint from after the sink has moved."""
    config = replace(SMALL, sink_reach=18)
    bench, _, checkpoints = streamed(config, {0: "a red fox"}, 9)
    other = Bench(model=small(config), costs=BATCHING_COSTS)
    session = other.reopen("s_a", checkpoints[8], seq=8)
    with torch.inference_mode():
        other.run(session, False)
        other.loop.step()
        while any(state.stage is Stage.REBUILD for state in other.loop.states()):
            other.loop.step()
    other.encoders.close()
    slabs = [b.pool.kv[next(iter(b.loop.states())).slot][:, :, :SPAN] for b in (bench, other)]
    torch.testing.assert_close(slabs[1], slabs[0], rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_a_prompt_that_was_away_for_a_pass_counts_as_new() -> None:
    """The sink was made with an older one. A migration that copied the slot's prompt then must notice."""
    bench = Bench(model=small(replace(SMALL, sink_reach=18, recaches_prompts=False)), costs=BATCHING_COSTS)
    session = bench.open("s_a", text="a red fox", seed=SEED)
    make(bench, session, range(6), {0: "a red fox", 4: "two blue fish"})
    bench.to_boundary(session)
    (state,) = bench.loop.states()
    before = state.embeds
    assert before is not None and before is not state.history[0].embeds
    make(bench, session, range(6, 7), {})
    bench.encoders.close()
    assert bench.model.batches[-1].rows[0].write != (0, 1, 2)
    assert state.embeds is not before and state.embeds is not None and torch.equal(state.embeds, before)
    wanted = bench.model.prompt_kv(before)[0]
    torch.testing.assert_close(bench.pool.prompt_kv[state.slot], wanted, rtol=1e-6, atol=1e-6)
