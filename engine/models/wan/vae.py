"""The decoder of Wan's VAE, streaming: functional, 32 cached tensors in one flat state, in and out.

Module names and shapes are those of `Wan2.1_VAE.pth`. Every convolution over time sees the two frames before
its input; those 32 pairs of frames are the state, zeros at the start. Wan's own decoder treats the first
latent of a video apart: it skips the two doublings of the frame rate and gives one frame instead of four.
Streams here are uniform instead: every latent gives four frames and the first three of a video are dropped.
That is not equal to Wan's result; with `is_first` it is Wan's own way.

Shape letters: F latent frames, C latent channels, h, w latent size, G frames at a layer's rate, c features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Final

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from engine.models.attention import sdpa

__all__ = ["LATENT_MEAN", "LATENT_STD", "TAIL_FRAMES", "WanVaeDecoder"]

LATENT_MEAN: Final = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
"""Per channel: what the transformer's latents are normalised by."""
LATENT_STD: Final = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
TAIL_FRAMES: Final = 38
"""Newest latent frames that the state depends on: convolutions in a row look back 24 latents, then 14 frames
at twice the rate, then 26 at four times."""
_PAST: Final = 2
_RESIDUALS: Final = 3
_MULTIPLES: Final = (4, 4, 4, 2, 1)
_GROWS: Final = (True, True, False)
"""Does the frame rate double where the size does?"""


class _Cache:
    """What each convolution over time saw last: read from one state, written to the next."""

    def __init__(self, parts: Iterator[Tensor], *, is_first: bool) -> None:
        self._parts, self.is_first = parts, is_first
        self.kept: list[Tensor] = []

    def extend(self, x: Tensor) -> Tensor:
        """x [c, G, h, w] → [c, 2 + G, h, w], and remember its end."""
        past = next(self._parts).view(x.shape[0], _PAST, *x.shape[2:])
        whole = torch.cat([past.to(x.dtype), x], dim=1)
        self.kept.append(whole[:, -_PAST:].flatten())
        return whole

    def skip(self) -> None:
        """Leave a convolution's part as it is."""
        self.kept.append(next(self._parts))


class _Norm(nn.Module):
    """RMS norm over channels, dimension 0 of [c, …]."""

    def __init__(self, width: int, *, dims: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width, *(1,) * dims))

    def forward(self, x: Tensor) -> Tensor:
        gamma = self.gamma.view(-1, *(1,) * (x.ndim - 1))
        out: Tensor = fn.normalize(x, dim=0) * float(x.shape[0] ** 0.5) * gamma
        return out


class _Conv(nn.Conv3d):
    """A convolution that looks back in time; `space` is its side in a frame."""

    def __init__(self, inputs: int, outputs: int, space: int = 3) -> None:
        super().__init__(inputs, outputs, (_PAST + 1, space, space), padding=(0, space // 2, space // 2))

    def run(self, x: Tensor, cache: _Cache) -> Tensor:
        """[c, G, h, w] → [c', G, h, w]"""
        out: Tensor = self(cache.extend(x)[None])[0]
        return out


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _Norm(inputs, dims=3),
            nn.SiLU(),
            _Conv(inputs, outputs),
            _Norm(outputs, dims=3),
            nn.SiLU(),
            nn.Identity(),  # a dropout when trained
            _Conv(outputs, outputs),
        )
        self.shortcut = nn.Conv3d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, cache: _Cache) -> Tensor:
        h = x
        for layer in self.residual:
            h = layer.run(h, cache) if isinstance(layer, _Conv) else layer(h)
        short = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(x[None])[0]
        out: Tensor = short + h
        return out


