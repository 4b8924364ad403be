"""How large should the transformer of `shapes` be? Judge's score against size, at equal wall time.

    train   all sizes from nothing at the same time on the same clips, one thread each, so that other load
            hits them alike; OUT/<size> gets the checkpoint
    judge   `shapes_quality` on the same unseen prompts, and a chunk of each timed on one core (five passes,
            full window, one session), in turn, the median of the rounds

The stages can run on two machines. OUT holds `codec.pt` and `clips-*.pt` (`python -m
engine.models.shapes.train codec`, then `encode`). Bounded by the CPU or the GPU, which all sizes share.

    .venv/bin/python -m bench.shapes_scaling train judge --out OUT --minutes 60
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from bench.shapes_cost import one_pass
from bench.shapes_quality import Task, merge, run
from bench.stats import machine, percentile, print_json, print_table
from engine.models.shapes.model import SHAPES, ShapesConfig, ShapesModel, ShapesNet
from engine.models.shapes.train_dit import train_dit
from engine.models.shapes.train_util import Job

HEAD_DIM = SHAPES.dit.dim // SHAPES.dit.heads
ATTRIBUTES = ("count", "colour", "shape", "size", "motion", "speed")


def config_of(size: str) -> ShapesConfig:
    """`96x4`: width 96, 4 layers."""
    dim, layers = (int(part) for part in size.split("x"))
    dit = replace(SHAPES.dit, dim=dim, ffn_dim=4 * dim, heads=dim // HEAD_DIM, layers=layers)
    return replace(SHAPES, dit=dit)


def train(size: str, args: argparse.Namespace) -> None:
    """In a process of its own: train one size."""
    torch.set_num_threads(1)
    out = args.out / size
    out.mkdir(exist_ok=True)
    for path in (args.out / "codec.pt", *args.out.glob("clips-*.pt")):
        (out / path.name).unlink(missing_ok=True)
        (out / path.name).symlink_to(path.resolve())
    device = torch.device(args.device)
    train_dit(Job(config=config_of(size), out=out, minutes=args.minutes, device=device, batch=args.batch))


def judge(size: str, args: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own: what the judge says of one size."""
    weights = args.out / size / "shapes.safetensors"
    steps = max(int(path.stem.split("-")[1]) for path in weights.parent.glob("sheet-*.png"))
    config = config_of(size)
    tasks = [
        Task(kind="prompt", number=n, config=config, weights=weights, long_chunks=0)
        for n in range(args.prompts)
    ]
    start = merge([run(task) for task in tasks])["start"]
    return {"net": size, "steps": steps, **{name: start[name]["model"] for name in ATTRIBUTES}}


def chunk_ms(sizes: Sequence[str], rounds: int) -> dict[str, float]:
    """Milliseconds of one core for the passes of one chunk, by size."""
    torch.set_num_threads(1)
    jobs = {size: one_pass(ShapesModel.random(0, config=config_of(size)), 1) for size in sizes}
    count = len(SHAPES.sigmas) + 1
    times: dict[str, list[float]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size, job in jobs.items():
            began = time.perf_counter()
            job()
            times[size].append(1000 * (time.perf_counter() - began))
    return {size: count * percentile(values, 0.5) for size, values in times.items()}


def judge_all(args: argparse.Namespace) -> None:
    """Judge and time every size; print the table and one JSON line."""
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        rows = list(pool.map(judge, args.sizes, [args] * len(args.sizes)))
    cost = chunk_ms(args.sizes, args.rounds)
    for row in rows:
        transformer = ShapesNet(config_of(row["net"])).dit
        row["million"] = round(sum(p.numel() for p in transformer.parameters()) / 1e6, 2)
        row["chunk_ms"] = round(cost[row["net"]], 1)
    print(machine())
    columns = ("net", "million", "chunk_ms", "steps", *ATTRIBUTES)
    print_table(columns, [[row[column] for column in columns] for row in rows])
    print_json({"prompts": args.prompts, "rows": rows})


def main() -> None:
    """Do the stages asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=("train", "judge"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60.0, help="wall time of the training")
    parser.add_argument("--device", default="cpu", help="of the training")
    parser.add_argument("--batch", type=int, default=8, help="clips per step")
    parser.add_argument("--sizes", type=lambda text: text.split(","), default="96x4,128x6,192x6,256x8")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--jobs", type=int, default=2, help="sizes judged at a time")
    args = parser.parse_args()
    if "train" in args.stages:
        with ProcessPoolExecutor(len(args.sizes), mp_context=get_context("spawn")) as pool:
            list(pool.map(train, args.sizes, [args] * len(args.sizes)))
    if "judge" in args.stages:
        judge_all(args)


if __name__ == "__main__":
    main()
