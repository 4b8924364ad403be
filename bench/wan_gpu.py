"""What does a chunk of Wan cost on a GPU, alone and with sessions sharing its passes?

Random weights of the real shape (they cost the same time): per batch size the passes of one chunk over a full
window, with every attention backend that runs here, the clean pass included and excluded, and TAEHV's decode
with the copy of the frames to the host. Beside them the share of the floor: the FLOPs of the passes at 790
TFLOP/s (one H200, dense bfloat16), the memory that a session takes, and how many sessions are in real time.

Bounded by the tensor cores at 480x832; by launches at `--tiny`. Medians of the rounds after one to warm up.
Offload and its overlap: bench.offload. Graphs and FP8 are not there.

    python -m bench.wan_gpu [--device cuda] [--window 12] [--rounds 5]
    python -m bench.wan_gpu --device cpu --tiny       # does the script work?
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from bench.stats import machine, percentile, print_json, print_table
from engine.kv_pool import SlabPool
from engine.memory import slot_bytes
from engine.models.base import AttentionBackend, PassBatch, PassRow
from engine.models.pool_attention import available_backends
from engine.models.wan.config import SELF_FORCING, TINY, WanConfig
from engine.models.wan.model import WanModel

BATCHES = (1, 2, 4, 8)
FLOPS_PER_S = 790e12


def pass_flops(config: WanConfig) -> float:
    """Multiply-adds, times two, of one pass of one session over a full window."""
    dit = config.dit
    tokens = dit.chunk_frames * dit.tokens_per_frame
    gemm = 2 * (6 * dit.dim**2 + 2 * dit.dim * dit.ffn_dim)
    keys = dit.window_frames * dit.tokens_per_frame + dit.text_shape[0]
    return float(dit.layers * tokens * (gemm + 4 * keys * dit.dim))


def batch_of(model: WanModel, pool: SlabPool, rows: int, backend: AttentionBackend) -> PassBatch:
    """Sessions with full windows, at one step."""
    spec, device = model.spec, model.device
    span = spec.chunk_latent_frames
    row = PassRow(slot=0, frame_start=120, write=tuple(range(span)), num_valid=spec.window_frames)
    return PassBatch(
        rows=tuple(replace(row, slot=slot) for slot in range(rows)),
        x=torch.randn(rows, span, *spec.latent_shape, device=device),
        sigma=torch.full((rows, span), 0.8, device=device),
        kv=pool.kv,
        prompt_kv=pool.prompt_kv,
        attention=backend,
    )


def median_ms(run: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Of some runs after one to warm up; the device is idle before and after each."""
    times = []
    for _ in range(rounds + 1):
        _settle(device)
        began = time.perf_counter()
        run()
        _settle(device)
        times.append((time.perf_counter() - began) * 1000)
    return percentile(times[1:], 0.5)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--window", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    device = torch.device(args.device)
    base = TINY if args.tiny else SELF_FORCING
    config = replace(base, dit=replace(base.dit, window_frames=args.window))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = WanModel.random(0, config=config, device=device, dtype=dtype)
    pool = SlabPool(model, slots=max(BATCHES))  # type: ignore[arg-type]
    spec, steps = model.spec, len(model.spec.sigmas)
    latents = torch.randn(spec.chunk_latent_frames, *spec.latent_shape, device=device)
    state = model.initial_decoder_state()
    decode_ms = median_ms(lambda: model.decode(latents, state)[0].cpu(), device, args.rounds)
    chunk_ms = 1000 * spec.chunk_frames / spec.fps
    floor_ms = 1000 * (steps + 1) * pass_flops(config) / FLOPS_PER_S
    rows, result = [], {}
    for backend in available_backends(device, dtype):
        for size in BATCHES:
            batch = batch_of(model, pool, size, backend)
            pass_ms = median_ms(lambda batch=batch: model.run_pass(batch), device, args.rounds)  # type: ignore[misc]
            own_ms = pass_ms / size
            whole_ms = (steps + 1) * own_ms + decode_ms
            first_ms = steps * pass_ms + decode_ms
            result[f"{backend.name}-{size}"] = {"pass_ms": pass_ms, "chunk_ms": whole_ms}
            share = f"{100 * floor_ms / ((steps + 1) * own_ms):.0f} %"
            rows.append((backend.name, size, pass_ms, first_ms, whole_ms, share, int(chunk_ms / whole_ms)))
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else machine()
    print(
        f"{config.name}, {spec.width}x{spec.height}, window {args.window}, {dtype}, torch {torch.__version__}"
    )
    print(f"{where}; decode {decode_ms:.1f} ms; a session takes {slot_bytes(model) / 1e9:.2f} GB\n")  # type: ignore[arg-type]
    columns = ("attention", "B", "pass ms", "to the frames ms", "chunk ms per session", "of the floor")
    print_table((*columns, "in real time"), rows)
    print_json({"device": where, "decode_ms": decode_ms, "floor_ms": floor_ms, "measured": result})


if __name__ == "__main__":
    main()
