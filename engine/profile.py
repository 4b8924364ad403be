"""What a model costs on a device, as JSON for the simulator and for people: `turboserve profile`."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

import torch

from engine.costs import engine_costs
from engine.engine import model_info
from engine.loading import Loaded, prepare
from engine.memory import slot_bytes
from engine.models.base import CausalVideoModel
from engine.ranks import Alone

__all__ = ["SECTIONS", "profile"]

FORMAT: Final = 1
"""Grows when a field changes its meaning."""


def _costs(loaded: Loaded) -> Mapping[str, Any]:
    """t(B) per KV bucket, decode, passes of a chunk; the way to attend that was fastest for each B."""
    costs = asdict(engine_costs(loaded.costs, loaded.model.spec))
    return {**costs, "attention": [backend.name for backend in loaded.attention.by_rows]}


def _memory(loaded: Loaded) -> Mapping[str, Any]:
    """What a resident session takes, and how many fit."""
    per_slot = slot_bytes(loaded.model)
    return {
        "session_bytes": per_slot,
        "sessions_that_fit": loaded.room.num_slots(per_slot),
        **asdict(loaded.room),
    }


SECTIONS: Final[Mapping[str, Callable[[Loaded], Mapping[str, Any]]]] = {"costs": _costs, "memory": _memory}
"""Name in the result → what measures it, given a model with an empty pool."""


def profile(model: CausalVideoModel, *, sessions: int) -> dict[str, Any]:
    """Measure everything, with batches and a pool of at most so many sessions. Takes seconds.

    Raises:
        MemoryError: not one session fits.
    """
    loaded = prepare(model, capacity=sessions, ranks=Alone())
    device = model.device
    return {
        "format": FORMAT,
        "model": asdict(model_info(model.spec)),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **{name: measure(loaded) for name, measure in SECTIONS.items()},
    }
