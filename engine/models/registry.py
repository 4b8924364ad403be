"""The table of models that an engine can serve, and how each is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from engine.models.base import CausalVideoModel
from engine.models.shapes.model import ShapesModel, WeightsError

__all__ = ["MODELS", "WeightsError", "load_model"]

_SHAPES_WEIGHTS: Final = Path(__file__).parent / "shapes" / "weights" / "shapes.safetensors"


def _load_shapes(device: torch.device, weights: Path | None) -> CausalVideoModel:
    path = weights or _SHAPES_WEIGHTS
    try:
        content = path.read_bytes()
        tensors = load_safetensors(content)
    except FileNotFoundError as exc:
        raise WeightsError(f"shapes: no weights at {path}; train some or name a file") from exc
    except (OSError, SafetensorError) as exc:
        raise WeightsError(f"shapes: cannot read {path}: {exc}") from exc
    # CPUs run float32 as fast at this size, and not all of them have bfloat16 instructions.
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    digest = hashlib.sha256(content).hexdigest()
    return ShapesModel.from_tensors(tensors, digest, device=device, dtype=dtype)


MODELS: Final[Mapping[str, Callable[[torch.device, Path | None], CausalVideoModel]]] = {
    "shapes": _load_shapes
}
"""Model name → loader(device, weights file or None for the shipped one)."""


def load_model(name: str, *, device: torch.device, weights: Path | None = None) -> CausalVideoModel:
    """Load a model by name onto a device.

    Raises:
        ValueError: no such model; the message names the known ones.
        WeightsError: (a ValueError) the weights cannot be read or do not fit.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(sorted(MODELS))}")
    return MODELS[name](device, weights)
