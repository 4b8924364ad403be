"""Sessions come, idle and go in cycles: all is free again after each, and memory stays flat."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from engine.compute_messages import Offload, Restore
from scheduler.messages import Residence, SessionId
from tests.engine.harness import Bench

CYCLES = 5
SESSIONS = 60
"""Per cycle; more than slots and host slabs together, so that some are stored and some wait."""


def resident_mib() -> float:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def settle(bench: Bench) -> None:
    """Until no copy is under way and nobody waits for one."""
    with torch.inference_mode():
        bench.drop_unknown()
        assert bench.loop.step()
        while bench.loop._residents.num_moves:
            bench.drop_unknown()
            assert bench.loop.step()


def cycle(bench: Bench, number: int) -> None:
    """Every second session idles; some come back; all end, some while they are away."""
    open_sessions: list[SessionId] = []
    for index in range(SESSIONS):
        session = bench.open(f"s_{number}_{index}", seed=index)
        open_sessions.append(session)
        bench.step(3)
        if index % 2:
            bench.loop.submit(Offload(session=session, epoch=1))
        if index % 4 == 0:
            for away in open_sessions[:-1]:
                bench.loop.submit(Restore(session=away, epoch=1))
        if len(open_sessions) > 5:
            bench.drop(open_sessions.pop(0))
    for session in open_sessions:
        bench.drop(session)
    settle(bench)


def run_cycles() -> None:
    """All cycles, with their checks."""
    bench = Bench(slots=3, host_slabs=2)
    sizes = []
    residences: set[Residence] = set()
    for number in range(CYCLES):
        cycle(bench, number)
        assert (bench.pool.num_free, bench.host.num_held) == (3, 0)
        assert bench.loop._residents.num_moves == 0 and list(bench.loop._residents.all()) == []
        assert bench.encoders._lanes == [0] and bench.loop._wishes == {} and not bench.loop._boundary._inbox
        bench.pool.check_integrity()
        bench.host.check_integrity()
        for index in range(SESSIONS):
            residences |= set(bench.resided(SessionId(f"s_{number}_{index}")))
        bench.events.clear()
        for kept in (bench.model.batches, bench.model.latents, bench.model.frames):
            kept.clear()
        sizes.append(resident_mib())
    assert residences == {Residence.RESIDENT, Residence.OFFLOADED, Residence.STORED}
    slope = np.polyfit(range(1, CYCLES), sizes[1:], 1)[0]
    assert slope <= 0.02 * sizes[1], f"MiB after each cycle: {sizes}"
    bench.loop.close()


def test_cycles_leave_nothing_behind() -> None:
    """Exactly nothing is held after each cycle, and the process does not grow from the second on.

    A process of its own: memory that other tests left to be reused would hide growth, or look like it.
    """
    code = "from tests.engine.test_cycles import run_cycles; run_cycles()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
