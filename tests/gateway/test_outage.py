"""While Redis is away: running sessions stream and obey, prompts wait, new sessions are refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway import protocol as wire
from gateway.hub import Hub
from gateway.session import MAX_HELD_INPUTS
from scheduler.messages import (
    Closed,
    ErrorCode,
    Pause,
    PromptInput,
    SessionId,
    SessionRecord,
    Stop,
    Unsubscribe,
)
from scheduler.store import BeyondGenerated, Store
from scheduler.store.values import SessionProgress
from tests.gateway.gateway_fixtures import Client, World, begin, client_of, make_world
from tests.patience import PATIENCE_S
from tests.scheduler.conftest import RedisServer, forget_everything, own_redis  # noqa: F401 - fixture

ATTACH = wire.Attach(session="s_0123456789abcdef", resume="secret", next_seq=0, id="n")


@pytest.fixture
async def frail_world(own_redis: RedisServer):  # type: ignore[no-untyped-def]  # noqa: F811
    """A cluster whose Redis the test may kill."""
    async with make_world(own_redis.url) as world:
        # What is lost is not left to chance: no engine here writes it again.
        await world.store._redis.client.config_set("appendfsync", "always")
        yield world


async def _prompts_in_log(world: World, id: SessionId) -> list[str]:
    store = await Store.connect(world.redis_url, cluster=world.cluster)
    log = (await store.read_inputs({id: "0-0"}))[id]
    await store.close()
    return [entry.text for _, entry in log if isinstance(entry, PromptInput)]


async def _fill_held_inputs(client: Client) -> None:
    """Send one prompt more than the gateway holds; the last is refused."""
    for n in range(MAX_HELD_INPUTS + 1):
        await client.send(wire.Prompt(text=str(n), id=f"p{n}"))
    error = await client.expect(wire.Error)
    assert (error.code, error.id) == (ErrorCode.UNAVAILABLE, f"p{MAX_HELD_INPUTS}")
    assert error.retry_after_ms is not None


async def test_a_redis_outage(frail_world: World, own_redis: RedisServer) -> None:  # noqa: F811
    """One outage from its begin to its end, seen by a running session and by a new client."""
    world = frail_world
    async with world.engine() as engine, world.gateway() as gateway:
        async with client_of(gateway) as client, client_of(gateway) as newcomer:
            session = await begin(client, engine)
            id = SessionId(session.session)
            own_redis.kill()

            await engine.send_chunk(id, 0)
            assert (await client.expect(wire.ChunkHeader)).seq == 0
            await client.expect(wire.ChunkHeader)
            await client.send(wire.Pause())
            await engine.expect(Pause)
            await _fill_held_inputs(client)
            await newcomer.send(wire.Start(prompt="new", id="n"))
            error = await newcomer.expect(wire.Error)
            assert (error.code, error.id) == (ErrorCode.UNAVAILABLE, "n")
            assert error.retry_after_ms is not None

            own_redis.start()
            accepted = [(await client.expect(wire.Accepted)).id for _ in range(MAX_HELD_INPUTS)]
            assert accepted == [f"p{n}" for n in range(MAX_HELD_INPUTS)]
            prompts = await _prompts_in_log(world, id)
            assert prompts == ["a red ball"] + [str(n) for n in range(MAX_HELD_INPUTS)]

            own_redis.kill()
            await client.send(wire.Stop())
            await engine.expect(Stop)
            own_redis.start()


async def test_who_comes_back_before_the_record_does_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Redis was away its client got 40 chunks more, and lost its connection. Redis is back, but the
    engine has not yet told it how far it is."""
    monkeypatch.setattr("gateway.calls.BEHIND_S", 3600.0)
    refused, take_control = asyncio.Event(), Store.take_control

    async def take_control_and_tell(store: Store, *args: Any, **named: Any) -> SessionRecord:
        try:
            return await take_control(store, *args, **named)
        except BeyondGenerated:
            refused.set()
            raise

    monkeypatch.setattr(Store, "take_control", take_control_and_tell)
    async with world.engine() as engine, world.gateway() as gateway:
        async with client_of(gateway) as client:
            session = await begin(client, engine)
            id = SessionId(session.session)
        await engine.expect(Unsubscribe)
        async with client_of(gateway) as client:
            await client.send(wire.Attach(session=id, resume=session.resume, next_seq=40, id="a"))
            async with asyncio.timeout(PATIENCE_S):
                await refused.wait()
            progress = SessionProgress(
                session=id, epoch=1, active=True, next_seq=40, next_frame=480, rev=0, slack_ms=0
            )
            assert await world.store.publish_sessions(engine.id, [progress]) == []
            await client.expect(wire.Session)
            assert (await engine.accept(id)).next_seq == 40
            assert await client.expect(wire.Accepted, skip=(wire.State,)) == wire.Accepted(id="a")


