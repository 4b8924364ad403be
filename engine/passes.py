"""Run the rows of one batch through the model, surviving out-of-memory and single bad rows.

A pass writes only its own chunk's ring frames, so it may be run again: halved when memory is short, row by
row when something else fails, so that the row at fault is found and the others go on.

Shape letters: B rows, F latent frames of a chunk, C latent channels, h, w latent size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.device_check import check_device
from engine.kv_pool import SlabPool
from engine.models.base import AttentionBackend, CausalVideoModel, PassBatch, PassRow, TokenExchange
from engine.models.pool_attention import GRAPH, SLICES, ChosenAttention
from engine.models.upload import upload
from engine.pass_graphs import PassGraphs
from engine.ranks import Alone, Ranks, RanksLost, Verdict
from engine.ring import num_valid, write_slots
from engine.sampler import sigmas_for
from engine.session_state import SessionState, Stage, rebuilt_chunks

__all__ = ["PassFailed", "PassOutcome", "PassRun", "Passes"]

_log = logging.getLogger("turboserve.engine.passes")


class PassFailed(Exception):
    """A forward has no result, on this rank or on another."""

    def __init__(self, verdict: Verdict, cause: Exception | None) -> None:
        super().__init__(str(cause) if cause is not None else "another rank failed")
        self.verdict = verdict
        self.__cause__ = cause


PassOutcome = Tensor | PassFailed
"""Velocity [F, C, h, w], or why this row has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRun:
    """What became of one batch."""

    outcomes: tuple[PassOutcome, ...]
    """One per row, in order."""
    is_regular: bool = True
    """Was it one forward and no more? Only then its time says what a pass costs."""
    out_of_memory: bool = False
    """Was it halved?"""

    def __add__(self, other: PassRun) -> PassRun:
        return PassRun(
            outcomes=self.outcomes + other.outcomes,
            is_regular=False,
            out_of_memory=self.out_of_memory or other.out_of_memory,
        )


class Passes:
    """Runs passes of sessions whose slabs lie in one pool, together with the other ranks of the engine."""

    def __init__(
        self,
        model: CausalVideoModel,
        pool: SlabPool,
        *,
        attention: AttentionBackend = SLICES,
        ranks: Ranks | None = None,
        agree: Callable[[Verdict], Verdict] | None = None,
    ) -> None:
        """`agree` turns this rank's verdict into that of all."""
        self._model, self._pool, self._attention = model, pool, attention
        self._graphs = PassGraphs(model)
        self._ranks = own = ranks or Alone()
        # Without `self` in it: as a cycle a trial's pool would live on beside the one that takes its place.
        self._agree = agree or (lambda verdict: own.meet(verdict).verdict)

    def run(self, states: Sequence[SessionState]) -> PassRun:
        """One coalesced pass over sessions that each have `x`.

        Raises:
            RanksLost: another rank is gone.
            DeviceLost: the device is.
        """
        # By slot: neighbours in the pool can be read in place.
        order = sorted(range(len(states)), key=lambda index: states[index].slot)
        run = self._run([states[index] for index in order])
        outcomes = dict(zip(order, run.outcomes, strict=True))
        return replace(run, outcomes=tuple(outcomes[index] for index in range(len(states))))

    def attempt(
        self, states: Sequence[SessionState], attention: AttentionBackend | None = None
    ) -> Tensor | PassFailed:
        """One forward; velocities [B, F, C, h, w], or why no rank has them.

        Raises:
            RanksLost: another rank is gone.
            DeviceLost: the device is.
        """
        verdict, velocity = Verdict.DONE, None
        error: Exception | None = None
        span = self._model.spec.chunk_latent_frames
        exchange = self._ranks.begin_pass(sum(_num_frames(state, span) for state in states))
        try:
            way = attention or self._attention
            way = way.of(len(states)) if isinstance(way, ChosenAttention) else way
            batch = make_batch(self._model, self._pool, states, way, exchange)
            self._graphs.has_captured = False
            is_usual = batch.x.shape[1] == span
            is_replayed = way is GRAPH and exchange is None and is_usual
            run = self._graphs.run if is_replayed else self._model.run_pass
            velocity = run(batch)
        except RanksLost:
            raise
        except (MemoryError, torch.OutOfMemoryError) as exc:
            verdict, error = Verdict.NO_MEMORY, exc
        except Exception as exc:  # whatever a model raises must not end the engine
            check_device(self._model.device, exc)
            verdict, error = Verdict.FAILED, exc
        if error is not None and verdict is Verdict.NO_MEMORY:
            error.__traceback__ = None  # it holds the tensors of the pass
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        self._ranks.end_pass()
        agreed = self._agree(verdict)
        if agreed is Verdict.DONE:
            assert velocity is not None
            return velocity
        return PassFailed(agreed, error)

    def _run(self, states: Sequence[SessionState]) -> PassRun:
        outcome = self.attempt(states)
        if isinstance(outcome, Tensor):
            return PassRun(outcomes=outcome.unbind(0), is_regular=not self._graphs.has_captured)
        out_of_memory = outcome.verdict is Verdict.NO_MEMORY
        if len(states) == 1:
            return PassRun(outcomes=(outcome,), is_regular=False, out_of_memory=out_of_memory)
        if out_of_memory:
            _log.warning("out of memory with a batch of %d: halving it", len(states))
            half = len(states) // 2
            return replace(self._run(states[:half]) + self._run(states[half:]), out_of_memory=True)
        _log.warning("a batch of %d failed (%s): running its rows one by one", len(states), outcome)
        first, *others = (self._run([state]) for state in states)
        return sum(others, first)


