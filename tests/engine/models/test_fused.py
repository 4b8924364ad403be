"""Fused blocks equal plain ones: every step, whole passes, products of 8-bit floats.

Triton's kernels are tested by its interpreter where triton is installed: TRITON_INTERPRET=1 pytest ...
"""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.models.attention import DENSE_KERNELS, sdpa, with_kernel
from engine.models.base import PassBatch, PassRow
from engine.models.fused_ops import PLAIN, agree, plain_quantise, triton_ops
from engine.models.linear import fp8_linear, plain_linear
from engine.models.rope import rope_table, rotate
from engine.models.wan.config import TINY
from engine.models.wan.model import WanModel

ROWS = (
    PassRow(slot=2, frame_start=0, write=(0, 1, 2), num_valid=3),
    PassRow(slot=0, frame_start=15, write=(3, 4, 5), num_valid=12),
    PassRow(slot=1, frame_start=9_000_000, write=(11, 3, 4), num_valid=12),
)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run_pass(model: WanModel) -> tuple[Tensor, Tensor]:
    """Velocity and the KV pool after it."""
    spec = model.spec
    kv, prompts = noise(3, *spec.kv_slab_shape), noise(3, *spec.prompt_kv_shape, seed=2)
    batch = PassBatch(
        rows=ROWS,
        x=noise(len(ROWS), spec.chunk_latent_frames, *spec.latent_shape, seed=3),
        sigma=torch.tensor([1.0, 0.0, 0.6])[:, None].expand(-1, spec.chunk_latent_frames),
        kv=kv.to(model.dtype),
        prompt_kv=prompts.to(model.dtype),
    )
    return model.run_pass(batch), batch.kv


def perturbed(fused: bool, config: Any = TINY) -> WanModel:
    """Random weights, also where a fresh model has zeros and ones."""
    model = WanModel.random(0, config=config, fused=False)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model._dit.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    if not fused:
        return model
    return WanModel(
        config,
        model._dit,
        model._decoder,
        model._text,
        weights_hash="",
        device=model.device,
        dtype=model.dtype,
        fused=True,
    )


