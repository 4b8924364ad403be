"""Measure t(B) at start-up: milliseconds of one pass with B rows."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from engine.kv_pool import SlabPool
from engine.models.base import CausalVideoModel
from engine.passes import make_batch
from engine.planner import CostTable
from engine.sampler import initial_latents
from engine.session_state import SessionState, Stage
from engine.steering import Steering
from scheduler.messages import SessionId

__all__ = ["measure_costs"]

BATCH_SIZES = (1, 2, 4, 8)
_ROUNDS = 4


@torch.inference_mode()
def measure_costs(model: CausalVideoModel, pool: SlabPool, clock: Callable[[], float]) -> CostTable:
    """Run passes over full windows with every batch size that the (empty) pool has slots for.

    The fastest of some repeats counts: a neighbour's burst of work says nothing about the model.
    """
    slots = [pool.allocate() for _ in range(pool.num_slots)]
    steady = -(-model.spec.window_frames // model.spec.chunk_latent_frames)
    x = initial_latents(model.spec, seed=0, index=steady, device=model.device)
    states = [
        SessionState(
            session=SessionId(f"cost{slot}"),
            epoch=0,
            slot=slot,
            steering=Steering(seed=0),
            seq=0,
            frame=0,
            stage=Stage.DENOISE,
            index=steady,
            x=x,
        )
        for slot in slots
    ]
    sizes = sorted({size for size in (*BATCH_SIZES, len(slots)) if size <= min(len(slots), BATCH_SIZES[-1])})
    samples = dict.fromkeys(sizes, math.inf)
    for _ in range(1 + _ROUNDS):  # sizes in turn: a slow moment must not hit all samples of one size
        for size in sizes:
            samples[size] = min(samples[size], _pass_ms(model, pool, states[:size], clock))
    for slot in slots:
        pool.free(slot)
    return CostTable.from_samples(samples)


def _pass_ms(
    model: CausalVideoModel, pool: SlabPool, states: list[SessionState], clock: Callable[[], float]
) -> float:
    began = clock()
    velocity = model.run_pass(make_batch(model, pool, states))
    velocity.sum().item()  # waits for the device
    return max(clock() - began, 1e-3)
