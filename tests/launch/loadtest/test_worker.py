"""A process of clients: what it measures of itself, and what it may use."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from launch.loadtest import worker
from launch.loadtest.load import Do, Script, Step
from launch.loadtest.samples import Assignment, Ended, Lag, Sample, from_worker


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


async def test_a_parent_that_is_slow_to_read_keeps_no_client_waiting() -> None:
    """It may be sorting a million samples. All are told in the end."""
    is_read, is_late = threading.Event(), threading.Event()

    class Slow(io.BytesIO):
        def write(self, data: Any) -> int:
            if not is_read.wait(20.0):
                is_late.set()
            return super().write(data)

    async def read_in_time() -> None:
        await asyncio.sleep(0.5)
        is_read.set()

    steps = (Step(at_s=0.0, do=Do.START, prompt="p"), Step(at_s=1.0, do=Do.STOP))
    script = Script(client=3, steps=steps, seed=1)
    nowhere = Assignment(url="http://127.0.0.1:9", decode=False, scripts=(script,))
    sink = Slow()
    await asyncio.gather(worker._play(nowhere, time.monotonic(), sink), read_in_time())
    told = [from_worker(line) for line in sink.getvalue().splitlines()]
    assert not is_late.is_set() and [sample.client for sample in told if isinstance(sample, Ended)] == [3]
