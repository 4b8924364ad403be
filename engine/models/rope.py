"""Rotary positions over three axes (time, row, column), exact for any absolute frame index.

Angles are computed on the host in float64 and reduced before they become float32, so attention between two
frames depends on their distance only, after hours as in the first second.

Shape letters: B rows, F frames, N tokens of a frame, H heads, D head dim, D/2 = time pairs + row pairs +
column pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Rope", "rope_table", "rotate"]

_BASE = 10000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotation of every token."""

    cos: Tensor
    """[B, F, N, 1, D/2] float32."""
    sin: Tensor
    """Same shape."""


def rope_table(
    frames: Sequence[Sequence[int]], *, rows: int, columns: int, head_dim: int, device: torch.device
) -> Rope:
    """Rotation for absolute latent frame indices [B][F] and every token of a rows × columns grid.

    The pairs of a head are split as Wan splits them: a third (rounded down) each for row and column, the
    rest time.
    """
    space = head_dim // 6
    time = head_dim // 2 - 2 * space
    at_time = _angles(torch.tensor(frames, dtype=torch.float64), time)  # [B, F, time]
    at_row = _angles(torch.arange(rows, dtype=torch.float64), space)
    at_column = _angles(torch.arange(columns, dtype=torch.float64), space)
    size = (*at_time.shape[:2], rows, columns)
    angles = torch.cat(
        [
            at_time[:, :, None, None, :].expand(*size, time),
            at_row[:, None, :].expand(*size, space),
            at_column[None, :, :].expand(*size, space),
        ],
        dim=-1,
    ).flatten(2, 3)[:, :, :, None]
    return Rope(
        cos=angles.cos().to(device=device, dtype=torch.float32),
        sin=angles.sin().to(device=device, dtype=torch.float32),
    )


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Turn neighbouring pairs of x [B, F, N, H, D] by their angles, in float32; returns x's dtype."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * rope.cos - odd * rope.sin, even * rope.sin + odd * rope.cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)


def _angles(positions: Tensor, pairs: int) -> Tensor:
    """positions [...] float64 → [..., pairs] angles, the first pair turning one radian per position."""
    frequencies = _BASE ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
    return positions[..., None] * frequencies
