"""What does a chunk of Wan cost on a GPU, alone and with sessions sharing its passes, and where does it go?

Random weights of the real shape (they cost the same time), 480x832, 4 + 1 passes, full windows, TAEHV:

    ceilings     bf16 matrix products, copies within the device memory
    layers       products, attention kernels and fused steps of one block, each alone
    passes       B = 1, 2, 4, 8 x plain blocks, fused ones, best attention kernel, CUDA graphs, FP8
    chunks       from the first pass to frames in host memory: 4 passes, noise, decode; then the clean pass
    windows      the window written again for a new prompt, the sink alone, and Self-Forcing's window of 21
    equality     against float32 and against each other; FP8's error in a pass and in a chunk
    fp8          sums kept exactly or fast, in products of 8-bit floats: time and error
    decode       TAEHV in several layouts
    vae          Wan's own VAE
    offload      state to host memory and back, what that costs passes (bench.offload)
    coalesce     sessions that share passes, and how many are held in real time (bench.coalesce)
    coalesce_shapes  the same of the small model
    memory       of a session, and what the engine's start-up measures and chooses
    shapes       t(B) of the small model: launches are everything
    profile      kernels of one pass
    soak         chunk after chunk (--soak-chunks): does time or memory grow?
    compiled     a few blocks by torch.compile
    wide         attention grouped and row by row at Self-Forcing's window

Share of the floor: the FLOPs of the passes at 790 TFLOP/s (a Hopper card, dense bfloat16) over their time.
Medians. Sections fail one by one; each prints its result as a line of JSON when it is done, and `--json` is
rewritten, within the longest ones too: a run that is cut off leaves what it has. None begins that would end
after --budget-s, as far as is known; by estimate all of them take eight minutes on an H200. What was
measured least comes first, what might take the device with it last.

    python -m bench.wan_gpu [--device cuda] [--window 12] [--json FILE] [--soak-chunks 60]
    python -m bench.wan_gpu --device cpu --tiny       # does the script work?
"""

from __future__ import annotations

import argparse
import gc
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as fn
from torch import Tensor

from bench import coalesce, offload
from bench.gpu import Report, device_name, median_ms, settle
from bench.stats import percentile
from engine.costs import fastest_dense, measure_costs
from engine.kv_pool import SlabPool
from engine.memory import slot_bytes
from engine.models.attention import DENSE_KERNELS, sdpa, with_kernel
from engine.models.base import AttentionBackend, CausalVideoModel, PassBatch, PassRow
from engine.models.fused_ops import PLAIN, available_ops, has_fp8, plain_quantise
from engine.models.linear import fp8_linear, plain_linear
from engine.models.pool_attention import GRAPH, SLICES, available_backends
from engine.models.rope import rope_table
from engine.models.shapes.model import SHAPES, ShapesModel
from engine.models.shapes.model import TINY as TINY_SHAPES
from engine.models.wan.config import SELF_FORCING, TINY, WanConfig
from engine.models.wan.model import WanModel
from engine.models.wan.vae import WanVaeDecoder
from engine.pass_graphs import PassGraphs, can_replay
from engine.passes import Passes
from engine.sampler import denoise, initial_latents
from engine.session_state import SessionState, Stage
from engine.steering import Steering
from scheduler.messages import SessionId

FLOPS_PER_S = 790e12
FULL = 40
"""Index of a chunk whose window has long been full."""
WIDE = 21
"""Latent frames of Self-Forcing's window."""
SECTIONS = {
    **{"ceilings": 5, "equality": 20, "fp8": 5, "vae": 20, "offload": 20, "windows": 15, "memory": 15},
    **{"coalesce": 120, "chunks": 90, "layers": 10, "coalesce_shapes": 60, "soak": 25, "profile": 5},
    **{"decode": 10, "shapes": 30, "passes": 70, "compiled": 60, "wide": 10},
}
"""In the order in which they run, with the seconds that each may take on an H200: more than it should."""
CONTEST_BYTES = 6e9
"""Of passes and libraries, besides the sessions of `coalesce`."""
SLOW_S = 2.0
"""What takes so long is called once."""
COMPILED_LAYERS = 2
"""All of them would take minutes to compile."""


def pass_flops(config: WanConfig) -> float:
    """Multiply-adds, times two, of one pass of one session over a full window."""
    dit = config.dit
    tokens = dit.chunk_frames * dit.tokens_per_frame
    gemm = 2 * (6 * dit.dim**2 + 2 * dit.dim * dit.ffn_dim)
    keys = dit.window_frames * dit.tokens_per_frame + dit.text_shape[0]
    return float(dit.layers * tokens * (gemm + 4 * keys * dit.dim))


def batch_of(
    model: WanModel | ShapesModel, pool: SlabPool, rows: int, way: AttentionBackend | None = None
) -> PassBatch:
    """Sessions with full windows, at one step, always the same."""
    spec, device = model.spec, model.device
    span = spec.chunk_latent_frames
    row = PassRow(slot=0, frame_start=120, write=tuple(range(span)), num_valid=spec.window_frames)
    noise = [initial_latents(spec, seed=seed, index=FULL, device=device) for seed in range(rows)]
    return PassBatch(
        rows=tuple(replace(row, slot=slot, frame_start=120 + 3 * slot) for slot in range(rows)),
        x=torch.stack(noise),
        sigma=torch.full((rows, span), 0.8, device=device),
        kv=pool.kv,
        prompt_kv=pool.prompt_kv,
        attention=way,
    )