class _Attention(nn.Module):
    """Within each frame, one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _Norm(width, dims=2)
        self.to_qkv = nn.Conv2d(width, 3 * width, 1)
        self.proj = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, cache: _Cache) -> Tensor:
        qkv = self.to_qkv(self.norm(x).transpose(0, 1))  # [G, 3c, h, w]
        q, k, v = qkv.flatten(2).transpose(1, 2).unsqueeze(2).chunk(3, dim=-1)  # each [G, h·w, 1, c]
        out = sdpa(q, k, v).flatten(2).transpose(1, 2).unflatten(2, x.shape[2:])
        attended: Tensor = x + self.proj(out).transpose(0, 1)
        return attended


class _Upsample(nn.Module):
    """Twice the size at half the width, and where it has a `time_conv` twice the frames."""

    def __init__(self, width: int, *, grows: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(width, width // 2, 3, padding=1)
        )
        self.time_conv = _Conv(width, 2 * width, space=1) if grows else None

    def forward(self, x: Tensor, cache: _Cache) -> Tensor:
        if self.time_conv is not None:
            if cache.is_first:
                cache.skip()
            else:
                pairs = self.time_conv.run(x, cache).unflatten(0, (2, -1))  # [2, c, G, h, w]
                x = pairs.permute(1, 2, 0, 3, 4).flatten(1, 2)
        out: Tensor = self.resample(x.transpose(0, 1)).transpose(0, 1)
        return out


class _Body(nn.Module):
    """What the checkpoint calls `decoder`."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        widths = [width * multiple for multiple in _MULTIPLES]
        self.conv1 = _Conv(channels, widths[0])
        self.middle = nn.ModuleList(
            [_Residual(widths[0], widths[0]), _Attention(widths[0]), _Residual(widths[0], widths[0])]
        )
        layers: list[nn.Module] = []
        for stage, (inputs, outputs) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            first = inputs // 2 if stage else inputs  # what the upsampling before it left
            layers += [_Residual(first if i == 0 else outputs, outputs) for i in range(_RESIDUALS)]
            if stage < len(_GROWS):
                layers.append(_Upsample(outputs, grows=_GROWS[stage]))
        self.upsamples = nn.ModuleList(layers)
        self.head = nn.Sequential(_Norm(widths[-1], dims=3), nn.SiLU(), _Conv(widths[-1], 3))

    def forward(self, x: Tensor, cache: _Cache) -> Tensor:
        x = self.conv1.run(x, cache)
        for block in (*self.middle, *self.upsamples):
            x = block(x, cache)
        norm, act, last = self.head
        assert isinstance(last, _Conv)
        return last.run(act(norm(x)), cache)


class WanVaeDecoder(nn.Module):
    """Normalised latents → RGB, 4 frames for each latent; the first 3 frames of a video are to be dropped."""

    mean: Tensor
    std: Tensor

    def __init__(self, *, channels: int = 16, width: int = 96) -> None:
        super().__init__()
        self.channels, self.width = channels, width
        self.conv2 = nn.Conv3d(channels, channels, 1)
        self.decoder = _Body(channels, width)
        mean, std = torch.tensor(LATENT_MEAN[:channels]), torch.tensor(LATENT_STD[:channels])
        self.register_buffer("mean", mean.view(-1, 1, 1, 1), persistent=False)
        self.register_buffer("std", std.view(-1, 1, 1, 1), persistent=False)

    def state_shapes(self, h: int, w: int) -> Sequence[tuple[int, int, int, int]]:
        """Shape [c, 2, h, w] of every cached pair of frames, in the order of their convolutions."""
        shapes: list[tuple[int, int, int, int]] = []

        def note(inputs: int) -> None:
            shapes.append((inputs, _PAST, h, w))

        note(self.channels)
        for block in (*self.decoder.middle, *self.decoder.upsamples):
            if isinstance(block, _Residual):
                for conv in (block.residual[2], block.residual[6]):
                    assert isinstance(conv, _Conv)
                    note(conv.in_channels)
            elif isinstance(block, _Upsample):
                if block.time_conv is not None:
                    note(block.time_conv.in_channels)
                h, w = 2 * h, 2 * w
        note(self.width)
        return shapes

    def forward(self, latents: Tensor, state: Tensor, *, is_first: bool = False) -> tuple[Tensor, Tensor]:
        """Latents [F, C, h, w], flat state → (RGB [4·F, 3, 8h, 8w], unclamped in [0, 1]; next flat state).

        is_first: F is 1 and begins a video; gives one frame, as Wan does.
        """
        assert not is_first or len(latents) == 1, latents.shape
        sizes = [prod(shape) for shape in self.state_shapes(*latents.shape[2:])]
        cache = _Cache(iter(state.split(sizes)), is_first=is_first)
        z = latents.transpose(0, 1) * self.std + self.mean  # [C, F, h, w]
        x = self.decoder(self.conv2(z[None])[0], cache)
        return (x.transpose(0, 1) + 1) / 2, torch.cat([part.to(state.dtype) for part in cache.kept])
