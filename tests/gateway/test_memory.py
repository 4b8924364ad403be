"""What is left of a connection that has ended: nothing that waits for a collection of garbage."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop
from websockets.server import ServerProtocol

from gateway import protocol as wire
from gateway.server import Gateway
from scheduler.messages import SessionId, Watch
from tests.gateway.gateway_fixtures import Client, begin, client_of, make_world
from tests.patience import PATIENCE_S

BROKEN = b"\xff\xff"
"""A frame that no client may send."""


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Nothing is freed but by its last reference."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Remains:
    """What a gateway holds for its connections, without holding it."""

    def __init__(self, gateway: Gateway) -> None:
        self._changed = asyncio.Event()
        self._refs: list[weakref.ref[object]] = []
        for http in gateway.listener.connections:
            self._add(http)
        for connection in gateway.hub.connections:
            assert connection._socket is not None
            parts = (connection, connection.machine, connection._calls, connection._socket)
            for part in (*parts, connection._socket._protocol):
                self._add(part)

    def _add(self, part: object) -> None:
        self._refs.append(weakref.ref(part, lambda _: self._changed.set()))

    def names(self) -> list[str]:
        return [type(part).__name__ for ref in self._refs if (part := ref()) is not None]

    async def gone(self) -> list[str]:
        """What is not, after a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                while self.names():
                    self._changed.clear()
                    await self._changed.wait()
        return self.names()


async def leave(client: Client, how: str) -> None:
    match how:
        case "stops and closes":
            await client.send(wire.Stop())
            await client.ws.close()
        case "is cut off":
            client.ws.transport.abort()
        case "breaks the WebSocket":
            client.ws.transport.write(BROKEN)
        case "sends nonsense":
            for _ in range(wire.MAX_BAD_MESSAGES):
                await client.ws.send("{")


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize(
    "new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
@pytest.mark.parametrize("how", ["stops and closes", "is cut off", "breaks the WebSocket", "sends nonsense"])
def test_an_ended_connection_leaves_nothing(
    redis_url: str, tmp_path: Path, how: str, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """However it ends: of who controlled a session, and of who watched it."""

    async def run() -> list[str]:
        async with (
            make_world(redis_url) as world,
            world.engine() as engine,
            world.gateway(recordings=str(tmp_path)) as gateway,
        ):
            async with client_of(gateway) as controller, client_of(gateway) as viewer:
                id = SessionId((await begin(controller, engine)).session)
                await viewer.send(wire.Watch(session=id))
                await engine.expect(Watch)
                await engine.send_chunk(id, 0)
                for client in (controller, viewer):
                    await client.expect(wire.ChunkHeader, skip=(wire.Session, wire.State, wire.Accepted))
                await controller.send(wire.Ack(seq=0, buffer_ms=500.0), wire.Prompt(text="x", id="p"))
                await controller.expect(wire.Accepted, skip=(wire.ChunkHeader,))
                remains = Remains(gateway)
                assert len(remains.names()) == 2 * 6 and any(map(is_ours, gc.get_objects()))
                await leave(controller, how)
            # And of the handshake, which nobody holds.
            return await remains.gone() + ["ServerProtocol" for each in gc.get_objects() if is_ours(each)]

    loop = new_loop()
    assert loop.run_until_complete(run()) == []
    if not isinstance(loop, uvloop.Loop):
        loop.close()  # uvloop's did not come back after a failure


def is_ours(each: object) -> bool:
    """Is it a WebSocket's protocol, and not the scripted engine's?"""
    if type(each) is not ServerProtocol:  # `isinstance` asks some of torch's objects more than they like
        return False
    assert isinstance(each, ServerProtocol)
    return each.max_message_size == wire.MAX_CLIENT_MESSAGE_BYTES or each.subprotocol in wire.CODECS


def test_a_gateway_loads_no_ffmpeg() -> None:
    """It relays video, and has files of it made by a process of their own."""
    code = "import sys, gateway.server; sys.exit('av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=PATIENCE_S).returncode == 0
