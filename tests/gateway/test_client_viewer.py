"""`client.watch` on a real gateway, with a scripted engine."""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway.auth import Identity, Scope, mint_token
from gateway.client import ServerError, SessionEnded, Viewer, connect
from gateway.protocol import Gap
from scheduler.messages import SessionId, Unsubscribe, Unwatch, Watch
from tests.gateway.gateway_fixtures import World, begin, client_of
from tests.patience import PATIENCE_S

SECRET = "s" * 32


async def test_a_viewer_sees_what_is_made_while_it_looks(world: World) -> None:
    """From the next chunk on; after a lost connection from the next again; to the end of the session, which
    it can't steer and does not end by looking away."""
    async with world.engine() as engine, world.gateway() as gateway, client_of(gateway) as controller:
        id = SessionId((await begin(controller, engine)).session)
        await engine.send_chunk(id, 0)
        async with connect(gateway.url) as client, connect(gateway.url) as other:
            viewer = await client.watch(id)
            await engine.expect(Watch)
            assert (viewer.id, viewer.info.resume, viewer.info.width) == (id, "", 96)
            for seq in (1, 2):
                await engine.send_chunk(id, seq)
                chunk = await anext(viewer)
                assert (chunk.seq, chunk.num_frames) == (seq, 12)
            viewer.cut()
            await engine.expect(Unwatch)
            await engine.send_chunk(id, 3)
            await engine.expect(Watch)
            await engine.send_chunk(id, 4)
            assert (await anext(viewer)).seq == 4

            leaver = await other.watch(id)
            await engine.expect(Watch)
            await leaver.stop()
            assert [chunk async for chunk in leaver] == []
            await engine.send_chunk(id, 5)
            assert (await anext(viewer)).seq == 5
            await world.store.close_session(id, "stopped")
            with pytest.raises(SessionEnded, match="stopped"):
                await anext(viewer)
            with pytest.raises(ServerError) as refused:
                await client.watch("s_0123456789abcdef")
            assert refused.value.code == "no_such_session"


async def test_what_a_slow_viewer_missed_is_told(world: World) -> None:
    """An event says which chunks did not come; the next one does."""
    async with world.engine() as engine, world.gateway() as gateway, client_of(gateway) as controller:
        id = SessionId((await begin(controller, engine)).session)
        async with connect(gateway.url) as client:
            viewer = await client.watch(id)
            await engine.expect(Watch)
            await engine.send_chunk(id, 0)
            await engine.send_chunk(id, 3)  # as after a loss that the owner could not make good
            assert [(await anext(viewer)).seq for _ in range(2)] == [0, 3]
            assert await next_gap(viewer) == Gap(from_seq=1, to_seq=2)


async def next_gap(viewer: Viewer) -> Gap:
    async with asyncio.timeout(PATIENCE_S):
        async for event in viewer.events():
            if isinstance(event, Gap):
                return event
    raise AssertionError("the stream ended")


async def test_a_token_for_one_session(world: World) -> None:
    """Given with the call, in place of the client's own, which may not watch it."""
    settings = {"auth": "token", "token_secrets": (SECRET,)}

    def token(subject: str, *scopes: Scope, session: str | None = None) -> str:
        identity = Identity(subject=subject, scopes=frozenset(scopes), session=session)
        return mint_token(identity, SECRET, now_s=time.time(), ttl_s=60)

    async with world.engine() as engine, world.gateway(**settings) as gateway:
        bearer = [f"turboserve.token.{token('alice', Scope.CONTROL)}"]
        async with client_of(gateway, extra_subprotocols=bearer) as controller:
            id = SessionId((await begin(controller, engine)).session)
            async with connect(gateway.url, token("bob", Scope.VIEW)) as client:
                with pytest.raises(ServerError) as refused:
                    await client.watch(id)
                assert refused.value.code == "not_allowed"
                viewer = await client.watch(id, token("bob", Scope.VIEW, session=id))
                await engine.expect(Watch)
                await engine.send_chunk(id, 0)
                assert (await anext(viewer)).seq == 0
        assert isinstance(await engine.requests.get(), Unsubscribe | Unwatch)