async def test_who_wants_what_nobody_has_made_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Soon: Redis has answered for so long that no record is far behind."""
    monkeypatch.setattr("gateway.calls.BEHIND_S", 3600.0)
    monkeypatch.setattr("gateway.calls.LAG_S", 0.1)
    monkeypatch.setattr(Hub, "redis_up_s", lambda _hub: 3600.0)
    async with world.engine() as engine, world.gateway() as gateway:
        async with client_of(gateway) as owner, client_of(gateway) as client:
            session = await begin(owner, engine)
            await client.send(
                wire.Attach(session=session.session, resume=session.resume, next_seq=40, id="a")
            )
            error = await client.expect(wire.Error)
            assert (error.code, error.id) == (ErrorCode.BAD_STATE, "a")


@pytest.mark.parametrize("entry", [wire.Start(prompt="new", id="n"), ATTACH])
async def test_what_waits_of_a_session_that_ended_holds_up_no_other(
    frail_world: World,
    own_redis: RedisServer,  # noqa: F811
    entry: wire.Start | wire.Attach,
) -> None:
    """Its prompt and its pause wait for Redis as it is stopped: a start, or an attach, on the same connection
    is told at once that Redis is away."""
    world = frail_world
    async with world.engine() as engine, world.gateway() as gateway, client_of(gateway) as client:
        id = SessionId((await begin(client, engine)).session)
        own_redis.kill()
        await client.send(wire.Prompt(text="waits", id="p"), wire.Pause(), wire.Stop())
        for kind in (Pause, Stop):
            await engine.expect(kind)
        await engine.say(Closed(session=id, epoch=1, reason="stopped"))
        assert (await client.expect(wire.Error)).id == "p"
        await client.expect(wire.Closed)
        await client.send(entry)
        error = await client.expect(wire.Error)
        assert (error.code, error.id) == (ErrorCode.UNAVAILABLE, "n")
        own_redis.start()


async def test_a_waiting_session_outlives_the_loss_of_everything(world: World) -> None:
    """Redis comes back empty: the gateway writes the session again, with what was accepted, in order."""
    async with world.engine(), world.gateway() as gateway, client_of(gateway) as client:
        await client.send(wire.Start(prompt="a red ball", id="s"))
        id = SessionId((await client.expect(wire.Session)).session)
        await client.send(wire.Prompt(text="before", id="b"))
        assert [(await client.expect(wire.Accepted)).id for _ in range(2)] == ["s", "b"]
        await forget_everything(world.store)
        await client.send(wire.Prompt(text="after", id="a"))
        assert (await client.expect(wire.Accepted)).id == "a"
        assert await _prompts_in_log(world, id) == ["a red ball", "before", "after"]
        assert await world.store.queue_position(id) == 1
        repeat = await world.store.append_input(id, PromptInput(text="before", id="b"), controller_epoch=1)
        assert repeat.repeat


async def test_a_machine_that_stands_still_is_no_error_as_a_store_closes(redis_url: str) -> None:
    """redis-py fails where the end of a connection takes two seconds, and the process would with it."""
    store = await Store.connect(redis_url, cluster="closed")
    connections = store._redis.client.connection_pool._available_connections
    assert connections
    for connection in connections:
        connection.socket_connect_timeout = 0
    await store.close()
    assert not any(connection.is_connected for connection in connections)
