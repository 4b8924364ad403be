"""Train the autoencoder of `shapes` on random scenes drawn on the fly."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.models.shapes.codec import CodecConfig, Decoder, Encoder
from engine.models.shapes.train_util import Progress, autocast, ease, load_checkpoint, save_checkpoint
from engine.models.shapes.world import render, sample_scenes, simulate

__all__ = ["train_codec"]

_BATCH = 4
_CHUNKS = (
    2  # 6 latent frames a clip: the decoder must learn to start from an empty memory and to use a full one
)
_NOISE = 0.09  # added to raw latents before decoding, so that the DiT's small errors decode to small errors
_PEAK_LR = 1.6e-3


def train_codec(out: Path, minutes: float, device: torch.device, seed: int = 0) -> Path:
    """Train for `minutes` of wall time (resuming `out/codec.pt`) and write the normalised pair to it."""
    config = CodecConfig()
    generator = torch.Generator().manual_seed(seed + int(time.time()))
    torch.manual_seed(seed)
    pair = nn.ModuleDict({"encoder": Encoder(config), "decoder": Decoder(config)})
    pair.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(pair.parameters(), lr=_PEAK_LR, betas=(0.9, 0.98), weight_decay=1e-4)
    path = out / "codec.pt"
    load_checkpoint(path, pair)
    progress = Progress("codec", minutes)
    while not progress.is_done():
        for group in optimizer.param_groups:
            group["lr"] = _PEAK_LR * ease(progress.fraction(), progress.steps, warmup=100)
        rgb, mask = _clips(generator, device)
        loss, mse = _loss(pair, rgb, mask)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(pair.parameters(), 1.0)
        optimizer.step()
        progress.update(loss=loss.item(), psnr=-10 * mse.log10().item())
        if progress.is_checkpoint_due():
            save_checkpoint(path, pair)
    _set_statistics(pair, generator, device)
    save_checkpoint(path, pair)
    return path


def _clips(generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
    ids = sample_scenes(_BATCH, _CHUNKS, generator, switch_chance=0.5)
    rgb, mask = render(simulate(ids, generator))
    return rgb.to(device), mask.to(device)


def _loss(pair: nn.ModuleDict, rgb: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(Loss to minimise, plain MSE). The object covers few pixels and is all that moves: it weighs more."""
    decoder = pair["decoder"]
    assert isinstance(decoder, Decoder)
    with autocast(rgb.device):
        raw = pair["encoder"](rgb)
        state = decoder.initial_state().expand(len(rgb), -1)
        noisy = decoder.normalise(raw + _NOISE * torch.randn_like(raw))
        out, _ = decoder(noisy, state)
    error = out.float() - rgb
    weight = 1 + 4 * mask
    loss = (weight * (error**2 + 0.1 * error.abs())).mean() + 1e-4 * raw.float().square().mean()
    return loss, error.detach().square().mean()


@torch.no_grad()
def _set_statistics(pair: nn.ModuleDict, generator: torch.Generator, device: torch.device) -> None:
    """Measure the latents' per-channel mean and deviation and fold them into the decoder."""
    encoder, decoder = pair["encoder"], pair["decoder"]
    assert isinstance(decoder, Decoder)
    raw = torch.cat([encoder(_clips(generator, device)[0]).flatten(0, 1) for _ in range(32)])
    decoder.mean.copy_(raw.mean(dim=(0, 2, 3)))
    decoder.std.copy_(raw.std(dim=(0, 2, 3)))
