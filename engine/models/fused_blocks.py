"""The blocks of `CausalDiT` as a GPU likes them: few kernels, each token read and written seldom.

The arithmetic is that of `causal_dit.py`, cut elsewhere: q, k and v are one product, a residual and the norm
that follows it are one step (also across blocks), norm and rotation of q and k are one step, the GELU is done
where the product writes or the next one reads. Linear layers may be products of 8-bit floats (`linear.py`).

Shape letters: as in base.py; d model width, M = B·F·N tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.models.base import PassAttention
from engine.models.causal_dit import Attention, Block, CausalDiT
from engine.models.fused_ops import FusedOps
from engine.models.linear import Linear, MakeLinear
from engine.models.rope import Rope

__all__ = ["FusedBlocks", "fuse"]

AttendPool = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q, k, v) → attended, each [B, F, N, H, D]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layers:
    """One block."""

    qkv: Linear
    qk_norms: Tensor
    """[2, d]"""
    o: Linear
    text_q: Linear
    text_q_norm: Tensor
    """[1, d]"""
    text_o: Linear
    norm3: tuple[Tensor, Tensor]
    """Weight and bias [d]."""
    ffn_in: Linear
    ffn_out: Linear


class FusedBlocks:
    """All blocks of a transformer and the norm of its head; holds its weights, not copies (but for FP8)."""

    def __init__(self, dit: CausalDiT, ops: FusedOps, make: MakeLinear) -> None:
        self._ops, self._eps, self._head_dim = ops, dit.config.eps, dit.config.head_dim
        blocks = [block for block in dit.blocks if isinstance(block, Block)]
        self._layers = [_layers(block, make) for block in blocks]
        self._modulation = torch.stack([block.modulation.detach() for block in blocks])  # [L, 1, 6, d]
        self._head_modulation = dit.head.modulation.detach()  # [1, 2, d]

    def run(
        self, x: Tensor, e: Tensor, time: Tensor, rope: Rope, attend: AttendPool, attention: PassAttention
    ) -> Tensor:
        """Tokens x [B, F, N, d], e [B, F, 6, d], time [B, F, d] → what the head's product takes, like x."""
        ops, eps = self._ops, self._eps
        levels = self._modulation[:, None] + e  # [L, B, F, 6, d]
        head = self._head_modulation + time[:, :, None]  # [B, F, 2, d]
        shift, scale = levels[0, :, :, 0], levels[0, :, :, 1]
        x, h = ops.add_norm(x, None, None, scale, shift, plus=1.0, eps=eps)
        for layer, nets in enumerate(self._layers):
            _, _, gate1, shift2, scale2, gate2 = levels[layer].unbind(2)
            y = nets.o(self._self_attend(layer, nets, h, rope, attend))
            x, h = ops.add_norm(x, y, gate1, *nets.norm3, plus=0.0, eps=eps)
            (q,) = ops.norm_rotate(nets.text_q(h), nets.text_q_norm, None, self._head_dim, eps)
            y = nets.text_o(attention.attend_prompts(layer, q).flatten(-2))
            x, h = ops.add_norm(x, y, None, scale2, shift2, plus=1.0, eps=eps)
            y = nets.ffn_out(nets.ffn_in(h))
            if layer + 1 < len(self._layers):
                shift, scale = levels[layer + 1, :, :, 0], levels[layer + 1, :, :, 1]
            else:
                shift, scale = head.unbind(2)
            x, h = ops.add_norm(x, y, gate2, scale, shift, plus=1.0, eps=eps)
        return h

    def _self_attend(self, layer: int, nets: _Layers, h: Tensor, rope: Rope, attend: AttendPool) -> Tensor:
        qkv = nets.qkv(h)
        q, k = self._ops.norm_rotate(qkv, nets.qk_norms, rope, self._head_dim, self._eps)
        v = qkv[..., 2 * h.shape[-1] :].unflatten(-1, (-1, self._head_dim))
        return attend(layer, q, k, v).flatten(-2)


def fuse(dit: CausalDiT, ops: FusedOps, make: MakeLinear) -> None:
    """Let `dit.run_pass` use these blocks; training does not. To be called when the weights are in place:
    q, k and v become views of one tensor, of which later changes of device or type would make copies."""
    for block in dit.blocks:
        assert isinstance(block, Block)
        _join_qkv(block.self_attn)
    dit.fused = FusedBlocks(dit, ops, make)


def _join_qkv(attention: Attention) -> None:
    parts = (attention.q, attention.k, attention.v)
    weight = torch.cat([part.weight.detach() for part in parts])
    bias = torch.cat([part.bias.detach() for part in parts])
    for part, own_weight, own_bias in zip(parts, weight.chunk(3), bias.chunk(3), strict=True):
        part.weight.data, part.bias.data = own_weight, own_bias


def _layers(block: Block, make: MakeLinear) -> _Layers:
    own, text, ffn_in, ffn_out = block.self_attn, block.cross_attn, block.ffn[0], block.ffn[2]
    assert isinstance(ffn_in, torch.nn.Linear) and isinstance(ffn_out, torch.nn.Linear)
    width = own.q.weight.shape[0]
    joined = own.q.weight.detach().as_strided((3 * width, own.q.weight.shape[1]), own.q.weight.stride())
    joined_bias = own.q.bias.detach().as_strided((3 * width,), (1,))
    return _Layers(
        qkv=make(joined, joined_bias),
        qk_norms=torch.stack([own.norm_q.weight.detach(), own.norm_k.weight.detach()]),
        o=_made(make, own.o),
        text_q=_made(make, text.q),
        text_q_norm=text.norm_q.weight.detach()[None],
        text_o=_made(make, text.o),
        norm3=(block.norm3.weight.detach(), block.norm3.bias.detach()),
        ffn_in=make(ffn_in.weight.detach(), ffn_in.bias.detach(), gelu_after=not make.gelu_first),
        ffn_out=make(ffn_out.weight.detach(), ffn_out.bias.detach(), gelu_before=make.gelu_first),
    )


def _made(make: MakeLinear, linear: torch.nn.Linear) -> Linear:
    return make(linear.weight.detach(), linear.bias.detach())
