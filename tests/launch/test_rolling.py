"""A rolling upgrade with a live session: every gateway and every engine is replaced, one at a time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import urllib.request
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.cluster import free_port, until
from tests.launch.test_roles_alone import role
from tests.viewer import watching

pytestmark = pytest.mark.cluster


@asynccontextmanager
async def service(ports: list[int]) -> AsyncIterator[int]:
    """A port that passes connections on to the first of these that takes them, as a balancer does."""
    joined: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for port in ports:
            with contextlib.suppress(OSError):
                inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
                for one, other in ((reader, inner_writer), (inner_reader, writer)):
                    joined.add(asyncio.create_task(pump(one, other)))
                return
        writer.close()

    server = await asyncio.start_server(join, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in joined:
            task.cancel()
        await asyncio.gather(*joined, return_exceptions=True)


async def test_everything_is_replaced_under_a_live_session(redis_url: str, tmp_path: Path) -> None:
    """Gateways: the client attaches at the other one. Engines: drained, the session moves. No chunk is
    missing, repeated or out of order, and the old processes end in order.
    """
    settings = {"redis": redis_url, "cluster": "rolling", "link_secret": "hush"}
    ports = [free_port(), free_port(), free_port()]
    with ExitStack() as stack:

        def started(name: str, log: str, *arguments: str):  # type: ignore[no-untyped-def]
            return stack.enter_context(role(name, *arguments, log=tmp_path / log, **settings))

        def serves(log: str) -> bool:
            return "serves shapes" in (tmp_path / log).read_text()

        started("scheduler", "scheduler", "--engines", "1")
        first, second = (started("gateway", f"gateway{n}", "--port", str(ports[n])) for n in (0, 1))
        old_engine = started("engine", "engine0")
        await until(lambda: serves("engine0"), 60)
        async with service(ports) as port, watching(f"http://127.0.0.1:{port}") as viewer:
            (chunk,) = await viewer.take(1)
            for gateway in (first, second):
                if gateway is second:
                    started("gateway", "gateway2", "--port", str(ports[2]))
                    await until(lambda: is_ready(ports[2]))
                gateway.send_signal(signal.SIGTERM)
                await viewer.take(3)
                assert await asyncio.to_thread(gateway.wait, 30) == 0
            drain(ports[2], chunk.engine)
            started("engine", "engine1")
            moved = await viewer.take_until_engine(other_than=chunk.engine)
            assert await asyncio.to_thread(old_engine.wait, 30) == 0
            await viewer.take(2)
            assert serves("engine1") and moved.engine != chunk.engine


def is_ready(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz") as answer:
        return bool(answer.status == 200)
    return False


def drain(port: int, engine: str) -> None:
    """As an operator does it."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/admin/drain",
        json.dumps({"engine": engine}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        assert answer.status in (200, 202)
