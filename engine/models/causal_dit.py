"""A causal video diffusion transformer, chunk by chunk, with Wan's structure and module names; a config
sets the size.

One set of blocks serves two paths that differ only in the attention handed to them: `run_pass` reads and
writes the engine's KV pools, `predict_clip` sees a whole training clip at once. Nothing is kept between
calls.

Shape letters: as in base.py. R training clips, K chunks, d model width, p patch side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from engine.models.attention import (
    Attend,
    attend_trainable,
    teacher_forcing_attend,
)
from engine.models.base import PassAttention, PassBatch, PassRow, TokenExchange
from engine.models.pool_attention import SLICES
from engine.models.rope import Rope, rope_table, rotate

__all__ = ["Attention", "Block", "CausalDiT", "CausalDiTConfig", "InferenceBlocks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CausalDiTConfig:
    """Sizes of the transformer. Checked on construction."""

    dim: int
    """d"""
    ffn_dim: int
    heads: int
    layers: int
    latent_shape: tuple[int, int, int]
    """(C, h, w)"""
    patch: int
    """p: latent pixels per token side."""
    chunk_frames: int
    """F"""
    window_frames: int
    """W"""
    text_shape: tuple[int, int]
    """(T, E)"""
    action_dim: int = 0
    """A; 0: no control input."""
    freq_dim: int = 256
    """Length of the sinusoidal embedding of the noise level."""
    spatial_embedding: bool = False
    """Add a learned vector per token position (Wan has none; a small model learns much faster with it)."""
    eps: float = 1e-6

    def __post_init__(self) -> None:
        _, h, w = self.latent_shape
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise ValueError(f"dim {self.dim} must give {self.heads} heads of an even size")
        if h % self.patch or w % self.patch:
            raise ValueError(f"latent {h}×{w} is not a multiple of patch {self.patch}")
        if self.window_frames % self.chunk_frames:
            raise ValueError("window_frames must be a multiple of chunk_frames")

    @property
    def head_dim(self) -> int:
        """D"""
        return self.dim // self.heads

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.latent_shape[1] // self.patch, self.latent_shape[2] // self.patch

    @property
    def tokens_per_frame(self) -> int:
        """N"""
        return self.grid[0] * self.grid[1]


class _Norm(nn.RMSNorm):
    """RMS norm in its input's type: autocast leaves the weight float32, which has no fused kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return fn.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Projections of self- or cross-attention; q and k are normalised over the full width, as in Wan."""

    def __init__(self, config: CausalDiTConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q = nn.Linear(config.dim, config.dim)
        self.k = nn.Linear(config.dim, config.dim)
        self.v = nn.Linear(config.dim, config.dim)
        self.o = nn.Linear(config.dim, config.dim)
        self.norm_q = _Norm(config.dim, eps=config.eps)
        self.norm_k = _Norm(config.dim, eps=config.eps)

    def query(self, x: Tensor) -> Tensor:
        """[..., d] → [..., H, D]"""
        out: Tensor = self.norm_q(self.q(x))
        heads: Tensor = out.unflatten(-1, (-1, self.head_dim))
        return heads

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[..., d] → two of [..., H, D]"""
        k, v = self.norm_k(self.k(x)), self.v(x)
        return k.unflatten(-1, (-1, self.head_dim)), v.unflatten(-1, (-1, self.head_dim))


class Block(nn.Module):
    """Self-attention, attention to the prompt, feed-forward; the noise level modulates the first and last."""

    def __init__(self, config: CausalDiTConfig) -> None:
        super().__init__()
        self.dim, self.eps = config.dim, config.eps
        self.self_attn = Attention(config)
        self.cross_attn = Attention(config)
        self.norm3 = nn.LayerNorm(config.dim, eps=config.eps)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.ffn_dim, config.dim),
        )
        self.modulation = nn.Parameter(torch.zeros(1, 6, config.dim))

    def forward(
        self, x: Tensor, e: Tensor, rope: Rope, attend: Attend, attend_text: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """x [B, F, N, d], e [B, F, 6, d] → [B, F, N, d]"""
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation + e).unsqueeze(-2).unbind(2)
        h = _modulate(fn.layer_norm(x, (self.dim,), eps=self.eps), shift1, scale1)
        k, v = self.self_attn.key_value(h)
        attended = attend(rotate(self.self_attn.query(h), rope), rotate(k, rope), v)
        x = x + gate1 * self.self_attn.o(attended.flatten(-2))
        text = attend_text(self.cross_attn.query(self.norm3(x)))
        x = x + self.cross_attn.o(text.flatten(-2))
        h = _modulate(fn.layer_norm(x, (self.dim,), eps=self.eps), shift2, scale2)
        out: Tensor = x + gate2 * self.ffn(h)
        return out


class _Head(nn.Module):
    def __init__(self, config: CausalDiTConfig) -> None:
        super().__init__()
        self.dim, self.eps = config.dim, config.eps
        self.head = nn.Linear(config.dim, config.patch**2 * config.latent_shape[0])
        self.modulation = nn.Parameter(torch.zeros(1, 2, config.dim))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """x [B, F, N, d], e [B, F, d] → [B, F, N, p·p·C]"""
        shift, scale = (self.modulation + e[:, :, None]).unsqueeze(-2).unbind(2)
        out: Tensor = self.head(_modulate(fn.layer_norm(x, (self.dim,), eps=self.eps), shift, scale))
        return out


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, x, 1 + scale)


class InferenceBlocks(Protocol):
    """The blocks in a form for inference alone (`fused_blocks.py`)."""

    def run(
        self,
        x: Tensor,
        e: Tensor,
        time: Tensor,
        rope: Rope,
        attend: Callable[[int, Tensor, Tensor, Tensor], Tensor],
        attention: PassAttention,
    ) -> Tensor:
        """Tokens [B, F, N, d] → normalised and modulated for the head's product."""


class CausalDiT(nn.Module):
    """The transformer. Its output is raw: its owner says whether that is a velocity or a sample."""

    fused: InferenceBlocks | None
    """What `run_pass` uses instead of `blocks`; None: nothing."""

    def __init__(self, config: CausalDiTConfig) -> None:
        super().__init__()
        self.config, self.fused = config, None
        dim, patch = config.dim, config.patch
        # A Conv3d for its weight layout (Wan's); applied as a matrix product on patches.
        self.patch_embedding = nn.Conv3d(config.latent_shape[0], dim, (1, patch, patch), (1, patch, patch))
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_shape[1], dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.action_embedding = (
            nn.Sequential(nn.Linear(config.action_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
            if config.action_dim
            else None
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.head = _Head(config)
        self.spatial_embedding = (
            nn.Parameter(torch.zeros(config.tokens_per_frame, dim)) if config.spatial_embedding else None
        )
        self._reset()

    def _reset(self) -> None:
        """Starting values: branches begin small and open, the noise level begins without effect."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            for block in self._blocks():
                block.modulation[:, (2, 5)] = 1.0
                for linear in (block.self_attn.o, block.cross_attn.o, block.ffn[2]):
                    nn.init.xavier_uniform_(linear.get_parameter("weight"), gain=0.2)
        nn.init.normal_(self.time_projection[1].get_parameter("weight"), std=0.002)
        nn.init.normal_(self.head.head.weight, std=0.02)
        if self.action_embedding is not None:
            nn.init.zeros_(self.action_embedding[2].get_parameter("weight"))
        if self.spatial_embedding is not None:
            nn.init.normal_(self.spatial_embedding, std=0.5)

    def prompt_kv(self, embeds: Tensor) -> Tensor:
        """Prompt embeddings [B, T, E] → cross-attention K/V [B, L, 2, T, H, D]."""
        text = self.text_embedding(embeds)
        return torch.stack([torch.stack(block.cross_attn.key_value(text), 1) for block in self._blocks()], 1)

    def run_pass(self, batch: PassBatch) -> Tensor:
        """One streaming forward over the pools; see `CausalVideoModel.run_pass`. Raw [B, F, C, h, w]."""
        rope = batch.rope if batch.rope is not None else self.rope(batch.rows)
        x, time = self._embed(batch.x, batch.sigma, batch.actions)
        e = self.time_projection(time).unflatten(-1, (6, -1))
        exchange, attention = batch.exchange, (batch.attention or SLICES).begin(batch)
        if exchange is not None:
            x, rope = exchange.own(x), Rope(cos=exchange.own(rope.cos), sin=exchange.own(rope.sin))
        attend = partial(_attend_pool, exchange, attention)
        if self.fused is not None:
            x = self.head.head(self.fused.run(x, e, time, rope, attend, attention))
        else:
            for layer, block in enumerate(self.blocks):
                x = block(x, e, rope, partial(attend, layer), partial(attention.attend_prompts, layer))
            x = self.head(x, time)
        return self._unpatchify(x if exchange is None else exchange.gather(x))

    def rope(self, rows: Sequence[PassRow]) -> Rope:
        """The rotations of a pass of these rows."""
        return self._rope([[row.frame_start + f for f in range(len(row.write))] for row in rows])

    def predict_clip(
        self,
        clean: Tensor,
        noisy: Tensor,
        sigma: Tensor,
        embeds: Tensor,
        first_noisy: int = 0,
        actions: Tensor | None = None,
    ) -> Tensor:
        """Teacher forcing: predict every noisy chunk from the clean chunks before it, all at once.

        clean [R, Kc·F, C, h, w] holds chunks 0 … Kc−1, noisy [R, Kn·F, C, h, w] chunks first_noisy …, sigma
        [R, Kn] their noise levels, embeds [R, K, T, E] each chunk's prompt, actions [R, K·F, A] what pushes
        each latent frame. Returns the raw output for the noisy chunks.
        """
        span, count = self.config.chunk_frames, noisy.shape[1] // self.config.chunk_frames
        num_clean = clean.shape[1] // span
        chunks = [(i, True) for i in range(num_clean)] + [(first_noisy + i, False) for i in range(count)]
        frames = [chunk * span + f for chunk, _ in chunks for f in range(span)]
        levels = torch.cat([sigma.new_zeros(len(sigma), num_clean), sigma], dim=1).repeat_interleave(
            span, dim=1
        )
        pushes = None if actions is None else actions[:, frames]
        rope = self._rope([frames])
        x, time = self._embed(torch.cat([clean, noisy], dim=1), levels, pushes)
        e = self.time_projection(time).unflatten(-1, (6, -1))
        text = self.text_embedding(embeds[:, [chunk for chunk, _ in chunks]].flatten(0, 1))
        attend = teacher_forcing_attend(chunks, span, self.config.window_frames // span)
        for block in self._blocks():
            k, v = block.cross_attn.key_value(text)
            x = block(x, e, rope, attend, partial(_attend_clip_text, span, k, v))
        x, time = x[:, num_clean * span :], time[:, num_clean * span :]
        return self._unpatchify(self.head(x, time))

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def _rope(self, frames: Sequence[Sequence[int]]) -> Rope:
        rows, columns = self.config.grid
        device = self.patch_embedding.weight.device
        return rope_table(frames, rows=rows, columns=columns, head_dim=self.config.head_dim, device=device)

    def _embed(self, x: Tensor, sigma: Tensor, actions: Tensor | None) -> tuple[Tensor, Tensor]:
        """Latents, noise levels, actions → (tokens [B, F, N, d], time [B, F, d]).

        Actions join the noise level, so that they modulate every block frame by frame; None: nothing is held.
        """
        assert x.ndim == 5 and sigma.shape == x.shape[:2], (x.shape, sigma.shape)
        weight = self.patch_embedding.weight
        patches = fn.pixel_unshuffle(x.to(weight.dtype), self.config.patch)  # [B, F, C·p·p, rows, columns]
        tokens = fn.linear(patches.flatten(3).transpose(2, 3), weight.flatten(1), self.patch_embedding.bias)
        if self.spatial_embedding is not None:
            tokens = tokens + self.spatial_embedding
        time = self.time_embedding(_sinusoid(sigma * 1000, self.config.freq_dim).to(weight.dtype))
        if self.action_embedding is not None:
            if actions is None:
                actions = x.new_zeros(*x.shape[:2], self.config.action_dim)
            time = time + self.action_embedding(actions.to(weight.dtype))
        return tokens, time

    def _unpatchify(self, x: Tensor) -> Tensor:
        """[B, F, N, p·p·C] → [B, F, C, h, w] float32"""
        rows, columns = self.config.grid
        p = self.config.patch
        x = (
            x.float().unflatten(-1, (p, p, -1)).unflatten(2, (rows, columns))
        )  # [B, F, rows, columns, p, p, C]
        return x.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)


def _attend_pool(
    exchange: TokenExchange | None,
    attention: PassAttention,
    layer: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
) -> Tensor:
    """Self-attention over the pool; with other ranks, over all tokens of this rank's heads."""
    if exchange is None:
        return attention.attend_pool(layer, q, k, v)
    q, k, v = exchange.to_heads(torch.stack([q, k, v])).unbind(0)
    return exchange.to_tokens(attention.attend_pool(layer, q, k, v))


def _sinusoid(position: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding [..., dim] of positions [...], float32."""
    half = dim // 2
    frequencies = 10000.0 ** -(torch.arange(half, device=position.device, dtype=torch.float32) / half)
    angles = position.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _attend_clip_text(span: int, k: Tensor, v: Tensor, q: Tensor) -> Tensor:
    """Each chunk of q [R, K·F, N, H, D] attends to its own prompt k, v [R·K, T, H, D]."""
    q_chunks = q.unflatten(1, (-1, span)).flatten(0, 1).flatten(1, 2)  # [R·K, F·N, H, D]
    return attend_trainable(q_chunks, k, v).reshape(q.shape)
