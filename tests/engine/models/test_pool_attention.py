"""Every way to attend over the pools equals the plainest one: on ragged and on equal batches, any slots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.models.attention import sdpa
from engine.models.base import AttentionBackend, PassBatch, PassRow
from engine.models.pool_attention import (
    GRAPH,
    GROUPED,
    PADDED,
    SLICES,
    ChosenAttention,
    available_backends,
    make_varlen,
)
from engine.pass_graphs import on_device

F32_TOLERANCE = 1e-5
"""Largest difference of velocities between two ways in float32: sums in another order."""


def plain_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    seqused_k: Tensor,
    num_splits: int,
) -> Tensor:
    """What `varlen_attn` computes, one sequence after the other; it has no kernel for CPUs."""
    assert key.shape == value.shape and max_q == int(cu_seq_q.diff().max()) and max_k == int(seqused_k.max())
    assert bool((cu_seq_k.diff() >= seqused_k).all()), "sequences overlap"
    out = torch.empty_like(query)
    for n, used in enumerate(seqused_k.tolist()):
        begin, end, start = int(cu_seq_q[n]), int(cu_seq_q[n + 1]), int(cu_seq_k[n])
        keys, values = key[start : start + used], value[start : start + used]
        out[begin:end] = sdpa(query[None, begin:end], keys[None], values[None])[0]
    return out


BACKENDS = (GROUPED, PADDED, GRAPH, make_varlen(plain_varlen), ChosenAttention((SLICES, PADDED, GROUPED)))
WINDOW = tuple(range(12))
BATCHES = {
    "ragged, scattered slots": (
        PassRow(slot=2, frame_start=0, write=(0, 1, 2), num_valid=3),
        PassRow(slot=0, frame_start=15, write=(3, 4, 5), num_valid=12),
        PassRow(slot=3, frame_start=3, write=(3, 4, 5), num_valid=6),
        PassRow(slot=1, frame_start=9_000_000, write=(11, 0, 1), num_valid=12),
    ),
    "ragged, neighbours": (
        PassRow(slot=1, frame_start=6, write=(6, 7, 8), num_valid=9),
        PassRow(slot=2, frame_start=15, write=(3, 4, 5), num_valid=12),
        PassRow(slot=3, frame_start=0, write=(0, 1, 2), num_valid=3),
    ),
    "equal, neighbours": tuple(
        PassRow(slot=slot, frame_start=12 + 3 * slot, write=WINDOW[3 * slot : 3 * slot + 3], num_valid=12)
        for slot in range(4)
    ),
    "equal, scattered slots": (
        PassRow(slot=3, frame_start=12, write=(0, 1, 2), num_valid=12),
        PassRow(slot=1, frame_start=15, write=(3, 4, 5), num_valid=12),
    ),
    "one": (PassRow(slot=2, frame_start=3, write=(3, 4, 5), num_valid=6),),
}


def run(
    pools: Any,
    rows: tuple[PassRow, ...],
    backend: AttentionBackend | None,
    change: Callable[[PassBatch], PassBatch] = lambda batch: batch,
) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    spec, device = pools.model.spec, pools.kv.device
    x = torch.randn(len(rows), spec.chunk_latent_frames, *spec.latent_shape, generator=generator)
    sigma = torch.linspace(0.5, 1.0, len(rows))[:, None].expand(-1, spec.chunk_latent_frames)
    batch = PassBatch(
        rows=rows,
        x=x.to(device),
        sigma=sigma.to(device),
        kv=pools.kv,
        prompt_kv=pools.prompt_kv,
        attention=backend,
    )
    velocity: Tensor = pools.model.run_pass(change(batch))
    return velocity


@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_every_way_equals_the_plainest(
    backend: AttentionBackend, rows: tuple[PassRow, ...], make_pools: Callable[[], Any]
) -> None:
    """Velocities and everything in the pools."""
    plain, other = make_pools(), make_pools()
    expected = run(plain, rows, None)
    velocity = run(other, rows, backend)
    torch.testing.assert_close(velocity, expected, rtol=0, atol=F32_TOLERANCE)
    torch.testing.assert_close(other.kv, plain.kv, rtol=0, atol=F32_TOLERANCE)
    assert torch.equal(other.prompt_kv, plain.prompt_kv)


@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES.keys())
def test_a_batch_on_the_device_equals_one_of_rows(
    rows: tuple[PassRow, ...], make_pools: Callable[[], Any]
) -> None:
    """What a CUDA graph captures takes nothing from the rows: with wrong ones it gives the same."""
    plain, other = make_pools(), make_pools()
    expected = run(plain, rows, None)
    nonsense = tuple(PassRow(slot=0, frame_start=77, write=(0, 1, 2), num_valid=12) for _ in rows)
    velocity = run(other, rows, None, lambda batch: replace(on_device(other.model, batch), rows=nonsense))
    torch.testing.assert_close(velocity, expected, rtol=0, atol=F32_TOLERANCE)
    torch.testing.assert_close(other.kv, plain.kv, rtol=0, atol=F32_TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_the_comparison_can_fail(backend: AttentionBackend, make_pools: Callable[[], Any]) -> None:
    """One valid frame more or less shows, so does another slot."""
    rows = BATCHES["ragged, scattered slots"]
    expected = run(make_pools(), rows, backend)
    for wrong in (replace(rows[0], num_valid=4), replace(rows[0], write=(2, 1, 0))):
        velocity = run(make_pools(), (wrong, *rows[1:]), backend)
        if wrong.write == rows[0].write:
            assert not torch.allclose(velocity[0], expected[0], atol=10 * F32_TOLERANCE)
        else:  # slot order carries no meaning
            torch.testing.assert_close(velocity, expected, rtol=0, atol=F32_TOLERANCE)


def test_frames_that_are_not_valid_are_never_seen(make_pools: Callable[[], Any]) -> None:
    """Whatever lies there, as long as it is finite: a freed slot is zeroed before it is used again."""
    rows = BATCHES["ragged, neighbours"]
    for backend in BACKENDS:
        pools = make_pools()
        expected = run(pools, rows, backend)
        for row in rows:
            pools.kv[row.slot, :, :, row.num_valid :] = 1e4
        assert torch.equal(run(pools, rows, backend), expected)


def test_cpus_have_the_three_plain_ways() -> None:
    """Varlen needs CUDA and half precision."""
    names = [backend.name for backend in available_backends(torch.device("cpu"), torch.float32)]
    assert names == ["slices", "grouped", "padded"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_varlen_equals_the_plainest_on_cuda() -> None:
    """In bfloat16, where sums in another order show in the third digit."""
    from engine.models.shapes.model import TINY, ShapesModel
    from tests.engine.models.conftest import Pools

    device = torch.device("cuda")
    model = ShapesModel.random(0, config=TINY, device=device, dtype=torch.bfloat16)
    varlen = next((b for b in available_backends(device, torch.bfloat16) if b.name == "varlen"), None)
    if varlen is None:
        pytest.skip("this torch's kernel takes no lengths in place")
    for rows in BATCHES.values():
        results = []
        for backend in (None, varlen):
            pools = Pools(model)
            pools.kv, pools.prompt_kv = (
                pool.to(device, torch.bfloat16) for pool in (pools.kv, pools.prompt_kv)
            )
            results.append(run(pools, rows, backend))
        torch.testing.assert_close(results[0], results[1], rtol=0, atol=0.05)
