"""What the engine needs from a model: a spec, prompt encoding, one batched pass, streaming decode.

A model holds weights and nothing else. All state of a session (KV slab, prompt K/V, decoder state, noise
counters) belongs to the engine and is passed in, so that sessions at different chunks, denoising steps and
prompts share one forward and can be moved between processes. DESIGN.md sections 6 and 7.

Shape letters of this file:
    B rows of a batch (sessions)    F latent frames of a chunk    C latent channels    h, w latent size
    W ring frames of a KV slab      N tokens per latent frame     L layers   H heads   D head dim
    T text positions                E text dim                    A action dim
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from engine.models.rope import Rope

__all__ = [
    "AttentionBackend",
    "CausalVideoModel",
    "ModelSpec",
    "PassAttention",
    "PassBatch",
    "PassRow",
    "PreparesPrompts",
    "ReplayableModel",
    "TokenExchange",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The numbers that engine, gateway and scheduler need about a model. Checked on construction."""

    name: str
    """Name that a client passes as `model`."""
    weights_hash: str
    """Hex digest of the weights: sessions move only between engines with an equal one."""
    state_version: int
    """Version of the session state's layout."""
    width: int
    """Pixels, even."""
    height: int
    """Pixels, even."""
    fps: int
    """Frames per second of media time."""
    chunk_latent_frames: int
    """F: latent frames generated together."""
    frames_per_latent: int
    """Pixel frames that one latent frame decodes to."""
    first_chunk_drop_frames: int
    """Pixel frames to discard at the start of the first chunk after start or reset (Wan: 3, shapes: 0)."""
    latent_shape: tuple[int, int, int]
    """(C, h, w)."""
    tokens_per_frame: int
    """N."""
    layers: int
    heads: int
    head_dim: int
    window_frames: int
    """W: latent frames of a KV slab, the current chunk included."""
    sink_frames: int
    """Latent frames since start that are never evicted; 0 ≤ sink_frames ≤ window_frames − F."""
    sink_reach: int | None = None
    """Latent frames from the first of the sink to the newest, at most: then the sink, which has to be whole
    chunks, is written again nearer to the window. None: never."""
    recaches_prompts: bool = False
    """Does a cut to another prompt also write the window's K/V again, with that prompt?"""
    text_shape: tuple[int, int]
    """(T, E)."""
    action_dim: int
    """A; 0 when the model takes no control input."""
    sigmas: tuple[float, ...]
    """Noise levels of the denoising steps, falling, in (0, 1]; the clean pass (sigma 0) is not listed."""
    first_sigmas: tuple[float, ...]
    """Same for the first chunk after start or reset."""
    decoder_state_numel: int
    """Length of the flat decoder state."""
    decoder_tail_frames: int | None = None
    """Newest latent frames that the decoder state depends on, so that it can be made from them again; None:
    on all since start or reset, and a checkpoint must hold the state itself."""

    def __post_init__(self) -> None:
        if self.width % 2 or self.height % 2:
            raise ValueError(f"{self.name}: width and height must be even for 4:2:0 video")
        if not 0 <= self.sink_frames <= self.window_frames - self.chunk_latent_frames:
            raise ValueError(f"{self.name}: sink_frames must leave room for one chunk in the window")
        reach, span = self.sink_reach, self.chunk_latent_frames
        if self.sink_frames and reach is not None and (self.sink_frames % span or reach < self.window_frames):
            raise ValueError(f"{self.name}: sink_reach needs a sink of whole chunks and at least the window")
        for sigmas in (self.sigmas, self.first_sigmas):
            falling = all(a > b for a, b in zip(sigmas, sigmas[1:], strict=False))
            if not sigmas or not falling or not all(0.0 < s <= 1.0 for s in sigmas):
                raise ValueError(f"{self.name}: sigmas must fall within (0, 1], got {sigmas}")

    @property
    def chunk_frames(self) -> int:
        """Pixel frames of every chunk but the first after start or reset."""
        return self.chunk_latent_frames * self.frames_per_latent

    @property
    def kv_slab_shape(self) -> tuple[int, int, int, int, int, int]:
        """Shape of one session's KV slab, [L, 2, W, N, H, D]."""
        return (self.layers, 2, self.window_frames, self.tokens_per_frame, self.heads, self.head_dim)

    @property
    def prompt_kv_shape(self) -> tuple[int, int, int, int, int]:
        """Shape of one session's cross-attention K/V, [L, 2, T, H, D]."""
        return (self.layers, 2, self.text_shape[0], self.heads, self.head_dim)


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRow:
    """Where one session's row of a batch lives. Host integers only: the pass never reads a device value."""

    slot: int
    """Index of the session's slab in both pools."""
    frame_start: int
    """Latent frames since start or reset before this chunk: the time position of the chunk's first frame."""
    write: tuple[int, ...]
    """Ring frames [F] that receive this chunk's K/V. A pass may be run again: it overwrites only these.

    With `recaches_prompts` there are passes of one row over several chunks at once: F is larger then, here
    and in the batch's tensors.
    """
    num_valid: int
    """Ring frames [0, num_valid) hold K/V to attend to, this chunk's included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassBatch:
    """One coalesced forward: every row at its own denoising step, chunk index, prompt and KV length."""

    rows: tuple[PassRow, ...]
    x: Tensor
    """[B, F, C, h, w] float32 noisy latents (clean ones for a clean pass)."""
    sigma: Tensor
    """[B, F] float32 in [0, 1]; 0 marks a clean pass."""
    kv: Tensor
    """KV pool [slots, L, 2, W, N, H, D], written in place. K is stored after RoPE."""
    prompt_kv: Tensor
    """Prompt pool [slots, L, 2, T, H, D]."""
    actions: Tensor | None = None
    """[B, F, A] float32; None when nothing is held, or A is 0."""
    attention: AttentionBackend | None = None
    """How to attend; None: the plainest way."""
    exchange: TokenExchange | None = None
    """How to share the pass with other ranks; None: there are none. With k of them, `kv` has H/k heads."""
    rope: Rope | None = None
    """Rotations of the rows' tokens where they are known already (in a graph); None: `rows` say."""