def make_batch(
    model: CausalVideoModel,
    pool: SlabPool,
    states: Sequence[SessionState],
    attention: AttentionBackend,
    exchange: TokenExchange | None,
) -> PassBatch:
    """The batch for the next pass of each session."""
    latents = [_latents(state) for state in states]
    levels = [_sigma(model, state) for state in states]
    sigma = upload(torch.tensor(levels, dtype=torch.float32), model.device)  # [B]
    return PassBatch(
        rows=tuple(_row(model, state) for state in states),
        x=torch.stack(latents),  # [B, F, C, h, w]
        sigma=sigma[:, None].expand(-1, len(latents[0])),  # [B, F]
        kv=pool.kv,
        prompt_kv=pool.prompt_kv,
        actions=_actions(model, states),
        attention=attention,
        exchange=exchange,
    )


def _actions(model: CausalVideoModel, states: Sequence[SessionState]) -> Tensor | None:
    """[B, F, A]; a session that was never steered holds nothing."""
    spec = model.spec
    if spec.action_dim == 0:
        return None
    nothing = torch.zeros(spec.chunk_latent_frames, spec.action_dim, device=model.device)
    return torch.stack([_action(state, nothing) for state in states])


def _action(state: SessionState, nothing: Tensor) -> Tensor:
    if state.stage is Stage.REBUILD:
        rows = [record.actions for record in rebuilt_chunks(state)]
        return torch.cat([nothing if row is None else row for row in rows])
    return nothing if state.actions is None else state.actions


def _sigma(model: CausalVideoModel, state: SessionState) -> float:
    if state.stage in (Stage.CLEAN, Stage.REBUILD):
        return 0.0
    return sigmas_for(model.spec, state.index)[state.step]


def _num_frames(state: SessionState, span: int) -> int:
    return len(state.rebuild[0].write) if state.stage is Stage.REBUILD else span


def _latents(state: SessionState) -> Tensor:
    if state.stage is Stage.REBUILD:
        return torch.cat([record.latents for record in rebuilt_chunks(state)])
    assert state.x is not None, "a row without latents was planned"
    return state.x


def _row(model: CausalVideoModel, state: SessionState) -> PassRow:
    spec = model.spec
    chunk, window = spec.chunk_latent_frames, spec.window_frames
    if state.stage is Stage.REBUILD:
        step = state.rebuild[0]
        return PassRow(
            slot=state.slot,
            frame_start=step.frame_start,
            write=step.write,
            num_valid=step.num_valid,
        )
    return PassRow(
        slot=state.slot,
        frame_start=state.index * chunk,
        write=write_slots(state.index, chunk=chunk, window=window, sink=spec.sink_frames),
        num_valid=num_valid(state.index, chunk=chunk, window=window),
    )