def test_a_fused_pass_equals_a_plain_one() -> None:
    """Ragged rows in scattered slots: velocities and every K/V."""
    velocity, kv = run_pass(perturbed(fused=True))
    expected, expected_kv = run_pass(perturbed(fused=False))
    torch.testing.assert_close(velocity, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(kv, expected_kv, rtol=1e-4, atol=1e-5)


def test_the_weights_keep_their_names_and_values() -> None:
    """Fusing joins q, k and v in memory; a state dict shows nothing of it."""
    plain, fused = (perturbed(fused=is_fused)._dit.state_dict() for is_fused in (False, True))
    assert plain.keys() == fused.keys()
    assert all(torch.equal(plain[name], fused[name]) for name in plain)


def test_a_pass_in_fp8_is_close() -> None:
    """Within the grain of 8-bit floats, and not equal: they were used."""
    velocity, _ = run_pass(perturbed(fused=True, config=replace(TINY, fp8=True)))
    expected, _ = run_pass(perturbed(fused=False))
    error = (velocity - expected).norm() / expected.norm()
    assert 1e-4 < error < 0.1


def test_an_fp8_layer_against_exact_arithmetic() -> None:
    """Scales follow rows that differ by orders of magnitude; a bias and a GELU before are applied."""
    weight, bias = noise(24, 32), noise(24, seed=2)
    x = noise(2, 5, 32, seed=3) * torch.logspace(-3, 3, 10).view(2, 5, 1)
    make = fp8_linear(torch.device("cpu"))
    for gelu in (False, True):
        given = torch.nn.functional.gelu(x, approximate="tanh") if gelu else x
        product = (given.double() @ weight.double().t()).norm(dim=-1)
        error = (make(weight, bias, gelu_before=gelu)(x) - given.double() @ weight.t().double() - bias).norm(
            dim=-1
        )
        assert (error / product).max() < 0.06
    assert make.gelu_first and not plain_linear.gelu_first


def test_quantised_rows_span_the_range() -> None:
    """The largest of each row becomes the largest 8-bit float; a row of zeros stays one."""
    x = torch.cat([noise(4, 16) * 1e4, torch.zeros(1, 16)])
    small, scale = plain_quantise(x)
    assert small.float().abs().amax(dim=1).tolist() == [448.0] * 4 + [0.0]
    torch.testing.assert_close(small.float() * scale, x, rtol=0.07, atol=1e4 * 2**-8)


def test_plain_steps() -> None:
    """Norm, gate and rotation against their definitions."""
    x, y, e = noise(2, 3, 4, 32), noise(2, 3, 4, 32, seed=2), noise(2, 3, 3, 32, seed=3)
    gate, scale, shift = e[:, :, :1], e[:, :, 1:2], e[:, :, 2:]
    total, h = PLAIN.add_norm(x, y, gate[:, :, 0], scale[:, :, 0], shift[:, :, 0], plus=1.0, eps=1e-6)
    torch.testing.assert_close(total, x + gate * y)
    centred = total - total.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(h, normed * (1 + scale) + shift)
    rope = rope_table([[0, 1, 2], [7, 8, 900_000]], rows=2, columns=2, head_dim=16, device=x.device)
    weights = noise(2, 16, seed=4)
    q, k = PLAIN.norm_rotate(x, weights, rope, 16, 1e-6)
    for part, out in ((x[..., :16], q), (x[..., 16:], k)):
        normed = part / (part.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        weight = weights[0] if out is q else weights[1]
        torch.testing.assert_close(out, rotate((normed * weight)[..., None, :], rope))


def test_a_kernel_by_name_gives_the_same() -> None:
    """A mask is left to torch's own choice."""
    q, k, v = (noise(1, 6, 2, 8, seed=seed) for seed in (1, 2, 3))
    by_name = with_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION)
    torch.testing.assert_close(by_name(q, k, v), sdpa(q, k, v))
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    torch.testing.assert_close(by_name(q, k, v, mask), sdpa(q, k, v, mask))
    assert set(DENSE_KERNELS) == {"cudnn", "flash", "efficient"}


class _Broken:
    """Steps of which one is wrong, or does not run."""

    def __init__(self, step: str, *, raises: bool) -> None:
        self._step, self._raises = step, raises

    def _is_wrong(self, step: str) -> bool:
        if step == self._step and self._raises:
            raise RuntimeError("no such instruction")
        return step == self._step

    def add_norm(self, *args: Any, **named: Any) -> tuple[Tensor, Tensor]:
        x, h = PLAIN.add_norm(*args, **named)
        return x, h + 0.01 * self._is_wrong("add_norm")

    def norm_rotate(self, *args: Any) -> Tensor:
        return PLAIN.norm_rotate(*args)

    def quantise(self, x: Tensor, *, gelu: bool) -> tuple[Tensor, Tensor]:
        is_wrong = self._is_wrong("quantise")
        return PLAIN.quantise(x, gelu=gelu and not is_wrong)


def test_fused_steps_are_used_only_where_they_are_right() -> None:
    """A wrong result or a compiler's error: plain steps instead."""
    device = torch.device("cpu")
    assert agree(PLAIN, device, with_fp8=True)
    for raises in (False, True):
        assert not agree(_Broken("add_norm", raises=raises), device, with_fp8=False)
        assert not agree(_Broken("quantise", raises=raises), device, with_fp8=True)
        assert agree(_Broken("quantise", raises=raises), device, with_fp8=False)  # nobody will ask for it


def test_without_products_of_8_bit_floats_they_are_made_plainly() -> None:
    """A compiler may not know them there: its `quantise` is not called."""
    layer = fp8_linear(torch.device("cpu"), _Broken("quantise", raises=True))(noise(8, 16), noise(8))
    assert layer(noise(3, 16)).isfinite().all()


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1" or find_spec("triton") is None,
    reason="needs triton and TRITON_INTERPRET=1",
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 4e-2)])
def test_triton_kernels_equal_the_plain_steps(dtype: torch.dtype, tolerance: float) -> None:
    """With widths that are no powers of two."""
    kernels = triton_ops()
    assert agree(kernels, torch.device("cpu"), with_fp8=False)
    x, y, e = (noise(2, 3, n, 48, seed=n).to(dtype) for n in (4, 5, 6))
    y = y[:, :, :4]
    vectors = noise(2, 48).to(dtype)
    for gate, scale, shift, plus in (
        (e[:, :, 2], e[:, :, 4], e[:, :, 3], 1.0),
        (None, vectors[0], vectors[1], 0.0),
    ):
        for added in (y, None):
            expected = PLAIN.add_norm(x, added, gate, scale, shift, plus=plus, eps=1e-6)
            found = kernels.add_norm(x, added, gate, scale, shift, plus=plus, eps=1e-6)
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    rope = rope_table([[0, 1, 2], [7, 8, 900_000]], rows=2, columns=2, head_dim=16, device=x.device)
    qkv = noise(2, 3, 4, 144).to(dtype)
    for given, weights, turns in ((qkv, vectors, rope), (x, vectors[:1], None)):
        wanted = PLAIN.norm_rotate(given, weights, turns, 16, 1e-6)
        turned = kernels.norm_rotate(given, weights, turns, 16, 1e-6)
        torch.testing.assert_close(turned, wanted, rtol=tolerance, atol=tolerance)
    for gelu in (False, True):
        small, scale = kernels.quantise(x, gelu=gelu)
        exact, exact_scale = PLAIN.quantise(x.float(), gelu=gelu)
        torch.testing.assert_close(scale, exact_scale, rtol=1e-2, atol=0)
        # The interpreter cuts 8-bit floats off where a card rounds them.
        value, wanted = small.float() * scale, exact.float() * exact_scale
        assert (value - wanted).norm() < 0.08 * wanted.norm()
