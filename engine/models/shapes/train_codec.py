"""Train the autoencoder of `shapes` on random scenes drawn on the fly."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.models.shapes.codec import CodecConfig, Decoder, Encoder
from engine.models.shapes.train_sheet import export_weights
from engine.models.shapes.train_util import Peers, Progress, autocast, ease, load_checkpoint, save_checkpoint
from engine.models.shapes.world import render, sample_scenes, simulate

__all__ = ["polish_decoder", "train_codec"]

_BATCH = 4
_CHUNKS = 2  # 6 latent frames: the decoder must learn to start from an empty memory and to use a full one
_NOISE = 0.09  # added to raw latents before decoding, so that the DiT's small errors decode to small errors
_PEAK_LR = 1.6e-3


def train_codec(out: Path, minutes: float, device: torch.device, seed: int = 0) -> Path:
    """Train for `minutes` of wall time (resuming `out/codec.pt`) and write the normalised pair to it.

    Latents change their meaning: clips and transformers made with an earlier codec no longer fit.
    """
    return _train("codec", out, minutes, device, seed)


def polish_decoder(out: Path, minutes: float, device: torch.device, seed: int = 0) -> Path:
    """Train the decoder alone, for the latents as they are, and put it into the weights of `out/dit.pt`."""
    _train("decoder", out, minutes, device, seed)
    return export_weights(out) if Peers().rank == 0 else out


def _train(what: str, out: Path, minutes: float, device: torch.device, seed: int) -> Path:
    peers, path = Peers(), out / "codec.pt"
    torch.manual_seed(seed)
    pair = nn.ModuleDict({"encoder": Encoder(CodecConfig()), "decoder": Decoder(CodecConfig())})
    load_checkpoint(path, pair)
    pair.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pair["encoder"].requires_grad_(what == "codec")
    trained = [p for p in pair.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=_PEAK_LR, betas=(0.9, 0.98), weight_decay=1e-4)
    generator = torch.Generator().manual_seed(seed + int(time.time()) + peers.rank)
    progress = Progress(what, minutes)
    while (fraction := peers.agree(progress.fraction())) < 1.0:
        optimizer.param_groups[0]["lr"] = _PEAK_LR * ease(fraction, progress.steps, warmup=100)
        loss, mse = _loss(pair, *_clips(generator, device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        peers.average_gradients(trained)
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        progress.update(loss=loss.item(), psnr=-10 * mse.log10().item())
        if peers.rank == 0 and progress.is_checkpoint_due():
            save_checkpoint(path, pair)
    if peers.rank == 0:
        if what == "codec":
            _set_statistics(pair, generator, device)
        save_checkpoint(path, pair)
    return path


def _clips(generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
    ids = sample_scenes(_BATCH, _CHUNKS, generator, switch_chance=0.5)
    rgb, mask = render(simulate(ids, generator))
    return rgb.to(device), mask.to(device)


def _loss(pair: nn.ModuleDict, rgb: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(Loss to minimise, plain MSE). Pixels that the object touches in any frame of a latent weigh more: they
    are few, and all that moves."""
    decoder = pair["decoder"]
    assert isinstance(decoder, Decoder)
    with autocast(rgb.device):
        raw = pair["encoder"](rgb)
        state = decoder.initial_state().expand(len(rgb), -1)
        noisy = decoder.normalise(raw + _NOISE * torch.randn_like(raw))
        out, _ = decoder(noisy, state)
    error = out.float() - rgb
    span = decoder.config.frames
    touched = mask.unflatten(1, (-1, span)).amax(dim=2).repeat_interleave(span, dim=1)
    weight = 1 + 4 * touched
    loss = (weight * (error**2 + 0.1 * error.abs())).mean() + 1e-4 * raw.float().square().mean()
    return loss, error.detach().square().mean()


@torch.no_grad()
def _set_statistics(pair: nn.ModuleDict, generator: torch.Generator, device: torch.device) -> None:
    """Measure the latents' per-channel mean and deviation and fold them into the decoder."""
    encoder, decoder = pair["encoder"], pair["decoder"]
    assert isinstance(decoder, Decoder)
    raw = torch.cat([encoder(_clips(generator, device)[0]).flatten(0, 1) for _ in range(16)])
    decoder.mean.copy_(raw.mean(dim=(0, 2, 3)))
    decoder.std.copy_(raw.std(dim=(0, 2, 3)))
