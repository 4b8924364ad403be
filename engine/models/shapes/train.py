"""Train `shapes`: `python -m engine.models.shapes.train codec|encode|dit|decoder|all --out DIR --minutes N`.

    codec     autoencoder on drawn scenes                  → DIR/codec.pt
    encode    draw and encode clips                        → DIR/clips-<seed>.pt
    dit       transformer on the clips                     → DIR/dit.pt, shapes.safetensors, sheet-<step>.png
    decoder   the decoder alone, latents as they are       → the same files again

Stages go on from what they find in DIR, or from the weights that `--weights` names; `all` divides the time
among them. On a CPU with several cores run
one process of one thread per core: `OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m
engine.models.shapes.train …`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from engine.models.shapes.model import PRESETS
from engine.models.shapes.train_codec import polish_decoder, train_codec
from engine.models.shapes.train_data import encode_clips
from engine.models.shapes.train_dit import train_dit
from engine.models.shapes.train_sheet import import_weights
from engine.models.shapes.train_util import Job, Peers

_STAGES: Final = {
    "codec": train_codec,
    "encode": encode_clips,
    "dit": train_dit,
    "decoder": polish_decoder,
}
_SHARES: Final = {"codec": 0.15, "encode": 0.05, "dit": 0.65, "decoder": 0.15}


def main() -> None:
    """Parse the command line and run the stages asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=(*_STAGES, "all"))
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for checkpoints, clips, weights and sheets"
    )
    parser.add_argument(
        "--minutes", type=float, default=100.0, help="wall time of the stage, or of all of them"
    )
    parser.add_argument("--weights", type=Path, help="go on from these, the encoder beside them")
    parser.add_argument("--preset", choices=("shapes", "shapes-large"), default="shapes")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--batch", type=int, help="clips per step of encode and dit, and per process; 8, on a GPU 192"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    shares = {args.stage: 1.0} if args.stage != "all" else _SHARES
    job = Job(
        config=PRESETS[args.preset],
        out=args.out,
        minutes=args.minutes,
        device=args.device,
        seed=args.seed,
        batch=args.batch or (8 if args.device.type == "cpu" else 192),
    )
    if args.weights is not None and Peers().rank == 0:
        import_weights(job, args.weights)
    Peers().agree(0.0)  # nobody begins before they are there
    for name, share in shares.items():
        result = _STAGES[name](replace(job, minutes=share * args.minutes))
        if Peers().rank == 0:
            print(f"{name}: {result}", flush=True)


if __name__ == "__main__":
    main()
