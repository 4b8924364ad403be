"""Run the rows of one batch through the model, surviving out-of-memory and single bad rows.

A pass writes only its own chunk's ring frames, so it may be run again: halved when memory is short, row by
row when something else fails, so that the row at fault is found and the others go on.

Shape letters: B rows, F latent frames of a chunk, C latent channels, h, w latent size.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.kv_pool import SlabPool
from engine.models.base import CausalVideoModel, PassBatch, PassRow
from engine.ring import num_valid, write_slots
from engine.sampler import sigmas_for
from engine.session_state import SessionState, Stage, rebuilt_chunk

__all__ = ["PassOutcome", "run_rows"]

_log = logging.getLogger("turboserve.engine.passes")

PassOutcome = Tensor | Exception
"""Velocity [F, C, h, w], or why this row has none."""


def run_rows(model: CausalVideoModel, pool: SlabPool, states: Sequence[SessionState]) -> list[PassOutcome]:
    """One coalesced pass over sessions that each have `x`; one outcome per session, in order."""
    try:
        return list(model.run_pass(make_batch(model, pool, states)).unbind(0))
    except (MemoryError, torch.OutOfMemoryError) as exc:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(states) == 1:
            return [exc]
        _log.warning("out of memory with a batch of %d: halving it", len(states))
        half = len(states) // 2
        return run_rows(model, pool, states[:half]) + run_rows(model, pool, states[half:])
    except Exception as exc:  # whatever a model raises must not end the engine
        if len(states) == 1:
            return [exc]
        _log.warning("a batch of %d failed (%s): running its rows one by one", len(states), exc)
        return [outcome for state in states for outcome in run_rows(model, pool, [state])]


def make_batch(model: CausalVideoModel, pool: SlabPool, states: Sequence[SessionState]) -> PassBatch:
    """The batch for the next pass of each session."""
    spec = model.spec
    latents = [_latents(state) for state in states]
    levels = [_sigma(model, state) for state in states]
    sigma = torch.tensor(levels, dtype=torch.float32, device=model.device)  # [B]
    return PassBatch(
        rows=tuple(_row(model, state) for state in states),
        x=torch.stack(latents),  # [B, F, C, h, w]
        sigma=sigma[:, None].expand(-1, spec.chunk_latent_frames),  # [B, F]
        kv=pool.kv,
        prompt_kv=pool.prompt_kv,
        actions=_actions(states),
    )


def _actions(states: Sequence[SessionState]) -> Tensor | None:
    rows = [rebuilt_chunk(s).actions if s.stage is Stage.REBUILD else s.actions for s in states]
    actions = [row for row in rows if row is not None]
    return torch.stack(actions) if actions else None  # [B, F, A]


def _sigma(model: CausalVideoModel, state: SessionState) -> float:
    if state.stage in (Stage.CLEAN, Stage.REBUILD):
        return 0.0
    return sigmas_for(model.spec, state.index)[state.step]


def _latents(state: SessionState) -> Tensor:
    latents = rebuilt_chunk(state).latents if state.stage is Stage.REBUILD else state.x
    assert latents is not None, "a row without latents was planned"
    return latents


def _row(model: CausalVideoModel, state: SessionState) -> PassRow:
    spec = model.spec
    chunk, window = spec.chunk_latent_frames, spec.window_frames
    if state.stage is Stage.REBUILD:
        step = state.rebuild[0]
        return PassRow(
            slot=state.slot,
            frame_start=step.index * chunk,
            write=step.write,
            num_valid=step.num_valid,
        )
    return PassRow(
        slot=state.slot,
        frame_start=state.index * chunk,
        write=write_slots(state.index, chunk=chunk, window=window, sink=spec.sink_frames),
        num_valid=num_valid(state.index, chunk=chunk, window=window),
    )
