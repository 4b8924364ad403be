"""kill -9 of a gateway while sessions wait through it: whose client comes back in time loses nothing, others
stand in nobody's way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.client import connect

from gateway import protocol as wire
from gateway.protocol import JSON_SUBPROTOCOL
from scheduler.messages import SessionId, SessionLeft
from scheduler.store import Store
from tests.cluster import SCALE, Cluster, running_cluster, until
from tests.faults.test_kill import SECRET, answers, second_gateway
from tests.gateway.gateway_fixtures import Client
from tests.patience import PATIENT
from tests.viewer import Viewer, watching

pytestmark = [pytest.mark.cluster, pytest.mark.faults, pytest.mark.timeout(240)]


@pytest.fixture
def narrow() -> Iterator[Cluster]:
    """One engine with one slot."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TURBOSERVE_LINK_SECRET", SECRET)
        with running_cluster("--capacity", "1", *PATIENT, engines=1) as running:
            yield running


@asynccontextmanager
async def client_at(port: int) -> AsyncIterator[Client]:
    """A client that never connects again by itself."""
    url, flavour = f"ws://127.0.0.1:{port}/v1/stream", JSON_SUBPROTOCOL
    async with connect(url, subprotocols=[flavour], compression=None, proxy=None) as ws:  # type: ignore[list-item]
        yield Client(ws, wire.CODECS[flavour])


async def start(client: Client) -> wire.Session:
    await client.send(wire.Start(prompt="a red ball"))
    return await client.expect(wire.Session)


async def left_after(store: Store, position: str) -> list[SessionId]:
    """The next sessions that somebody left."""
    async with asyncio.timeout(60 * SCALE):
        while True:
            events = await store.read_events(position, block_ms=1_000)
            if left := [event.session for _, event in events if isinstance(event, SessionLeft)]:
                return left
            position = events[-1][0] if events else position


async def play(viewer: Viewer) -> None:
    """Who does not would soon be idle, and give its slot to others."""
    while True:
        await viewer.take(1)


async def test_who_waits_through_a_gateway_that_is_killed(narrow: Cluster) -> None:
    """Three wait for the only slot, two of them through the gateway that is killed. Of these one attaches
    elsewhere, and has its place; the other never comes back and is passed over."""
    store = await Store.connect(narrow.run_json()["redis"])
    with second_gateway(narrow, "g_00000002") as (second, port):
        await until(lambda: answers(port))
        async with (
            client_at(port) as gone,
            client_at(port) as before,
            client_at(narrow.port) as back,
            client_at(narrow.port) as last,
        ):
            async with watching(narrow.url) as holder:
                await holder.take(1)
                playing = asyncio.create_task(play(holder))
                never, returner, behind = [await start(client) for client in (gone, before, last)]
                position = await store.last_event_id()
                second.kill()
                await back.send(wire.Attach(session=returner.session, resume=returner.resume, next_seq=0))
                await back.expect(wire.Session)
                assert await store.queue("shapes") == [never.session, returner.session, behind.session]
                assert await left_after(store, position) == [never.session]
                assert await store.queue("shapes") == [returner.session, behind.session]
                playing.cancel()
            assert (await back.expect(wire.ChunkHeader, skip=AROUND)).session == returner.session
            await back.send(wire.Stop())
            assert (await last.expect(wire.ChunkHeader, skip=AROUND)).session == behind.session
    await store.close()


AROUND = (wire.Queued, wire.State, wire.Accepted, wire.Applied, wire.Stats)
"""What is said around a chunk."""
