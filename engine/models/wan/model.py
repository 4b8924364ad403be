"""Wan 2.1, causal, behind the engine's interface: transformer, text embeddings and streaming decoder.

The transformer is `CausalDiT`, whose module names are Wan's, with no extras. It predicts the velocity, so its
output needs no further step.

Positions: angles are exact for any frame (`rope.py`) and depend on distances only, so a stream does not end
with the 1,024 frames of the reference's table. Frames of the ring are never further apart than the window. A
sink's distance grows as it does in the reference; past that table it is beyond anything trained
(docs/wan.md).

Shape letters: as in base.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor, nn

from engine.models.base import ModelSpec, PassBatch, PassRow
from engine.models.causal_dit import CausalDiT
from engine.models.fused_blocks import fuse
from engine.models.fused_ops import available_ops
from engine.models.linear import fp8_linear, plain_linear
from engine.models.rope import Rope
from engine.models.shapes.codec import to_uint8
from engine.models.upload import upload
from engine.models.wan import taehv
from engine.models.wan.config import WanConfig
from engine.models.wan.taehv import Taehv
from engine.models.wan.text import CachedText, HashedText, TextEncoder
from engine.models.wan.vae import TAIL_FRAMES, WanVaeDecoder
from engine.models.weights import check_tensors

__all__ = ["WanModel", "empty_decoder", "empty_dit", "lay_out"]

_STATE_VERSION = 1
_SCALE = 8
"""Pixels of a latent's side."""
_FRAMES_PER_LATENT = 4

Decoder = Taehv | WanVaeDecoder


def empty_dit(config: WanConfig) -> CausalDiT:
    """The transformer without memory for its weights."""
    with torch.device("meta"):
        return CausalDiT(config.dit)


def empty_decoder(config: WanConfig) -> Decoder:
    """The decoder without weights; its buffers are there."""
    kind = Taehv if config.decoder == "taehv" else WanVaeDecoder
    return kind(channels=config.dit.latent_shape[0], width=config.decoder_width)


