"""What `/metrics` shows, of real sessions on a real gateway."""

from __future__ import annotations

import pytest

from gateway import protocol as wire
from gateway.server import Gateway
from scheduler.messages import SessionId, SessionState, StateChanged, Stats, Watch
from tests.cluster import until
from tests.gateway.gateway_fixtures import Client, World, begin, client_of
from tests.gateway.scripted_engine import make_part
from tests.gateway.test_routes import ask
from tests.patience import PATIENCE_S

CHUNK_BYTES = 120
"""Of a chunk of the scripted engine."""


async def figures(gateway: Gateway) -> dict[str, float]:
    """Name with labels → value, without `turboserve_`."""
    status, _, page = await ask(gateway, "/metrics")
    assert status == 200
    lines = (line.rpartition(" ") for line in page.decode().splitlines() if not line.startswith("#"))
    return {name.removeprefix("turboserve_"): float(value) for name, _, value in lines}


async def ack(client: Client, seq: int, buffer_ms: float) -> None:
    """Return when the gateway has taken it in."""
    await client.send(wire.Ack(seq=seq, buffer_ms=buffer_ms), wire.Ping(t=1))
    await client.expect(wire.Pong)


async def test_what_a_client_gets(world: World) -> None:
    """Parts, bytes and times of what is relayed; what the engine tells; chunks that never come; parts that
    nobody was there for."""
    async with world.engine() as engine, world.gateway() as gateway, client_of(gateway) as client:
        session = SessionId((await begin(client, engine)).session)
        await engine.send_part(make_part(SessionId("s_0123456789abcdef"), 1, 0))
        await engine.send_chunk(session, 0, parts=3)
        await engine.say(
            Stats(session=session, epoch=1, seq=0, latency_ms=700, gen_ms=150, slack_ms=0, batch=2)
        )
        await client.expect(wire.Stats, skip=(wire.ChunkHeader,))
        await engine.cut()
        await engine.accept(session, start_seq=5)
        assert await client.expect(wire.Gap, skip=(wire.State,)) == wire.Gap(from_seq=1, to_seq=4)
        found = await figures(gateway)
    assert found["gateway_parts_total"] == found["gateway_relay_seconds_count"] == 3
    assert found["gateway_media_bytes_total"] == CHUNK_BYTES
    assert found["gateway_ttfc_seconds_count"] == 1 and found["gateway_ttfc_seconds_sum"] > 0
    assert found["gateway_chunk_latency_seconds_sum"] == pytest.approx(0.7)
    assert found['gateway_chunk_latency_seconds_bucket{le="0.5"}'] == 0
    assert found['gateway_chunk_latency_seconds_bucket{le="0.75"}'] == 1
    assert found["gateway_gap_chunks_total"] == 4
    assert found["gateway_dropped_parts_total"] == 1


async def test_a_start_without_a_chunk_is_no_wait_for_one(world: World) -> None:
    """Stopped in the queue; what its connection watches afterwards was started by somebody else."""
    async with world.engine() as engine, world.gateway() as gateway:
        async with client_of(gateway) as client, client_of(gateway) as other:
            session = SessionId((await begin(client, engine)).session)
            await start(other)
            await other.send(wire.Stop(), wire.Watch(session=session, id="w"))
            await other.expect(wire.Closed)
            await engine.expect(Watch)
            await engine.send_chunk(session, 0, parts=1)
            await client.expect(wire.ChunkHeader)
            await other.expect(wire.ChunkHeader, skip=(wire.Session, wire.Accepted))
            found = await figures(gateway)
    assert found["gateway_ttfc_seconds_count"] == 1, "of who started it"


async def test_whether_players_play(world: World) -> None:
    """A player that holds enough plays until its next ack, one that holds nothing has stalled; while the
    session is paused neither counts."""
    async with world.engine() as engine, world.gateway() as gateway, client_of(gateway) as client:
        session = SessionId((await begin(client, engine)).session)
        await engine.send_chunk(session, 0, parts=1)
        await client.expect(wire.ChunkHeader)
        await ack(client, 0, 1000 * PATIENCE_S)
        assert await played_and_stalled(gateway) == (0, 0)
        await ack(client, 0, 0)
        played_s, stalled_s = await played_and_stalled(gateway)
        assert 0 < played_s <= PATIENCE_S and stalled_s == 0
        await ack(client, 0, 0)
        after_s = await played_and_stalled(gateway)
        assert after_s[0] == played_s and after_s[1] > 0
        await engine.say(StateChanged(session=session, epoch=1, state=SessionState.IDLE, reason="paused"))
        await client.expect(wire.State)
        for _ in range(2):
            await ack(client, 0, 0)
        assert await played_and_stalled(gateway) == after_s


async def played_and_stalled(gateway: Gateway) -> tuple[float, float]:
    found = await figures(gateway)
    return found["gateway_played_seconds_total"], found["gateway_stalled_seconds_total"]


async def test_who_is_here(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions by their state, viewers, connections, links and how far away their engines are."""
    monkeypatch.setattr("gateway.link.PING_INTERVAL_S", 0.01)
    async with world.engine() as engine, world.gateway() as gateway:
        async with client_of(gateway) as client, client_of(gateway) as waiter, client_of(gateway) as viewer:
            session = (await begin(client, engine)).session
            await waiter.send(wire.Start(prompt="x"))
            await waiter.expect(wire.Session)
            await viewer.send(wire.Watch(session=session))
            await viewer.expect(wire.Session)
            await until(lambda: gateway.hub.relay.latencies_s()[engine.id] > 0)
            found = await figures(gateway)
    assert found["gateway_connections"] == 3 and found["gateway_viewers"] == 1
    states = [found[f'gateway_sessions{{state="{state}"}}'] for state in ("active", "queued", "idle")]
    assert states == [1, 1, 0]
    assert found["gateway_links"] == 1
    assert 0 < found['gateway_link_latency_seconds{engine="e_00000001"}'] < 60


async def test_the_cluster(world: World) -> None:
    """As a gateway finds it that has just come: who waits, engines and what they do."""
    async with world.engine() as engine, world.gateway() as gateway, client_of(gateway) as client:
        await engine.take(SessionId((await start(client)).session))
        async with client_of(gateway) as waiter:
            await start(waiter)
            async with world.gateway() as other:
                await until(lambda: other.hub.cluster_feed.sample_age_s() < 3600)
                found = await figures(other)
    assert found["cluster_queue"] == 1
    assert found['cluster_engines{state="ready"}'] == 1
    assert found[f'engine_sessions{{engine="{engine.id}"}}'] == 1
    assert found[f'engine_capacity{{engine="{engine.id}"}}'] == 64


async def start(client: Client) -> wire.Session:
    await client.send(wire.Start(prompt="a red ball"))
    return await client.expect(wire.Session)
