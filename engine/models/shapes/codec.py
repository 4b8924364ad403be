"""The streaming autoencoder of `shapes`: 4 pixel frames ↔ one latent frame, 8× smaller each way.

The encoder is causal in the strict sense: a latent sees its own 4 frames only. The decoder looks back: each
of its two memory blocks also reads its own input of the previous latent, zeros at the start. Nothing is
recurrent, so the decoder state depends on the last two latents and can be rebuilt from them.

Shape letters: B clips, F latent frames, P = 4 pixel frames of a latent, C latent channels, h latent side, Z
= 8h.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

__all__ = ["CodecConfig", "Decoder", "Encoder", "to_uint8"]

_LIMIT = 3.0  # latents before normalising lie in (−_LIMIT, _LIMIT)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecConfig:
    """Sizes of encoder and decoder."""

    channels: int = 16
    """C"""
    side: int = 12
    """h"""
    frames: int = 4
    """P"""
    encoder_widths: tuple[int, int, int] = (96, 64, 40)
    """Feature channels at latent, 2× and 4× resolution."""
    decoder_widths: tuple[int, int, int] = (96, 64, 48)
    """Same, of the decoder. The last carries all the frames of a latent at once."""
    decoder_depth: tuple[int, int] = (3, 1)
    """Residual blocks of the decoder at 2× and at 4× resolution."""

    def memory_shapes(self, side: int | None = None) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Shapes of the two memories of the decoder state; `side` is the latent side if not the config's."""
        high, mid, _ = self.decoder_widths
        side = side or self.side
        return (high, side, side), (mid, 2 * side, 2 * side)

    @property
    def state_numel(self) -> int:
        """Length of the flat decoder state."""
        return sum(c * h * w for c, h, w in self.memory_shapes())


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _conv(width, width)
        self.conv2 = _conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(fn.relu(self.conv1(fn.relu(x))))
        return out


class _Memory(nn.Module):
    """A residual block that reads its input of the previous latent frame too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _conv(2 * width, width)
        self.conv2 = _conv(width, width)

    def forward(self, x: Tensor, past: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(fn.relu(self.conv1(fn.relu(torch.cat([x, past], dim=1)))))
        return out


class Encoder(nn.Module):
    """RGB [B, F·P, 3, Z, Z] in [0, 1] → raw latents [B, F, C, h, h] (not normalised)."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        high, mid, low = config.encoder_widths
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(2),
            _conv(12 * config.frames, low),
            nn.ReLU(),
            _conv(low, mid, stride=2),
            _Residual(mid),
            nn.ReLU(),
            _conv(mid, high, stride=2),
            _Residual(high),
            _Residual(high),
            nn.ReLU(),
            _conv(high, config.channels),
        )

    def forward(self, rgb: Tensor) -> Tensor:
        """See the class."""
        batch = rgb.shape[0]
        stacked = rgb.unflatten(1, (-1, self.config.frames)).flatten(2, 3).flatten(0, 1)
        z: Tensor = self.layers((stacked * 2 - 1).contiguous(memory_format=torch.channels_last))
        raw: Tensor = (_LIMIT * torch.tanh(z / _LIMIT)).unflatten(0, (batch, -1))
        return raw


class Decoder(nn.Module):
    """Normalised latents → RGB, flat state in and out. `mean` and `std` map latents to the encoder's."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        high, mid, low = config.decoder_widths
        self.register_buffer("mean", torch.zeros(config.channels))
        self.register_buffer("std", torch.ones(config.channels))
        self.conv_in = _conv(config.channels, high)
        self.memory1 = _Memory(high)
        self.up1 = _conv(high, 4 * mid)
        self.memory2 = _Memory(mid)
        self.refine2 = nn.Sequential(*(_Residual(mid) for _ in range(config.decoder_depth[0])))
        self.up2 = _conv(mid, 4 * low)
        self.refine4 = nn.Sequential(*(_Residual(low) for _ in range(config.decoder_depth[1])))
        self.conv_out = _conv(low, 12 * config.frames)

    def initial_state(self, side: int | None = None) -> Tensor:
        """Zeros [state_numel] on the decoder's device; of latents `side` wide if that is not the config's."""
        sizes = (c * h * w for c, h, w in self.config.memory_shapes(side))
        return torch.zeros(sum(sizes), device=self.mean.device)

    def normalise(self, raw: Tensor) -> Tensor:
        """Raw latents [..., C, h, h] → the zero-mean, unit-variance ones that the DiT works on."""
        return (raw - self.mean[:, None, None]) / self.std[:, None, None]

    def forward(self, latents: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [B, F, C, h, h], states [B, numel] → (RGB [B, F·P, 3, Z, Z], unclamped; next states)."""
        batch, frames = latents.shape[:2]
        shapes = self.config.memory_shapes(latents.shape[-1])
        parts = state.split([c * h * w for c, h, w in shapes], dim=1)
        past = [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]
        z = (latents * self.std[:, None, None] + self.mean[:, None, None]).flatten(0, 1)
        x = self.conv_in(z.contiguous(memory_format=torch.channels_last))
        x, last1 = self._remember(self.memory1, x, past[0], batch)
        x = fn.pixel_shuffle(self.up1(fn.relu(x)), 2)
        x, last2 = self._remember(self.memory2, x, past[1], batch)
        x = self.refine4(fn.pixel_shuffle(self.up2(fn.relu(self.refine2(x))), 2))
        x = fn.pixel_shuffle(self.conv_out(fn.relu(x)), 2)  # [B·F, P·3, Z, Z]
        rgb = x.unflatten(1, (self.config.frames, 3)).unflatten(0, (batch, frames)).flatten(1, 2)
        return (rgb + 1) / 2, torch.cat([last1.flatten(1), last2.flatten(1)], dim=1)

    @staticmethod
    def _remember(block: nn.Module, x: Tensor, past: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Apply a memory block to all frames at once: frame f reads the input of frame f − 1."""
        frames = x.unflatten(0, (batch, -1))
        shifted = torch.cat([past[:, None].to(x.dtype), frames[:, :-1]], dim=1).flatten(0, 1)
        out: Tensor = block(x, shifted.contiguous(memory_format=torch.channels_last))
        return out, frames[:, -1].float()


def to_uint8(rgb: Tensor) -> Tensor:
    """RGB [T, 3, Z, Z] in [0, 1] → uint8 [T, Z, Z, 3], rounded, out-of-range values clamped."""
    return (rgb * 255 + 0.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
