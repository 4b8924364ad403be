"""How large should the transformer of `shapes` be? Judge's score against size, at equal compute.

All sizes are trained from nothing at the same time on the same clips, one thread each, so that other load
hits them alike; then `shapes_quality` judges each on the same unseen prompts, and a chunk of each is
timed (five passes, full window, one session), in turn, the median of the rounds.

CLIPS holds `codec.pt` and `clips-*.pt` (`python -m engine.models.shapes.train codec`, then `encode`).
Bounded by the CPU: `--minutes` is wall time, shared by all sizes.

    .venv/bin/python -m bench.shapes_scaling --clips CLIPS --minutes 60
"""

from __future__ import annotations

import argparse
import tempfile
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


def train_and_judge(size: str, out: Path, minutes: float, prompts: int) -> dict[str, Any]:
    """In a process of its own: train one size, then judge it."""
    torch.set_num_threads(1)
    job = Job(config=config_of(size), out=out, minutes=minutes, device=torch.device("cpu"))
    weights = train_dit(job)
    steps = torch.load(out / "dit.pt", weights_only=True)["steps"]
    tasks = [
        Task(kind="prompt", number=n, config=job.config, weights=weights, long_chunks=0)
        for n in range(prompts)
    ]
    table = merge([run(task) for task in tasks])
    return {"net": size, "steps": steps, **{name: table["start"][name]["model"] for name in ATTRIBUTES}}


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


def main() -> None:
    """Train, judge, time; print the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--sizes", default="96x4,128x6,192x6,256x8")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    sizes = args.sizes.split(",")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(len(sizes), mp_context=get_context("spawn")) as pool,
    ):
        jobs = []
        for size in sizes:
            out = Path(folder, size)
            out.mkdir()
            for path in (args.clips / "codec.pt", *args.clips.glob("clips-*.pt")):
                (out / path.name).symlink_to(path.resolve())
            jobs.append(pool.submit(train_and_judge, size, out, args.minutes, args.prompts))
        rows = [job.result() for job in jobs]
    cost = chunk_ms(sizes, args.rounds)
    for row in rows:
        transformer = ShapesNet(config_of(row["net"])).dit
        row["million"] = round(sum(p.numel() for p in transformer.parameters()) / 1e6, 2)
        row["chunk_ms"] = round(cost[row["net"]], 1)
    print(machine())
    columns = ("net", "million", "chunk_ms", "steps", *ATTRIBUTES)
    print_table(columns, [[row[column] for column in columns] for row in rows])
    print_json({"minutes": args.minutes, "prompts": args.prompts, "rows": rows})


if __name__ == "__main__":
    main()
