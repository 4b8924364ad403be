"""Measure the cost table at start-up, within seconds: passes of some sizes and KV lengths, and a decode."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from engine.cost_table import CostTable
from engine.kv_pool import SlabPool
from engine.models.base import CausalVideoModel, ModelSpec
from engine.passes import make_batch
from engine.sampler import initial_latents
from engine.session_state import SessionState, Stage
from engine.steering import Steering
from scheduler.messages import MAX_BATCH, EngineCosts, SessionId

__all__ = ["engine_costs", "measure_costs"]

BATCH_SIZES = (1, 2, 4, 8, MAX_BATCH)
BUDGET_MS = 3_000.0
"""No further round begins after so long."""
_ROUNDS = 4


@torch.inference_mode()
def measure_costs(model: CausalVideoModel, pool: SlabPool, clock: Callable[[], float]) -> CostTable:
    """Run passes with every batch size that the (empty) pool has slots for, on the shortest and the full
    window; what lies between is interpolated, as attention is linear in the KV length.

    The fastest of some repeats counts: a neighbour's burst of work says nothing about the model. A size that
    does not fit into memory is left out, and so are larger ones.
    """
    slots = [pool.allocate() for _ in range(min(pool.num_slots, BATCH_SIZES[-1]))]
    try:
        bench = _Bench(model, pool, slots, clock)
        sizes = sorted({size for size in (*BATCH_SIZES, len(slots)) if size <= len(slots)})
        ends = sorted({_frames(model.spec, 0), _frames(model.spec, _steady(model.spec))})
        samples = {bucket: dict.fromkeys(sizes, math.inf) for bucket in ends}
        began = clock()
        for number in range(1 + _ROUNDS):  # in turn: a slow moment must not hit all samples of one size
            if number > 1 and clock() - began > BUDGET_MS:
                break
            for bucket in ends:
                bench.round(samples[bucket], bucket)
        decode_ms = min(bench.decode_ms() for _ in range(_ROUNDS))
    finally:
        for slot in slots:
            pool.free(slot)
    fits = [size for size in sizes if all(math.isfinite(samples[bucket][size]) for bucket in ends)]
    if not fits:
        raise MemoryError(f"{model.spec.name}: there is no memory for a pass of one session")
    measured = {bucket: {size: samples[bucket][size] for size in fits} for bucket in ends}
    return CostTable.from_samples(_between(model.spec, measured), decode_ms=decode_ms)


def engine_costs(costs: CostTable, spec: ModelSpec) -> EngineCosts:
    """The table as other processes learn it."""
    return EngineCosts(
        buckets=costs.buckets,
        pass_ms=tuple(tuple(round(ms, 3) for ms in cells) for cells in costs.ms),
        decode_ms=round(costs.decode_ms, 3),
        chunk_passes=len(spec.sigmas) + 1,
        first_chunk_passes=len(spec.first_sigmas) + 1,
    )


class _Bench:
    """Sessions that exist only to be measured."""

    def __init__(
        self, model: CausalVideoModel, pool: SlabPool, slots: list[int], clock: Callable[[], float]
    ) -> None:
        self._model, self._pool, self._slots, self._clock = model, pool, slots, clock

    def round(self, samples: dict[int, float], bucket: int) -> None:
        """One pass of each size; what is faster than before is noted."""
        index = bucket // self._model.spec.chunk_latent_frames - 1
        x = initial_latents(self._model.spec, seed=0, index=index, device=self._model.device)
        states = [_state(slot, index, x) for slot in self._slots]
        for size in samples:
            try:
                samples[size] = min(samples[size], self._pass_ms(states[:size]))
            except (MemoryError, torch.OutOfMemoryError):
                return

    def decode_ms(self) -> float:
        spec = self._model.spec
        latents = initial_latents(spec, seed=0, index=0, device=self._model.device)
        began = self._clock()
        self._model.decode(latents, self._pool.decoder[self._slots[0]])[0].cpu()
        return self._clock() - began

    def _pass_ms(self, states: list[SessionState]) -> float:
        began = self._clock()
        self._model.run_pass(make_batch(self._model, self._pool, states))
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)
        return max(self._clock() - began, 1e-3)


def _state(slot: int, index: int, x: torch.Tensor) -> SessionState:
    return SessionState(
        session=SessionId(f"cost{slot}"),
        epoch=0,
        slot=slot,
        steering=Steering(seed=0),
        seq=0,
        frame=0,
        stage=Stage.DENOISE,
        index=index,
        x=x,
    )


def _frames(spec: ModelSpec, index: int) -> int:
    return min((index + 1) * spec.chunk_latent_frames, spec.window_frames)


def _steady(spec: ModelSpec) -> int:
    """Index of the first chunk with a full window."""
    return -(-spec.window_frames // spec.chunk_latent_frames) - 1


def _between(spec: ModelSpec, measured: dict[int, dict[int, float]]) -> dict[int, dict[int, float]]:
    """All buckets from the two that were measured."""
    low, high = min(measured), max(measured)
    table = dict(measured)
    for index in range(_steady(spec)):
        bucket = _frames(spec, index)
        share = (bucket - low) / (high - low)
        table[bucket] = {
            size: (1 - share) * measured[low][size] + share * measured[high][size] for size in measured[low]
        }
    return table
