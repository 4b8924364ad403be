"""Clips for training the transformer: drawn, encoded once, kept in memory as normalised latents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from engine.models.shapes.codec import CodecConfig, Decoder, Encoder
from engine.models.shapes.train_util import Peers, Progress, autocast, load_checkpoint
from engine.models.shapes.world import render, sample_scenes, simulate

__all__ = ["Clips", "encode_clips", "load_clips", "load_codec"]

CLIP_CHUNKS = 8
_BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Clips:
    """Encoded clips, n of them, K = CLIP_CHUNKS chunks of F latent frames each."""

    latents: Tensor
    """[n, K·F, C, h, w] float16, normalised."""
    masks: Tensor
    """[n, K·F, h, w] uint8, 0…255: how much of each latent pixel the object ever covers."""
    ids: Tensor
    """[n, K, S] uint8 slot indices of each chunk's prompt."""


def load_codec(path: Path, device: torch.device) -> tuple[Encoder, Decoder]:
    """The trained pair, frozen."""
    config = CodecConfig()
    pair = nn.ModuleDict({"encoder": Encoder(config), "decoder": Decoder(config)})
    if not load_checkpoint(path, pair):
        raise SystemExit(f"no codec at {path}: run the codec stage first")
    pair.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    encoder, decoder = pair["encoder"], pair["decoder"]
    assert isinstance(encoder, Encoder) and isinstance(decoder, Decoder)
    return encoder, decoder


@torch.inference_mode()
def encode_clips(out: Path, minutes: float, device: torch.device, seed: int = 0) -> Path:
    """Draw and encode clips for `minutes` and write them to `out/clips-<seed>.pt`; a process's rank adds to
    the seed."""
    encoder, decoder = load_codec(out / "codec.pt", device)
    peers = Peers()
    seed += peers.rank
    generator = torch.Generator().manual_seed(1000 + seed)
    progress = Progress("encode", minutes)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    while not progress.is_done():
        ids = sample_scenes(_BATCH, CLIP_CHUNKS, generator)
        rgb, mask = render(simulate(ids, generator))
        with autocast(device):
            raw = encoder(rgb.to(device)).float()
        latents = decoder.normalise(raw)
        side, span = raw.shape[-1], encoder.config.frames
        pooled = (
            fn.adaptive_avg_pool2d(mask.flatten(0, 1), side)
            .unflatten(0, (_BATCH, -1, span))
            .amax(dim=2)[:, :, 0]
        )
        parts.append((latents.half().cpu(), (pooled * 255).to(torch.uint8), ids.to(torch.uint8)))
        progress.update(clips=float(_BATCH * len(parts)))
    latents, masks, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    path = out / f"clips-{seed}.pt"
    torch.save({"latents": latents, "masks": masks, "ids": labels}, path)
    peers.agree(0.0)  # nobody goes on before all have written
    return path


def load_clips(out: Path) -> Clips:
    """All clips written to `out` so far."""
    files = [torch.load(path, weights_only=True) for path in sorted(out.glob("clips-*.pt"))]
    if not files:
        raise SystemExit(f"no clips in {out}: run the encode stage first")
    return Clips(**{key: torch.cat([file[key] for file in files]) for key in ("latents", "masks", "ids")})
