"""Start-up of one rank: the model, what its passes cost, pools of the size that memory has room for."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.config import EngineConfig
from engine.cost_table import CostTable
from engine.costs import Measured, measure_costs
from engine.kv_pool import SlabPool
from engine.memory import MemoryMeter, Room, make_meter, slot_bytes
from engine.models.base import CausalVideoModel
from engine.models.pool_attention import ChosenAttention
from engine.models.registry import load_model
from engine.offload import HostPool, default_budget
from engine.ranks import Ranks, check_split
from scheduler.messages import MAX_BATCH

__all__ = ["Loaded", "load", "make_host_pool", "monotonic_ms", "prepare", "rank_device"]

_log = logging.getLogger("turboserve.engine.loading")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What start-up makes before the engine can serve."""

    model: CausalVideoModel
    pool: SlabPool
    costs: CostTable
    attention: ChosenAttention
    room: Room
    offload_bytes: int
    """Host memory for idle sessions where the config says nothing; equal on all ranks."""


def monotonic_ms() -> float:
    """The engine's own clock: milliseconds, never set back."""
    return time.monotonic() * 1000.0


def rank_device(config: EngineConfig, local_rank: int) -> torch.device:
    """ "cuda" is the GPU with the rank's number among those that the job sees."""
    return torch.device("cuda", local_rank) if config.device == "cuda" else torch.device(config.device)


def load(config: EngineConfig, ranks: Ranks) -> Loaded:
    """Load the model, measure it, allocate the pools. Blocks for seconds; all ranks together.

    Raises:
        ValueError: the model or its weights cannot be used.
        MemoryError: not one session fits.
        RanksLost: another rank is gone.
    """
    weights = None if config.weights is None else Path(config.weights)
    model = load_model(config.model, device=rank_device(config, ranks.rank), weights=weights)
    return prepare(model, capacity=config.capacity, ranks=ranks)


def prepare(
    model: CausalVideoModel, *, capacity: int, ranks: Ranks, meter: MemoryMeter | None = None
) -> Loaded:
    """Measure costs, then allocate pools for as many sessions as fit on every rank, at most `capacity`.

    Raises:
        ValueError: the model cannot be split among these ranks.
        MemoryError: not one session fits.
        RanksLost: another rank is gone.
    """
    check_split(model.spec, ranks.size)
    meter = meter or make_meter(model.device)
    trial = _trial_pool(model, slots=min(capacity, MAX_BATCH), ranks=ranks)
    most = trial.num_slots
    ranks.prepare(model.spec, model.dtype, largest=most)
    meter.begin()
    measured = measure_costs(model, trial, monotonic_ms, ranks)
    trial.check_integrity()
    per_slot = slot_bytes(model, ranks=ranks.size)
    room = meter.room(most * per_slot)
    slots = ranks.smallest(min(capacity, room.num_slots(per_slot)))
    _log_measured(measured)
    _log.info(
        "%d of at most %d sessions fit, %.1f MB each: %.0f MB free, a pass takes %.0f, the margin is %.0f",
        *(slots, capacity, per_slot / 1e6),
        *(room.free_bytes / 1e6, room.workspace_bytes / 1e6, room.margin_bytes / 1e6),
    )
    if slots < 1:
        raise MemoryError(f"{model.spec.name}: there is no memory for one session")
    pool = trial
    if slots != most:
        del trial, pool  # before the pool that takes its place
        pool = SlabPool(model, slots=slots, ranks=ranks.size)
    costs = measured.costs.limited(slots)
    free = make_meter(torch.device("cpu")).room(0).free_bytes
    offload = default_budget(model, sessions=slots, free_bytes=free, ranks=ranks.size)
    return Loaded(
        model=model,
        pool=pool,
        costs=costs,
        attention=measured.attention,
        room=room,
        offload_bytes=ranks.smallest(offload),
    )


def make_host_pool(config: EngineConfig, loaded: Loaded, ranks: Ranks) -> HostPool:
    """Host memory for idle sessions. Takes seconds where it is pinned."""
    mib = config.offload_mib
    budget = loaded.offload_bytes if mib is None else mib * 2**20
    return HostPool(loaded.model, budget_bytes=budget, ranks=ranks.size)


def _trial_pool(model: CausalVideoModel, *, slots: int, ranks: Ranks) -> SlabPool:
    """As many of the slots, halved again and again, as every rank has memory for. Raises MemoryError."""
    while True:
        pool: SlabPool | None = None
        with suppress(MemoryError, torch.OutOfMemoryError):
            pool = SlabPool(model, slots=slots, ranks=ranks.size)
        if ranks.smallest(int(pool is not None)):
            assert pool is not None
            return pool
        if slots == 1:
            raise MemoryError(f"{model.spec.name}: there is no memory for one session")
        slots //= 2


def _log_measured(measured: Measured) -> None:
    costs = measured.costs
    for bucket, cells in zip(costs.buckets, costs.ms, strict=True):
        times = ", ".join(f"{ms:.1f}" for ms in cells)
        _log.info("a pass over %d latent frames takes %s ms with 1, 2, ... rows", bucket, times)
    _log.info("attention with 1, 2, ... rows: %s", measured.attention.name)
