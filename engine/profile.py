"""What a model costs on a device, as JSON for the simulator and for people: `turboserve profile`."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

import torch

from engine.costs import engine_costs
from engine.engine import model_info
from engine.kv_pool import SlabPool
from engine.link_probe import measure_link
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


def _migration(loaded: Loaded) -> Mapping[str, Any]:
    """What moving a session's K/V takes between two engines of this machine, alpha_ms + bytes / bytes_per_ms,
    and what rebuilding it from its checkpoint takes instead.
    """
    spec = loaded.model.spec
    chunks = -(-spec.window_frames // spec.chunk_latent_frames)
    pool = loaded.pool if loaded.pool.num_slots > 1 else SlabPool(loaded.model, slots=2)
    return {
        **asdict(measure_link(loaded.model, pool)),
        "slab_bytes": loaded.pool.kv[0].nbytes,
        "rebuild_ms": chunks * loaded.costs.pass_ms(1, loaded.costs.buckets[-1]),
    }


SECTIONS: Final[Mapping[str, Callable[[Loaded], Mapping[str, Any]]]] = {
    "costs": _costs,
    "memory": _memory,
    "migration": _migration,
}
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
