"""The gateway as a process: configuration, readiness, orderly stop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

import pytest

from gateway.__main__ import VARIABLE


async def start(config: object) -> asyncio.subprocess.Process:
    text = config if isinstance(config, str) else json.dumps(config)
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", env=os.environ | {VARIABLE: text}, stderr=asyncio.subprocess.PIPE
    )


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ("{", VARIABLE),
        ({}, "redis"),
        ({"redis": "x", "link_secret": "s", "port": "many"}, "port"),
        ({"redis": "x", "link_secret": "s", "prot": 1}, "prot"),
        ({"redis": "x", "link_secret": "s", "host": "0.0.0.0"}, "insecure"),
    ],
)
async def test_a_bad_value_exits_2_and_says_which(config: object, word: str) -> None:
    """One sentence on stderr, no traceback."""
    process = await start(config)
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert word in errors.decode() and "Traceback" not in errors.decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_it_with_status_0(redis_url: str, number: signal.Signals) -> None:
    """Once it listens, and also while it still waits for Redis."""
    config = {"redis": redis_url, "link_secret": "s", "port": 0, "cluster": "gateway-main"}
    for url, sign in ((redis_url, b"listens at"), ("unix:///nowhere.sock", b"waiting for Redis")):
        process = await start(config | {"redis": url})
        assert process.stderr is not None
        while sign not in (line := await process.stderr.readline()):
            assert line, "it ended by itself"
        process.send_signal(number)
        _, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
