"""Host memory for idle sessions: how much a slab takes, and how much is taken where nobody says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch

from engine.kv_pool import SlabPool
from engine.models.base import CausalVideoModel
from engine.models.shapes.model import TINY, ShapesModel
from engine.models.wan.config import TINY as TINY_WAN
from engine.models.wan.model import WanModel
from engine.offload import HostPool, default_budget, slab_bytes, state_bytes
from engine.session_state import ChunkRecord, PromptBlend, SessionState
from engine.state_io import export_state
from engine.steering import Steering
from scheduler.messages import SessionId

SHAPES = ShapesModel.random(0, config=TINY)
GIB = 2**30


def on_gpu(model: CausalVideoModel) -> CausalVideoModel:
    """As much of it as host memory is planned by, as if it were on a GPU."""
    stand_in = SimpleNamespace(
        spec=model.spec,
        dtype=model.dtype,
        device=torch.device("cuda"),
        initial_decoder_state=model.initial_decoder_state,
    )
    return cast(CausalVideoModel, stand_in)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_state_fills_a_slab(dtype: torch.dtype) -> None:
    """In the middle of a blend, a prompt to each chunk: it fits, and what is left is little."""
    model = cast(CausalVideoModel, WanModel.random(0, config=TINY_WAN, dtype=dtype))
    spec, pool = model.spec, SlabPool(model, slots=1)
    pool.kv.fill_(1.5)
    prompts = [torch.zeros(1, *spec.text_shape) for _ in range(7)]
    history = [
        ChunkRecord(
            index=index,
            latents=torch.zeros(spec.chunk_latent_frames, *spec.latent_shape),
            embeds=prompts[place],
            actions=None,
        )
        for place, index in enumerate((0, 7, 8, 9))
    ]
    state = SessionState(
        session=SessionId("s_1"),
        epoch=1,
        slot=pool.allocate(),
        steering=Steering(seed=0),
        seq=10,
        frame=120,
        index=10,
        embeds=prompts[4],
        history=history,
        blend=PromptBlend(start=prompts[5], target=prompts[6], chunks=4),
    )
    exported = export_state(model, pool, state, checked=False)
    slab = HostPool(model, budget_bytes=slab_bytes(model)).allocate()
    assert slab is not None and len(slab.data) == state_bytes(model)
    away = slab.place(exported)
    away.buffers["kv"].copy_(exported.buffers["kv"])
    assert torch.equal(away.buffers["kv"], pool.kv[0])
    assert exported.num_bytes <= len(slab.data) < 1.01 * exported.num_bytes


def test_pinned_memory_comes_in_powers_of_two() -> None:
    """Which is what the budget is divided by."""
    size = state_bytes(SHAPES)
    taken = slab_bytes(on_gpu(SHAPES))
    assert slab_bytes(SHAPES) == size < taken < 2 * size and taken.bit_count() == 1


def test_ranks_hold_a_share_of_the_heads() -> None:
    """And all else."""
    kv = torch.Size(SHAPES.spec.kv_slab_shape).numel() * SHAPES.dtype.itemsize
    assert state_bytes(SHAPES, ranks=2) == state_bytes(SHAPES) - kv // 2


def test_a_default_holds_some_sessions_of_any_model() -> None:
    """Small ones as many as before; of large ones as many as are resident, in a quarter of what is free."""
    taken = slab_bytes(on_gpu(SHAPES))
    assert default_budget(on_gpu(SHAPES), sessions=4, free_bytes=64 * GIB) == GIB
    many = 3 * GIB // taken
    assert default_budget(on_gpu(SHAPES), sessions=many, free_bytes=64 * GIB) == many * taken
    assert default_budget(on_gpu(SHAPES), sessions=many, free_bytes=8 * GIB) == 2 * GIB
    assert default_budget(on_gpu(SHAPES), sessions=many, free_bytes=GIB) == GIB
