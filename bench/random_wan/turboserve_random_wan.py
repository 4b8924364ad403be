"""`wan-1.3b-random`: Wan 2.1 1.3B as Self-Forcing publishes it, random weights, a window of 12 latent frames.

For measurements on GPUs where no checkpoint is at hand: a pass costs what it costs with trained weights.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from engine.models.base import CausalVideoModel
from engine.models.wan.config import SELF_FORCING
from engine.models.wan.model import WanModel

NAME = "wan-1.3b-random"


def load(device: torch.device, weights: Path | None) -> CausalVideoModel:
    """A fresh model on the device. Raises ValueError: weights were named."""
    if weights is not None:
        raise ValueError(f"{NAME} takes no weights")
    config = replace(SELF_FORCING, name=NAME, dit=replace(SELF_FORCING.dit, window_frames=12))
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    return WanModel.random(0, config=config, device=device, dtype=dtype)
