"""Clips for training the transformer: drawn, encoded once, kept in memory as normalised latents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from engine.models.shapes.codec import Decoder, Encoder
from engine.models.shapes.drawing import draw
from engine.models.shapes.train_util import Job, Peers, Progress, autocast, load_checkpoint
from engine.models.shapes.world import (
    CHUNK_FRAMES,
    FRAMES_PER_LATENT,
    sample_actions,
    sample_scenes,
    simulate,
)

__all__ = ["Clips", "encode_clips", "load_clips", "load_codec"]

CLIP_CHUNKS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Clips:
    """Encoded clips, n of them, K = CLIP_CHUNKS chunks of F latent frames each."""

    latents: Tensor
    """[n, K·F, C, h, w] float16, normalised."""
    masks: Tensor
    """[n, K·F, h, w] uint8, 0…255: how much of each latent pixel the objects ever cover."""
    actions: Tensor
    """[n, K·F, 2] float16: what pushes the objects."""
    ids: Tensor
    """[n, K, S] uint8 slot indices of each chunk's prompt."""


def load_codec(job: Job) -> tuple[Encoder, Decoder]:
    """The trained pair of `out/codec.pt`, frozen."""
    config, path = job.config.codec, job.out / "codec.pt"
    pair = nn.ModuleDict({"encoder": Encoder(config), "decoder": Decoder(config)})
    if not load_checkpoint(path, pair):
        raise SystemExit(f"no codec at {path}: run the codec stage first")
    pair.eval().requires_grad_(False).to(job.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    encoder, decoder = pair["encoder"], pair["decoder"]
    assert isinstance(encoder, Encoder) and isinstance(decoder, Decoder)
    return encoder, decoder


@torch.inference_mode()
def encode_clips(job: Job) -> Path:
    """Draw and encode clips and write them to `out/clips-<seed>.pt`; a process's rank adds to the seed."""
    encoder, decoder = load_codec(job)
    peers = Peers()
    seed, side = job.seed + peers.rank, 8 * job.config.codec.side
    generator = torch.Generator().manual_seed(1000 + seed)
    progress = Progress("encode", job.minutes)
    parts: list[tuple[Tensor, ...]] = []
    while not progress.is_done():
        ids = sample_scenes(job.batch, CLIP_CHUNKS, generator)
        actions = sample_actions(job.batch, CLIP_CHUNKS * CHUNK_FRAMES // FRAMES_PER_LATENT, generator)
        rgb, mask = draw(simulate(ids, generator, actions), side=side, device=job.device)
        with autocast(job.device):
            raw = encoder(rgb).float()
        latents = decoder.normalise(raw)
        pooled = (
            fn.adaptive_avg_pool2d(mask.flatten(0, 1), raw.shape[-1])
            .unflatten(0, (job.batch, -1, FRAMES_PER_LATENT))
            .amax(dim=2)[:, :, 0]
        )
        pooled = (pooled * 255).to(torch.uint8).cpu()
        parts.append((latents.half().cpu(), pooled, actions.half(), ids.to(torch.uint8)))
        progress.update(clips=float(job.batch * len(parts)))
    latents, masks, pushes, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    path = job.out / f"clips-{seed}.pt"
    torch.save({"latents": latents, "masks": masks, "actions": pushes, "ids": labels}, path)
    peers.agree(0.0)  # nobody goes on before all have written
    return path


def load_clips(out: Path, device: torch.device) -> Clips:
    """All clips written to `out` so far, kept on `device`."""
    files = [
        torch.load(path, weights_only=True, map_location=device) for path in sorted(out.glob("clips-*.pt"))
    ]
    if not files:
        raise SystemExit(f"no clips in {out}: run the encode stage first")
    keys = ("latents", "masks", "actions", "ids")
    return Clips(**{key: torch.cat([file[key] for file in files]) for key in keys})
