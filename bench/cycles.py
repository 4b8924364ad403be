"""Sessions are opened, idle and closed in cycles: is anything still held after one, and does memory grow?

A cycle opens --sessions sessions one after another, OPEN of them at a time, on SLOTS slots and HOST_SLABS
host slabs. Every second one idles, so that its state goes to a host slab and from there to its checkpoint;
now and then one resumes; all are closed, wherever their state is then.

    held        after a cycle: slots, host slabs (pinned with CUDA), copies under way, sessions, lanes of
                encoders, wishes, queued commands: each must be zero, and the pools must find all free
    resident    memory of this process after a cycle, MiB
    slope       of that from the second cycle on (least squares), as a share of the second's; target <= 0.02

The model is tiny and random, on one thread: what counts here does not depend on it. Bounded by its passes.
Exit status 1: something was held, or the slope is above its target.
Run: .venv/bin/python -m bench.cycles [--sessions 500] [--cycles 5]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.stats import machine, print_json, print_table
from engine.compute_messages import Offload, Resided, Restore, Survey
from scheduler.messages import Residence, SessionId
from tests.engine.harness import Bench

SLOTS = 4
HOST_SLABS = 2
OPEN = 6
PASSES = 6
"""After each opening."""
RESUME_EVERY = 6
"""Openings."""
MAX_SLOPE = 0.02
PLACES = (Residence.RESIDENT, Residence.OFFLOADED, Residence.STORED)
NUDGE = Survey(session=SessionId("s_unknown"), epoch=1)
"""It is answered, whatever else there is to do, and with that a step never rests until something happens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycle:
    """What one cycle left."""

    held: dict[str, int]
    """What → how many of it."""
    moves: dict[Residence, int]
    """Where sessions were said to be → how often."""
    resident_mib: float
    seconds: float


def resident_mib() -> float:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def settle(bench: Bench) -> None:
    """Until every command was heard, no copy is under way, and encoders have said what they had to."""
    with torch.inference_mode():
        _nudge(bench)
        while bench.loop._residents.num_moves:
            _nudge(bench)
        for thread in bench.encoders._threads:
            thread.submit(int).result()
        _nudge(bench)


def _nudge(bench: Bench) -> None:
    bench.loop.submit(NUDGE)
    assert bench.loop.step()


def forget(bench: Bench, moves: Counter[Residence]) -> None:
    """Count where sessions went, and drop the harness's own notes, which would grow."""
    moves.update(event.residence for event in bench.events if isinstance(event, Resided))
    for notes in (bench.events, bench.model.batches, bench.model.latents, bench.model.frames):
        notes.clear()


def held(bench: Bench) -> dict[str, int]:
    """What is not free. Raises AssertionError when a pool has lost something, or has it twice."""
    bench.pool.check_integrity()
    bench.host.check_integrity()
    loop = bench.loop
    return {
        "slots": bench.pool.num_slots - bench.pool.num_free,
        "host slabs": bench.host.num_held,
        "copies": loop._residents.num_moves,
        "sessions": len(list(loop._residents.all())),
        "lanes": sum(map(len, bench.encoders._lanes)),
        "wishes": len(loop._wishes),
        "commands": len(loop._boundary._inbox),
    }


def cycle(bench: Bench, number: int, sessions: int) -> Cycle:
    began = time.perf_counter()
    moves: Counter[Residence] = Counter()
    open_sessions: list[SessionId] = []
    idle: list[SessionId] = []
    for index in range(sessions):
        open_sessions.append(bench.open(f"s_{number}_{index}", seed=index))
        bench.step(PASSES)
        if index % 2:
            idle.append(open_sessions[-1])
            bench.run(idle[-1], False)
            bench.loop.submit(Offload(session=idle[-1], epoch=1))
        if index % RESUME_EVERY == 0 and idle:
            session = idle.pop()
            bench.run(session, True)
            bench.loop.submit(Restore(session=session, epoch=1))
        if len(open_sessions) >= OPEN:
            session = open_sessions.pop(0)
            bench.drop(session)
            idle = [other for other in idle if other != session]
        forget(bench, moves)
    for session in open_sessions:
        bench.drop(session)
    settle(bench)
    forget(bench, moves)
    seconds = time.perf_counter() - began
    return Cycle(held=held(bench), moves=dict(moves), resident_mib=resident_mib(), seconds=seconds)


def slope(sizes: list[float]) -> float:
    """See the module; `sizes` begin with the second cycle."""
    return float(np.polyfit(range(len(sizes)), sizes, 1)[0] / sizes[0])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, default=500)
    parser.add_argument("--cycles", type=int, default=5)
    options = parser.parse_args()
    if options.cycles < 3:
        parser.error("a slope takes at least 3 cycles")
    torch.set_num_threads(1)
    bench = Bench(slots=SLOTS, host_slabs=HOST_SLABS)
    cycles = [cycle(bench, number, options.sessions) for number in range(options.cycles)]
    bench.loop.close()
    rising = slope([each.resident_mib for each in cycles[1:]])
    print(f"machine: {machine()}; cycles of {options.sessions} sessions")
    print_table(
        ["cycle", *cycles[0].held, *(place.value for place in PLACES), "MiB", "s"],
        [
            [
                number,
                *each.held.values(),
                *(each.moves.get(place, 0) for place in PLACES),
                f"{each.resident_mib:.1f}",
                each.seconds,
            ]
            for number, each in enumerate(cycles, 1)
        ],
    )
    print(f"slope of resident memory from the second cycle on: {rising:+.4f} per cycle")
    print_json(
        {
            "bench": "cycles",
            "sessions": options.sessions,
            "held": [each.held for each in cycles],
            "moves": {place.value: sum(each.moves.get(place, 0) for each in cycles) for place in PLACES},
            "resident_mib": [round(each.resident_mib, 2) for each in cycles],
            "slope": round(rising, 5),
        }
    )
    return int(rising > MAX_SLOPE or any(any(each.held.values()) for each in cycles))


if __name__ == "__main__":
    sys.exit(main())
