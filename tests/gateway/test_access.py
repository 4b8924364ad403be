"""A gateway that asks for tokens, on real sockets and a real Redis."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import ssl
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from websockets.asyncio.client import connect as dial

from gateway import protocol as wire
from gateway.access import Access, view_of
from gateway.auth import Identity, Scope, mint_token
from gateway.client import ServerError, connect
from gateway.config import GatewayConfig
from gateway.http import Request
from gateway.metrics import Metrics
from gateway.protocol import TOKEN_SUBPROTOCOL_PREFIX, CloseCode
from gateway.server import Gateway
from launch.http_get import get
from scheduler.messages import EngineRecord, ErrorCode, SessionId, Watch
from tests.gateway.gateway_fixtures import World, begin, client_of, make_certificate
from tests.gateway.test_routes import ask
from tests.patience import PATIENCE_S, pass_time

SECRET = "a secret of at least 32 characters"
KEY = "the key of a shop"
SETTINGS: dict[str, object] = {
    "auth": "token",
    "token_secrets": (SECRET,),
    "api_keys": (f"shop:control+view:{hashlib.sha256(KEY.encode()).hexdigest()}",),
}
JSON_TYPE = {"content_type": "application/json"}


def token_for(*scopes: Scope, subject: str = "alice", ttl_s: float = 60, **more: object) -> str:
    identity = Identity(subject=subject, scopes=frozenset(scopes), **more)  # type: ignore[arg-type]
    return mint_token(identity, SECRET, now_s=time.time(), ttl_s=ttl_s)


async def test_sessions_and_their_quota(world: World) -> None:
    """A token in the subprotocol list is not echoed; two gateways together keep a subject to its quota."""
    token = token_for(Scope.CONTROL, max_sessions=1)
    async with (
        world.engine() as engine,
        world.gateway(**SETTINGS) as first,
        world.gateway(**SETTINGS) as second,
        client_of(first) as client,
        client_of(second) as other,
    ):
        session = await begin(client, engine, token=token)
        await other.send(wire.Start(prompt="x", token=token, id="1"))
        error = await other.expect(wire.Error)
        assert (error.code, error.id) == (ErrorCode.NOT_ALLOWED, "1")
        await world.store.close_session(SessionId(session.session), "stopped")
        await other.send(wire.Start(prompt="x", id="2"))
        assert (await other.expect(wire.Session)).session != session.session


async def test_subjects_hear_that_they_take_turns(world: World) -> None:
    """Who comes after three sessions of another subject is told the second place, and they theirs again."""
    alice, bob = token_for(Scope.CONTROL), token_for(Scope.CONTROL, subject="bob")
    async with world.engine(), world.gateway(**SETTINGS) as gateway, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client_of(gateway)) for _ in range(4)]
        tokens = (alice, alice, alice, bob)
        for client, token, position in zip(clients, tokens, (1, 2, 3, 2), strict=True):
            await client.send(wire.Start(prompt="x", token=token))
            await client.expect(wire.Session)
            assert (await client.expect(wire.Queued)).position == position
        for client, position in zip(clients[1:3], (3, 4), strict=True):
            assert (await client.expect(wire.Queued)).position == position


async def test_refused_handshakes(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The Python client hears unauthorised; 4401 follows; the token is in no log."""
    caplog.set_level(logging.DEBUG)
    expired = token_for(Scope.CONTROL, ttl_s=-60)
    async with world.engine(), world.gateway(**SETTINGS) as gateway:
        for token in (expired, None):
            async with connect(gateway.url, token) as client:
                with pytest.raises(ServerError) as caught:
                    await client.start("x")
                assert caught.value.code == "unauthorised"
        url = gateway.url.replace("http", "ws") + "/v1/stream"
        offer = [wire.JSON_SUBPROTOCOL, TOKEN_SUBPROTOCOL_PREFIX + expired]
        async with dial(url, subprotocols=offer, proxy=None) as ws:  # type: ignore[arg-type]
            assert ws.subprotocol == wire.JSON_SUBPROTOCOL
            assert "unauthorised" in str(await ws.recv())
            await ws.wait_closed()
            assert ws.close_code == CloseCode.NOT_AUTHORISED
        assert b"turboserve_gateway_auth_failures_total 2.0" in gateway.hub.metrics.page()
    ours = [r.getMessage() for r in caplog.records if r.name.startswith(("gateway", "scheduler"))]
    assert not any(expired in text for text in ours)


