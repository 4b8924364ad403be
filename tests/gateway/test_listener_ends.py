"""Where a listener listens, and what it keeps of who leaves while an answer waits for it: nothing."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from collections.abc import AsyncGenerator, Callable

import pytest
import uvloop

from gateway.http import Request, Response, text_response
from gateway.listener import HttpConnection, Listener
from gateway.websocket import Receiver
from tests.gateway.test_listener import ask, unread
from tests.patience import PATIENCE_S

PIECE = bytes(1024 * 1024)


class App:
    """Answers with more than a peer that does not read can take."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        """The stream is over."""

    def check(self, request: Request) -> Response | None:
        return None

    async def respond(self, request: Request) -> Response:
        return Response(body=self._stream() if request.path == "/stream" else 16 * PIECE)

    async def _stream(self) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                await asyncio.sleep(0)
                yield PIECE
        finally:
            self.ended.set()

    def fail(self, request: Request, exc: Exception) -> Response:
        return text_response(500, str(exc))

    def accept(self, request: Request) -> Receiver | Response:
        return text_response(404, "no")


async def test_a_name_with_an_address_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """As localhost in a container without IPv6: the others will do, but there must be one."""
    found = [
        (family, socket.SOCK_STREAM, 0, "", address)
        for family, address in (
            (socket.AF_INET6, ("2001:db8::1", 0, 0, 0)),
            (socket.AF_INET, ("127.0.0.1", 0)),
        )
    ]

    async def look_up(*_args: object, **_named: object) -> list[object]:
        return list(found)

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
    listener = Listener(App())
    assert await listener.start("localhost", 0) > 0
    await listener.close()
    del found[1]
    with pytest.raises(OSError, match="2001:db8::1"):
        await Listener(App()).start("localhost", 0)


class FullSignal:
    """Set once an answer waits for its peer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.event = asyncio.Event()
        pause = HttpConnection.pause_writing

        def pause_and_tell(connection: HttpConnection) -> None:
            pause(connection)
            self.event.set()

        monkeypatch.setattr(HttpConnection, "pause_writing", pause_and_tell)


async def leave_unread(path: str, full: FullSignal) -> tuple[App, Listener, asyncio.Event]:
    """Ask, read nothing, be gone while the answer waits. The event: the connection has been freed."""
    app, freed = App(), asyncio.Event()
    listener = Listener(app, holder_of=lambda peer, _request: peer)
    writer = await unread(await listener.start("127.0.0.1", 0), ask(path, close=False))
    await full.event.wait()
    (connection,) = listener.connections
    weakref.finalize(connection, freed.set)
    del connection
    writer.transport.abort()
    async with asyncio.timeout(PATIENCE_S):
        await listener.drained()
    return app, listener, freed


@pytest.mark.parametrize("path", ["/stream", "/page"])
@pytest.mark.parametrize(
    "new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
def test_who_leaves_before_the_end_of_an_answer_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, path: str, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Neither a stream that goes on for nobody, nor a place of its address, nor what was not sent."""

    async def run() -> None:
        app, listener, freed = await leave_unread(path, FullSignal(monkeypatch))
        async with asyncio.timeout(PATIENCE_S):
            if path == "/stream":
                await app.ended.wait()
            await freed.wait()  # without a collection of garbage
        assert len(listener.places) == 0
        await listener.close()

    gc.collect()
    gc.disable()
    loop = new_loop()
    try:
        loop.run_until_complete(run())
    finally:
        gc.enable()
        loop.close()