class Runner:
    """One way to run passes: a model, a way to attend, perhaps a graph."""

    def __init__(self, model: WanModel | ShapesModel, way: AttentionBackend, *, fixed: bool = False) -> None:
        """`fixed`: capture the way itself with these rows' slots, which an engine could not use."""
        self.model, self.way, self.fixed = model, way, fixed
        self._graphs = PassGraphs(model)
        self._static: tuple[torch.cuda.CUDAGraph, Tensor, PassBatch] | None = None
        """The graph, what it writes, and what it reads: that must stay where it is."""
        self._static_batch: PassBatch | None = None

    def __call__(self, batch: PassBatch) -> Tensor:
        if self.way is GRAPH:
            return self._graphs.run(batch)
        if self.fixed:
            return self._fixed(batch)
        return self.model.run_pass(replace(batch, attention=self.way))

    @torch.inference_mode()
    def _fixed(self, batch: PassBatch) -> Tensor:
        if self._static is None or self._static_batch is not batch:
            self._static_batch, self._static = batch, None  # a graph that ends meanwhile breaks a capture
            given = replace(batch, attention=self.way, rope=self.model.rope(batch.rows))
            for _ in range(2):
                self.model.run_pass(given)
            settle(self.model.device)
            gc.collect()  # an older graph that ended during the capture would break it
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._static = (graph, self.model.run_pass(given), given)
        graph, out, _ = self._static
        graph.replay()
        return out


