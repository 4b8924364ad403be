"""What a model costs on a device, as JSON for the simulator and for people: `turboserve profile`."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

import torch
from torch import Tensor

from engine.costs import engine_costs
from engine.engine import model_info
from engine.kv_pool import SlabPool
from engine.link_probe import measure_link
from engine.loading import Loaded, prepare
from engine.memory import slot_bytes
from engine.models.base import CausalVideoModel
from engine.offload import Copier, HostPool, slab_bytes
from engine.ranks import Alone

__all__ = ["SECTIONS", "profile"]

_COPIES: Final = 15
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


def _offload(loaded: Loaded) -> Mapping[str, Any]:
    """What a session's K/V takes to host memory and back: alpha_ms + bytes / bytes_per_ms, each way."""
    model, pool = loaded.model, loaded.pool
    host, slot = HostPool(model, budget_bytes=slab_bytes(model)).allocate(), pool.allocate()
    assert host is not None, "the budget is one slab"
    copier, here = Copier(model.device), pool.kv[slot]
    there = host.data[: here.nbytes].view(here.dtype).view(here.shape)

    def median_ms(target: Tensor, source: Tensor) -> float:
        times = []
        for _ in range(_COPIES):
            began = time.perf_counter()
            copier.submit(lambda: target.copy_(source, non_blocking=True), lambda: None).result()
            times.append((time.perf_counter() - began) * 1000.0)
        return statistics.median(times)

    try:
        alpha_ms = median_ms(there[:1, :1, :1], here[:1, :1, :1])
        out_ms, in_ms = median_ms(there, here), median_ms(here, there)
    finally:
        copier.close()
        pool.free(slot)
    return {
        "alpha_ms": alpha_ms,
        "out_bytes_per_ms": here.nbytes / max(out_ms - alpha_ms, 1e-3),
        "in_bytes_per_ms": here.nbytes / max(in_ms - alpha_ms, 1e-3),
        "slab_bytes": here.nbytes,
    }


SECTIONS: Final[Mapping[str, Callable[[Loaded], Mapping[str, Any]]]] = {
    "costs": _costs,
    "memory": _memory,
    "migration": _migration,
    "offload": _offload,
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
