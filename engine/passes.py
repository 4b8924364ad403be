"""Run the rows of one batch through the model, surviving out-of-memory and single bad rows.

A pass writes only its own chunk's ring frames, so it may be run again: halved when memory is short, row by
row when something else fails, so that the row at fault is found and the others go on.

Shape letters: B rows, F latent frames of a chunk, C latent channels, h, w latent size.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.kv_pool import SlabPool
from engine.models.base import AttentionBackend, CausalVideoModel, PassBatch, PassRow
from engine.models.pool_attention import SLICES
from engine.ring import num_valid, write_slots
from engine.sampler import sigmas_for
from engine.session_state import SessionState, Stage

__all__ = ["PassOutcome", "PassRun", "Passes", "make_batch"]

_log = logging.getLogger("turboserve.engine.passes")

PassOutcome = Tensor | Exception
"""Velocity [F, C, h, w], or why this row has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRun:
    """What became of one batch."""

    outcomes: tuple[PassOutcome, ...]
    """One per row, in order."""
    is_regular: bool = True
    """Did it take one forward? Only then its time says what a pass costs."""
    out_of_memory: bool = False
    """Was it halved?"""

    def __add__(self, other: PassRun) -> PassRun:
        return PassRun(
            outcomes=self.outcomes + other.outcomes,
            is_regular=False,
            out_of_memory=self.out_of_memory or other.out_of_memory,
        )


class Passes:
    """Runs passes of sessions whose slabs lie in one pool."""

    def __init__(
        self, model: CausalVideoModel, pool: SlabPool, *, attention: AttentionBackend = SLICES
    ) -> None:
        self._model, self._pool, self._attention = model, pool, attention

    def run(self, states: Sequence[SessionState]) -> PassRun:
        """One coalesced pass over sessions that each have `x`."""
        # By slot: neighbours in the pool can be read in place.
        order = sorted(range(len(states)), key=lambda index: states[index].slot)
        run = self._run([states[index] for index in order])
        outcomes = dict(zip(order, run.outcomes, strict=True))
        return replace(run, outcomes=tuple(outcomes[index] for index in range(len(states))))

    def _run(self, states: Sequence[SessionState]) -> PassRun:
        try:
            batch = make_batch(self._model, self._pool, states, self._attention)
            return PassRun(outcomes=self._model.run_pass(batch).unbind(0))
        except (MemoryError, torch.OutOfMemoryError) as exc:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if len(states) == 1:
                return PassRun(outcomes=(exc,), is_regular=False)
            _log.warning("out of memory with a batch of %d: halving it", len(states))
            half = len(states) // 2
            return replace(self._run(states[:half]) + self._run(states[half:]), out_of_memory=True)
        except Exception as exc:  # whatever a model raises must not end the engine
            if len(states) == 1:
                return PassRun(outcomes=(exc,), is_regular=False)
            _log.warning("a batch of %d failed (%s): running its rows one by one", len(states), exc)
            first, *others = (self._run([state]) for state in states)
            return sum(others, first)


def make_batch(
    model: CausalVideoModel, pool: SlabPool, states: Sequence[SessionState], attention: AttentionBackend
) -> PassBatch:
    """The batch for the next pass of each session."""
    spec = model.spec
    latents = [state.x for state in states if state.x is not None]
    assert len(latents) == len(states), "a row without latents was planned"
    levels = [_sigma(model, state) for state in states]
    sigma = torch.tensor(levels, dtype=torch.float32, device=model.device)  # [B]
    return PassBatch(
        rows=tuple(_row(model, state) for state in states),
        x=torch.stack(latents),  # [B, F, C, h, w]
        sigma=sigma[:, None].expand(-1, spec.chunk_latent_frames),  # [B, F]
        kv=pool.kv,
        prompt_kv=pool.prompt_kv,
        actions=_actions(states),
        attention=attention,
    )


def _actions(states: Sequence[SessionState]) -> Tensor | None:
    actions = [state.actions for state in states if state.actions is not None]
    return torch.stack(actions) if actions else None  # [B, F, A]


def _sigma(model: CausalVideoModel, state: SessionState) -> float:
    return 0.0 if state.stage is Stage.CLEAN else sigmas_for(model.spec, state.index)[state.step]


def _row(model: CausalVideoModel, state: SessionState) -> PassRow:
    spec = model.spec
    chunk, window = spec.chunk_latent_frames, spec.window_frames
    return PassRow(
        slot=state.slot,
        frame_start=state.index * chunk,
        write=write_slots(state.index, chunk=chunk, window=window, sink=spec.sink_frames),
        num_valid=num_valid(state.index, chunk=chunk, window=window),
    )