class Wan:
    """The models that are compared: equal weights, one pool of full windows."""

    def __init__(self, report: Report, args: argparse.Namespace) -> None:
        self.report, self.args = report, args
        self.device = torch.device(args.device)
        self.is_cuda = self.device.type == "cuda"
        base = TINY if args.tiny else SELF_FORCING
        self.config = replace(base, dit=replace(base.dit, window_frames=args.window), sink_frames=0)
        self.dtype = torch.bfloat16 if self.is_cuda else torch.float32
        self.plain = self.make(fused=False)
        self.fused = self.make(fused=True)
        self.pool = self.full_pool()
        self.dense = fastest_dense(cast(CausalVideoModel, self.fused), self.pool)
        self.tuned = {way.name: way for way in available_backends(self.device, self.dtype, self.dense)}
        self._eight_bit: WanModel | None = None

    def make(self, *, fused: bool, fp8: bool = False, dtype: torch.dtype | None = None) -> WanModel:
        config = replace(self.config, fp8=fp8)
        return WanModel.random(0, config=config, device=self.device, dtype=dtype or self.dtype, fused=fused)

    def full_pool(self) -> SlabPool:
        """Always the same."""
        pool = SlabPool(cast(CausalVideoModel, self.fused), slots=max(self.args.batches))
        torch.manual_seed(1)
        for slot in range(pool.num_slots):
            pool.kv[slot].normal_()
            pool.prompt_kv[slot].normal_()
        return pool

    @property
    def eight_bit(self) -> WanModel:
        if self._eight_bit is None:
            self._eight_bit = self.make(fused=True, fp8=True)
        return self._eight_bit

    def floor_ms(self) -> float:
        return 1000 * pass_flops(self.config) / FLOPS_PER_S

    def runners(self) -> dict[str, Callable[[], Runner]]:
        """name → how to make it; the plainest first."""
        slices, grouped = self.tuned["slices"], self.tuned["grouped"]
        made: dict[str, Callable[[], Runner]] = {
            "plain": lambda: Runner(self.plain, SLICES),
            "fused": lambda: Runner(self.fused, SLICES),
            "fused, best kernel, slices": lambda: Runner(self.fused, slices),
            "fused, best kernel, grouped": lambda: Runner(self.fused, grouped),
        }
        if "varlen" in self.tuned:
            made["fused, varlen"] = lambda: Runner(self.fused, self.tuned["varlen"])
        if can_replay(cast(CausalVideoModel, self.fused)):
            made["graph"] = lambda: Runner(self.fused, GRAPH)
            made["graph, fixed slots"] = lambda: Runner(self.fused, slices, fixed=True)
        if has_fp8(self.device) or not self.is_cuda:
            made["fp8"] = lambda: Runner(self.eight_bit, slices)
        if has_fp8(self.device):
            made["fp8, graph, fixed slots"] = lambda: Runner(self.eight_bit, slices, fixed=True)
        return made

    # --- sections ------------------------------------------------------------------------------------

    def ceilings(self) -> dict[str, Any]:
        size, count = (8192, 2**30) if self.is_cuda else (256, 2**20)
        a, b = (torch.randn(size, size, device=self.device, dtype=self.dtype) for _ in range(2))
        matmul_ms = median_ms(lambda: a @ b, self.device, 7)
        source = torch.empty(count, dtype=torch.float32, device=self.device).normal_()
        target = torch.empty_like(source)
        copy_ms = median_ms(lambda: target.copy_(source), self.device, 7)
        found = {
            "matmul_tflops": 2 * size**3 / matmul_ms / 1e9,
            "copy_gb_s": 8 * count / copy_ms / 1e6,
            "capability": torch.cuda.get_device_capability(self.device) if self.is_cuda else None,
        }
        self.report.say(f"{found['matmul_tflops']:.0f} TFLOP/s, {found['copy_gb_s']:.0f} GB/s")
        return found

    def layers(self) -> dict[str, float | None]:
        """Each step of one block alone, one session; ms."""
        dit, spec = self.config.dit, self.fused.spec
        tokens = dit.chunk_frames * dit.tokens_per_frame
        calls: dict[str, tuple[Callable[[], object], float]] = {}
        x = torch.randn(1, dit.chunk_frames, dit.tokens_per_frame, dit.dim, device=self.device).to(self.dtype)
        wide = torch.randn(*x.shape[:-1], dit.ffn_dim, device=self.device).to(self.dtype)
        ops = available_ops(self.device)
        for name, inputs, outputs, given in (
            ("qkv", dit.dim, 3 * dit.dim, x),
            ("o", dit.dim, dit.dim, x),
            ("ffn in", dit.dim, dit.ffn_dim, x),
            ("ffn out", dit.ffn_dim, dit.dim, wide),
        ):
            weight = (torch.randn(outputs, inputs, device=self.device) / math.sqrt(inputs)).to(self.dtype)
            bias = torch.randn(outputs, device=self.device).to(self.dtype)
            flops = 2.0 * tokens * inputs * outputs
            calls[f"{name}"] = (partial(plain_linear(weight, bias), given), flops)
            if name == "ffn in":
                then = partial(_linear_then_gelu, weight, bias)
                calls["ffn in, then gelu"] = (partial(then, given), flops)
                calls["ffn in with gelu"] = (
                    partial(plain_linear(weight, bias, gelu_after=True), given),
                    flops,
                )
            if has_fp8(self.device):
                layer = fp8_linear(self.device, ops)(weight, bias)
                calls[f"{name}, fp8 with quantising"] = (partial(layer, given), flops)
        q = torch.randn(1, tokens, dit.heads, dit.head_dim, device=self.device).to(self.dtype)
        kv = self.pool.kv[0, 0].flatten(1, 2)
        text = self.pool.prompt_kv[0, 0]
        flops = 4.0 * tokens * kv.shape[1] * dit.dim
        calls["attention, torch's choice"] = (lambda: sdpa(q, kv[:1], kv[1:]), flops)
        for name, kernel in DENSE_KERNELS.items() if self.is_cuda else ():
            calls[f"attention, {name}"] = (partial(with_kernel(kernel), q, kv[:1], kv[1:]), flops)
        calls["prompt attention"] = (lambda: self.dense(q, text[:1], text[1:]), 0.0)
        e = torch.randn(1, dit.chunk_frames, 6, dit.dim, device=self.device).to(self.dtype)
        rows, columns = dit.grid
        frames = [list(range(dit.chunk_frames))]
        rope = rope_table(frames, rows=rows, columns=columns, head_dim=dit.head_dim, device=self.device)
        qkv = torch.randn(*x.shape[:-1], 3 * dit.dim, device=self.device).to(self.dtype)
        norms = torch.ones(2, dit.dim, device=self.device, dtype=self.dtype)
        for name, way in (("plain", PLAIN), ("fused", ops)):
            calls[f"residual and norm, {name}"] = (
                partial(way.add_norm, x, x, e[:, :, 2], e[:, :, 1], e[:, :, 0], plus=1.0, eps=1e-6),
                0.0,
            )
            calls[f"norm and rotation, {name}"] = (
                partial(way.norm_rotate, qkv, norms, rope, spec.head_dim, 1e-6),
                0.0,
            )
        found: dict[str, float | None] = {}
        rows_out = []
        for name, (call, flops) in calls.items():
            ms = self.report.cell(name, partial(median_ms, call, self.device, 5, calls=5))
            found[name] = ms
            if ms is not None:
                rows_out.append((name, ms, f"{flops / ms / 1e9:.0f}" if flops else ""))
        self.report.table(("step", "ms", "TFLOP/s"), rows_out)
        return found

    def passes(self) -> dict[str, Any]:
        """t(B) of every way."""
        found: dict[str, Any] = {}
        rows = []
        for name, make in self.runners().items():
            runner = self.report.cell(name, make)
            for size in self.args.batches if runner is not None else ():
                batch = batch_of(self.fused, self.pool, size)
                measure = partial(median_ms, partial(runner, batch), self.device, self.args.rounds)
                ms = self.report.cell(f"{name}, B={size}", measure)
                if ms is None:
                    break
                found[f"{name} | {size}"] = ms
                share = 100 * size * self.floor_ms() / ms
                rows.append((name, size, ms, ms / size, f"{share:.0f} %"))
                self.report.say(f"{name}, B={size}: {ms:.2f} ms, {share:.0f} % of the floor")
            del runner
            self._keep("passes", found)
        self.report.say("")
        self.report.table(("way", "B", "pass ms", "per session", "of the floor"), rows)
        return found

    def chunks(self) -> dict[str, Any]:
        """Whole chunks as the engine makes them."""
        steps, spec = len(self.fused.spec.sigmas), self.fused.spec
        chunk_ms = 1000 * spec.chunk_frames / spec.fps
        floor = (steps + 1) * self.floor_ms()
        found: dict[str, Any] = {}
        rows = []
        ways: list[tuple[str, Callable[[], WanModel], AttentionBackend]] = [
            ("plain", lambda: self.plain, SLICES),
            ("fused, best kernel", lambda: self.fused, self.tuned["slices"]),
            ("fused, best kernel, grouped", lambda: self.fused, self.tuned["grouped"]),
        ]
        if can_replay(cast(CausalVideoModel, self.fused)):
            ways.append(("graph", lambda: self.fused, GRAPH))
        if has_fp8(self.device):
            ways.append(("fp8", lambda: self.eight_bit, self.tuned["slices"]))
        for name, model, way in ways:
            for size in self.args.batches:
                cell = partial(self._chunk, model, self.pool, way, size)
                result = self.report.cell(f"{name}, B={size}", cell)
                if result is None:
                    break
                frames_ms, whole_ms = result
                live = int(chunk_ms * size / whole_ms)
                found[f"{name} | {size}"] = {"frames_ms": frames_ms, "whole_ms": whole_ms, "live": live}
                share = f"{100 * size * floor / whole_ms:.0f} %"
                rows.append((name, size, frames_ms, whole_ms, whole_ms / size, share, live))
                self.report.say(f"{name}, B={size}: frames {frames_ms:.1f} ms, whole {whole_ms:.1f} ms")
            self._keep("chunks", found)
        began = time.perf_counter()
        initial_latents(spec, seed=0, index=FULL, device=torch.device("cpu"))
        found["noise_ms"] = 1000 * (time.perf_counter() - began)
        self.report.say(f"noise of one step on the host: {found['noise_ms']:.1f} ms")
        columns = ("way", "B", "to the frames ms", "with clean pass ms", "per session", "of the floor")
        self.report.say("")
        self.report.table((*columns, "in real time"), rows)
        return found

    def _chunk(
        self, model: Callable[[], WanModel], pool: SlabPool, way: AttentionBackend, size: int
    ) -> tuple[float, float]:
        line = Line(model(), pool, way, size)
        times = [line.chunk() for _ in range(4 if size < 4 else 3)]
        frames, whole = zip(*times[1:], strict=True)
        return percentile(list(frames), 0.5), percentile(list(whole), 0.5)

    def windows(self) -> dict[str, float | None]:
        """Passes that are not a chunk's; ms."""
        span, window = self.config.dit.chunk_frames, self.config.dit.window_frames
        found = {
            "a new prompt": self._frames_ms(self.fused, self.pool, window - span, window),
            "the sink": self._frames_ms(self.fused, self.pool, span, span),
        }
        model, pool = self._wide(slots=1)
        found[f"a pass, window {WIDE}"] = self._frames_ms(model, pool, span, WIDE)
        chunk = self.report.cell(
            "wide chunk", lambda: self._chunk(lambda: model, pool, self.tuned["slices"], 1)
        )
        if chunk is not None:
            found[f"to the frames, window {WIDE}"], found[f"whole chunk, window {WIDE}"] = chunk
        self.report.table(
            ("pass", "ms"), [(name, math.nan if ms is None else ms) for name, ms in found.items()]
        )
        return found

    def _frames_ms(self, model: WanModel, pool: SlabPool, frames: int, valid: int) -> float | None:
        """One row of so many latent frames over so many in the window, the newest ones written."""
        row = PassRow(slot=0, frame_start=120, write=tuple(range(valid - frames, valid)), num_valid=valid)
        x = torch.randn(1, frames, *model.spec.latent_shape, device=self.device)
        batch = PassBatch(
            rows=(row,),
            x=x,
            sigma=torch.zeros(1, frames, device=self.device),
            kv=pool.kv,
            prompt_kv=pool.prompt_kv,
            attention=self.tuned["slices"],
        )
        measure = partial(median_ms, partial(model.run_pass, batch), self.device, self.args.rounds)
        ms: float | None = self.report.cell(f"{frames} frames over {valid}", measure)
        return ms

    def equality(self) -> dict[str, Any]:
        """Relative errors of a pass's output, ‖a − b‖ / ‖b‖."""
        one = batch_of(self.fused, self.pool, 1)
        plain = self.plain.run_pass(replace(one, attention=SLICES)).clone()
        fused = self.fused.run_pass(replace(one, attention=SLICES)).clone()
        found: dict[str, Any] = {"fused to plain": _error(fused, plain)}
        best = self.fused.run_pass(replace(one, attention=self.tuned["slices"])).clone()
        found["best kernel to torch's choice"] = _error(best, fused)
        again = self.fused.run_pass(replace(one, attention=self.tuned["slices"]))
        found["a pass run again, bit-equal"] = torch.equal(again, best)
        several = min(4, max(self.args.batches))
        batch = batch_of(self.fused, self.pool, several)
        together = self.fused.run_pass(replace(batch, attention=self.tuned["slices"])).clone()
        found["batch to alone, slices"] = _error(together[:1], best)
        grouped = self.fused.run_pass(replace(batch, attention=self.tuned["grouped"])).clone()
        found["grouped to slices"] = _error(grouped, together)
        if can_replay(cast(CausalVideoModel, self.fused)):
            found["graph to slices"] = self.report.cell("graph", lambda: self._graph_error(batch, together))
            found["graph replayed on other rows"] = self.report.cell("graph", self._moved_graph_error)
        if has_fp8(self.device) or not self.is_cuda:
            found["fp8 to fused"] = self.report.cell(
                "fp8", lambda: _error(self.eight_bit.run_pass(one), fused)
            )
        found |= self.report.cell("chunk", self._chunk_errors) or {}
        found |= self.report.cell("float32", lambda: self._against_float32(one, plain, fused)) or {}
        for name, error in found.items():
            self.report.say(f"{name}: {error}")
        return found

    def _wide(self, *, slots: int) -> tuple[WanModel, SlabPool]:
        """Self-Forcing's window. From one slot of it to the next are more than 2³¹ elements."""
        wide = replace(self.config, dit=replace(self.config.dit, window_frames=WIDE))
        model = WanModel.random(0, config=wide, device=self.device, dtype=self.dtype, fused=True)
        pool = SlabPool(cast(CausalVideoModel, model), slots=slots)
        for slot in range(slots):
            pool.kv[slot].normal_()
            pool.prompt_kv[slot].normal_()
        return model, pool

    def wide(self) -> dict[str, float]:
        """Grouped against slices over the wide window, 2 rows."""
        model, pool = self._wide(slots=2)
        batch = batch_of(model, pool, 2)
        slices, grouped = (
            model.run_pass(replace(batch, attention=self.tuned[name])).clone()
            for name in ("slices", "grouped")
        )
        found = _error(grouped, slices)
        self.report.say(f"grouped to slices, window {WIDE}, 2 rows: {found}")
        return found

    def _graph_error(self, batch: PassBatch, expected: Tensor) -> dict[str, float]:
        graphs = PassGraphs(cast(CausalVideoModel, self.fused))
        graphs.run(batch)
        return _error(graphs.run(batch), expected)

    def _moved_graph_error(self) -> dict[str, float]:
        """The same graph for other slots, frames and noise; both kinds of window."""
        graphs, span = PassGraphs(cast(CausalVideoModel, self.fused)), self.fused.spec.chunk_latent_frames
        base = batch_of(self.fused, self.pool, min(2, max(self.args.batches)))
        graphs.run(base)
        last = self.pool.num_slots - 1
        rows = tuple(
            replace(
                row, slot=last - row.slot, frame_start=row.frame_start + 3, write=tuple(range(span, 2 * span))
            )
            for row in base.rows
        )
        worst: dict[str, float] = {"max": 0.0, "relative": 0.0}
        for valid in (self.fused.spec.window_frames, 2 * span, 2 * span):
            moved = replace(
                base, rows=tuple(replace(row, num_valid=valid) for row in rows), x=base.x.flip(0) * 0.7
            )
            expected = self.fused.run_pass(replace(moved, attention=SLICES)).clone()
            error = _error(graphs.run(moved), expected)
            worst = {name: max(worst[name], error[name]) for name in worst}
        return worst

    def _chunk_errors(self) -> dict[str, Any]:
        """Latents of a chunk after all its passes, same noise and same past."""
        models = {"plain": self.plain, "fused": self.fused}
        if has_fp8(self.device) or not self.is_cuda:
            models["fp8"] = self.eight_bit
        latents = {name: Line(model, self.pool, SLICES, 1).latents() for name, model in models.items()}
        return {
            f"latents of a chunk, {name} to fused": _error(latents[name], latents["fused"])
            for name in models
            if name != "fused"
        }

    def _against_float32(self, batch: PassBatch, plain: Tensor, fused: Tensor) -> dict[str, Any]:
        """The same weights before they were rounded to bfloat16, everything in float32."""
        exact = self.make(fused=False, dtype=torch.float32)
        wide = replace(
            batch, kv=self.pool.kv[:1].float(), prompt_kv=self.pool.prompt_kv[:1].float(), attention=SLICES
        )
        expected = exact.run_pass(wide)
        errors = {"plain to float32": _error(plain, expected), "fused to float32": _error(fused, expected)}
        if has_fp8(self.device):
            errors["fp8 to float32"] = _error(self.eight_bit.run_pass(batch), expected)
        return errors

    def fp8(self) -> dict[str, Any]:
        """Products of 8-bit floats with exact sums, and with faster ones, as the engine has them."""
        if not has_fp8(self.device):
            return {"left out": "no products of 8-bit floats here"}
        dit, found, rows = self.config.dit, dict[str, Any](), []
        tokens = dit.chunk_frames * dit.tokens_per_frame
        for name, inputs, outputs in (
            ("qkv", dit.dim, 3 * dit.dim),
            ("ffn in", dit.dim, dit.ffn_dim),
            ("ffn out", dit.ffn_dim, dit.dim),
        ):
            weight = torch.randn(outputs, inputs, device=self.device) / math.sqrt(inputs)
            (w, w_scale), (x, x_scale) = (
                plain_quantise(values) for values in (weight, torch.randn(tokens, inputs, device=self.device))
            )
            exact = (x.double() * x_scale) @ (w.double() * w_scale).t()
            for is_fast in (True, False):
                product = partial(
                    torch._scaled_mm,
                    x,
                    w.t(),
                    scale_a=x_scale,
                    scale_b=w_scale.t(),
                    out_dtype=torch.bfloat16,
                    use_fast_accum=is_fast,
                )
                ms, error = median_ms(product, self.device, 7, calls=5), _error(product(), exact)
                sums = "fast" if is_fast else "exact"
                found[f"{name}, {sums} sums"] = {"ms": ms, **error}
                rows.append((name, inputs, sums, ms, error["relative"]))
        self.report.table(("layer", "K", "sums", "ms", "relative error"), rows)
        return found

    @torch.inference_mode()
    def compiled(self) -> dict[str, Any]:
        """A pass of a few blocks: as they are written, by torch.compile, fused."""
        config = replace(self.config, dit=replace(self.config.dit, layers=COMPILED_LAYERS))
        plain, fused = (
            WanModel.random(0, config=config, device=self.device, dtype=self.dtype, fused=is_fused)
            for is_fused in (False, True)
        )
        pool = SlabPool(cast(CausalVideoModel, plain), slots=1)
        pool.kv.normal_()
        pool.prompt_kv.normal_()
        batch = batch_of(plain, pool, 1, SLICES)
        batch = replace(batch, rope=plain.rope(batch.rows))
        torch._dynamo.utils.counters.clear()
        run = torch.compile(plain._dit.run_pass, dynamic=False)
        began = time.perf_counter()
        by_compiler = run(batch).clone()
        settle(self.device)
        found: dict[str, Any] = {"layers": COMPILED_LAYERS, "compile_s": time.perf_counter() - began}
        counted = torch._dynamo.utils.counters
        found["graphs"] = counted["stats"]["unique_graphs"]  # 0: it gave up
        found["breaks"] = sum(counted["graph_break"].values())
        found["compiled to plain"] = _error(by_compiler, plain.run_pass(batch))
        calls: dict[str, Callable[[], object]] = {
            "plain": lambda: plain.run_pass(batch),
            "compiled": lambda: run(batch),
            "fused": lambda: fused.run_pass(batch),
        }
        for name, call in calls.items():
            found[name] = median_ms(call, self.device, self.args.rounds)
            self.report.say(f"{COMPILED_LAYERS} blocks, {name}: {found[name]:.2f} ms")
        self.report.say(
            f"{found['graphs']} graphs in {found['compile_s']:.0f} s; to plain {found['compiled to plain']}"
        )
        return found

    def offload(self) -> dict[str, object]:
        """A session's state to host memory and back, and what that costs passes."""
        return offload.measure(cast(CausalVideoModel, self.fused), pairs=2 if self.args.tiny else 6, rows=1)

    def coalesce(self) -> dict[str, Any]:
        """Sessions that share passes: how many are held in real time? Their pools take the place of ours."""
        model, seconds = cast(CausalVideoModel, self.fused), 1.0 if self.args.tiny else 5.0
        del self.pool
        found: dict[str, Any] = {}
        try:
            for count in self._counts():
                measure = partial(coalesce.measure, model, (count,), rounds=3, seconds=seconds)
                found[f"{count} sessions"] = self.report.cell(f"{count} sessions", measure)
                self._keep("coalesce", found)
        finally:
            self._collect()
            self.pool = self.full_pool()
        return found

    def _counts(self) -> list[int]:
        """Numbers of sessions of which two contests, each of all planners, fit into memory together."""
        self._collect()
        if not self.is_cuda:
            return [1, 2, 4]
        free, _ = torch.cuda.mem_get_info(self.device)
        each = 2 * len(coalesce.PLANNERS) * slot_bytes(cast(CausalVideoModel, self.fused))
        most = min(4, int((free - CONTEST_BYTES) // each))
        return sorted({1, 2, most} & set(range(1, most + 1)))

    def _collect(self) -> None:
        """Pools that only refer to themselves keep their memory until they are looked for."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()

    def _keep(self, section: str, found: dict[str, Any]) -> None:
        """What there is of a long section, in the file, and nothing of what it is done with on the device."""
        self.report.results[section] = found
        self.report.save()
        self._collect()

    def coalesce_shapes(self) -> dict[str, object]:
        """The same of the small model."""
        config = TINY_SHAPES if self.args.tiny else SHAPES
        model = ShapesModel.random(0, config=config, device=self.device, dtype=self.dtype)
        seconds, counts = (1.0, (2,)) if self.args.tiny else (4.0, (16,))
        return coalesce.measure(cast(CausalVideoModel, model), counts, rounds=4, seconds=seconds)

    def vae(self) -> dict[str, Any]:
        """The frames of a chunk by Wan's own VAE."""
        width = 4 if self.args.tiny else 96
        decoder = WanVaeDecoder(channels=self.config.dit.latent_shape[0], width=width)
        decoder = decoder.to(device=self.device, dtype=self.dtype).eval().requires_grad_(False)
        _, h, w = self.config.dit.latent_shape
        sizes = sum(math.prod(shape) for shape in decoder.state_shapes(h, w))
        state = torch.zeros(sizes, device=self.device, dtype=self.dtype)
        latents = torch.randn(self.config.dit.chunk_frames, *self.config.dit.latent_shape, device=self.device)

        @torch.inference_mode()
        def run() -> object:
            return decoder(latents.to(self.dtype), state)

        once_s = 0.0
        for _ in range(2):  # kernels are chosen in the first
            began = time.perf_counter()
            run()
            settle(self.device)
            once_s = time.perf_counter() - began
        is_slow = once_s > SLOW_S
        ms = 1000 * once_s if is_slow else median_ms(run, self.device, self.args.rounds)
        found = {"ms": ms, "state_bytes": state.nbytes}
        self.report.say(f"Wan's VAE: {found['ms']:.1f} ms a chunk, state {found['state_bytes'] / 1e6:.0f} MB")
        return found

    def decode(self) -> dict[str, Any]:
        spec, found = self.fused.spec, dict[str, Any]()
        latents = initial_latents(spec, seed=0, index=FULL, device=self.device)
        state = self.fused.initial_decoder_state()
        plain = self.make(fused=False)
        plain._decoder.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        rounds = self.args.rounds
        calls: dict[str, Callable[[], object]] = {
            "channels first": lambda: plain.decode(latents, state),
            "channels last": lambda: self.fused.decode(latents, state),
            "and the copy to the host": lambda: self.fused.decode(latents, state)[0].to(
                "cpu", non_blocking=True
            ),
            "network alone": lambda: self._network(latents, state),
        }
        if self.is_cuda:
            replay = self.report.cell("graph of the decoder", lambda: self._graphed_decode(latents, state))
            if replay is not None:
                calls["network from a graph"] = replay
        if self.args.compile:
            compiled = torch.compile(self.fused._decoder, dynamic=False)
            run = torch.inference_mode()(lambda: compiled(latents.to(self.dtype), state))
            calls["network, torch.compile"] = run
        for name, call in calls.items():
            found[name] = self.report.cell(name, partial(median_ms, call, self.device, rounds))
            self.report.say(f"{name}: {found[name]} ms")
        first, last = plain.decode(latents, state)[0], self.fused.decode(latents, state)[0]
        found["largest difference of the layouts, of 255"] = (first.int() - last.int()).abs().max().item()
        self.report.say(
            f"difference of the layouts: {found['largest difference of the layouts, of 255']} of 255"
        )
        return found

    @torch.inference_mode()
    def _network(self, latents: Tensor, state: Tensor) -> Tensor:
        rgb, _ = self.fused._decoder(latents.to(self.dtype), state)
        return cast(Tensor, rgb)

    @torch.inference_mode()
    def _graphed_decode(self, latents: Tensor, state: Tensor) -> Callable[[], object]:
        for _ in range(3):
            self._network(latents, state)
        settle(self.device)
        gc.collect()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._network(latents, state)
        return graph.replay

    def memory(self) -> dict[str, Any]:
        """A session's bytes, and the engine's own start-up measurement."""
        found: dict[str, Any] = {"session_bytes": slot_bytes(cast(CausalVideoModel, self.fused))}
        if self.is_cuda:
            free, total = torch.cuda.mem_get_info(self.device)
            weights = sum(p.numel() * p.element_size() for p in self.fused._dit.parameters())
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            self.fused.run_pass(batch_of(self.fused, self.pool, 1, self.tuned["slices"]))
            workspace = torch.cuda.max_memory_allocated(self.device) - before
            found |= {"weights_bytes": weights, "pass_bytes": workspace, "free": free, "total": total}
            found["sessions_that_fit"] = int((0.9 * total - weights - workspace) // found["session_bytes"])
        self.report.say(str(found))
        began = time.perf_counter()
        trial = SlabPool(cast(CausalVideoModel, self.fused), slots=min(4, self.pool.num_slots))
        measured = measure_costs(
            cast(CausalVideoModel, self.fused), trial, lambda: time.perf_counter() * 1000
        )
        found |= {
            "start_up_s": time.perf_counter() - began,
            "chosen": measured.attention.name,
            "t_ms": {
                bucket: list(ms) for bucket, ms in zip(measured.costs.buckets, measured.costs.ms, strict=True)
            },
            "decode_ms": measured.costs.decode_ms,
        }
        self.report.say(f"start-up measures for {found['start_up_s']:.1f} s: {found['t_ms']}")
        self.report.say(f"and chooses {found['chosen']}; decode {measured.costs.decode_ms:.1f} ms")
        return found

    def shapes(self) -> dict[str, Any]:
        config = TINY_SHAPES if self.args.tiny else SHAPES
        sizes = (1, 2, 4) if self.args.tiny else (1, 2, 4, 8, 16, 32, 64)
        made = {
            fused: ShapesModel.random(0, config=config, device=self.device, dtype=self.dtype, fused=fused)
            for fused in (False, True)
        }
        pool = SlabPool(cast(CausalVideoModel, made[True]), slots=max(sizes))
        pool.kv.normal_()
        pool.prompt_kv.normal_()
        ways = {way.name: way for way in available_backends(self.device, self.dtype)}
        runners = {
            "plain, slices": Runner(made[False], SLICES),
            "plain, grouped": Runner(made[False], ways["grouped"]),
            "fused, grouped": Runner(made[True], ways["grouped"]),
            "graph": Runner(made[True], GRAPH),
        }
        found: dict[str, Any] = {}
        rows = []
        for name, runner in runners.items():
            times = []
            for size in sizes:
                batch = batch_of(made[True], pool, size)
                measure = partial(median_ms, partial(runner, batch), self.device, 7)
                ms = self.report.cell(f"shapes {name}, B={size}", measure)
                times.append(ms)
            found[name] = dict(zip(sizes, times, strict=True))
            rows.append((name, *(math.nan if ms is None else ms for ms in times)))
        self.report.table(("pass ms", *(f"B={size}" for size in sizes)), rows)
        batch = batch_of(made[True], pool, max(sizes))
        expected = made[False].run_pass(replace(batch, attention=ways["grouped"])).clone()
        for name in ("fused, grouped", "graph"):
            out = self.report.cell(name, partial(runners[name], batch))
            found[f"{name} to plain"] = None if out is None else _error(out, expected)
            self.report.say(f"{name} to plain: {found[f'{name} to plain']}")
        latents = initial_latents(made[True].spec, seed=0, index=FULL, device=self.device)
        state = made[True].initial_decoder_state()
        decode = partial(median_ms, lambda: made[True].decode(latents, state), self.device, 7)
        found["decode_ms"] = self.report.cell("shapes decode", decode)
        measured = measure_costs(cast(CausalVideoModel, made[True]), pool, lambda: time.perf_counter() * 1000)
        found["chosen"], found["t_ms"] = measured.attention.name, list(measured.costs.ms[-1])
        self.report.say(f"decode {found['decode_ms']} ms; start-up chooses {found['chosen']}")
        return found

    def profile(self) -> list[dict[str, Any]]:
        from torch.profiler import ProfilerActivity, profile

        batch = batch_of(self.fused, self.pool, 1, self.tuned["slices"])
        self.fused.run_pass(batch)
        settle(self.device)
        activities = [ProfilerActivity.CUDA if self.is_cuda else ProfilerActivity.CPU]
        with profile(activities=activities) as prof:
            self.fused.run_pass(batch)
            settle(self.device)
        events = prof.key_averages()
        spent = [(e.self_device_time_total if self.is_cuda else e.self_cpu_time_total, e) for e in events]
        whole = sum(us for us, _ in spent)
        top = sorted(spent, key=lambda item: -item[0])[:18]
        rows = [(e.key[:90], e.count, us / 1000, f"{100 * us / max(whole, 1e-9):.1f} %") for us, e in top]
        self.report.say(f"kernels of one pass, {whole / 1000:.2f} ms together")
        self.report.table(("kernel", "calls", "ms", "share"), rows)
        return [{"kernel": row[0], "calls": row[1], "ms": row[2]} for row in rows]

    def soak(self) -> dict[str, Any]:
        """One session, chunk after chunk without waiting for the clean pass: steady state."""
        line = Line(self.fused, self.pool, self.tuned["slices"], 1)
        line.chunk()
        count, times = self.args.soak_chunks, list[float]()
        memory = list[int]()
        for number in range(count):
            began = time.perf_counter()
            line.chunk(wait=False)
            times.append((time.perf_counter() - began) * 1000)
            if self.is_cuda and number in (count // 10, count - 1):
                settle(self.device)
                memory.append(torch.cuda.memory_reserved(self.device))
        tenth = max(1, count // 10)
        spec = self.fused.spec
        found = {
            "chunks": count,
            "minutes_of_video": count * spec.chunk_frames / spec.fps / 60,
            "p50_ms": percentile(times, 0.5),
            "p99_ms": percentile(times, 0.99),
            "first_tenth_ms": percentile(times[:tenth], 0.5),
            "last_tenth_ms": percentile(times[-tenth:], 0.5),
            "grown_bytes": memory[-1] - memory[0] if memory else None,
        }
        self.report.say(str(found))
        return found


class Line:
    """Sessions in step, chunk after chunk, by the engine's own passes and sampler."""

    def __init__(self, model: WanModel, pool: SlabPool, way: AttentionBackend, size: int) -> None:
        self._model, self._pool, self._spec = model, pool, model.spec
        self._passes = Passes(cast(CausalVideoModel, model), pool, attention=way)
        self._states = [
            SessionState(
                session=SessionId(f"s_{slot}"),
                epoch=1,
                slot=slot,
                steering=Steering(seed=slot),
                seq=0,
                frame=0,
                index=FULL,
            )
            for slot in range(size)
        ]
        self._kept: list[Tensor] = []

    def _begin(self) -> None:
        for state in self._states:
            seed, index = state.steering.seed, state.index
            state.x = initial_latents(self._spec, seed=seed, index=index, device=self._model.device)
            state.step, state.stage = 0, Stage.DENOISE

    def _pass(self) -> list[Tensor]:
        outcomes = self._passes.run(self._states).outcomes
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return [outcome for outcome in outcomes if isinstance(outcome, Tensor)]

    @torch.inference_mode()
    def latents(self) -> Tensor:
        """Of one chunk after its denoising passes."""
        self._begin()
        return self._denoised()

    def _denoised(self) -> Tensor:
        for _ in self._spec.sigmas:
            for state, velocity in zip(self._states, self._pass(), strict=True):
                assert state.x is not None
                seed = state.steering.seed
                state.x = denoise(
                    self._spec, state.x, velocity, seed=seed, index=state.index, step=state.step
                )
                state.step += 1
        return torch.stack([state.x for state in self._states if state.x is not None])

    @torch.inference_mode()
    def chunk(self, *, wait: bool = True) -> tuple[float, float]:
        """Milliseconds until all frames are in host memory, and until the clean pass is done too.

        The first noise is drawn before: an engine does it while the clean pass before is running. With `wait`
        the device is idle at the start. Without, the second is when the clean pass is launched.
        """
        device = self._model.device
        self._begin()
        if wait:
            settle(device)
        began = time.perf_counter()
        x = self._denoised()
        frames = []
        for state, latents in zip(self._states, x, strict=True):
            rgb, following = self._model.decode(latents, self._pool.decoder[state.slot])
            self._pool.decoder[state.slot].copy_(following)
            frames.append(rgb.to("cpu", non_blocking=True))
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
        to_frames = time.perf_counter() - began
        self._kept = frames  # until the next ones are there, as an encoder holds them
        for state in self._states:
            state.stage = Stage.CLEAN
        self._pass()
        for state in self._states:
            state.index += 1
        if wait:
            settle(device)
        return 1000 * to_frames, 1000 * (time.perf_counter() - began)


def _linear_then_gelu(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    return fn.gelu(fn.linear(x, weight, bias), approximate="tanh")


def _error(found: Tensor, expected: Tensor) -> dict[str, float]:
    difference = found.float() - expected.float()
    return {
        "max": round(difference.abs().max().item(), 6),
        "relative": round((difference.norm() / expected.float().norm()).item(), 6),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--window", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--batches", default="1,2,4,8")
    parser.add_argument("--soak-chunks", type=int, default=60)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--budget-s", type=float, default=570.0)
    parser.add_argument("--only", default="", help="sections, separated by commas; default: all")
    parser.add_argument("--compile", action="store_true", help="also time torch.compile of the decoder")
    args = parser.parse_args()
    args.batches = [int(size) for size in str(args.batches).split(",")]
    report = Report(args.json, budget_s=math.inf)
    device = torch.device(args.device)
    report.say(f"{device_name(device)}, torch {torch.__version__}")
    wan = Wan(report, args)
    spec = wan.fused.spec
    report.results["setup"] = {
        "device": device_name(device),
        "torch": torch.__version__,
        "model": wan.config.name,
        "size": [spec.width, spec.height],
        "window": args.window,
        "dtype": str(wan.dtype),
        "pass_tflop": pass_flops(wan.config) / 1e12,
        "floor_pass_ms": wan.floor_ms(),
    }
    report.say(str(report.results["setup"]))
    report.save()
    wanted = args.only.split(",") if args.only else list(SECTIONS)
    for name in (name for name in SECTIONS if name in wanted):
        if report.elapsed_s + SECTIONS[name] > args.budget_s:
            report.say(f"\n## {name}: left out, {report.elapsed_s:.0f} s are gone")
            report.results[name] = "left out: no time"
            report.save()
            continue
        report.section(name, getattr(wan, name))
        gc.collect()


if __name__ == "__main__":
    main()
