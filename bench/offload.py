"""Session state to host memory and back: bandwidth, and what it costs the passes that run meanwhile.

    bandwidth   the copier against a plain copy of as many bytes between two buffers of the same kinds (on
                CUDA: one pinned copy), out and in, median of the rounds; target >= 0.9
    slow-down   passes with a copy under way against passes without, in interleaved pairs: median of the
                ratios with its 95 % interval (bootstrap); target <= 1.03
    overlap     passes alone and copies alone against both at once: the time saved, as a share of the shorter;
                1 is complete, 0 is one after the other

Both targets are claims about GPUs, where copies run on the DMA engines and on a stream of their own. On CPUs
a copy takes a core and memory bandwidth from the passes: such a run proves that the logic works, no more.
Copies run all the time here; an engine makes one when a session becomes idle.

The state is the model's, or with --mib a slab of that size. `--model wan` is Wan 2.1 1.3B with random
weights, for GPUs. Bounded by the bus (CUDA) or memory.
Run: .venv/bin/python -m bench.offload [--device cuda] [--model wan] [--mib 256] [--pairs 20]
"""

from __future__ import annotations

import argparse
import random
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from bench.random_wan.turboserve_random_wan import load as load_random_wan
from bench.stats import machine, percentile, print_json, print_table
from engine.kv_pool import SlabPool
from engine.models.base import CausalVideoModel, ModelSpec, PassBatch, PassRow
from engine.models.registry import load_model
from engine.offload import Copier, HostPool, HostSlab, slab_bytes, state_bytes
from engine.state_format import ExportedState, ModelKey, StateHeader, describe
from scheduler.messages import SessionId

ROUNDS = 7
PASSES = 8
"""Passes per side of a pair."""
HEADER = StateHeader(
    model=ModelKey(name="bench", weights_hash="", state_version=1), session=SessionId("s_bench"), epoch=1
)


@dataclass(frozen=True)
class Slabs:
    """As much of a model as the pools need: its spec, with a slab of a wanted size."""

    spec: ModelSpec
    device: torch.device
    dtype: torch.dtype

    def initial_decoder_state(self) -> Tensor:
        return torch.zeros(self.spec.decoder_state_numel, device=self.device)


class Way:
    """A slot, a host slab, and the copies between them."""

    def __init__(self, slabs: Slabs) -> None:
        self.pool = SlabPool(slabs, slots=1)  # type: ignore[arg-type]
        slot = self.pool.allocate()
        for tensor in (self.pool.kv, self.pool.prompt_kv, self.pool.decoder):
            tensor.uniform_()
        buffers = {"kv": self.pool.kv[slot], "prompt_kv": self.pool.prompt_kv[slot]}
        self.state = describe(HEADER, {**buffers, "decoder": self.pool.decoder[slot]}, checked=False)
        host = HostPool(slabs, budget_bytes=slab_bytes(slabs))  # type: ignore[arg-type]
        slab = host.allocate()
        assert isinstance(slab, HostSlab)
        self.slab, self.away = slab, slab.place(self.state)
        self.copier = Copier(slabs.device)

    def move(self, source: ExportedState, target: ExportedState) -> threading.Event:
        """Begin to copy; the event is set when the bytes are there."""
        done = threading.Event()

        def copy() -> None:
            for name, place in target.buffers.items():
                place.copy_(source.buffers[name], non_blocking=True)

        self.copier.submit(copy, done.set)
        return done

    def out(self) -> threading.Event:
        return self.move(self.state, self.away)

    def back(self) -> threading.Event:
        return self.move(self.away, self.state)


def gbps(action: Callable[[], None], size: int) -> float:
    """Median bandwidth over the rounds, GB/s; the first round is warm-up."""
    times = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return size / percentile(times[1:], 0.5) / 1e9


def bandwidth(way: Way, device: torch.device) -> dict[str, float]:
    size = way.state.num_bytes
    flat = torch.zeros(size, dtype=torch.uint8, device=device)
    host = torch.zeros(size, dtype=torch.uint8, pin_memory=device.type == "cuda")

    def plain(target: Tensor, source: Tensor) -> None:
        target.copy_(source, non_blocking=True)
        synchronise(device)

    return {
        "out": gbps(lambda: waited(way.out()), size),
        "plain out": gbps(lambda: plain(host, flat), size),
        "back": gbps(lambda: waited(way.back()), size),
        "plain back": gbps(lambda: plain(flat, host), size),
    }


