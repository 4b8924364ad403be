"""Measure the cost table at start-up, within seconds: passes of some sizes, KV lengths and
ways to attend, and a decode."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from engine.cost_table import CostTable
from engine.kv_pool import SlabPool
from engine.migration_cost import MoveCost
from engine.models.attention import DENSE_KERNELS, Dense, sdpa, with_kernel
from engine.models.base import AttentionBackend, CausalVideoModel, ModelSpec
from engine.models.pool_attention import GRAPH, ChosenAttention, available_backends
from engine.pass_graphs import can_replay
from engine.passes import Passes, PassFailed
from engine.ranks import Alone, Ranks, Verdict
from engine.ring import live_chunks, plan_recache
from engine.sampler import initial_latents
from engine.session_state import ChunkRecord, SessionState, Stage
from engine.steering import Steering
from scheduler.messages import MAX_BATCH, EngineCosts, SessionId

__all__ = ["Measured", "are_close", "engine_costs", "fastest_dense", "measure_costs", "rehearse"]

_log = logging.getLogger("turboserve.engine.costs")

BATCH_SIZES = (1, 2, 4, 8, MAX_BATCH)
BUDGET_MS = 200.0
"""For one window: no further round begins after so long. Passes that serve go on measuring."""
TOLERANCE = 0.05
"""Costs are published again when one has changed by this share."""
_ROUNDS = 4
_HOPELESS = 1.25
"""A way to attend that is this much slower than another is not measured again."""
_DEARER, _RECHECKS = 1.1, 3
"""A row of a larger batch that seems to cost this much more than one of a smaller batch was measured in a bad
moment, most likely: such a size is measured again, a few times at most."""
_GRAPH_BELOW_MS = 15.0
"""A pass that takes longer has launched everything long before its end: a graph would only cost memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What start-up finds out about a model on this device."""

    costs: CostTable
    attention: ChosenAttention
    """The fastest way to attend for each number of rows; the costs are those with it."""


@torch.inference_mode()
def measure_costs(
    model: CausalVideoModel, pool: SlabPool, clock: Callable[[], float], ranks: Ranks | None = None
) -> Measured:
    """Run passes with every batch size that the (empty) pool has slots for: on the full window, where
    sessions spend their lives, with every way to attend, then on the shortest window with the ways that won.
    What lies between is interpolated, as attention is linear in the KV length.

    The fastest of some repeats counts: a neighbour's burst of work says nothing about the model. A size that
    does not fit into memory is left out, and so are larger ones.

    With `ranks`, all measure together, and what rank 0's clock says counts.

    Raises:
        MemoryError: there is no room for a pass of one row.
        PassFailed: the model raised something else.
        RanksLost: another rank is gone.
    """
    slots = [pool.allocate() for _ in range(min(pool.num_slots, BATCH_SIZES[-1]))]
    try:
        bench = _Bench(model, pool, slots, _common(clock, ranks or Alone()), ranks)
        for bucket in bench.buckets:
            bench.measure(bucket)
        return bench.result(decode_ms=min(bench.decode_ms() for _ in range(2)))
    finally:
        for slot in slots:
            pool.free(slot)


def engine_costs(costs: CostTable, spec: ModelSpec, move: MoveCost | None = None) -> EngineCosts:
    """The table, and what migrations have taken, as other processes learn it."""
    published = EngineCosts(
        buckets=costs.buckets,
        pass_ms=tuple(tuple(round(ms, 3) for ms in cells) for cells in costs.ms),
        decode_ms=round(costs.decode_ms, 3),
        chunk_passes=len(spec.sigmas) + 1,
        first_chunk_passes=len(spec.first_sigmas) + 1,
    )
    if move is None:
        return published
    return replace(
        published,
        move_ms=round(move.pause_ms, 3),
        link_bytes_per_ms=round(move.link.bytes_per_ms, 3),
    )


@torch.inference_mode()
def rehearse(
    model: CausalVideoModel,
    pool: SlabPool,
    passes: Passes,
    attention: AttentionBackend,
    *,
    every_shape: bool,
) -> None:
    """Run, in the empty pool, what no session is to wait for: the first pass of a kind captures its graph.

    With `every_shape` also one pass of every shape that sessions have, and a decode: on GPUs libraries choose
    and build kernels for each, some of them anew on each thread. So call it on the thread that serves.
    """
    rows = len(attention.by_rows) if isinstance(attention, ChosenAttention) else MAX_BATCH
    slots = [pool.allocate() for _ in range(min(pool.num_free, rows))]
    try:
        for size, index in _rehearsed(model.spec, attention, len(slots), every_shape=every_shape):
            x = initial_latents(model.spec, seed=0, index=index, device=model.device)
            passes.attempt([_state(slot, index, x, model) for slot in slots[:size]])
        if every_shape:
            _rehearse_besides(model, pool, passes, slots[0])
    finally:
        for slot in slots:
            pool.free(slot)


def _rehearsed(
    spec: ModelSpec, attention: AttentionBackend, most: int, *, every_shape: bool
) -> Iterator[tuple[int, int]]:
    """Rows and index of each pass. Large graphs come first: smaller ones find room in their memory."""
    steady = _steady(spec)
    for size in range(most, 0, -1):
        is_replayed = isinstance(attention, ChosenAttention) and attention.of(size) is GRAPH
        if is_replayed or every_shape:
            yield size, steady
        if is_replayed:
            yield size, 0
    if every_shape:  # a window that grows; several at once are rare, and their shapes too many
        yield from ((1, index) for index in range(steady))


def _rehearse_besides(model: CausalVideoModel, pool: SlabPool, passes: Passes, slot: int) -> None:
    """What a session needs besides its usual passes."""
    spec, device = model.spec, model.device
    index = _steady(spec) + 2
    x = initial_latents(spec, seed=0, index=index, device=device)
    embeds = torch.zeros(1, *spec.text_shape, device=device)
    pool.prompt_kv[slot].copy_(model.prompt_kv(embeds)[0])
    sizes = {"chunk": spec.chunk_latent_frames, "window": spec.window_frames, "sink": spec.sink_frames}
    chunks = live_chunks(index, **sizes)
    again = plan_recache(index, chunks, **sizes) if spec.recaches_prompts else None
    if again is not None:
        state = _state(slot, index, x, model)
        state.stage, state.rebuild = Stage.REBUILD, deque([again])
        state.history = [
            ChunkRecord(index=chunk, latents=x, embeds=embeds, actions=state.actions) for chunk in chunks
        ]
        passes.attempt([state])
    model.decode(x, pool.decoder[slot])[0].to("cpu", non_blocking=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Bench:
    """Sessions that exist only to be measured."""

    def __init__(
        self,
        model: CausalVideoModel,
        pool: SlabPool,
        slots: list[int],
        clock: Callable[[], float],
        ranks: Ranks | None,
    ) -> None:
        self._model, self._pool, self._slots, self._clock = model, pool, slots, clock
        self._passes = Passes(model, pool, ranks=ranks)
        spec = model.spec
        self.buckets = sorted({_frames(spec, 0), _frames(spec, _steady(spec))}, reverse=True)
        """KV lengths to measure: the full window, then the shortest."""
        self._sizes = sorted({size for size in (*BATCH_SIZES, len(slots)) if size <= len(slots)})
        ways = available_backends(model.device, model.dtype, fastest_dense(model, pool))
        if (ranks or Alone()).size == 1 and can_replay(model):
            ways = (*ways, GRAPH)
        self._ways: dict[int, tuple[AttentionBackend, ...]] = dict.fromkeys(self._sizes, ways)
        """size → the ways to attend that are measured: one, once it is chosen."""
        self._ms: dict[tuple[int, int], dict[str, float]] = {
            (bucket, size): {} for bucket in self.buckets for size in self._sizes
        }
        """(bucket, size) → way to attend → fastest pass."""

    def measure(self, bucket: int) -> None:
        """Rounds over all sizes, the first to warm up; afterwards each size has one way to attend."""
        began = self._clock()
        for number in range(1 + _ROUNDS):
            if number > 1 and self._clock() - began > BUDGET_MS:
                break
            self._round(bucket, is_warm_up=number == 0)
        for size in self._sizes:
            known = self._ms[bucket, size]
            self._ways[size] = (min(self._ways[size], key=lambda way: known.get(way.name, math.inf)),)
        for smaller, size in pairwise(self._sizes):
            self._recheck(bucket, smaller, size)

    def _recheck(self, bucket: int, smaller: int, size: int) -> None:
        """A planner that believes that a size is dear never tries it, and never learns better."""
        known, (way,) = self._ms[bucket, size], self._ways[size]
        limit_ms = _DEARER * min(self._ms[bucket, smaller].values()) * size / smaller
        for _ in range(_RECHECKS):
            if known[way.name] <= limit_ms:
                return
            measured_ms = self._pass_ms(bucket, size, way)
            if measured_ms is not None:
                known[way.name] = min(known[way.name], measured_ms)

    def _round(self, bucket: int, *, is_warm_up: bool) -> None:
        """One pass of everything that may still matter, in turn: a slow moment must not hit one size only."""
        for size in list(self._sizes):
            known = self._ms[bucket, size]
            for way in self._ways[size]:
                if way is GRAPH and not self._prepare_graph(bucket, size, is_warm_up=is_warm_up):
                    continue
                if known.get(way.name, 0.0) > _HOPELESS * min(known.values(), default=math.inf):
                    continue
                measured_ms = self._pass_ms(bucket, size, way)
                if measured_ms is None:
                    self._sizes = [smaller for smaller in self._sizes if smaller < size]
                    return
                if not is_warm_up:
                    known[way.name] = min(known.get(way.name, math.inf), measured_ms)

    def _prepare_graph(self, bucket: int, size: int, *, is_warm_up: bool) -> bool:
        """Is a graph worth a measurement? Then it is there afterwards: the first replay captures it."""
        known = self._ms[bucket, size]
        if GRAPH.name in known or len(self._ways[size]) == 1:
            return True
        if is_warm_up or min(known.values(), default=math.inf) > _GRAPH_BELOW_MS:
            return False
        return self._pass_ms(bucket, size, GRAPH) is not None

    def decode_ms(self) -> float:
        spec = self._model.spec
        latents = initial_latents(spec, seed=0, index=0, device=self._model.device)
        began = self._clock()
        self._model.decode(latents, self._pool.decoder[self._slots[0]])[0].cpu()
        return self._clock() - began

    def result(self, *, decode_ms: float) -> Measured:
        if not self._sizes:
            raise MemoryError(f"{self._model.spec.name}: there is no memory for a pass of one session")
        samples = {
            bucket: {size: min(self._ms[bucket, size].values()) for size in self._sizes}
            for bucket in self.buckets
        }
        for size in self._sizes:  # a longer KV is never cheaper: what says so is noise
            samples[self.buckets[-1]][size] = min(s[size] for s in samples.values())
        by_rows = [
            self._ways[min(size for size in self._sizes if size >= rows)][0]
            for rows in range(1, self._sizes[-1] + 1)
        ]
        return Measured(
            costs=CostTable.from_samples(_between(self._model.spec, samples), decode_ms=decode_ms),
            attention=ChosenAttention(tuple(by_rows)),
        )

    def _pass_ms(self, bucket: int, size: int, backend: AttentionBackend) -> float | None:
        """None: there is no memory for it."""
        spec, device = self._model.spec, self._model.device
        index = bucket // spec.chunk_latent_frames - 1
        x = initial_latents(spec, seed=0, index=index, device=device)
        states = [_state(slot, index, x, self._model) for slot in self._slots[:size]]
        began = self._clock()
        outcome = self._passes.attempt(states, backend)
        if isinstance(outcome, PassFailed):
            if outcome.verdict is Verdict.NO_MEMORY:
                return None
            raise outcome
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return max(self._clock() - began, 1e-3)


def fastest_dense(model: CausalVideoModel, pool: SlabPool) -> Dense:
    """`sdpa` by the kernel that is fastest for one row of the model over a full window; on CPUs as it is."""
    if model.device.type != "cuda" or model.dtype not in (torch.float16, torch.bfloat16):
        return sdpa
    spec, slab = model.spec, torch.randn_like(pool.kv[0, 0].flatten(1, 2))  # [2, W·N, H, D]
    q = torch.randn_like(slab[:1, : spec.chunk_latent_frames * spec.tokens_per_frame])
    times = {name: _dense_ms(with_kernel(kernel), q, slab) for name, kernel in DENSE_KERNELS.items()}
    best = min(times, key=lambda name: times[name])
    _log.info("dense attention: %s", ", ".join(f"{name} {ms:.3f} ms" for name, ms in times.items()))
    return with_kernel(DENSE_KERNELS[best]) if math.isfinite(times[best]) else sdpa


def _dense_ms(attend: Dense, q: Tensor, slab: Tensor) -> float:
    """The fastest of some calls, the first to warm up; infinite where the kernel can't run."""
    times: list[float] = []
    try:
        for _ in range(1 + _ROUNDS):
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            attend(q, slab[:1], slab[1:])
            ended.record()
            ended.synchronize()
            times.append(began.elapsed_time(ended))
    except RuntimeError:
        return math.inf
    return min(times[1:])


def _common(clock: Callable[[], float], ranks: Ranks) -> Callable[[], float]:
    """Rank 0's clock on all ranks, so that all decide the same from it."""
    return lambda: ranks.meet(Verdict.DONE, now_ms=clock()).now_ms


def _state(slot: int, index: int, x: torch.Tensor, model: CausalVideoModel) -> SessionState:
    spec = model.spec
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
        actions=x.new_zeros(spec.chunk_latent_frames, spec.action_dim) if spec.action_dim else None,
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


def are_close(a: EngineCosts, b: EngineCosts) -> bool:
    """Would nobody decide otherwise?"""

    def times(costs: EngineCosts) -> list[float]:
        passes = (ms for cells in costs.pass_ms for ms in cells)
        return [costs.decode_ms, costs.move_ms, costs.link_bytes_per_ms, *passes]

    return len(times(a)) == len(times(b)) and all(
        math.isclose(x, y, rel_tol=TOLERANCE) for x, y in zip(times(a), times(b), strict=True)
    )
