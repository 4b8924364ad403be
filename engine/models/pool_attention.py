"""Streaming attention over the engine's pools, done in several ways behind one interface.

Every way stores a pass's K/V in the rows' ring frames and lets each row attend to its valid ring frames and
to its prompt. They differ in how many kernels that takes and in what is copied on the way:

    slices   one kernel per row, on exact views of the pools: no mask, no padding, no copy
    grouped  one kernel per KV length; once all windows are full that is one for the whole batch
    padded   one kernel; rows with a shorter KV get a mask (which rules out flash kernels on GPUs)
    varlen   one kernel on exact lengths in place, ragged or not; CUDA, half precision, torch 2.12 or newer
    graph    as padded, but every index is on the device, so that a CUDA graph of the pass serves any rows
             (`engine/pass_graphs.py`); without a graph it is padded

Grouped and padded read pool slots that are neighbours in place and gather others into a copy of one layer.
All indices are computed on the host once per pass; none reads a device value back or keeps anything between
passes. Which is fastest depends on device, model and batch: it is measured at start-up (`engine/costs.py`).

Shape letters: as in base.py; S = F·N tokens of a chunk.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor

from engine.models.attention import Dense, sdpa
from engine.models.base import AttentionBackend, PassAttention, PassBatch, PassRow
from engine.models.upload import upload

__all__ = ["GRAPH", "SLICES", "ChosenAttention", "DevicePlaces", "available_backends"]


class _Slices:
    """One kernel per row."""

    def __init__(self, batch: PassBatch, dense: Dense = sdpa) -> None:
        self._batch, self._dense = batch, dense

    def attend_pool(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = []
        for index, row in enumerate(self._batch.rows):
            slab = self._batch.kv[row.slot, layer]  # [2, W, N, H, D]
            _store_row(slab[0], row, k[index])
            _store_row(slab[1], row, v[index])
            seen = slab[:, : row.num_valid].flatten(1, 2)  # a view
            out.append(self._dense(q[index].flatten(0, 1)[None], seen[:1], seen[1:]))
        return _unflat(_joined(out), q)

    def attend_prompts(self, layer: int, q: Tensor) -> Tensor:
        out = []
        for index, row in enumerate(self._batch.rows):
            text = self._batch.prompt_kv[row.slot, layer]  # [2, T, H, D]
            out.append(self._dense(q[index].flatten(0, 1)[None], text[:1], text[1:]))
        return _unflat(_joined(out), q)


def _joined(rows: list[Tensor]) -> Tensor:
    """One row needs no copy."""
    return rows[0] if len(rows) == 1 else torch.cat(rows)


class _Batched:
    """What the ways with fewer kernels share: storing with one scatter, prompts with one kernel."""

    def __init__(self, batch: PassBatch, dense: Dense = sdpa) -> None:
        self._batch, self._dense = batch, dense
        slots, device = [row.slot for row in batch.rows], batch.kv.device
        self._pick = _Pick(slots, device)
        index = upload(torch.tensor([[row.slot, *row.write] for row in batch.rows]), device)
        self._slot_index, self._frame_index = index[:, :1], index[:, 1:]  # [B, 1], [B, F]

    def _store(self, layer: int, k: Tensor, v: Tensor) -> None:
        slabs = self._batch.kv[:, layer]  # [slots, 2, W, N, H, D]
        slabs[:, 0][self._slot_index, self._frame_index] = k
        slabs[:, 1][self._slot_index, self._frame_index] = v

    def attend_prompts(self, layer: int, q: Tensor) -> Tensor:
        k, v = self._pick(self._batch.prompt_kv[:, layer]).unbind(1)  # [B, T, H, D]
        return _unflat(self._dense(q.flatten(1, 2), k, v), q)


class _Padded(_Batched):
    """One kernel for all rows."""

    def __init__(self, batch: PassBatch, dense: Dense = sdpa) -> None:
        super().__init__(batch, dense)
        lengths = [row.num_valid for row in batch.rows]
        self._longest = max(lengths)
        self._lengths = None if len(set(lengths)) == 1 else lengths

    @cached_property
    def _mask(self) -> Tensor | None:
        """[B, 1, 1, longest·N]"""
        if self._lengths is None:
            return None
        lengths = upload(torch.tensor(self._lengths), self._batch.kv.device)
        return _valid(lengths, self._longest, self._batch.kv.shape[4])

    def attend_pool(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self._store(layer, k, v)
        seen = self._pick(self._batch.kv[:, layer, :, : self._longest])  # [B, 2, longest, N, H, D]
        keys, values = seen.flatten(2, 3).unbind(1)
        return _unflat(self._dense(q.flatten(1, 2), keys, values, self._mask), q)


class _Grouped(_Batched):
    """One kernel per KV length."""

    def __init__(self, batch: PassBatch, dense: Dense = sdpa) -> None:
        super().__init__(batch, dense)
        members: dict[int, list[int]] = {}
        for index, row in enumerate(batch.rows):
            members.setdefault(row.num_valid, []).append(index)
        device = batch.kv.device
        self._groups = [
            (length, _Pick(rows, device), _Pick([batch.rows[i].slot for i in rows], device))
            for length, rows in members.items()
        ]

    def attend_pool(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self._store(layer, k, v)
        parts = [(rows, self._attend(layer, rows(q), slots, length)) for length, rows, slots in self._groups]
        if len(parts) == 1:
            return parts[0][1]
        out = torch.empty_like(q)
        for rows, attended in parts:
            rows.put(out, attended)
        return out

    def _attend(self, layer: int, q: Tensor, slots: _Pick, length: int) -> Tensor:
        keys, values = slots(self._batch.kv[:, layer, :, :length]).flatten(2, 3).unbind(1)
        return _unflat(self._dense(q.flatten(1, 2), keys, values), q)


class _Varlen(_Batched):
    """One kernel on the pool in place.

    The pool is one long row of tokens. A row's keys of a layer begin at its slab; the sequence that the
    kernel is told of ends where the next row's begins, and `seqused_k` says how little of it counts.
    """

    def __init__(self, batch: PassBatch, kernel: Callable[..., Any], dense: Dense = sdpa) -> None:
        super().__init__(batch, dense)
        self._kernel = kernel
        device = batch.kv.device
        _, layers, _, window, tokens, heads, dim = batch.kv.shape
        self._all = batch.kv.view(-1, heads, dim)  # [slots·L·2·W·N, H, D]
        self._slab = window * tokens
        order = sorted(range(len(batch.rows)), key=lambda index: batch.rows[index].slot)
        rows = [batch.rows[index] for index in order]
        self._order = None if order == list(range(len(order))) else upload(torch.tensor(order), device)
        starts = [2 * layers * row.slot * self._slab for row in rows]
        starts.append(starts[-1] + self._slab)
        self._starts = upload(torch.tensor(starts, dtype=torch.int32), device)
        lengths = [tokens * row.num_valid for row in rows]
        self._lengths = upload(torch.tensor(lengths, dtype=torch.int32), device)
        self._longest = max(lengths)

    def attend_pool(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self._store(layer, k, v)
        size, order = q.shape[1] * q.shape[2], self._order
        queries = (q if order is None else q[order]).reshape(-1, *q.shape[3:])  # [B·S, H, D]
        ends = torch.arange(0, (len(q) + 1) * size, size, dtype=torch.int32, device=q.device)
        begin = 2 * layer * self._slab
        out: Tensor = self._kernel(
            queries,
            self._all[begin : -self._slab],  # as long as the values
            self._all[begin + self._slab :],
            ends,
            self._starts,
            size,
            self._longest,
            seqused_k=self._lengths,
            num_splits=1,  # the order of sums must not depend on the batch
        )
        out = out.view(q.shape)
        return out if order is None else torch.empty_like(out).index_copy_(0, order, out)


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlaces:
    """Where the rows of a batch live, on the device: what a graph reads anew at each replay."""

    slots: Tensor
    """[B] int64"""
    write: Tensor
    """[B, F] int64: ring frames."""
    num_valid: Tensor | None
    """[B] int64; None: all windows are full."""

    @property
    def name(self) -> str:
        return "device"

    def begin(self, batch: PassBatch) -> PassAttention:
        """These places count, not the batch's rows."""
        return _OnDevice(batch, self)


