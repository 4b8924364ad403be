"""Linear layers for inference as plain functions: in the model's type, or as products of 8-bit floats.

FP8: weights are scaled by output row, inputs by token, both to the range of float8_e4m3fn; the product is
summed in float32 and comes out in the model's type. Half the bytes, and twice the rate on cards that have it.

Shape letters: M tokens, K inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

import torch
import torch.nn.functional as fn
from torch import Tensor

from engine.models.fused_ops import PLAIN, FusedOps, has_fp8, plain_quantise

__all__ = ["Linear", "MakeLinear", "fp8_linear", "has_fp8", "plain_linear", "scaled_product"]

Linear: TypeAlias = Callable[[Tensor], Tensor]
"""[..., K] → [..., O]"""


class MakeLinear(Protocol):
    """How to make one from weight [O, K] and bias [O]."""

    def __call__(
        self, weight: Tensor, bias: Tensor, *, gelu_before: bool = False, gelu_after: bool = False
    ) -> Linear:
        """At most one of both: a GELU (tanh) on what goes in, or on what comes out. Some layers do it at no
        cost in one of these places: ask `gelu_first` where."""

    @property
    def gelu_first(self) -> bool:
        """Is a GELU between two layers cheaper on the second's input?"""


class _PlainMake:
    gelu_first = False

    def __call__(
        self, weight: Tensor, bias: Tensor, *, gelu_before: bool = False, gelu_after: bool = False
    ) -> Linear:
        assert not gelu_before
        if not gelu_after:
            return lambda x: fn.linear(x, weight, bias)
        if weight.device.type != "cuda":
            return lambda x: fn.gelu(fn.linear(x, weight, bias), approximate="tanh")
        transposed = weight.t()

        def with_gelu(x: Tensor) -> Tensor:
            """On CUDA the GELU is done as the product is written."""
            out = torch._addmm_activation(bias, x.reshape(-1, x.shape[-1]), transposed, use_gelu=True)
            return out.view(*x.shape[:-1], -1)

        return with_gelu


plain_linear: Final[MakeLinear] = _PlainMake()


def scaled_product(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor, dtype: torch.dtype
) -> Tensor:
    """What the kernel computes, in float32: (x·x_scale) @ (weight·weight_scale)ᵀ + bias.

    x float8 [M, K], x_scale [M, 1], weight float8 [O, K], weight_scale [O, 1].
    """
    product = (x.float() * x_scale) @ (weight.float() * weight_scale).t()
    return (product + bias.float()).to(dtype)


def _kernel_product(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor, dtype: torch.dtype
) -> Tensor:
    return torch._scaled_mm(
        x,
        weight.t(),
        scale_a=x_scale,
        scale_b=weight_scale.t(),
        bias=bias,
        out_dtype=dtype,
        use_fast_accum=True,
    )


class _Fp8Make:
    gelu_first = True

    def __init__(self, ops: FusedOps, product: Callable[..., Tensor]) -> None:
        self._ops, self._product = ops, product

    def __call__(
        self, weight: Tensor, bias: Tensor, *, gelu_before: bool = False, gelu_after: bool = False
    ) -> Linear:
        assert not gelu_after
        ops, product = self._ops, self._product
        small, scale = plain_quantise(weight)  # [O, K], [O, 1]

        def run(x: Tensor) -> Tensor:
            rows, row_scale = ops.quantise(x, gelu=gelu_before)
            out = product(rows, row_scale, small, scale, bias, x.dtype)
            return out.view(*x.shape[:-1], -1)

        return run


def fp8_linear(device: torch.device, ops: FusedOps = PLAIN) -> MakeLinear:
    """Layers of 8-bit floats; where the device has no such product, one that computes the same slowly."""
    if has_fp8(device):
        return _Fp8Make(ops, _kernel_product)
    return _Fp8Make(PLAIN, scaled_product)  # Triton can't make 8-bit floats there either
