"""A process of clients: what it measures of itself, and what it may use."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import pytest

from launch.loadtest import worker
from launch.loadtest.samples import Lag, Sample


async def test_every_measurement_of_its_lateness_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were in time, too: a percentile of the late ones alone is none."""
    monkeypatch.setattr(worker, "LAG_EVERY_S", 0.001)
    samples: list[Sample] = []
    measuring = asyncio.create_task(worker._measure_lag(time.monotonic(), samples))
    real_sleep, slept = asyncio.sleep, 0

    async def sleep(delay_s: float) -> None:
        nonlocal slept
        slept += 1
        await real_sleep(delay_s)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    while slept < 20:
        await real_sleep(0.001)
    measuring.cancel()
    assert len(samples) >= 19 and all(isinstance(sample, Lag) for sample in samples)


def test_it_may_have_as_many_sockets_as_the_machine_lets_it() -> None:
    """Thousands of clients are more than what a shell allows by default."""
    script = (
        "import resource\n"
        "from launch.loadtest.worker import _allow_sockets\n"
        "_, most = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (most // 2, most))\n"
        "_allow_sockets()\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE) == (most, most))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "True\n"