class PassAttention(Protocol):
    """Attention over the pools during one pass."""

    def attend_pool(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store the rows' k, v [B, F, N, H, D] (rotated) in their ring frames, then let each row's q of the
        same shape attend to its valid ring frames. Returns that shape."""

    def attend_prompts(self, layer: int, q: Tensor) -> Tensor:
        """Let each row's q [B, F, N, H, D] attend to its own prompt K/V."""


class AttentionBackend(Protocol):
    """One way to do it. All give equal results, but for the order of sums."""

    @property
    def name(self) -> str:
        """For the log."""

    def begin(self, batch: PassBatch) -> PassAttention:
        """To be called once per pass: what all layers need is computed here."""


class TokenExchange(Protocol):
    """How the k ranks that share a pass swap a share of the tokens for a share of the heads and back.

    Every rank calls each in the same order.
    """

    def own(self, x: Tensor) -> Tensor:
        """This rank's share of the tokens: [B, F, N, ...] → [B, F, N/k, ...]"""

    def to_heads(self, x: Tensor) -> Tensor:
        """[P, B, F, N/k, H, D] → [P, B, F, N, H/k, D]; P tensors (q, k and v) travel together."""

    def to_tokens(self, x: Tensor) -> Tensor:
        """[B, F, N, H/k, D] → [B, F, N/k, H, D]"""

    def gather(self, x: Tensor) -> Tensor:
        """[B, F, N/k, c] → [B, F, N, c]"""


class CausalVideoModel(Protocol):
    """A causal video diffusion model with flow-matching (velocity) parametrisation: x = (1−σ)·x0 + σ·ε."""

    spec: ModelSpec
    device: torch.device
    dtype: torch.dtype
    """Type of the KV pools."""

    def encode_prompts(self, texts: Sequence[str]) -> Tensor:
        """Text → [B, T, E]. Any text is accepted; unknown words must not raise."""

    def combine_prompts(self, shown: str, text: str) -> str:
        """The prompt in force once `text` is applied to a video of the prompt `shown`. Pure.

        A model that takes prompts as edits ("make it night") returns the whole scene; others return `text`.
        """

    def encode_control(self, keys: Collection[str], axes: Mapping[str, float]) -> tuple[float, ...]:
        """Held keys and axes (in [−1, 1]) → the action [A] of a latent frame; () when A is 0. Pure.

        Nothing held is all zeros, unknown names mean nothing.
        """

    def prompt_kv(self, embeds: Tensor) -> Tensor:
        """Prompt embeddings [B, T, E] → cross-attention K/V [B, L, 2, T, H, D]. Embeddings may be blended."""

    def run_pass(self, batch: PassBatch) -> Tensor:
        """One forward: writes the rows' K/V into `batch.kv`, returns the velocity [B, F, C, h, w] float32.

        x0 is `x − sigma·velocity`. A row's result depends on no other row.
        """

    def initial_decoder_state(self) -> Tensor:
        """Flat decoder state [decoder_state_numel] at start and reset."""

    def decode(self, latents: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [F, C, h, w] → (RGB uint8 [F·frames_per_latent, height, width, 3], next flat state)."""


@runtime_checkable
class PreparesPrompts(Protocol):
    """A model whose prompts take long to encode: it can do so on a thread of its own while passes go on."""

    def prepare_prompts(self, texts: Sequence[str], on_ready: Callable[[], None]) -> bool:
        """Will `encode_prompts` give these at once? If not, they are being encoded from now on.

        `on_ready` is called on that thread whenever some are done; the one given last counts. A text that
        can't be encoded counts as done: `encode_prompts` raises then.
        """


@runtime_checkable
class ReplayableModel(Protocol):
    """A model whose `run_pass` takes nothing from `rows` when `attention` and `rope` are given, and can so be
    replayed from a CUDA graph."""

    def rope(self, rows: Sequence[PassRow]) -> Rope:
        """The rotations of a pass of these rows."""
