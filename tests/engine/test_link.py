"""The link server, with real WebSockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from engine.link import MAX_REQUEST_BYTES, Link, LinkServer
from scheduler.messages import Credit, Pause, SessionId, Stats
from tests.engine.link_client import SECRET, LinkClient
from tests.patience import PATIENCE_S

S1 = SessionId("s_0000000000000001")
STATS = Stats(session=S1, epoch=1, seq=0, latency_ms=1.0, gen_ms=1.0, slack_ms=0.0, batch=1.0)


class Inbox:
    """A handler that notes requests and lost links."""

    def __init__(self) -> None:
        self.requests: asyncio.Queue[tuple[Link, object]] = asyncio.Queue()
        self.lost: asyncio.Queue[Link] = asyncio.Queue()

    def receive_request(self, link: Link, request: object) -> None:
        self.requests.put_nowait((link, request))

    def receive_link_lost(self, link: Link) -> None:
        self.lost.put_nowait(link)


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
async def server(inbox: Inbox) -> AsyncIterator[LinkServer]:
    """A listening server whose queues hold 4 MiB."""
    server = LinkServer(inbox, secret=SECRET, max_queue_bytes=4 * 2**20)
    await server.start("127.0.0.1", 0)
    yield server
    await server.close()


async def accepted(server: LinkServer, inbox: Inbox) -> tuple[LinkClient, Link]:
    """Both ends of a link."""
    client = await LinkClient.open(server.url)
    await client.send(Pause(session=S1, controller_epoch=1))
    return client, (await inbox.requests.get())[0]


async def test_requests_arrive_typed(server: LinkServer, inbox: Inbox) -> None:
    """A JSON text frame becomes its message class."""
    client = await LinkClient.open(server.url)
    sent = Credit(session=S1, controller_epoch=2, seq=3, buffer_ms=4.5)
    await client.send(sent)
    assert (await inbox.requests.get())[1] == sent
    await client.close()


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": SECRET}])
async def test_without_the_secret_there_is_no_link(server: LinkServer, headers: dict[str, str]) -> None:
    """401, before any session is touched."""
    with pytest.raises(InvalidStatus) as refusal:
        await connect(server.url, additional_headers=headers)
    assert refusal.value.response.status_code == 401


async def test_other_paths_are_not_found(server: LinkServer) -> None:
    """404 with the right secret, 401 without: a stranger learns nothing."""
    url = server.url.replace("/link", "/other")
    with pytest.raises(InvalidStatus) as refusal:
        await connect(url, additional_headers={"Authorization": f"Bearer {SECRET}"})
    assert refusal.value.response.status_code == 404


@pytest.mark.parametrize("data", ["{", '{"type":"pause"}', b"\x00\x01"])
async def test_nonsense_closes_the_link(server: LinkServer, inbox: Inbox, data: str | bytes) -> None:
    """A peer that does not speak the protocol is cut with 1002."""
    client = await LinkClient.open(server.url)
    await client.socket.send(data)
    with pytest.raises(ConnectionClosedError) as closed:
        await client.receive()
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1002
    await inbox.lost.get()


async def test_a_request_that_only_newer_gateways_know_is_left_out(server: LinkServer, inbox: Inbox) -> None:
    """The link, which has many sessions, goes on."""
    client = await LinkClient.open(server.url)
    await client.socket.send('{"type":"nope"}')
    await client.send(Pause(session=S1, controller_epoch=1))
    assert (await inbox.requests.get())[1] == Pause(session=S1, controller_epoch=1)
    await client.close()


async def test_an_oversize_request_closes_the_link(server: LinkServer, inbox: Inbox) -> None:
    """1009, without reading it whole."""
    client = await LinkClient.open(server.url)
    await client.socket.send("x" * (MAX_REQUEST_BYTES + 1))
    with pytest.raises(ConnectionClosedError) as closed:
        await client.receive()
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009
    await inbox.lost.get()


async def test_messages_and_media_keep_their_order(server: LinkServer, inbox: Inbox) -> None:
    """What is queued first goes first, and on_sent tells when the media went."""
    client, link = await accepted(server, inbox)
    sent = asyncio.Event()
    link.send(STATS)
    link.send_media(b"media", sent.set)
    link.send(STATS)
    received = [await client.socket.recv() for _ in range(3)]
    assert [type(data) for data in received] == [str, bytes, str]
    await sent.wait()
    await client.close()


async def test_a_link_on_which_nothing_is_sent_any_more_is_cut(server: LinkServer, inbox: Inbox) -> None:
    """Pings would keep it up for ever."""
    client, link = await accepted(server, inbox)
    link.send_media(b"media", lambda: {}["nothing"])
    with pytest.raises(ConnectionClosedError):
        while True:
            await asyncio.wait_for(client.socket.recv(), PATIENCE_S)
    await inbox.lost.get()


async def test_a_link_that_is_not_read_is_cut_when_its_queue_is_full(
    server: LinkServer, inbox: Inbox
) -> None:
    """The engine never waits: the overflowing link is aborted, its sessions learn of it, others live on."""
    slow, slow_link = await accepted(server, inbox)
    slow.socket.transport.pause_reading()
    other, other_link = await accepted(server, inbox)
    for _ in range(64):
        slow_link.send_media(bytes(2**20))
        if slow_link.lost:
            break
        await asyncio.sleep(0)  # lets the pump run
    assert slow_link.lost
    assert await inbox.lost.get() is slow_link
    slow_link.send(STATS)  # to a lost link: dropped
    other_link.send(STATS)
    assert await other.receive() == STATS
    slow.socket.transport.abort()
    await other.close()


async def test_closing_the_server_tells_the_gateways(server: LinkServer, inbox: Inbox) -> None:
    """1001, after what was queued."""
    client, link = await accepted(server, inbox)
    link.send(STATS)
    await server.drained()
    await server.close()
    assert await client.receive() == STATS
    await client.socket.wait_closed()
    assert client.socket.close_code == 1001