def waited(done: threading.Event) -> None:
    done.wait()


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Passes:
    """Passes over full windows of the model, the compute side's work."""

    def __init__(self, model: CausalVideoModel, rows: int) -> None:
        spec = model.spec
        pool = SlabPool(model, slots=rows)
        steady = -(-spec.window_frames // spec.chunk_latent_frames)
        self._model = model
        self._batch = PassBatch(
            rows=tuple(
                PassRow(
                    slot=pool.allocate(),
                    frame_start=steady * spec.chunk_latent_frames,
                    write=tuple(range(spec.chunk_latent_frames)),
                    num_valid=spec.window_frames,
                )
                for _ in range(rows)
            ),
            x=torch.randn(rows, spec.chunk_latent_frames, *spec.latent_shape, device=model.device),
            sigma=torch.full((rows, spec.chunk_latent_frames), 0.5, device=model.device),
            kv=pool.kv,
            prompt_kv=pool.prompt_kv,
        )

    def run(self) -> float:
        """Seconds of PASSES passes, one after the other: a copy waits for what was queued before it."""
        device = self._model.device
        began = time.perf_counter()
        for _ in range(PASSES):
            self._model.run_pass(self._batch)
            if device.type == "cuda":  # the passes alone, not the copies of other streams
                torch.cuda.current_stream(device).synchronize()
        return time.perf_counter() - began


def slow_down(way: Way, passes: Passes, pairs: int) -> list[float]:
    """Passes while copies run all the time against passes alone, a ratio per pair."""
    ratios = []
    passes.run()
    for pair in range(pairs):
        sides = [False, True] if pair % 2 else [True, False]  # a drift of the machine must hit both alike
        seconds = {}
        for copying in sides:
            stop = threading.Event()
            mover = threading.Thread(target=keep_moving, args=(way, stop))
            if copying:
                mover.start()
            seconds[copying] = passes.run()
            stop.set()
            if copying:
                mover.join()
        ratios.append(seconds[True] / seconds[False])
    return ratios


def keep_moving(way: Way, stop: threading.Event) -> None:
    # A copy waits for what its caller's stream has been given: here not for the passes, which would be over.
    device = way.pool.kv.device
    with torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext():
        while not stop.is_set():
            waited(way.out())
            waited(way.back())


def overlap(way: Way, passes: Passes) -> float:
    """See the module; as many copies as take about as long as the passes. Median of the rounds."""
    began = time.perf_counter()
    waited(way.out())
    once = time.perf_counter() - began
    shares = []
    for _ in range(ROUNDS):
        alone = passes.run()
        count = max(1, round(alone / once))
        began = time.perf_counter()
        for done in [way.out() for _ in range(count)]:
            waited(done)
        copies = time.perf_counter() - began
        began = time.perf_counter()
        under_way = [way.out() for _ in range(count)]
        passes.run()
        for done in under_way:
            waited(done)
        both = time.perf_counter() - began
        shares.append((alone + copies - both) / min(alone, copies))
    return percentile(shares, 0.5)


def interval(values: list[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    rng = random.Random(0)
    medians = [percentile(rng.choices(values, k=len(values)), 0.5) for _ in range(2_000)]
    return percentile(medians, 0.025), percentile(medians, 0.975)


@torch.inference_mode()
def measure(model: CausalVideoModel, *, pairs: int, rows: int, mib: float | None = None) -> dict[str, object]:
    """Print what moving its states takes, and what it says in short. `mib`: of slabs of another size."""
    device, spec = model.device, model.spec
    if mib is not None:
        per_token = state_bytes(model) / spec.tokens_per_frame
        spec = replace(spec, tokens_per_frame=max(1, round(mib * 2**20 / per_token)))
    way = Way(Slabs(spec=spec, device=device, dtype=model.dtype))
    speeds = bandwidth(way, device)
    print(f"machine: {machine()}, device {device}; state of {way.state.num_bytes / 2**20:.1f} MiB")
    print_table(
        ["direction", "GB/s", "plain copy GB/s", "ratio"],
        [[d, speeds[d], speeds[f"plain {d}"], speeds[d] / speeds[f"plain {d}"]] for d in ("out", "back")],
    )
    passes = Passes(model, rows)
    ratios = slow_down(way, passes, pairs)
    overlapped = overlap(way, passes)
    way.copier.close()
    low, high = interval(ratios)
    slower = percentile(ratios, 0.5)
    print(f"{pairs} pairs of {PASSES} passes: slow-down {slower:.3f}, overlap {overlapped:.2f}")
    return {
        "bench": "offload",
        "device": str(device),
        "model": model.spec.name,
        "state_mib": round(way.state.num_bytes / 2**20, 1),
        "bandwidth_ratio": {d: round(speeds[d] / speeds[f"plain {d}"], 3) for d in ("out", "back")},
        "gbps": {name: round(speed, 2) for name, speed in speeds.items()},
        "slow_down": round(slower, 4),
        "slow_down_95": [round(low, 4), round(high, 4)],
        "overlap": round(overlapped, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", choices=("shapes", "wan"), default="shapes")
    parser.add_argument("--mib", type=float, default=None)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--rows", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = partial(load_model, "shapes") if options.model == "shapes" else load_random_wan
    model = load(device=torch.device(options.device), weights=None)
    print_json(measure(model, pairs=options.pairs, rows=options.rows, mib=options.mib))


if __name__ == "__main__":
    main()