class _OnDevice:
    """One kernel for all rows; no index comes from the host. Copies each layer's K/V of the rows."""

    def __init__(self, batch: PassBatch, places: DevicePlaces) -> None:
        self._batch, self._places = batch, places
        _, _, _, window, tokens, _, _ = batch.kv.shape
        valid = places.num_valid
        self._mask = None if valid is None else _valid(valid, window, tokens)

    def attend_pool(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        places, slabs = self._places, self._batch.kv[:, layer]  # [slots, 2, W, N, H, D]
        slabs[:, 0][places.slots[:, None], places.write] = k
        slabs[:, 1][places.slots[:, None], places.write] = v
        keys, values = slabs.index_select(0, places.slots).flatten(2, 3).unbind(1)
        return _unflat(sdpa(q.flatten(1, 2), keys, values, self._mask), q)

    def attend_prompts(self, layer: int, q: Tensor) -> Tensor:
        k, v = self._batch.prompt_kv[:, layer].index_select(0, self._places.slots).unbind(1)
        return _unflat(sdpa(q.flatten(1, 2), k, v), q)


def _valid(num_valid: Tensor, frames: int, tokens: int) -> Tensor:
    """num_valid [B] → [B, 1, 1, frames·N]: does a ring position hold K/V?"""
    position = torch.arange(frames * tokens, device=num_valid.device)
    return (position < tokens * num_valid[:, None])[:, None, None]


class _Pick:
    """Some entries of a tensor's first dimension: a view where they are neighbours, else a copy."""

    def __init__(self, entries: Sequence[int], device: torch.device) -> None:
        first, count = entries[0], len(entries)
        self._range = (first, count) if list(entries) == list(range(first, first + count)) else None
        self._index = None if self._range else upload(torch.tensor(entries), device)

    def __call__(self, x: Tensor) -> Tensor:
        if self._range is not None:
            return x.narrow(0, *self._range)
        assert self._index is not None
        return x.index_select(0, self._index)

    def put(self, target: Tensor, value: Tensor) -> None:
        """Write value to these entries of `target`."""
        if self._range is not None:
            target.narrow(0, *self._range).copy_(value)
        else:
            assert self._index is not None
            target.index_copy_(0, self._index, value)


def _unflat(out: Tensor, like: Tensor) -> Tensor:
    """[B, S, H, D] → [B, F, N, H, D]"""
    return out.reshape(like.shape)


def _store_row(ring: Tensor, row: PassRow, value: Tensor) -> None:
    """Write value [F, N, H, D] to the ring frames of the row; one copy where they are neighbours."""
    first, count = row.write[0], len(row.write)
    if row.write == tuple(range(first, first + count)):
        ring[first : first + count].copy_(value)
        return
    for frame, position in enumerate(row.write):
        ring[position].copy_(value[frame])


@dataclass(frozen=True, slots=True)
class _Backend:
    name: str
    begin: Callable[[PassBatch], PassAttention]


@dataclass(frozen=True, slots=True)
class ChosenAttention:
    """Another backend for each number of rows."""

    by_rows: tuple[AttentionBackend, ...]
    """For 1, 2, ... rows; the last one also for more."""

    @property
    def name(self) -> str:
        return "/".join(backend.name for backend in self.by_rows)

    def of(self, rows: int) -> AttentionBackend:
        """The backend for so many rows."""
        return self.by_rows[min(rows, len(self.by_rows)) - 1]

    def begin(self, batch: PassBatch) -> PassAttention:
        return self.of(len(batch.rows)).begin(batch)


def make_varlen(kernel: Callable[..., Any], dense: Dense = sdpa) -> AttentionBackend:
    """The backend `varlen` on a kernel with the arguments and the result of torch's `varlen_attn`."""
    return _Backend("varlen", lambda batch: _Varlen(batch, kernel, dense))


SLICES: Final[AttentionBackend] = _Backend("slices", _Slices)
GROUPED: Final[AttentionBackend] = _Backend("grouped", _Grouped)
PADDED: Final[AttentionBackend] = _Backend("padded", _Padded)
GRAPH: Final[AttentionBackend] = _Backend("graph", _Padded)


def available_backends(
    device: torch.device, dtype: torch.dtype, dense: Dense = sdpa
) -> tuple[AttentionBackend, ...]:
    """What can run here, the plainest first; `graph` is not among them. `dense` attends without a mask."""
    plain = (SLICES, GROUPED, PADDED)
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return plain
    tuned: tuple[AttentionBackend, ...] = (
        _Backend("slices", lambda batch: _Slices(batch, dense)),
        _Backend("grouped", lambda batch: _Grouped(batch, dense)),
        _Backend("padded", lambda batch: _Padded(batch, dense)),
    )
    from torch.nn.attention.varlen import varlen_attn  # a second, which only this case needs

    has_lengths = inspect.signature(varlen_attn).parameters.keys() >= {"seqused_k", "num_splits"}
    return (*tuned, make_varlen(varlen_attn, dense)) if has_lengths else tuned
