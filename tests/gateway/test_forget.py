"""Sessions that are nobody's any more are told to the store, also where their connection never had them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from gateway import protocol as wire
from gateway.server import Gateway
from gateway.steps import Forget
from scheduler.messages import ErrorCode, SessionId, SessionRecord
from scheduler.store import Store, StoreUnavailable
from tests.gateway.gateway_fixtures import Client, World, client_of
from tests.gateway.test_session import UNAVAILABLE, S, attach, only
from tests.patience import PATIENCE_S

Write = Callable[..., Awaitable[SessionRecord]]


def lose_answer(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Of the next call: it is carried out, and Redis is gone before it says so."""
    real: Write = getattr(gateway.hub.store, method)

    async def lost(*args: object, **values: object) -> SessionRecord:
        monkeypatch.setattr(gateway.hub.store, method, real)
        await real(*args, **values)
        raise StoreUnavailable("it is gone")

    monkeypatch.setattr(gateway.hub.store, method, lost)


async def start(client: Client) -> wire.Session:
    await client.send(wire.Start(prompt="a red ball"))
    return await client.expect(wire.Session)


async def is_left(store: Store, session: wire.Session) -> bool:
    record = await store.get_session(SessionId(session.session))
    assert record is not None
    return record.left_ms is not None


def test_an_attach_without_an_answer_is_forgotten() -> None:
    """Whose it was is found out later."""
    _, outputs = attach(UNAVAILABLE)
    assert only(outputs, Forget) == Forget(session=S, controller_epoch=None, close=None)


async def test_a_lost_answer_to_an_attach(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session that waits has no connection, and leaves the line; a second attempt has it."""
    async with world.engine(), world.gateway() as gateway, client_of(gateway) as watcher:
        async with client_of(gateway) as client:
            session = await start(client)
        await gateway.hub.forgetter.drained()
        await watcher.send(wire.Watch(session=session.session))
        await watcher.expect(wire.Session)
        again = wire.Attach(session=session.session, resume=session.resume, next_seq=0)
        async with client_of(gateway) as client:
            lose_answer(gateway, monkeypatch, "take_control")
            await client.send(again)
            assert (await client.expect(wire.Error)).code is ErrorCode.UNAVAILABLE
            await gateway.hub.forgetter.drained()
            assert await is_left(world.store, session)
            await client.send(again)
            await client.expect(wire.Session)
            await gateway.hub.forgetter.drained()
            assert not await is_left(world.store, session)


@pytest.mark.parametrize("is_here", [True, False])
async def test_who_attached_since_keeps_the_session(
    world: World, monkeypatch: pytest.MonkeyPatch, is_here: bool
) -> None:
    """At the same gateway or at another one, before it was looked whose the session is."""
    async with world.engine(), world.gateway() as gateway, world.gateway() as other:
        async with client_of(gateway) as first, client_of(gateway if is_here else other) as second:
            session = await start(first)
            await second.send(wire.Attach(session=session.session, resume=session.resume, next_seq=0))
            await second.expect(wire.Session)
            gateway.hub.forgetter.push(
                Forget(session=SessionId(session.session), controller_epoch=None, close=None)
            )
            await gateway.hub.forgetter.drained()
            assert not await is_left(world.store, session)


async def test_a_gateway_that_ends_while_a_session_begins(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client knows no resume token: it is closed, and not left in the line."""
    monkeypatch.setattr("gateway.server.GOODBYE_S", PATIENCE_S)
    async with world.engine(), world.gateway() as gateway, client_of(gateway) as client:
        real: Write = gateway.hub.store.create_session
        created: list[SessionId] = []

        async def slow(*, session: SessionId, **values: object) -> SessionRecord:
            created.append(session)
            await gateway.listener.drained()  # the client has been sent away
            return await real(session=session, **values)

        monkeypatch.setattr(gateway.hub.store, "create_session", slow)
        await client.send(wire.Start(prompt="a red ball"), wire.Ping(t=1))
        await client.expect(wire.Pong)
        await gateway.close()
        record = await world.store.get_session(created[0])
        assert record is not None and record.reason == "abandoned"
