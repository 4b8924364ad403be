"""The model `paced`: a tiny pass, then a wait until its declared cost t(B) has passed.

Many engines fit on two cores, because waiting needs no core. The engine path is the real one; the picture is
64×64 blobs of colour that follow from prompt, seed and the frames before. Results made with it say so: the
model's name is in them.

The costs are a JSON file, given as the model's weights (`--model paced --weights FILE`): what
`turboserve profile` wrote on another machine, or its `costs` alone:

    {"buckets": [3, 12], "pass_ms": [[21, 40], [30, 57]], "decode_ms": 10}

`pass_ms` has t(1), t(2), … for each KV length. A batch larger than the table is out of memory.

Shape letters: as in engine/models/base.py; D = C·h·w, a latent frame is one token.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from engine.cost_table import CostTable
from engine.models.base import ModelSpec, PassBatch

__all__ = ["DEFAULT", "PacedModel", "load", "read_costs"]

_D: Final = 12
_SIDE: Final = 64
_SIGMAS: Final = (1.0, 0.94, 0.83, 0.63)
_WINDOW: Final = 12


def _default() -> CostTable:
    """In the proportions of a 1.3B model at 480p: a pass saturates the GPU, so a batch gains little.

    A chunk of 0.75 s takes 160 ms alone, and four sessions are held in real time, with a fifth of it left.
    """
    buckets = (3, 6, 9, 12)
    cells = [
        [30.0 * (0.1 + 0.9 * rows) * (0.6 + 0.4 * b / _WINDOW) for rows in range(1, 17)] for b in buckets
    ]
    return CostTable(buckets=buckets, ms=tuple(map(tuple, cells)), decode_ms=10.0)


DEFAULT: Final = _default()


def read_costs(text: str) -> CostTable:
    """Raises ValueError: it is no cost table."""
    try:
        content = json.loads(text)
        costs = content.get("costs", content)
        return CostTable(
            buckets=tuple(int(bucket) for bucket in costs["buckets"]),
            ms=tuple(tuple(float(ms) for ms in cells) for cells in costs["pass_ms"]),
            decode_ms=float(costs.get("decode_ms", 0.0)),
        )
    except (AttributeError, KeyError, TypeError) as exc:
        raise ValueError(f"a cost table needs buckets and pass_ms: {exc!r}") from exc


def load(device: torch.device, weights: Path | None) -> PacedModel:
    """The entry point. Raises ValueError: the file can't be used."""
    if weights is None:
        return PacedModel(DEFAULT, device)
    try:
        return PacedModel(read_costs(weights.read_text(encoding="utf-8")), device)
    except (OSError, ValueError) as exc:
        raise ValueError(f"paced: cannot read costs from {weights}: {exc}") from exc


class PacedModel:
    """`CausalVideoModel` whose cost is its table."""

    def __init__(self, costs: CostTable, device: torch.device) -> None:
        self.device, self.dtype = device, torch.float32
        self.spec = _spec(hashlib.sha256(repr(costs).encode()).hexdigest())
        self._costs = costs

    def encode_prompts(self, texts: Sequence[str]) -> Tensor:
        """[B, 1, D]: colours drawn from the text's hash."""
        digests = [hashlib.sha256(text.encode()).digest()[:_D] for text in texts]
        rows = [[byte / 127.5 - 1.0 for byte in digest] for digest in digests]
        return torch.tensor(rows, dtype=torch.float32, device=self.device).reshape(-1, 1, _D)

    def combine_prompts(self, shown: str, text: str) -> str:
        """The new prompt replaces the old one."""
        return text

    def encode_control(self, keys: Collection[str], axes: Mapping[str, float]) -> tuple[float, ...]:
        """It takes none."""
        return ()

    def prompt_kv(self, embeds: Tensor) -> Tensor:
        """[B, 1, D] → [B, 1, 2, 1, 1, D]"""
        return embeds[:, None, None, :, None].expand(-1, 1, 2, -1, -1, -1)

    @torch.inference_mode()
    def run_pass(self, batch: PassBatch) -> Tensor:
        """See `CausalVideoModel.run_pass`. Raises MemoryError: the table has no batch of this size."""
        began_s = time.monotonic()
        if len(batch.rows) > self._costs.largest:
            raise MemoryError(f"the costs of paced end with {self._costs.largest} sessions")
        velocity = torch.stack([self._row(batch, index) for index in range(len(batch.rows))])
        longest = max(row.num_valid for row in batch.rows)
        _wait(began_s, self._costs.pass_ms(len(batch.rows), longest))
        return velocity

    def _row(self, batch: PassBatch, index: int) -> Tensor:
        """[F, C, h, w]: colours of the prompt, pulled towards those seen so far, in a slow swing."""
        row, x = batch.rows[index], batch.x[index]
        kv = batch.kv[row.slot, 0, :, :, 0, 0]  # [2, W, D]
        kv[:, list(row.write)] = x.flatten(1)
        sigma = float(batch.sigma[index, 0])
        if sigma == 0.0:
            return torch.zeros_like(x)
        seen = kv[1, : row.num_valid].mean(0)  # [D]
        swing = torch.arange(row.frame_start, row.frame_start + len(x), device=x.device).mul(0.4).sin()
        colours = torch.tanh(batch.prompt_kv[row.slot, 0, 1, 0, 0] + 0.2 * seen + 0.5 * swing[:, None])
        return (x - colours.reshape(x.shape)) / sigma

    def initial_decoder_state(self) -> Tensor:
        """Black: the frame before the first."""
        return torch.full((_D,), -1.0, device=self.device)

    @torch.inference_mode()
    def decode(self, latents: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Four pictures a latent frame, faded in from the one before."""
        began_s = time.monotonic()
        frames = torch.cat([state[None], latents.flatten(1)])  # [F + 1, D]
        shares = torch.tensor([0.25, 0.5, 0.75, 1.0], device=latents.device)[None, :, None]
        faded = torch.lerp(frames[:-1, None], frames[1:, None], shares).reshape(-1, 3, 2, 2)
        large = faded.repeat_interleave(_SIDE // 2, 2).repeat_interleave(_SIDE // 2, 3)
        pictures = large.add(1.0).mul(127.5).clamp(0.0, 255.0).byte().movedim(1, 3)
        _wait(began_s, self._costs.decode_ms)
        return pictures.contiguous(), frames[-1].clone()


def _wait(began_s: float, cost_ms: float) -> None:
    """The rest of the cost. It blocks the compute thread, as a pass does."""
    time.sleep(max(0.0, began_s + cost_ms / 1000.0 - time.monotonic()))


def _spec(digest: str) -> ModelSpec:
    return ModelSpec(
        name="paced",
        weights_hash=digest,
        state_version=1,
        width=_SIDE,
        height=_SIDE,
        fps=16,
        chunk_latent_frames=3,
        frames_per_latent=4,
        first_chunk_drop_frames=0,
        latent_shape=(3, 2, 2),
        tokens_per_frame=1,
        layers=1,
        heads=1,
        head_dim=_D,
        window_frames=_WINDOW,
        sink_frames=0,
        text_shape=(1, _D),
        action_dim=0,
        sigmas=_SIGMAS,
        first_sigmas=_SIGMAS,
        decoder_state_numel=_D,
        decoder_tail_frames=1,
    )
