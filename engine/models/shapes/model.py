"""The model `shapes`: prompt reading, causal DiT and streaming decoder behind the engine's interface.

Shape letters: as in base.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Final

import torch
from torch import Tensor, nn

from engine.models.base import ModelSpec, PassBatch, PassRow
from engine.models.causal_dit import CausalDiT, CausalDiTConfig
from engine.models.fused_blocks import fuse
from engine.models.fused_ops import available_ops
from engine.models.linear import plain_linear
from engine.models.rope import Rope
from engine.models.shapes.captions import describe, read
from engine.models.shapes.codec import CodecConfig, Decoder, to_uint8
from engine.models.shapes.concepts import TEXT_LEN, VOCAB_SIZE, scene_ids, scene_tokens
from engine.models.weights import check_tensors

__all__ = [
    "PRESETS",
    "SHAPES",
    "SHAPES_FAST",
    "SHAPES_LARGE",
    "TINY",
    "ShapesConfig",
    "ShapesModel",
    "ShapesNet",
]

_STATE_VERSION = 2
_KEYS: Final = {
    "arrowleft": (0, -1.0),
    "arrowright": (0, 1.0),
    "arrowup": (1, -1.0),
    "arrowdown": (1, 1.0),
    "left": (0, -1.0),
    "right": (0, 1.0),
    "up": (1, -1.0),
    "down": (1, 1.0),
    "a": (0, -1.0),
    "d": (0, 1.0),
    "w": (1, -1.0),
    "s": (1, 1.0),
}
"""Key (as browsers name them, in lower case) → (axis of the push, direction)."""
_CLEAN_SIGMA = 1e-6  # below this a pass is a clean one; its velocity means nothing and is returned as zero


def shifted_sigmas(steps: int, shift: float = 3.0) -> tuple[float, ...]:
    """Noise levels of `steps` equal steps from 1 towards 0, moved to the noisy side by `shift`."""
    return tuple(shift * u / (1 + (shift - 1) * u) for u in (1 - i / steps for i in range(steps)))


_DIT: Final = CausalDiTConfig(
    dim=192,
    ffn_dim=768,
    heads=6,
    layers=6,
    latent_shape=(16, 12, 12),
    patch=2,
    chunk_frames=3,
    window_frames=12,
    text_shape=(TEXT_LEN, 64),
    action_dim=2,
    spatial_embedding=True,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapesConfig:
    """Sizes and schedule of a `shapes` model."""

    name: str = "shapes"
    dit: CausalDiTConfig = _DIT
    codec: CodecConfig = field(default_factory=CodecConfig)
    fps: int = 16
    sink_frames: int = 0
    sigmas: tuple[float, ...] = tuple(shifted_sigmas(8)[i] for i in (0, 2, 5, 7))
    """Down to a low level: most of a later chunk is known from the past, but edges are drawn last."""
    first_sigmas: tuple[float, ...] = shifted_sigmas(8)


SHAPES = ShapesConfig()
"""What the shipped weights are for: 96×96."""

SHAPES_FAST = ShapesConfig(name="shapes-fast", sigmas=shifted_sigmas(2), first_sigmas=shifted_sigmas(4))
"""The same weights in 2 + 1 passes per chunk."""

SHAPES_LARGE = ShapesConfig(
    name="shapes-large",
    dit=replace(_DIT, dim=256, ffn_dim=1024, heads=8, layers=8, latent_shape=(16, 16, 16)),
    codec=CodecConfig(
        side=16, encoder_widths=(128, 96, 64), decoder_widths=(128, 96, 64), decoder_depth=(4, 2)
    ),
)
"""128×128, for GPUs; its weights are trained by the user."""

PRESETS: Final = {config.name: config for config in (SHAPES, SHAPES_FAST, SHAPES_LARGE)}

TINY = ShapesConfig(
    dit=replace(
        _DIT, dim=32, ffn_dim=64, heads=2, layers=2, latent_shape=(4, 4, 4), text_shape=(TEXT_LEN, 16)
    ),
    codec=CodecConfig(
        channels=4, side=4, encoder_widths=(16, 8, 8), decoder_widths=(16, 8, 8), decoder_depth=(1, 1)
    ),
)
"""For tests: 32×32 pixels, milliseconds a pass."""


class ShapesNet(nn.Module):
    """Every tensor that a weights file holds."""

    def __init__(self, config: ShapesConfig) -> None:
        super().__init__()
        text_len, text_dim = config.dit.text_shape
        self.token_embedding = nn.Embedding(VOCAB_SIZE, text_dim)
        self.slot_embedding = nn.Parameter(0.2 * torch.randn(text_len, text_dim))
        self.dit = CausalDiT(config.dit)
        self.decoder = Decoder(config.codec)

    def embed(self, tokens: Tensor) -> Tensor:
        """Concept tokens [..., T] → [..., T, E]"""
        out: Tensor = self.token_embedding(tokens) + self.slot_embedding
        return out


class ShapesModel:
    """`CausalVideoModel` of the procedural shapes world. Holds weights only; see base.py for the contract."""

    def __init__(
        self,
        config: ShapesConfig,
        net: ShapesNet,
        *,
        weights_hash: str,
        device: torch.device,
        dtype: torch.dtype,
        fused: bool | None = None,
    ) -> None:
        """Takes over `net`, moves it to `device`; K/V and transformer use `dtype`, the decoder float32.

        `fused`: run passes with fused blocks (`fused_blocks.py`)? None: on GPUs.
        """
        self.device, self.dtype = device, dtype
        self.spec = _spec(config, weights_hash)
        self._net = net.eval().requires_grad_(False).to(device)
        self._net.dit.to(dtype)
        if device.type == "cuda" if fused is None else fused:
            fuse(self._net.dit, available_ops(device), plain_linear)
        self._net.decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def random(
        cls,
        seed: int,
        *,
        config: ShapesConfig = SHAPES,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        fused: bool | None = None,
    ) -> ShapesModel:
        """Random weights, equal for equal seed and config. Leaves torch's own generator untouched."""
        net = _fresh_net(config, seed)
        digest = hashlib.sha256(f"random {seed} {asdict(config)}".encode()).hexdigest()
        where = torch.device(device)
        return cls(config, net, weights_hash=digest, device=where, dtype=dtype, fused=fused)

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        weights_hash: str,
        *,
        config: ShapesConfig = SHAPES,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> ShapesModel:
        """A model with these weights.

        Raises:
            WeightsError: a name is missing or unknown, or a shape differs.
        """
        net = _fresh_net(config, seed=0)  # not on the meta device: its first use imports a second of Python
        check_tensors(net, tensors)
        net.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
        return cls(config, net, weights_hash=weights_hash, device=torch.device(device), dtype=dtype)

    def encode_prompts(self, texts: Sequence[str]) -> Tensor:
        """Text → [B, T, E] float32; words without a meaning here are skipped."""
        tokens = [scene_tokens(scene_ids(read(text))) for text in texts]
        return self._net.embed(
            torch.tensor(tokens, dtype=torch.int64, device=self.device).reshape(-1, TEXT_LEN)
        )

    def combine_prompts(self, shown: str, text: str) -> str:
        """What `text` leaves out stays as it was: "make it night" changes the background alone."""
        return describe(read(text, read(shown)), lambda words: words[0])

    def encode_control(self, keys: Collection[str], axes: Mapping[str, float]) -> tuple[float, ...]:
        """Arrow keys (or WASD) and axes x, y → the push (right, down), each in [−1, 1]."""
        push = [axes.get("x", 0.0), axes.get("y", 0.0)]
        for key in keys:
            axis, sign = _KEYS.get(key.lower(), (0, 0.0))
            push[axis] += sign
        return tuple(max(-1.0, min(1.0, value)) for value in push)

    @torch.inference_mode()
    def prompt_kv(self, embeds: Tensor) -> Tensor:
        """[B, T, E] → [B, L, 2, T, H, D] in the model's dtype."""
        return self._net.dit.prompt_kv(embeds.to(self.dtype))

    @torch.inference_mode()
    def run_pass(self, batch: PassBatch) -> Tensor:
        """See `CausalVideoModel.run_pass`. The transformer predicts x0; the velocity is what leads there.

        Rows of a clean pass return zeros.
        """
        x0 = self._net.dit.run_pass(batch)
        sigma = batch.sigma[:, :, None, None, None]
        return ((batch.x - x0) / sigma.clamp(min=_CLEAN_SIGMA)).masked_fill(sigma <= _CLEAN_SIGMA, 0.0)

    def rope(self, rows: Sequence[PassRow]) -> Rope:
        """See `ReplayableModel`."""
        return self._net.dit.rope(rows)

    def initial_decoder_state(self) -> Tensor:
        """Zeros [decoder_state_numel] float32."""
        return self._net.decoder.initial_state()

    @torch.inference_mode()
    def decode(self, latents: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [F, C, h, w] → (RGB uint8 [F·4, height, width, 3], next state). Works for any F ≥ 1."""
        rgb, next_state = self._net.decoder(latents[None].float(), state[None])
        return to_uint8(rgb[0]), next_state[0]


def _fresh_net(config: ShapesConfig, seed: int) -> ShapesNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ShapesNet(config)


def _spec(config: ShapesConfig, weights_hash: str) -> ModelSpec:
    dit, codec = config.dit, config.codec
    return ModelSpec(
        name=config.name,
        weights_hash=weights_hash,
        state_version=_STATE_VERSION,
        width=8 * codec.side,
        height=8 * codec.side,
        fps=config.fps,
        chunk_latent_frames=dit.chunk_frames,
        frames_per_latent=codec.frames,
        first_chunk_drop_frames=0,
        latent_shape=dit.latent_shape,
        tokens_per_frame=dit.tokens_per_frame,
        layers=dit.layers,
        heads=dit.heads,
        head_dim=dit.head_dim,
        window_frames=dit.window_frames,
        sink_frames=config.sink_frames,
        text_shape=dit.text_shape,
        action_dim=dit.action_dim,
        sigmas=config.sigmas,
        first_sigmas=config.first_sigmas,
        decoder_state_numel=codec.state_numel,
        decoder_tail_frames=len(codec.memory_shapes()),  # each memory looks back one latent
    )
