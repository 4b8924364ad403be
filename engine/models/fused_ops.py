"""What lies between the matrix products of a transformer block, each as one step: residual, norm, rotation.

Written out in torch, these steps read and write every token several times; Triton kernels do each in one go.
Both give the same but for rounding: the kernels compute in float32 and round once.

Shape letters: as in base.py; M tokens of a batch, d model width.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Final, Protocol

import torch
import torch.nn.functional as fn
from torch import Tensor

from engine.models.rope import Rope, rope_table, rotate

__all__ = ["PLAIN", "FusedOps", "agree", "available_ops", "has_fp8", "plain_quantise", "triton_ops"]

_log = logging.getLogger("turboserve.engine.models.fused_ops")

FP8_LARGEST: Final = 448.0
"""Of float8_e4m3fn."""
FP8_CAPABILITY: Final = (8, 9)
"""CUDA cards from here on multiply 8-bit floats, and Triton makes them."""
_FP8_GRAIN: Final = 0.05
"""Relative: less than what cutting off instead of rounding costs, more than a few rounded otherwise."""


class FusedOps(Protocol):
    """One way to do these steps."""

    def add_norm(
        self,
        x: Tensor,
        y: Tensor | None,
        gate: Tensor | None,
        scale: Tensor,
        shift: Tensor,
        *,
        plus: float,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        """x + gate·y (x without y, x + y without gate), and its layer norm times (scale + plus) plus shift.

        x, y [B, F, N, d]; gate, scale and shift are per frame [B, F, d] with equal strides, or scale and
        shift for all tokens [d].
        """

    def norm_rotate(self, x: Tensor, weights: Tensor, rope: Rope | None, head_dim: int, eps: float) -> Tensor:
        """RMS norm over d, then rotation, of P parts: x [B, F, N, ≥ P·d] (its first P·d columns count),
        weights [P, d] → [P, B, F, N, H, D]."""

    def quantise(self, x: Tensor, *, gelu: bool) -> tuple[Tensor, Tensor]:
        """Contiguous x [..., d], after a GELU (tanh) if so wished, by token: (float8_e4m3fn [M, d], scale
        [M, 1] float32), whose product is x."""


class _Plain:
    def add_norm(
        self,
        x: Tensor,
        y: Tensor | None,
        gate: Tensor | None,
        scale: Tensor,
        shift: Tensor,
        *,
        plus: float,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        if y is not None:
            x = x + (y if gate is None else _per_token(gate) * y)
        normed = fn.layer_norm(x, x.shape[-1:], eps=eps)
        factor = scale + plus if plus else scale
        return x, torch.addcmul(_per_token(shift), normed, _per_token(factor))

    def norm_rotate(self, x: Tensor, weights: Tensor, rope: Rope | None, head_dim: int, eps: float) -> Tensor:
        width = weights.shape[1]
        out = []
        for part, weight in enumerate(weights):
            normed = fn.rms_norm(x[..., part * width : (part + 1) * width], (width,), weight, eps)
            heads = normed.unflatten(-1, (-1, head_dim))
            out.append(heads if rope is None else rotate(heads, rope))
        return torch.stack(out)

    def quantise(self, x: Tensor, *, gelu: bool) -> tuple[Tensor, Tensor]:
        return plain_quantise(fn.gelu(x, approximate="tanh") if gelu else x)


def plain_quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [..., d] → (float8_e4m3fn [M, d], scale [M, 1] float32)."""
    rows = x.reshape(-1, x.shape[-1]).float()
    scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / FP8_LARGEST
    return (rows / scale).clamp(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn), scale


PLAIN: Final[FusedOps] = _Plain()


def has_fp8(device: torch.device) -> bool:
    """Does the device multiply 8-bit floats?"""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY


def available_ops(device: torch.device) -> FusedOps:
    """The Triton kernels where they run and agree with plain torch, else that."""
    if device.type != "cuda" or find_spec("triton") is None:
        return PLAIN
    if torch.cuda.get_device_capability(device) < (8, 0):
        return PLAIN
    ops = triton_ops()
    return ops if agree(ops, device, with_fp8=has_fp8(device)) else PLAIN


def agree(ops: FusedOps, device: torch.device, *, with_fp8: bool) -> bool:
    """Do these give here what plain torch gives, `quantise` only `with_fp8`? A compiler that fails, or
    compiles to something else, must not cost more than speed."""
    x, y, vectors = (
        torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
        for shape in ((2, 3, 4, 144), (2, 3, 4, 48), (2, 3, 6, 48))
    )
    shift, scale, gate = vectors[:, :, 0], vectors[:, :, 1], vectors[:, :, 2]
    rope = rope_table([[0, 1, 2], [7, 8, 900]], rows=2, columns=2, head_dim=16, device=device)

    def outputs(one: FusedOps) -> list[Tensor]:
        added = one.add_norm(x[..., :48], y, gate, scale, shift, plus=1.0, eps=1e-6)
        return [*added, one.norm_rotate(x, vectors[0, 0, :2], rope, 16, 1e-6)]

    try:
        pairs = zip(outputs(ops), outputs(PLAIN), strict=True)
        same = all(torch.allclose(found, wanted, rtol=1e-3, atol=1e-3) for found, wanted in pairs)
        if with_fp8:
            same = same and all(_quantise_alike(ops, y, gelu=gelu) for gelu in (False, True))
    except Exception as exc:  # whatever a compiler raises
        _log.warning("fused steps can't run here, plain ones do their work: %s", exc)
        return False
    if not same:
        _log.warning("fused steps are wrong here, plain ones do their work")
    return same


def _quantise_alike(ops: FusedOps, x: Tensor, *, gelu: bool) -> bool:
    """The same scales, and values that differ by less than the grain of 8-bit floats."""
    (small, scale), (wanted, wanted_scale) = ops.quantise(x, gelu=gelu), PLAIN.quantise(x, gelu=gelu)
    exact = wanted.float() * wanted_scale
    difference = small.float() * scale - exact
    same_scale = torch.allclose(scale, wanted_scale, rtol=1e-3, atol=0.0)
    return same_scale and bool(difference.norm() < _FP8_GRAIN * exact.norm())


def triton_ops() -> FusedOps:
    """The Triton kernels. Raises ImportError without triton."""
    from engine.models import triton_ops as kernels

    return kernels


def _per_token(x: Tensor) -> Tensor:
    """[B, F, d] → [B, F, 1, d]; [d] as it is."""
    return x if x.ndim == 1 else x.unsqueeze(-2)
