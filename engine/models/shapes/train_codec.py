"""Train the autoencoder of `shapes` on random scenes drawn on the fly."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.models.shapes.codec import Decoder, Encoder
from engine.models.shapes.drawing import draw
from engine.models.shapes.train_sheet import export_weights
from engine.models.shapes.train_util import (
    Job,
    MuonAdam,
    Peers,
    Progress,
    autocast,
    ease,
    load_checkpoint,
    save_checkpoint,
)
from engine.models.shapes.world import sample_actions, sample_scenes, simulate

__all__ = ["polish_decoder", "train_codec"]

_BATCH = 4
_CROP = 48  # pixels, a multiple of 8
_CROPS = 2  # of each clip
_CHUNKS = 2  # 6 latent frames: the decoder must learn to start from an empty memory and to use a full one
_NOISE = 0.09  # added to raw latents before decoding, so that the DiT's small errors decode to small errors
_PEAK_LR = 2.5e-3


def train_codec(job: Job) -> Path:
    """Train (resuming `out/codec.pt`) and write the normalised pair to it.

    Latents change their meaning: clips and transformers made with an earlier codec no longer fit.
    """
    return _train("codec", job)


def polish_decoder(job: Job) -> Path:
    """Train the decoder alone, for the latents as they are, and put it into the weights of `out/dit.pt`."""
    _train("decoder", job)
    return export_weights(job) if Peers().rank == 0 else job.out


def _train(what: str, job: Job) -> Path:
    peers, path, codec = Peers(), job.out / "codec.pt", job.config.codec
    torch.manual_seed(job.seed)
    pair = nn.ModuleDict({"encoder": Encoder(codec), "decoder": Decoder(codec)})
    load_checkpoint(path, pair)
    pair.to(job.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pair["encoder"].requires_grad_(what == "codec")
    trained = [p for p in pair.parameters() if p.requires_grad]
    optimizer = MuonAdam(
        [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim == 1], weight_decay=0.0
    )
    generator = torch.Generator().manual_seed(job.seed + int(time.time()) + peers.rank)
    progress = Progress(what, job.minutes)
    while (fraction := peers.agree(progress.fraction())) < 1.0 or not progress.steps:
        optimizer.set_lr(_PEAK_LR * ease(fraction, progress.steps, warmup=60))
        loss, mse = _loss(pair, *_crops(job, generator))
        optimizer.zero_grad()
        loss.backward()
        peers.average_gradients(trained)
        optimizer.step()
        progress.update(loss=loss.item(), psnr=-10 * mse.log10().item())
        if peers.rank == 0 and progress.is_checkpoint_due():
            save_checkpoint(path, pair)
    if peers.rank == 0:
        if what == "codec":
            _set_statistics(pair, job, generator)
        save_checkpoint(path, pair)
    return path


def _clips(job: Job, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Fresh clips, RGB [R, T, 3, Z, Z] and coverage [R, T, 1, Z, Z]."""
    ids = sample_scenes(_BATCH, _CHUNKS, generator, switch_chance=0.5)
    track = simulate(ids, generator, sample_actions(_BATCH, 3 * _CHUNKS, generator))
    return draw(track, side=8 * job.config.codec.side, device=job.device)


def _crops(job: Job, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """As `_clips`, cut to squares of _CROP pixels around the object that moves there, a few per clip.

    Most of a picture is background that a few examples teach; the squares spend the time where things move.
    """
    rgb, mask = _clips(job, generator)
    seen = mask.amax(dim=1)[:, 0]  # [B, Z, Z]
    parts = []
    for clip in range(len(rgb)):
        places = (seen[clip] > 0.5).nonzero()
        for _ in range(_CROPS):
            at = places[int(torch.randint(len(places), (), generator=generator))]
            jitter = torch.randint(-_CROP // 3, _CROP // 3 + 1, (2,), generator=generator)
            corner = (at.cpu() + jitter - _CROP // 2).clamp(0, seen.shape[-1] - _CROP) // 8 * 8
            row, column = corner.tolist()
            where = (slice(None), slice(None), slice(row, row + _CROP), slice(column, column + _CROP))
            parts.append((rgb[clip][where], mask[clip][where]))
    return torch.stack([part[0] for part in parts]), torch.stack([part[1] for part in parts])


def _loss(pair: nn.ModuleDict, rgb: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(Loss to minimise, plain MSE). Pixels that the object touches in any frame of a latent weigh more: they
    are few, and all that moves."""
    decoder = pair["decoder"]
    assert isinstance(decoder, Decoder)
    with autocast(rgb.device):
        raw = pair["encoder"](rgb)
        state = decoder.initial_state(raw.shape[-1]).expand(len(rgb), -1)
        noisy = decoder.normalise(raw + _NOISE * torch.randn_like(raw))
        out, _ = decoder(noisy, state)
    error = out.float() - rgb
    span = decoder.config.frames
    touched = mask.unflatten(1, (-1, span)).amax(dim=2).repeat_interleave(span, dim=1)
    weight = 1 + 4 * touched
    loss = (weight * (error**2 + 0.1 * error.abs())).mean() + 1e-4 * raw.float().square().mean()
    return loss, error.detach().square().mean()


@torch.no_grad()
def _set_statistics(pair: nn.ModuleDict, job: Job, generator: torch.Generator) -> None:
    """Measure the latents' per-channel mean and deviation and fold them into the decoder."""
    encoder, decoder = pair["encoder"], pair["decoder"]
    assert isinstance(decoder, Decoder)
    raw = torch.cat([encoder(_clips(job, generator)[0]).flatten(0, 1) for _ in range(16)])
    decoder.mean.copy_(raw.mean(dim=(0, 2, 3)))
    decoder.std.copy_(raw.std(dim=(0, 2, 3)))
