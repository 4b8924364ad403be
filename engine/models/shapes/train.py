"""Train `shapes`: `python -m engine.models.shapes.train codec|encode|dit|all --out DIR --minutes N`.

Stages leave their results in DIR and go on from what they find there; `all` divides the time among them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from engine.models.shapes.train_codec import train_codec
from engine.models.shapes.train_data import encode_clips
from engine.models.shapes.train_dit import train_dit


def main() -> None:
    """Parse the command line and run the stages asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("codec", "encode", "dit", "all"))
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for checkpoints, clips, weights and sheets"
    )
    parser.add_argument(
        "--minutes", type=float, default=100.0, help="wall time of the stage, or of all of them"
    )
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    shares = {"codec": 0.12, "encode": 0.05, "dit": 0.83} if args.stage == "all" else {args.stage: 1.0}
    stages = {"codec": train_codec, "encode": encode_clips, "dit": train_dit}
    for name, share in shares.items():
        print(f"{name}: {stages[name](args.out, share * args.minutes, args.device, args.seed)}", flush=True)


if __name__ == "__main__":
    main()
