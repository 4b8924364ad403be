"""Train `shapes`: `python -m engine.models.shapes.train codec|encode|dit|all --out DIR --minutes N`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from engine.models.shapes.train_codec import train_codec


def main() -> None:
    """Parse the command line and run the stages asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("codec", "encode", "dit", "all"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=90.0)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    args = parser.parse_args()
    if args.stage in ("codec", "all"):
        train_codec(args.out, args.minutes, args.device)


if __name__ == "__main__":
    main()