class WanModel:
    """`CausalVideoModel` of Wan 2.1. Holds weights, and the prompts encoded last; see base.py."""

    def __init__(
        self,
        config: WanConfig,
        dit: CausalDiT,
        decoder: Decoder,
        text: TextEncoder,
        *,
        weights_hash: str,
        device: torch.device,
        dtype: torch.dtype,
        fused: bool | None = None,
    ) -> None:
        """Takes over the modules and moves them to `device`; all of them use `dtype`.

        `fused`: run passes with fused blocks (`fused_blocks.py`)? None: on GPUs, and for FP8.
        """
        self.device, self.dtype = device, dtype
        self.spec = _spec(config, decoder, weights_hash)
        self._context_sigma = config.context_noise / 1000
        self._dit = dit.eval().requires_grad_(False).to(device=device, dtype=dtype)
        self._decoder = decoder.eval().requires_grad_(False).to(device=device, dtype=dtype)
        if device.type == "cuda":
            lay_out(self._decoder)
        if fused is None:
            fused = device.type == "cuda" or config.fp8
        if fused:
            ops = available_ops(device)
            fuse(self._dit, ops, fp8_linear(device, ops) if config.fp8 else plain_linear)
        self._text = CachedText(text, config.dit.text_shape)

    @classmethod
    def random(
        cls,
        seed: int,
        *,
        config: WanConfig,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        fused: bool | None = None,
    ) -> WanModel:
        """Random weights, made on the device: on one of a kind equal for equal seed and config."""
        where = torch.device(device)
        with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []), where:
            torch.manual_seed(seed)
            dit = CausalDiT(config.dit)
            decoder = empty_decoder(config)
            _make_visible(decoder)
        digest = hashlib.sha256(f"random {seed} {config.meaning()}".encode()).hexdigest()
        text = HashedText(config.dit.text_shape)
        return cls(config, dit, decoder, text, weights_hash=digest, device=where, dtype=dtype, fused=fused)

    @classmethod
    def from_tensors(
        cls,
        dit: Mapping[str, Tensor],
        decoder: Mapping[str, Tensor],
        text: TextEncoder,
        *,
        config: WanConfig,
        weights_hash: str,
        device: torch.device,
        dtype: torch.dtype,
    ) -> WanModel:
        """A model with these weights, by Wan's names.

        Raises:
            WeightsError: a name is missing or unknown, or a shape or type differs.
        """
        nets = empty_dit(config), empty_decoder(config)
        for net, tensors in zip(nets, (dit, decoder), strict=True):
            check_tensors(net, tensors)
            net.load_state_dict(dict(tensors), assign=True)
        return cls(config, *nets, text, weights_hash=weights_hash, device=device, dtype=dtype)

    def encode_prompts(self, texts: Sequence[str]) -> Tensor:
        """Text → [B, T, E] float32; zeros behind a prompt's end."""
        return upload(self._text(texts), self.device)

    def prepare_prompts(self, texts: Sequence[str], on_ready: Callable[[], None]) -> bool:
        """See `PreparesPrompts`."""
        return self._text.prepare(texts, on_ready)

    def combine_prompts(self, shown: str, text: str) -> str:
        """A prompt of Wan is the whole scene."""
        return text

    def encode_control(self, keys: Collection[str], axes: Mapping[str, float]) -> tuple[float, ...]:
        """No control input."""
        return ()

    @torch.inference_mode()
    def prompt_kv(self, embeds: Tensor) -> Tensor:
        """[B, T, E] → [B, L, 2, T, H, D] in the model's dtype."""
        return self._dit.prompt_kv(embeds.to(self.dtype))

    @torch.inference_mode()
    def run_pass(self, batch: PassBatch) -> Tensor:
        """See `CausalVideoModel.run_pass`. A clean pass is told the noise level it was trained with."""
        if self._context_sigma:
            batch = replace(batch, sigma=batch.sigma.masked_fill(batch.sigma <= 0, self._context_sigma))
        return self._dit.run_pass(batch)

    def rope(self, rows: Sequence[PassRow]) -> Rope:
        """See `ReplayableModel`."""
        return self._dit.rope(rows)

    def initial_decoder_state(self) -> Tensor:
        """Zeros [decoder_state_numel]."""
        return torch.zeros(self.spec.decoder_state_numel, dtype=self.dtype, device=self.device)

    @torch.inference_mode()
    def decode(self, latents: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [F, C, h, w] → (RGB uint8 [F·4, height, width, 3], next state). Works for any F ≥ 1."""
        rgb, next_state = self._decoder(latents.to(self.dtype), state)
        return to_uint8(rgb.float()), next_state


def lay_out(decoder: Decoder) -> None:
    """Have a decoder's channels last in memory, as GPUs want them. Wan's VAE stays as it is: its weights have
    four dimensions or five, and no one layout is for both."""
    if isinstance(decoder, Taehv):
        decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _make_visible(decoder: Decoder) -> None:
    """Random weights whose video is noise around grey, not one colour."""
    convolutions = [m for m in decoder.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
    for conv in convolutions:
        nn.init.kaiming_normal_(conv.weight)
    if isinstance(decoder, Taehv):
        last = convolutions[-1]
        assert last.bias is not None
        nn.init.normal_(last.weight, std=0.002)
        nn.init.constant_(last.bias, 0.5)


def _spec(config: WanConfig, decoder: Decoder, weights_hash: str) -> ModelSpec:
    dit = config.dit
    _, h, w = dit.latent_shape
    shapes: Sequence[tuple[int, ...]]
    if isinstance(decoder, Taehv):
        shapes, tail_frames = taehv.memory_shapes(decoder.width, h, w), taehv.TAIL_FRAMES
    else:
        shapes, tail_frames = decoder.state_shapes(h, w), TAIL_FRAMES
    return ModelSpec(
        name=config.name,
        weights_hash=weights_hash,
        state_version=_STATE_VERSION,
        width=_SCALE * w,
        height=_SCALE * h,
        fps=config.fps,
        chunk_latent_frames=dit.chunk_frames,
        frames_per_latent=_FRAMES_PER_LATENT,
        first_chunk_drop_frames=3,
        latent_shape=dit.latent_shape,
        tokens_per_frame=dit.tokens_per_frame,
        layers=dit.layers,
        heads=dit.heads,
        head_dim=dit.head_dim,
        window_frames=dit.window_frames,
        sink_frames=config.sink_frames,
        sink_reach=config.sink_reach,
        recaches_prompts=config.recaches_prompts,
        text_shape=dit.text_shape,
        action_dim=0,
        sigmas=config.sigmas(is_first=False),
        first_sigmas=config.sigmas(is_first=True),
        decoder_state_numel=sum(prod(shape) for shape in shapes),
        decoder_tail_frames=tail_frames,
    )
