"""The decoder of TAEHV (`taew2_1`), small where Wan's own is large: functional, a whole chunk at once.

Module names and shapes are those of the published weights. Each of nine memory blocks also reads its own
input of the frame before; those nine frames are the whole state, in and out as one flat tensor, zeros at the
start.

Shape letters: F latent frames of a chunk, C latent channels, h, w latent size, G frames at a block's rate.
"""

from __future__ import annotations

from math import prod
from typing import Final

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

__all__ = ["TAIL_FRAMES", "Taehv", "memory_shapes"]

TAIL_FRAMES: Final = 8
"""Newest latent frames that the state depends on: six blocks in a row look back one latent each, three more
half a latent each."""
_CLAMP: Final = 3.0


def memory_shapes(width: int, h: int, w: int) -> tuple[tuple[int, int, int], ...]:
    """Shape of each of the nine frames of the state, in the order of their blocks."""
    stages = ((4 * width, h, w), (2 * width, 2 * h, 2 * w), (width, 4 * h, 4 * w))
    return tuple(shape for shape in stages for _ in range(3))


def _conv(inputs: int, outputs: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


class _Clamp(nn.Module):
    """A soft limit on latents."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / _CLAMP) * _CLAMP


class _Memory(nn.Module):
    """A residual block on a frame and on the frame before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(2 * width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)
        )

    def forward(self, x: Tensor, past: Tensor) -> Tensor:
        """x [G, c, h, w], past [c, h, w]: the input of the frame before x[0]."""
        before = torch.cat([_laid_out(past[None].to(x.dtype), x), x[:-1]])
        return fn.relu(self.conv(torch.cat([x, before], dim=1)) + x)


class _Grow(nn.Module):
    """Frames → `stride` times as many."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width * stride, 1, bias=False)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """[G, c, h, w] → [G·stride, c, h, w]"""
        out: Tensor = self.conv(x)
        if self.stride == 1:
            return out
        if not _is_channels_last(out):
            frames: Tensor = out.unflatten(1, (self.stride, -1)).flatten(0, 1)
            return frames
        parts: Tensor = out.permute(0, 2, 3, 1).unflatten(3, (self.stride, -1))
        return parts.permute(0, 3, 1, 2, 4).flatten(0, 1).permute(0, 3, 1, 2)  # one copy, channels last


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _laid_out(x: Tensor, like: Tensor) -> Tensor:
    """x with its channels last in memory if those of `like` are: what GPUs want of a convolution."""
    return x.contiguous(memory_format=torch.channels_last) if _is_channels_last(like) else x


def _stage(width: int, outputs: int, grow: int) -> list[nn.Module]:
    """Three memory blocks, twice the size, `grow` times the frames."""
    return [
        *(_Memory(width) for _ in range(3)),
        nn.Upsample(scale_factor=2),
        _Grow(width, grow),
        _conv(width, outputs, bias=False),
    ]


class Taehv(nn.Module):
    """Normalised latents → RGB, 4 frames for each latent; the first 3 frames of a video are to be dropped."""

    def __init__(self, *, channels: int = 16, width: int = 64) -> None:
        super().__init__()
        self.width = width
        self.decoder = nn.Sequential(
            _Clamp(),
            _conv(channels, 4 * width),
            nn.ReLU(),
            *_stage(4 * width, 2 * width, 1),
            *_stage(2 * width, width, 2),
            *_stage(width, width, 2),
            nn.ReLU(),
            _conv(width, 3),
        )

    def forward(self, latents: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [F, C, h, w], flat state → (RGB [4·F, 3, 8h, 8w], unclamped in [0, 1]; next flat state)."""
        shapes = memory_shapes(self.width, *latents.shape[2:])
        past = iter(state.split([prod(shape) for shape in shapes]))
        sizes = iter(shapes)
        x, kept = _laid_out(latents, self.decoder[1].get_parameter("weight")), []
        for layer in self.decoder:
            if isinstance(layer, _Memory):
                kept.append(x[-1].flatten().to(state.dtype))
                x = layer(x, next(past).view(next(sizes)))
            else:
                x = layer(x)
        return x, torch.cat(kept)
