"""Passes replayed from CUDA graphs: one launch instead of hundreds, where launches are what takes the time.

A graph is made for a number of rows, when it is first needed, and once more for rows with short windows.
What differs from pass to pass lies in tensors that the graph reads: latents, noise levels, rotations, slots,
ring frames, lengths. The result is that of `GRAPH`'s own way without a graph, but for the order of sums.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from engine.models.base import CausalVideoModel, PassBatch, ReplayableModel
from engine.models.pool_attention import DevicePlaces
from engine.models.rope import Rope
from engine.models.upload import upload

__all__ = ["PassGraphs", "can_replay", "on_device"]

_log = logging.getLogger("turboserve.engine.pass_graphs")
_WARM_UPS = 2
"""Passes before one is captured: kernels are compiled and libraries initialised in them."""


def can_replay(model: CausalVideoModel) -> bool:
    """Can this model's passes be captured here?"""
    return model.device.type == "cuda" and isinstance(model, ReplayableModel)


def on_device(model: ReplayableModel, batch: PassBatch) -> PassBatch:
    """The batch with everything on the device that a pass would take from its rows."""
    rows, device = batch.rows, batch.x.device
    table = upload(torch.tensor([[row.slot, row.num_valid, *row.write] for row in rows]), device)
    window = batch.kv.shape[3]
    is_ragged = any(row.num_valid < window for row in rows)
    places = DevicePlaces(
        slots=table[:, 0].contiguous(),
        write=table[:, 2:].contiguous(),
        num_valid=table[:, 1].contiguous() if is_ragged else None,
    )
    return replace(batch, attention=places, rope=model.rope(rows), sigma=batch.sigma.contiguous())


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    given: PassBatch
    """What the graph reads."""
    velocity: Tensor
    """What it writes."""

    def replay(self, batch: PassBatch) -> Tensor:
        for target, source in zip(_tensors(self.given), _tensors(batch), strict=True):
            target.copy_(source)
        self.graph.replay()
        return self.velocity.clone()  # the next replay, of any graph, overwrites it


class PassGraphs:
    """The graphs of one model's passes over one pool. Not thread-safe."""

    def __init__(self, model: CausalVideoModel) -> None:
        self._model = model
        self._graphs: dict[tuple[int, bool, bool, int], _Captured] = {}
        self._memory: Any = None
        """Shared by all graphs: only one runs at a time, and none is read after another has begun."""
        self._is_broken = not can_replay(model)
        self.has_captured = False
        """Did the last pass capture a graph? Then its time says nothing about the next one."""

    @torch.inference_mode()
    def run(self, batch: PassBatch) -> Tensor:
        """As `CausalVideoModel.run_pass`, from a graph; plainly where that can't be done.

        The first pass of a kind also captures it, which takes the time of some passes.
        """
        model, self.has_captured = self._model, False
        if self._is_broken or not isinstance(model, ReplayableModel):
            return model.run_pass(batch)
        placed = on_device(model, batch)
        assert isinstance(placed.attention, DevicePlaces)
        is_ragged = placed.attention.num_valid is not None
        key = (len(batch.rows), is_ragged, batch.actions is not None, batch.kv.data_ptr())
        captured = self._graphs.get(key)
        if captured is None:
            self.has_captured = True
            try:
                captured = self._capture(placed)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as exc:  # a model may do what no graph can hold
                _log.warning("passes of %s can't be replayed, they run plainly: %s", model.spec.name, exc)
                self._is_broken = True
                return model.run_pass(batch)
            self._graphs[key] = captured
        return captured.replay(placed)

    def _capture(self, batch: PassBatch) -> _Captured:
        """Warm up on the batch itself: a pass may be run again, it overwrites only its own ring frames."""
        given = _copy(batch)
        here, device = torch.cuda.current_stream(batch.x.device), batch.x.device
        beside = torch.cuda.Stream(device)
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UPS):
                self._model.run_pass(given)
        here.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        # Other threads copy sessions and frames meanwhile: only this thread's calls count. And the end of an
        # older graph, which the garbage collector may find at any time, would break the capture.
        with (
            _no_collection(),
            torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"),
        ):
            velocity = self._model.run_pass(given)
        self._memory = graph.pool()
        return _Captured(graph, given, velocity)


@contextmanager
def _no_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _copy(batch: PassBatch) -> PassBatch:
    places, rope = batch.attention, batch.rope
    assert isinstance(places, DevicePlaces) and rope is not None
    return replace(
        batch,
        x=batch.x.clone(),
        sigma=batch.sigma.clone(),
        actions=None if batch.actions is None else batch.actions.clone(),
        rope=Rope(cos=rope.cos.clone(), sin=rope.sin.clone()),
        attention=DevicePlaces(
            slots=places.slots.clone(),
            write=places.write.clone(),
            num_valid=None if places.num_valid is None else places.num_valid.clone(),
        ),
    )


def _tensors(batch: PassBatch) -> list[Tensor]:
    """What changes from pass to pass."""
    places, rope = batch.attention, batch.rope
    assert isinstance(places, DevicePlaces) and rope is not None
    optional = (places.num_valid, batch.actions)
    return [
        *(batch.x, batch.sigma, rope.cos, rope.sin, places.slots, places.write),
        *(tensor for tensor in optional if tensor is not None),
    ]
