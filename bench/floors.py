"""What a policy can't save that does not know the future: engines stay for a while after they were needed.

An engine goes once its sessions have moved, at the end of a chunk at the earliest. So at each moment a policy
that does not foresee when demand rises again pays for what was needed at any time of the last seconds. Above
exactly the slots that everybody needs at each moment, means over the families of traces:

    s      for how long an engine stays after it was last needed: about a chunk if it is emptied at once, and
           what a policy waits before it empties one

Run: .venv/bin/python -m bench.floors [--sizes 8 16 32] [--profile paper] [--seed 1] [--seconds 600]
"""

from __future__ import annotations

import argparse
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from bench.stats import print_json, print_table
from launch.evaluation.grid import Case, profile_of, trace_of
from launch.evaluation.oracle import demand_at
from scheduler.sim.generate import FAMILIES
from scheduler.sim.profile import PROFILES

STEP_S = 0.1
STAYS_S = (0.7, 1.5, 2.5, 3.5)


def needed(case: Case) -> NDArray[np.float64]:
    """f64[steps]: engines with a slot for everybody who is active."""
    demand = demand_at(trace_of(case), STEP_S, int(case.duration_s / STEP_S) + 1)
    found: NDArray[np.float64] = np.ceil(np.array(demand) / profile_of(case).capacity)
    return found


def above(engines: NDArray[np.float64], stay_s: float) -> float:
    """Share by which engine-seconds are more if each stays for so long."""
    most = engines.copy()
    for by in range(1, round(stay_s / STEP_S) + 1):
        most[by:] = np.maximum(most[by:], engines[:-by])
    return float(most.sum() / engines.sum()) - 1.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--profile", choices=PROFILES, default="paper")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=600.0)
    options = parser.parse_args()
    found: dict[int, list[float]] = {}
    for size in options.sizes:
        cases = [
            Case(
                family=family,
                size=size,
                profile=options.profile,
                seed=options.seed,
                duration_s=options.seconds,
            )
            for family in FAMILIES
        ]
        engines = [needed(case) for case in cases]
        found[size] = [fmean(above(each, stay_s) for each in engines) for stay_s in STAYS_S]
    rows = [[size, *(f"{share:+.1%}" for share in shares)] for size, shares in found.items()]
    print_table(["engines at most", *(f"{stay_s:g} s" for stay_s in STAYS_S)], rows)
    print_json({"bench": "floors", "stays_s": STAYS_S, "above": found})


if __name__ == "__main__":
    main()
