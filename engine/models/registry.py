"""The table of models that an engine can serve, and how each is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from engine.models.base import CausalVideoModel
from engine.models.shapes.model import (
    SHAPES,
    SHAPES_FAST,
    SHAPES_LARGE,
    ShapesConfig,
    ShapesModel,
    WeightsError,
)

__all__ = ["MODELS", "WeightsError", "load_model"]

_WEIGHTS: Final = Path(__file__).parent / "shapes" / "weights"


def _load_shapes(
    config: ShapesConfig, shipped: Path | None, device: torch.device, weights: Path | None
) -> CausalVideoModel:
    path = weights or shipped
    if path is None:
        raise WeightsError(
            f"{config.name}: its weights are not shipped; train some (python -m engine.models.shapes.train "
            f"all --preset {config.name} --out DIR) and name the file with --weights"
        )
    try:
        content = path.read_bytes()
        tensors = load_safetensors(content)
    except FileNotFoundError as exc:
        raise WeightsError(f"{config.name}: no weights at {path}; train some or name a file") from exc
    except (OSError, SafetensorError) as exc:
        raise WeightsError(f"{config.name}: cannot read {path}: {exc}") from exc
    # CPUs run float32 as fast at this size, and not all of them have bfloat16 instructions.
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    digest = hashlib.sha256(content).hexdigest()
    return ShapesModel.from_tensors(tensors, digest, config=config, device=device, dtype=dtype)


MODELS: Final[Mapping[str, Callable[[torch.device, Path | None], CausalVideoModel]]] = {
    "shapes": partial(_load_shapes, SHAPES, _WEIGHTS / "shapes.safetensors"),
    "shapes-fast": partial(_load_shapes, SHAPES_FAST, _WEIGHTS / "shapes.safetensors"),
    "shapes-large": partial(_load_shapes, SHAPES_LARGE, None),
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
