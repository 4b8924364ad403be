"""Who waits for the Python client is answered, whatever else waits meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway import client_session, client_stream
from gateway.client import Client, ClientError, ServerError, Session, SessionEnded, connect
from gateway.protocol import Closed
from tests.browser.stream_server import StreamServer
from tests.gateway.test_client import GREEN_ON_BLACK, RED_ON_BLUE, seqs, take
from tests.patience import PATIENCE_S

FEW = 3
LIMIT_S = PATIENCE_S


@pytest.fixture
async def client(server: StreamServer) -> AsyncIterator[Client]:
    async with connect(server.url, give_up_s=LIMIT_S) as instance:
        yield instance


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many chunks wait for the user before nothing more is read."""
    monkeypatch.setattr(client_stream, "MAX_QUEUED_CHUNKS", FEW)
    monkeypatch.setattr(client_session, "MAX_QUEUED_CHUNKS", FEW)


@pytest.mark.usefixtures("few")
async def test_a_prompt_that_is_answered_late_is_answered(client: Client, server: StreamServer) -> None:
    """More chunks come meanwhile than are kept for a user who takes none: they are behind the answer. A
    recorder asks for no more of them than that."""
    server.faults.hold_inputs = asyncio.Event()
    session = await client.start(RED_ON_BLUE, mode="recorder", lead_ms=100)
    chunks = await take(session, 1)
    waiting = asyncio.create_task(session.prompt(GREEN_ON_BLACK))
    await server.until(lambda: server.only.buffer_ms >= FEW * 750)
    made = len(server.only.chunks)
    server.faults.hold_inputs.set()
    async with asyncio.timeout(LIMIT_S):
        applied = await waiting
    assert made <= FEW + 3
    while chunks[-1].seq < applied.seq:
        chunks += await take(session, 1)
    assert seqs(chunks) == list(range(applied.seq + 1))
    assert chunks[-1].rev == applied.rev == 1


@pytest.mark.usefixtures("few")
async def test_a_stop_behind_chunks_that_nobody_takes_is_answered(
    client: Client, server: StreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not given up; what was received before can still be taken."""
    monkeypatch.setattr(client_session, "STOP_WITHIN_S", 2 * LIMIT_S)
    session = await client.start(RED_ON_BLUE, mode="recorder", lead_ms=10_000)
    await server.until(lambda: len(server.only.chunks) > FEW + 1)
    async with asyncio.timeout(LIMIT_S):
        await session.stop()
        assert seqs([chunk async for chunk in session])[:FEW] == list(range(FEW))


async def test_a_refused_pause_holds_nothing_up(
    client: Client, server: StreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session plays on, and so does what the server is told of the playhead."""
    session = await client.start(RED_ON_BLUE, lead_ms=800)
    await take(session, 1)
    with monkeypatch.context() as patch:
        patch.setattr(client_session, "MAX_OPEN_INPUTS", 0)
        with pytest.raises(ClientError, match="0 inputs"):
            await session.pause()
    async with asyncio.timeout(LIMIT_S):
        await take(session, 4)


async def test_a_resume_that_nobody_waits_for_any_more_goes_on(client: Client, server: StreamServer) -> None:
    """It is sent with the next connection; from then on the playhead moves again."""
    session = await client.start(RED_ON_BLUE, lead_ms=800)
    await take(session, 1)
    await session.pause()
    server.faults.refuse_connections = True
    server.abort_all()
    await server.until(lambda: server.only.socket is None)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await session.resume()
    server.faults.refuse_connections = False
    async with asyncio.timeout(LIMIT_S):
        await take(session, 5)


async def test_everybody_hears_of_the_end(client: Client, server: StreamServer) -> None:
    """All who wait for a chunk or an event then, and who asks later."""
    session = await client.start(RED_ON_BLUE, mode="recorder", lead_ms=100)
    await take(session, 1)
    await session.pause()

    async def taken() -> int:
        count = 0
        try:
            async for _ in session:
                count += 1
        except SessionEnded:
            return count
        raise AssertionError("the end was not told")

    async def heard() -> bool:
        return isinstance([event async for event in session.events()][-1], Closed)

    async with asyncio.timeout(LIMIT_S):
        everybody = asyncio.gather(taken(), taken(), heard(), heard())
        await asyncio.sleep(0)
        await server.close_all(4408)
        await everybody
        assert (await taken(), await heard()) == (0, True)


async def test_what_is_no_token_is_not_shown(server: StreamServer) -> None:
    """As read from a file, with its line break."""
    with pytest.raises(ValueError, match="characters that no token has") as caught:
        async with connect(server.url, "secret.words\n"):
            pass
    assert "secret" not in str(caught.value)


async def test_a_refused_stop_hides_no_error(server: StreamServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the block that ends: its own error comes out of it. Without one the refusal does."""

    async def refuse(_: Session) -> None:
        raise ServerError("rate", "too many messages")

    monkeypatch.setattr(Session, "stop", refuse)
    with pytest.raises(KeyError, match="mine"):
        async with connect(server.url) as client:
            session = await client.start(RED_ON_BLUE)
            raise KeyError("mine")
    await session.close()
    with pytest.raises(ServerError, match="too many"):
        async with connect(server.url) as client:
            session = await client.start(RED_ON_BLUE)
    await session.close()


async def test_keys_let_go_without_a_connection_are_let_go(client: Client, server: StreamServer) -> None:
    """The newest state is said again with each connection; what cannot be sent is no state."""

    def held() -> list[list[str]]:
        return [message["keys"] for message in server.only.messages if message["type"] == "control"]

    session = await client.start(RED_ON_BLUE, mode="recorder", lead_ms=100)
    await session.hold(["ArrowLeft"])
    await server.until(lambda: held() == [["ArrowLeft"]])
    server.faults.refuse_connections = True
    server.abort_all()
    await server.until(lambda: server.only.socket is None)
    await session.hold()
    with pytest.raises(ValueError, match="cannot be sent"):
        await session.hold(["\ud800"])
    server.faults.refuse_connections = False
    async with asyncio.timeout(LIMIT_S):
        await server.until(lambda: held() == [["ArrowLeft"], []])
