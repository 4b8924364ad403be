"""Rotary positions over three axes (time, row, column), exact for any absolute frame index.

Angles are computed on the host in float64 and reduced before they become float32, so attention between two
frames depends on their distance only, after hours as in the first second.

Shape letters: B rows, F frames, N tokens of a frame, H heads, D head dim, D/2 = time pairs + row pairs +
column pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from engine.models.upload import upload

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
    turns = upload(torch.stack([at_time.cos(), at_time.sin()]).float(), device)
    places = _places(rows, columns, space, device)
    count = rows * columns
    cos, sin = (
        torch.cat(
            [
                turn[:, :, None, :].expand(-1, -1, count, -1),
                place.expand(*at_time.shape[:2], -1, -1),
            ],
            dim=-1,
        )[:, :, :, None]
        for turn, place in zip(turns, places, strict=True)
    )
    return Rope(cos=cos, sin=sin)


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Turn neighbouring pairs of x [B, F, N, H, D] by their angles, in float32; returns x's dtype."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * rope.cos - odd * rope.sin, even * rope.sin + odd * rope.cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)


def _angles(positions: Tensor, pairs: int) -> Tensor:
    """positions [...] float64 → [..., pairs] angles, the first pair turning one radian per position."""
    frequencies = _BASE ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
    return positions[..., None] * frequencies


@lru_cache(maxsize=8)
def _places(rows: int, columns: int, space: int, device: torch.device) -> Tensor:
    """cos and sin [2, N, 2·space] of every token's place within a frame: they never change."""
    at_row = _angles(torch.arange(rows, dtype=torch.float64), space)
    at_column = _angles(torch.arange(columns, dtype=torch.float64), space)
    size = (rows, columns, space)
    angles = torch.cat([at_row[:, None, :].expand(size), at_column[None].expand(size)], dim=-1).flatten(0, 1)
    with torch.inference_mode(False):  # training uses it too
        return torch.stack([angles.cos(), angles.sin()]).float().to(device)
