"""What does a chunk of `shapes` cost, and what does it cost when sessions share the passes?

One thread, no engine around it: the transformer's five passes over a full window with B sessions in the
batch, streaming decode of B chunks one by one and in one call, and H.264 of one chunk. Every variant is timed
in turn, round after round, so that a slow moment of the machine hits all of them; the median counts.

Bounded by one core's matrix products. Figures are per session: they fall with B only where coalescing pays.

    .venv/bin/python -m bench.shapes_cost [--rounds 7]
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.stats import machine, percentile, print_json, print_table
from engine.encoder import SessionEncoder
from engine.models.base import CausalVideoModel, PassBatch, PassRow
from engine.models.shapes.model import SHAPES, ShapesModel

BATCHES = (1, 2, 4, 8, 16)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def one_pass(model: CausalVideoModel, rows: int) -> Callable[[], object]:
    """One pass of `rows` sessions over full windows."""
    spec = model.spec
    batch = PassBatch(
        rows=tuple(
            PassRow(slot=slot, frame_start=120, write=(0, 1, 2), num_valid=spec.window_frames)
            for slot in range(rows)
        ),
        x=torch.randn(rows, spec.chunk_latent_frames, *spec.latent_shape),
        sigma=torch.full((rows, spec.chunk_latent_frames), 0.8),
        kv=torch.randn(rows, *spec.kv_slab_shape, dtype=model.dtype),
        prompt_kv=torch.randn(rows, *spec.prompt_kv_shape, dtype=model.dtype),
        actions=torch.zeros(rows, spec.chunk_latent_frames, spec.action_dim),
    )
    return partial(model.run_pass, batch)


def _decode_alone(model: ShapesModel, rows: int) -> Callable[[], object]:
    """Decode of `rows` chunks, one call each: what the engine does."""
    latents = torch.randn(model.spec.chunk_latent_frames, *model.spec.latent_shape)
    state = model.initial_decoder_state()

    def run() -> None:
        for _ in range(rows):
            model.decode(latents, state)

    return run


def _decode_together(model: ShapesModel, rows: int) -> Callable[[], object]:
    """The same in one call."""
    latents = torch.randn(rows, model.spec.chunk_latent_frames, *model.spec.latent_shape)
    state = model.initial_decoder_state().expand(rows, -1)
    decoder = model._net.decoder
    return torch.inference_mode()(lambda: decoder(latents, state))


def _decode_bf16(model: ShapesModel, rows: int) -> Callable[[], object]:
    """One call each, convolutions in bfloat16."""
    latents: Tensor = torch.randn(1, model.spec.chunk_latent_frames, *model.spec.latent_shape)
    state = model.initial_decoder_state()[None]
    decoder = model._net.decoder

    @torch.inference_mode()
    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            for _ in range(rows):
                decoder(latents, state)

    return run


def _encode(model: ShapesModel) -> Callable[[], object]:
    """H.264 of one chunk."""
    spec = model.spec
    encoder = SessionEncoder(width=spec.width, height=spec.height, fps=spec.fps)
    frames, _ = model.decode(
        torch.randn(spec.chunk_latent_frames, *spec.latent_shape), model.initial_decoder_state()
    )
    rgb = frames.numpy()
    return lambda: list(encoder.encode(rgb))


def main() -> None:
    """Measure, print the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    models = {name: ShapesModel.random(0, config=SHAPES, dtype=dtype) for name, dtype in DTYPES.items()}
    plain, passes = models["fp32"], len(SHAPES.sigmas) + 1
    work: dict[tuple[str, int], Callable[[], object]] = {("encode", 1): _encode(plain)}
    for rows in BATCHES:
        for name, model in models.items():
            work[f"pass {name}", rows] = one_pass(model, rows)
        work["decode alone", rows] = _decode_alone(plain, rows)
        work["decode together", rows] = _decode_together(plain, rows)
        work["decode bf16", rows] = _decode_bf16(plain, rows)
    samples: dict[tuple[str, int], list[float]] = defaultdict(list)
    for number in range(rounds + 1):
        for key, run in work.items():
            began = time.perf_counter()
            run()
            if number:  # the first round warms up
                samples[key].append((time.perf_counter() - began) * 1000)
    ms = {key: percentile(values, 0.5) for key, values in samples.items()}
    print(f"{machine()}, torch {torch.__version__}, one thread; ms per chunk and session\n")
    columns = ("B", f"DiT fp32 ({passes} passes)", "DiT bf16", "decode", "decode batched", "decode bf16")
    kinds = (("pass fp32", passes), ("pass bf16", passes), ("decode alone", 1), ("decode together", 1))
    rows_out = [
        [rows, *(ms[kind, rows] * times / rows for kind, times in (*kinds, ("decode bf16", 1)))]
        for rows in BATCHES
    ]
    print_table(columns, rows_out)
    print(f"\nH.264 of one chunk: {ms['encode', 1]:.2f} ms")
    print_json({f"{kind} B={rows}": round(value, 3) for (kind, rows), value in ms.items()})


if __name__ == "__main__":
    main()
