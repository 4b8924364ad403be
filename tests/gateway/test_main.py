"""The gateway as a process: configuration, readiness, orderly stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial

import pytest

from gateway.__main__ import FILES_BESIDES, VARIABLE
from tests.patience import PATIENCE_S

CONNECTIONS = 1_000


async def start(config: object, *, prepare: Callable[[], object] | None = None) -> asyncio.subprocess.Process:
    """`prepare` is called in the process before it begins."""
    text = config if isinstance(config, str) else json.dumps(config)
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway",
        env=os.environ | {VARIABLE: text},
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=prepare,
    )


@contextlib.asynccontextmanager
async def with_files(redis_url: str, soft: int, hard: int) -> AsyncIterator[tuple[int, int, bytes]]:
    """A gateway that is started with these limits of open files: its pid, its port and what it has logged."""
    config = {"redis": redis_url, "link_secret": "s", "port": 0, "max_connections": CONNECTIONS}
    config["start_timeout_s"] = PATIENCE_S  # of connections that say nothing
    limit = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
    process = await start(config, prepare=limit)
    assert process.stderr is not None
    said = line = b""
    while b"listens at" not in line:
        line = await process.stderr.readline()
        assert line, said.decode()
        said += line
    yield process.pid, int(line.rpartition(b":")[2]), said
    process.send_signal(signal.SIGTERM)
    await process.communicate()


async def test_a_process_that_may_open_few_files_raises_its_limit(redis_url: str) -> None:
    """As many as it needs for all connections, and no more."""
    async with with_files(redis_url, 200, 10_000) as (pid, _port, said):
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (CONNECTIONS + FILES_BESIDES, 10_000)
        assert b"max_connections" not in said


async def test_connections_leave_files_for_everything_else(redis_url: str) -> None:
    """Where the limit can't be raised fewer are let in; the next one hears so."""
    places = 40
    async with (
        with_files(redis_url, 100, FILES_BESIDES + places) as (_pid, port, said),
        contextlib.AsyncExitStack() as stack,
    ):
        assert f"max_connections {CONNECTIONS} only {places} fit".encode() in said
        for _ in range(places):
            _reader, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        stack.callback(writer.close)
        async with asyncio.timeout(PATIENCE_S):
            assert (await reader.readline()).startswith(b"HTTP/1.1 503")


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
