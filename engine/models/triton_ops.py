"""`FusedOps` as Triton kernels: one program per token, all arithmetic in float32.

Import only where triton is there. Offsets are 64-bit: a large batch has more than 2³¹ bytes of tokens.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.models.rope import Rope

__all__ = ["add_norm", "norm_rotate", "quantise"]


@triton.jit
def _add_norm_kernel(
    x,
    y,
    gate,
    scale,
    shift,
    x_out,
    h_out,
    tokens,
    gate_stride,
    scale_stride,
    eps,
    plus,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_Y: tl.constexpr,
    HAS_GATE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    group = row // tokens
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    value = tl.load(x + row * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_Y:
        added = tl.load(y + row * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
        if HAS_GATE:
            added *= tl.load(gate + group * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
        rounded = (value + added).to(x_out.dtype.element_ty)
        tl.store(x_out + row * WIDTH + column, rounded, mask=inside)
        value = rounded.to(tl.float32)
    mean = tl.sum(value, axis=0) / WIDTH
    centred = tl.where(inside, value - mean, 0.0)
    variance = tl.sum(centred * centred, axis=0) / WIDTH
    factor = tl.load(scale + group * scale_stride + column, mask=inside, other=0.0).to(tl.float32) + plus
    offset = tl.load(shift + group * scale_stride + column, mask=inside, other=0.0).to(tl.float32)
    normed = centred * tl.rsqrt(variance + eps) * factor + offset
    tl.store(h_out + row * WIDTH + column, normed.to(h_out.dtype.element_ty), mask=inside)


def add_norm(
    x: Tensor,
    y: Tensor | None,
    gate: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    *,
    plus: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """See `FusedOps.add_norm`."""
    x, y = x.contiguous(), None if y is None else y.contiguous()
    width = x.shape[-1]
    rows = x.numel() // width
    h = torch.empty_like(x)
    x_out = x if y is None else torch.empty_like(x)
    per_group = scale.ndim > 1
    _add_norm_kernel[(rows,)](
        x,
        x if y is None else y,
        scale if gate is None else gate,
        scale,
        shift,
        x_out,
        h,
        x.shape[-2],
        0 if gate is None else gate.stride(-2),
        scale.stride(-2) if per_group else 0,
        eps,
        plus,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        HAS_Y=y is not None,
        HAS_GATE=gate is not None,
        num_warps=_warps(width),
    )
    return x_out, h


@triton.jit
def _norm_rotate_kernel(
    x,
    weight,
    cos,
    sin,
    out,
    rows,
    row_stride,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PAIRS: tl.constexpr,
    ROTATE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    value = tl.load(x + row * row_stride + part * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(weight + part * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    normed = value * tl.rsqrt(tl.sum(value * value, axis=0) / WIDTH + eps) * factor
    if ROTATE:
        even, odd = tl.split(tl.reshape(normed, (BLOCK // 2, 2)))
        pair = tl.arange(0, BLOCK // 2)
        is_pair = pair < WIDTH // 2
        angle = row * PAIRS + pair % PAIRS
        c = tl.load(cos + angle, mask=is_pair, other=0.0)
        s = tl.load(sin + angle, mask=is_pair, other=0.0)
        normed = tl.interleave(even * c - odd * s, even * s + odd * c)
    target = out + (part * rows + row) * WIDTH + column
    tl.store(target, normed.to(out.dtype.element_ty), mask=inside)


def norm_rotate(x: Tensor, weights: Tensor, rope: Rope | None, head_dim: int, eps: float) -> Tensor:
    """See `FusedOps.norm_rotate`."""
    x = x.contiguous()
    cos, sin = (weights, weights) if rope is None else (rope.cos.contiguous(), rope.sin.contiguous())
    parts, width = weights.shape
    rows = x.numel() // x.shape[-1]
    out = x.new_empty(parts, *x.shape[:-1], width)
    _norm_rotate_kernel[(rows, parts)](
        x,
        weights,
        cos,
        sin,
        out,
        rows,
        x.stride(-2),
        eps,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        PAIRS=1 if rope is None else cos.shape[-1],
        ROTATE=rope is not None,
        num_warps=_warps(width),
    )
    heads: Tensor = out.unflatten(-1, (-1, head_dim))
    return heads


@triton.jit
def _quantise_kernel(
    x,
    out,
    scale,
    LARGEST: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    GELU: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    value = tl.load(x + row * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    if GELU:  # tanh form: v/2·(1 + tanh(u)) = v·sigmoid(2u)
        u = 0.7978845608028654 * (value + 0.044715 * value * value * value)
        value = value * tl.sigmoid(2.0 * u)
    unit = tl.maximum(tl.max(tl.abs(value), axis=0), 1e-12) / LARGEST
    tl.store(scale + row, unit)
    tl.store(out + row * WIDTH + column, (value / unit).to(out.dtype.element_ty), mask=inside)


def quantise(x: Tensor, *, gelu: bool) -> tuple[Tensor, Tensor]:
    """See `FusedOps.quantise`."""
    x = x.contiguous()
    width = x.shape[-1]
    rows = x.numel() // width
    out = torch.empty(rows, width, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    _quantise_kernel[(rows,)](
        x,
        out,
        scale,
        LARGEST=448.0,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        GELU=gelu,
        num_warps=_warps(width),
    )
    return out, scale


def _warps(width: int) -> int:
    """A power of two, so that a thread holds about 16 values."""
    return 1 << max(0, min(4, (width - 1).bit_length() - 9))
