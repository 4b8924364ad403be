"""Attention written out for training equals the fused one."""

from __future__ import annotations

import torch
import torch.nn.functional as fn

from engine.models.attention import attend_trainable


def test_written_out_attention_equals_the_fused_one() -> None:
    """Values and gradients agree."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, 3, 8, requires_grad=True) for n in (5, 7, 7))
    ours = attend_trainable(q, k, v)
    fused = fn.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    torch.testing.assert_close(ours, fused.transpose(1, 2))
    grads = [torch.autograd.grad(out.square().sum(), (q, k, v)) for out in (ours, fused)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