async def test_bad_messages_keep_no_place_without_a_token(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who never says who it is is sent away in time, whatever else it says."""
    async with (
        world.gateway(**SETTINGS, first_message_timeout_s=15.0) as gateway,
        client_of(gateway) as client,
    ):
        await client.ws.send("nonsense")
        assert (await client.expect(wire.Error)).code is ErrorCode.BAD_MESSAGE
        pass_time(monkeypatch, 16)
        assert await client.close_code() == CloseCode.IDLE


async def test_admin_paths(world: World) -> None:
    """They need the scope admin; health does not; the API says what is wrong."""
    bad = {"none": {}, "forged": {"authorization": "Bearer x.y.z"}, "basic": {"authorization": "Basic eDp5"}}
    async with world.gateway(**SETTINGS) as gateway:
        assert (await ask(gateway, "/healthz"))[0] == 200
        for headers in bad.values():
            status, answer, body = await ask(gateway, "/v1/cluster", **headers)
            assert status == 401 and answer["www-authenticate"] == "Bearer"
            assert json.loads(body)["error"]["code"] == "unauthorised"
        drain = json.dumps({"engine": "e_00000001"}).encode()
        for token, allowed in ((token_for(Scope.CONTROL, Scope.VIEW), False), (token_for(Scope.ADMIN), True)):
            bearer = {"authorization": f"Bearer {token}"}
            assert (await ask(gateway, "/v1/cluster", **bearer))[0] == (200 if allowed else 403)
            assert (await ask(gateway, "/metrics", **bearer))[0] == (200 if allowed else 403)
            answer = await ask(gateway, "/v1/admin/drain", "POST", drain, **JSON_TYPE, **bearer)
            assert answer[0] == (404 if allowed else 403)


async def test_minting(world: World) -> None:
    """A server's key mints tokens that work, within its scopes; anything else is refused."""

    async def mint(wish: object, key: str | None = KEY) -> tuple[int, dict[str, object]]:
        bearer = {} if key is None else {"authorization": f"Bearer {key}"}
        body = json.dumps(wish).encode()
        status, _, answer = await ask(gateway, "/v1/tokens", "POST", body, **JSON_TYPE, **bearer)
        return status, json.loads(answer)

    async with world.engine() as engine, world.gateway(**SETTINGS) as gateway, client_of(gateway) as client:
        status, answer = await mint({"subject": "carol", "ttl_s": 30, "max_sessions": 1})
        assert status == 200 and answer["scopes"] == ["control", "view"] and answer["expires_in_s"] == 30
        await begin(client, engine, token=answer["token"])
        assert (await mint({"subject": "x"}, None))[0] == (await mint({"subject": "x"}, "other"))[0] == 401
        assert (await mint({"subject": "x", "scopes": ["admin"]}))[0] == 403
        for wish in (
            [], {}, {"subject": ""}, {"subject": 5}, {"subject": "x", "scopes": "control"},
            {"subject": "x", "scopes": []}, {"subject": "x", "scopes": ["root"]},
            {"subject": "x", "ttl_s": 0}, {"subject": "x", "ttl_s": 1e9}, {"subject": "x", "ttl_s": "1"},
            {"subject": "x", "ttl_s": 10**400}, {"subject": "x", "ttl_s": float("nan")},
            {"subject": "x", "max_sessions": -1}, {"subject": "x", "session": "5"},
        ):  # fmt: skip
            assert (await mint(wish))[0] == 400, wish
        for wish in ({}, {"resume": 5}, {"resume": "\ud800"}, {"resume": "x", "ttl_s": 10**400}):
            path, body = "/v1/sessions/s_0000000000000001/watch", json.dumps(wish).encode()
            assert (await ask(gateway, path, "POST", body, **JSON_TYPE))[0] == 400, wish
    async with world.gateway() as gateway:
        assert (await mint({"subject": "x"}))[0] == 409


async def share(gateway: Gateway, session: str, resume: str) -> tuple[int, dict[str, object]]:
    path, body = f"/v1/sessions/{session}/watch", json.dumps({"resume": resume, "ttl_s": 30}).encode()
    status, headers, answer = await ask(gateway, path, "POST", body, **JSON_TYPE)
    assert status != 200 or headers["cache-control"] == "no-store"
    return status, json.loads(answer)


async def test_a_link_to_watch(world: World) -> None:
    """Who holds the resume token gives away a token for that session's pictures, and for nothing else."""
    token = token_for(Scope.CONTROL)
    async with (
        world.engine() as engine,
        world.gateway(**SETTINGS) as gateway,
        client_of(gateway) as client,
        client_of(gateway) as viewer,
        client_of(gateway) as thief,
    ):
        session = await begin(client, engine, token=token)
        id = SessionId(session.session)
        for resume in ("", session.resume[:-1], token):
            status, answer = await share(gateway, id, resume)
            assert (status, code_in(answer)) == (404, "no_such_session")
        status, answer = await share(gateway, id, session.resume)
        shared = str(answer["token"])
        assert status == 200 and answer["scopes"] == ["view"] and answer["expires_in_s"] == 30

        await viewer.send(wire.Watch(session=id, token=shared))
        shown = await viewer.expect(wire.Session)
        assert (shown.session, shown.resume) == (id, "")
        await engine.expect(Watch)
        await engine.send_chunk(id, 0)
        for each in (client, viewer):
            assert (await each.expect(wire.ChunkHeader)).session == id
        await viewer.send(wire.Prompt(text="mine", id="1"))
        assert (await viewer.expect(wire.Error, skip=(wire.ChunkHeader,))).code is ErrorCode.NOT_ALLOWED

        stolen = wire.Attach(session=id, resume=session.resume, next_seq=0, token=shared)
        other = wire.Watch(session="s_0123456789abcdef", token=shared)
        for message in (wire.Start(prompt="x", token=shared), stolen, other):
            await thief.send(message)
            assert (await thief.expect(wire.Error)).code is ErrorCode.NOT_ALLOWED
        await world.store.close_session(id, "stopped")
        assert (await share(gateway, id, session.resume))[0] == 404


async def test_a_link_to_watch_that_is_too_old(world: World) -> None:
    """As any token: 4401, and the page may ask for a new one."""
    async with (
        world.engine() as engine,
        world.gateway(**SETTINGS) as gateway,
        client_of(gateway) as client,
        client_of(gateway) as viewer,
    ):
        session = (await begin(client, engine, token=token_for(Scope.CONTROL))).session
        identity = view_of(SessionId(session))
        shared = mint_token(identity, SECRET, now_s=time.time() - 100, ttl_s=30)
        await viewer.send(wire.Watch(session=session, token=shared))
        assert (await viewer.expect(wire.Error)).code is ErrorCode.UNAUTHORISED
        assert await viewer.close_code() == CloseCode.NOT_AUTHORISED


def code_in(answer: dict[str, object]) -> object:
    assert isinstance(answer["error"], dict)
    return answer["error"]["code"]


@pytest.mark.parametrize(
    "spelling",
    ["//x/v1/admin/drain", "/v1%2Fadmin/drain", "/v1/%61dmin/drain", "/v1//admin/drain", "/./v1/admin/drain"]
    + ["http://x/v1/admin/drain", "/v1/admin/drain%3f"],
)
async def test_a_path_has_one_spelling(world: World, spelling: str) -> None:
    """A proxy in front that refuses /v1/admin is not got around."""
    body = json.dumps({"engine": "e_00000001"}).encode()
    async with world.engine() as engine, world.gateway() as gateway:
        assert (await ask(gateway, spelling, "POST", body, **JSON_TYPE))[0] in (404, 405)
        record = await world.store.get_engine(engine.id)
        assert record is not None and not record.drain_ordered
        assert (await ask(gateway, "/v1/admin/drain?x=1", "POST", body, **JSON_TYPE))[0] == 202


async def test_however_many_ask_whether_it_is_ready(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engines are read once for all of them, whoever leaves meanwhile, and not again for a while."""
    async with world.engine(), world.gateway() as gateway:
        routes, store = gateway.listener.application, world.store
        monkeypatch.setattr(gateway.hub, "store", store)  # the gateway reads engines for itself as well
        real, may_read, reads = store.list_engines, asyncio.Event(), 0

        async def counted() -> list[EngineRecord]:
            nonlocal reads
            reads += 1
            await may_read.wait()
            return await real()

        monkeypatch.setattr(store, "list_engines", counted)
        monkeypatch.setattr("gateway.routes.READY_FOR_S", 3_600.0)
        request = Request(method="GET", target="/readyz", headers={})
        first, *others = [asyncio.ensure_future(routes.respond(request)) for _ in range(20)]
        await asyncio.sleep(0)
        first.cancel()
        may_read.set()
        assert {(await other).status for other in others} == {200}
        assert (await routes.respond(request)).status == 200
        assert reads == 1


async def test_tls(world: World, tmp_path: Path) -> None:
    """https and wss with a certificate from files."""
    cert, key = await make_certificate(tmp_path)
    trust = ssl.create_default_context(cafile=str(cert))
    async with (
        world.engine() as engine,
        world.gateway(tls_cert=str(cert), tls_key=str(key)) as gateway,
        client_of(gateway, ssl=trust) as client,
    ):
        assert gateway.url.startswith("https://")
        session = await begin(client, engine)
        await engine.send_chunk(SessionId(session.session), 0)
        assert await client.expect(wire.ChunkHeader, skip=(wire.Queued, wire.Applied))
        assert (await get(f"{gateway.url}/healthz", timeout_s=PATIENCE_S, check_certificate=False))[0] == 200
        with pytest.raises(OSError, match="certificate"):
            await get(f"{gateway.url}/healthz", timeout_s=PATIENCE_S)


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address has a budget; loopback has none; a proxy is believed only where it is said to be there."""
    monkeypatch.setattr("gateway.access._now_ms", lambda: 0.0)

    def access(**settings: object) -> Access:
        values: dict[str, object] = {"redis": "unix:///x", "link_secret": "s", "address_requests_per_s": 1}
        return Access(GatewayConfig(**(values | settings)), Metrics())  # type: ignore[arg-type]

    def request(peer: str, forwarded: str) -> Request:
        return Request(method="GET", target="/", headers={"x-forwarded-for": forwarded}, peer=peer)

    limited = access()
    assert [limited.count_request("192.0.2.1") is None for _ in range(11)] == [True] * 10 + [False]
    assert limited.count_request("192.0.2.2") is None
    assert all(limited.count_request("127.0.0.1") is None for _ in range(50))
    assert limited.address_of(request("192.0.2.1", "10.0.0.1")) == "192.0.2.1"
    behind = access(trust_proxy=True)
    assert behind.address_of(request("127.0.0.1", "10.0.0.1, 198.51.100.7")) == "198.51.100.7"
    for forwarded in ("198.51.100.7:50001", "10.0.0.1:2, 198.51.100.7:50002", "[::ffff:198.51.100.7]:50003"):
        assert behind.address_of(request("127.0.0.1", forwarded)) == "198.51.100.7", "without the port"
    assert behind.address_of(request("127.0.0.1", "[2001:db8:1:2:3::4]:50001")) == "2001:db8:1:2::/64"
    # Whoever has one IPv6 address has 2^64; a socket for both kinds shows IPv4 addresses as IPv6.
    assert limited.address_of(request("2001:db8:1:2:3::4", "")) == "2001:db8:1:2::/64"
    assert limited.address_of(request("::ffff:192.0.2.1", "")) == "192.0.2.1"
    assert limited.address_of(request("::1", "")) == "::1"


def test_whose_a_connection_is() -> None:
    """The peer's at once, loopback's nobody's; behind a proxy who a request comes from, once there is one."""
    values: dict[str, object] = {"redis": "unix:///x", "link_secret": "s"}
    direct = Access(GatewayConfig(**values), Metrics())  # type: ignore[arg-type]
    behind = Access(GatewayConfig(trust_proxy=True, **values), Metrics())  # type: ignore[arg-type]
    peer = "192.0.2.1"
    forwarded = {"x-forwarded-for": "10.0.0.1, 198.51.100.7"}
    request = Request(method="GET", target="/", headers=forwarded, peer=peer)
    assert direct.holder_of(peer, None) == direct.holder_of(peer, request) == peer
    assert direct.holder_of("2001:db8:1:2:3::4", None) == "2001:db8:1:2::/64"
    assert direct.holder_of("127.0.0.1", None) is direct.holder_of("::1", None) is None
    assert behind.holder_of(peer, None) is None
    assert behind.holder_of(peer, request) == "198.51.100.7"
    assert behind.holder_of(peer, Request(method="GET", target="/", headers={}, peer=peer)) == peer


async def test_too_many_requests_are_429(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Retry-After, for requests and handshakes alike; refused tokens cost more."""
    monkeypatch.setattr("gateway.access._now_ms", lambda: 0.0)
    settings = SETTINGS | {"trust_proxy": True, "address_requests_per_s": 3}
    forged = {"authorization": "Bearer x", "x_forwarded_for": "198.51.100.7"}
    async with world.gateway(**settings) as gateway:
        statuses = [(await ask(gateway, "/v1/cluster", **forged))[0] for _ in range(3)]
        assert statuses == [401, 401, 429]
        status, headers, body = await ask(gateway, "/v1/stream", x_forwarded_for="198.51.100.7")
        assert status == 429 and int(headers["retry-after"]) >= 1
        assert json.loads(body)["error"]["code"] == "rate"
        assert (await ask(gateway, "/healthz", x_forwarded_for="198.51.100.8"))[0] == 200


async def test_one_address_does_not_take_all_connections(world: World) -> None:
    """Behind a proxy too, where a silent WebSocket counts for who is behind it; others come in."""
    proxied = {"additional_headers": {"X-Forwarded-For": "198.51.100.7"}}
    async with (
        world.gateway(trust_proxy=True, address_connections=2) as gateway,
        client_of(gateway, **proxied),
        client_of(gateway, **proxied),
    ):
        status, headers, _ = await ask(gateway, "/healthz", x_forwarded_for="198.51.100.7")
        assert status == 429 and headers["retry-after"] == "1"
        assert (await ask(gateway, "/healthz", x_forwarded_for="198.51.100.8"))[0] == 200
        counted = b'turboserve_gateway_refused_connections_total{limit="address"} 1.0'
        assert counted in gateway.hub.metrics.page()
