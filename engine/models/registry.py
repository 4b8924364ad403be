"""The models that an engine can serve, and how each is loaded: our own, and those of other packages.

A package adds models with entry points of the group `turboserve.models`, name → loader (docs/models.md).
Their names are read from its metadata; its code is imported when one of its models is loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import EntryPoint, entry_points
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
)
from engine.models.wan.config import PRESETS as WAN_PRESETS
from engine.models.wan.config import WanConfig
from engine.models.weights import WeightsError

__all__ = ["GROUP", "MODELS", "Loader", "WeightsError", "load_model", "model_names"]

GROUP: Final = "turboserve.models"
"""Entry points of models in other packages."""

Loader = Callable[[torch.device, Path | None], CausalVideoModel]
"""(device, weights file or None for the model's own) → model. Raises ValueError: it can't be loaded so."""

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


def _load_wan(config: WanConfig, device: torch.device, weights: Path | None) -> CausalVideoModel:
    from engine.models.wan.folder import load_wan  # nobody else waits for it

    return load_wan(config, device, weights)


MODELS: Final[Mapping[str, Loader]] = {
    "shapes": partial(_load_shapes, SHAPES, _WEIGHTS / "shapes.safetensors"),
    "shapes-fast": partial(_load_shapes, SHAPES_FAST, _WEIGHTS / "shapes.safetensors"),
    "shapes-large": partial(_load_shapes, SHAPES_LARGE, None),
    **{name: partial(_load_wan, config) for name, config in WAN_PRESETS.items()},
}
"""Our own; an entry point does not replace one."""


def model_names() -> tuple[str, ...]:
    """Everything that `load_model` may be asked for."""
    return tuple(sorted({*MODELS, *(point.name for point in entry_points(group=GROUP))}))


def load_model(name: str, *, device: torch.device, weights: Path | None = None) -> CausalVideoModel:
    """Load a model by name onto a device, which becomes that of the calling thread.

    Raises:
        ValueError: no such model (the message names the known ones), or its package can't be used.
        WeightsError: (a ValueError) the weights cannot be read or do not fit.
    """
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)  # where Triton's kernels and events without a device are made
    model = _find(name)(device, weights)
    if model.spec.name != name:
        raise ValueError(f"the loader of model {name!r} made one that is called {model.spec.name!r}")
    return model


def _find(name: str) -> Loader:
    if name in MODELS:
        return MODELS[name]
    points = entry_points(group=GROUP, name=name)
    match [*{point.value: point for point in points}.values()]:
        case []:
            raise ValueError(f"unknown model {name!r}; known: {', '.join(model_names())}")
        case [point]:
            return _loader(point)
        case several:
            packages = ", ".join(sorted(_package(point) for point in several))
            raise ValueError(f"model {name!r} is in several packages: {packages}")


def _loader(point: EntryPoint) -> Loader:
    try:
        loader: Loader = point.load()
    except Exception as exc:  # whatever the import of a stranger's module raises
        raise ValueError(f"model {point.name!r} of {_package(point)} can't be imported: {exc}") from exc
    return loader


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value
