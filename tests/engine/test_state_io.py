"""State out of a slot and into another one, part by part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.kv_pool import SlabPool
from engine.models.shapes.model import TINY, ShapesModel
from engine.session_state import SessionState, Stage
from engine.state_format import ExportedState, Part, StateFormatError, describe, pack, unpack
from engine.state_io import export_kv_frames, export_state, import_kv_frames, import_state, snapshot
from tests.engine.harness import BATCHING_COSTS, Bench
from tests.engine.test_continuity import STEERED, play


@pytest.fixture(scope="module")
def source() -> tuple[Bench, SessionState]:
    """A session before chunk 6, in the middle of a blend."""
    bench = Bench(costs=BATCHING_COSTS)
    session = bench.open("s_a", seed=3)
    play(bench, session, STEERED, range(6))
    bench.to_boundary(session)
    (state,) = bench.loop.states()
    assert state.blend is not None
    return bench, state


def through_bytes(state: ExportedState) -> ExportedState:
    return unpack(pack(state))


def test_a_whole_state_is_equal_in_another_slot(source: tuple[Bench, SessionState]) -> None:
    """Slabs, latents, prompts and counters; it is at its boundary and needs no rebuild."""
    bench, state = source
    exported = through_bytes(export_state(bench.model, bench.pool, state))
    pool = SlabPool(bench.model, slots=2)
    pool.allocate()
    there = import_state(bench.model, pool, exported, epoch=9)
    assert (there.slot, there.epoch, there.stage) == (1, 9, Stage.BOUNDARY)
    for ours, theirs in ((pool.kv, bench.pool.kv), (pool.prompt_kv, bench.pool.prompt_kv)):
        assert torch.equal(ours[1], theirs[state.slot])
    assert torch.equal(pool.decoder[1], bench.pool.decoder[state.slot])
    assert (there.steering, there.last_applied) == (state.steering, state.last_applied)
    assert (there.seq, there.frame, there.index) == (state.seq, state.frame, state.index)
    assert there.blend is not None and there.embeds is not None and state.blend is not None
    assert (there.blend.done, there.blend.chunks) == (state.blend.done, state.blend.chunks)
    assert torch.equal(there.blend.target, state.blend.target) and torch.equal(there.embeds, state.embeds)
    for ours, theirs in zip(there.history, state.history, strict=True):
        assert ours.index == theirs.index
        assert torch.equal(ours.latents, theirs.latents) and torch.equal(ours.embeds, theirs.embeds)


def test_frames_can_go_ahead_and_the_rest_follow(source: tuple[Bench, SessionState]) -> None:
    """A pre-copy of some ring frames, then the others: together the slab."""
    bench, state = source
    pool = SlabPool(bench.model, slots=1)
    slot = pool.allocate()
    for ring in ((7, 0, 3), (1, 2, 4, 5, 6, 8, 9, 10, 11)):
        part = through_bytes(export_kv_frames(bench.model, bench.pool, state, ring))
        assert part.num_bytes == pool.kv[slot].nbytes * len(ring) // 12
        import_kv_frames(bench.model, pool, part, slot)
    assert torch.equal(pool.kv[slot], bench.pool.kv[state.slot])


def test_a_share_of_the_heads_is_no_whole_slab(source: tuple[Bench, SessionState]) -> None:
    """Ranks have other pools: frames and slabs fit the same share only."""
    bench, state = source
    half = SlabPool(bench.model, slots=1, ranks=2)
    frames = export_kv_frames(bench.model, bench.pool, state, (0, 5))
    with pytest.raises(StateFormatError, match="ring frames"):
        import_kv_frames(bench.model, half, frames, half.allocate())
    half.free(0)
    with pytest.raises(StateFormatError, match="buffer kv"):
        import_state(bench.model, half, export_state(bench.model, bench.pool, state), epoch=1)
    share = bench.pool.kv[state.slot].chunk(2, dim=4)[1]
    there = import_state(
        bench.model, half, with_kv(export_state(bench.model, bench.pool, state), share), epoch=1
    )
    assert torch.equal(half.kv[there.slot], share)


def with_kv(exported: ExportedState, kv: Tensor) -> ExportedState:
    return describe(exported.header, {**exported.buffers, "kv": kv}, checked=True)


def test_parts_are_left_out_as_asked(source: tuple[Bench, SessionState]) -> None:
    """Latents alone are a checkpoint; slabs alone have no scalars."""
    bench, state = source
    latents = export_state(bench.model, bench.pool, state, {Part.LATENTS})
    assert set(latents.buffers) == {"latents", "embeds", "actions"} and latents.header.scalars is not None
    slabs = export_state(bench.model, bench.pool, state, {Part.KV, Part.DECODER})
    assert set(slabs.buffers) == {"kv", "decoder"} and slabs.header.scalars is None
    pool = SlabPool(bench.model, slots=1)
    there = import_state(bench.model, pool, through_bytes(latents), epoch=1)
    assert there.stage is Stage.REBUILD and len(there.rebuild) == 4
    with pytest.raises(StateFormatError, match="no scalars"):
        import_state(bench.model, pool, through_bytes(slabs), epoch=1)


def test_a_state_of_another_model_is_refused(source: tuple[Bench, SessionState]) -> None:
    """Its numbers would mean something else here; no slot is taken."""
    bench, state = source
    exported = export_state(bench.model, bench.pool, state)
    other = ShapesModel.random(1, config=TINY)
    pool = SlabPool(other, slots=1)
    with pytest.raises(StateFormatError, match="this engine has"):
        import_state(other, pool, exported, epoch=1)
    frames = export_kv_frames(bench.model, bench.pool, state, (0,))
    with pytest.raises(StateFormatError):
        import_kv_frames(other, pool, frames, 0)
    assert pool.num_free == 1


@pytest.mark.parametrize("name", ["kv", "prompt_kv", "decoder", "latents", "embeds"])
def test_a_buffer_of_another_shape_is_refused(source: tuple[Bench, SessionState], name: str) -> None:
    """However right its checksum is; no slot is taken."""
    bench, state = source
    exported = export_state(bench.model, bench.pool, state)
    short = {**exported.buffers, name: exported.buffers[name][..., 1:].contiguous()}
    pool = SlabPool(bench.model, slots=1)
    with pytest.raises(StateFormatError, match=name):
        import_state(bench.model, pool, describe(exported.header, short, checked=True), epoch=1)
    assert pool.num_free == 1


def test_references_to_embeddings_that_are_not_there_are_refused(
    source: tuple[Bench, SessionState],
) -> None:
    """A header that contradicts its buffers."""
    bench, state = source
    exported = export_state(bench.model, bench.pool, state)
    scalars = exported.header.scalars
    assert scalars is not None
    wrong = replace(exported.header, scalars=replace(scalars, embeds=99))
    pool = SlabPool(bench.model, slots=1)
    with pytest.raises(StateFormatError, match="does not have"):
        import_state(bench.model, pool, replace(exported, header=wrong), epoch=1)


class NewMemory(TorchDispatchMode):
    """Counts the bytes of what is made meanwhile, views of what was there left out."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {t.untyped_storage().data_ptr() for t in tree_leaves(args) if isinstance(t, Tensor)}
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                storage = tensor.untyped_storage()
                self.num_bytes += 0 if storage.data_ptr() in given else storage.nbytes()
        return made


def test_a_checkpoint_takes_no_memory_until_it_is_written(source: tuple[Bench, SessionState]) -> None:
    """Eight of a session wait for an acknowledgement when its client has left: copies would be a hundred
    megabytes of a GPU."""
    bench, state = source
    with NewMemory() as new:
        kept = snapshot(bench.model.spec, state, bench.pool.decoder[state.slot])
    assert new.num_bytes == 0
    exported = export_state(bench.model, bench.pool, state, {Part.LATENTS})
    written = through_bytes(describe(kept.header, kept.buffers, checked=True))
    assert written.header == exported.header
    assert all(torch.equal(written.buffers[name], exported.buffers[name]) for name in exported.buffers)
