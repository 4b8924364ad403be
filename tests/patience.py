"""For tests of one process that speak with a real Redis: who stands still for some seconds is not away.

The product takes a Redis that does not answer for two seconds for one that is out of reach, and is right. On
a machine that many tests share, this process or Redis may stand still for longer amid a command.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.cluster import SCALE

PATIENCE_S = 30 * SCALE
"""For anything that happens at once on a machine that moves."""

PATIENT = ("--heartbeat-timeout-ms", str(round(1000 * PATIENCE_S)))
"""Arguments of `up`, for clusters in which no engine is to be found silent: others lose one that stands still
for two seconds. Those that die are missed at once all the same."""


def wait_for_redis(patch: pytest.MonkeyPatch) -> None:
    """Commands and connections may take as long as it takes. One that has died is still noticed at once."""
    patch.setattr("scheduler.store.connection.COMMAND_TIMEOUT_S", PATIENCE_S)
    patch.setattr("scheduler.store.pools.CONNECT_TIMEOUT_S", PATIENCE_S)


def pass_time(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """The running loop's clock is ahead by so much from now on: what was to happen by then happens at once.

    A limit that a test shortens instead is over too early on a machine that stands still.
    """
    loop = asyncio.get_running_loop()
    time = loop.time
    patch.setattr(loop, "time", lambda: time() + seconds)


@pytest.fixture(autouse=True)
def patient_redis() -> Iterator[None]:
    """For each test of a folder whose conftest.py imports it."""
    with pytest.MonkeyPatch.context() as patch:
        wait_for_redis(patch)
        yield
