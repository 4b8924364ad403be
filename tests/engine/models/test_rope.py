"""Rotary positions."""

from __future__ import annotations

import torch

from engine.models.rope import rope_table, rotate


def _scores(query_frame: int, key_frame: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 6, 2, 32, generator=generator) for _ in range(2))

    def turned(x: torch.Tensor, frame: int) -> torch.Tensor:
        table = rope_table([[frame]], rows=2, columns=3, head_dim=32, device=torch.device("cpu"))
        return rotate(x, table)[0, 0]

    return torch.einsum("qhd,khd->hqk", turned(q, query_frame), turned(k, key_frame))


def test_scores_depend_on_the_distance_only() -> None:
    """After years of frames attention scores are what they were at the start."""
    torch.testing.assert_close(_scores(11, 2), _scores(10**9 + 11, 10**9 + 2), rtol=1e-5, atol=1e-5)


def test_scores_depend_on_the_distance() -> None:
    """Another distance in time gives other scores."""
    assert not torch.allclose(_scores(11, 2), _scores(11, 5), atol=1e-2)


def test_rotation_keeps_lengths_and_type() -> None:
    """Rotation changes no norm, and bfloat16 stays bfloat16."""
    x = torch.randn(1, 2, 6, 2, 32)
    table = rope_table([[4, 5]], rows=2, columns=3, head_dim=32, device=torch.device("cpu"))
    torch.testing.assert_close(rotate(x, table).norm(dim=-1), x.norm(dim=-1))
    assert rotate(x.bfloat16(), table).dtype == torch.bfloat16


def test_axes_split_like_wan() -> None:
    """Head size 128 has 22 time, 21 row and 21 column pairs."""
    table = rope_table([[0]], rows=2, columns=2, head_dim=128, device=torch.device("cpu"))
    turning = table.sin[0, 0, :, 0] != 0  # [tokens, pairs] at frame 0
    assert turning[1].nonzero()[:, 0].tolist() == list(range(43, 64))  # next column
    assert turning[2].nonzero()[:, 0].tolist() == list(range(22, 43))  # next row
