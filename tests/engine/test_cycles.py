"""Sessions come, idle and go in cycles: all is free again after each, and memory stays flat."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.timeout(240)
def test_cycles_leave_nothing_behind() -> None:
    """Exactly nothing is held after each cycle, and the process does not grow from the second on.

    A process of its own: memory that other tests left to be reused would hide growth, or look like it.
    """
    command = [sys.executable, "-m", "bench.cycles", "--sessions", "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert len(result["held"]) == 5 and not any(any(held.values()) for held in result["held"])
    assert min(result["moves"].values()) > 0, "some kind of move did not occur"
