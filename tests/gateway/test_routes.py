"""What the gateway answers over HTTP, on real sockets and a real Redis."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.cluster_feed import sample
from gateway.server import Gateway
from scheduler.messages import EngineId, EngineRecord, EngineState, SessionId, Usage
from scheduler.store import Store
from scheduler.store.values import ClusterInfo
from tests.cluster import until
from tests.gateway.gateway_fixtures import World, begin, client_of
from tests.gateway.scripted_engine import MODEL
from tests.patience import PATIENCE_S
from tests.scheduler.conftest import RedisServer, own_redis  # noqa: F401 - fixture


async def ask(
    gateway: Gateway, path: str, method: str = "GET", body: bytes = b"", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body). Header names are given with underscores."""
    port = int(gateway.url.rsplit(":", 1)[1])
    lines = {"host": f"127.0.0.1:{port}", "connection": "close", "content-length": str(len(body))}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
    answer = await reader.read()
    writer.close()
    raw_head, _, rest = answer.partition(b"\r\n\r\n")
    status, *fields = raw_head.decode().split("\r\n")
    pairs = (field.split(": ", 1) for field in fields)
    return int(status.split()[1]), {name.lower(): value for name, value in pairs}, rest


async def test_health_and_readiness(world: World) -> None:
    """Healthy at once; ready when an engine is and its model is known: else no session could be started."""
    async with world.gateway() as gateway:
        assert (await ask(gateway, "/healthz"))[0] == 200
        assert (await ask(gateway, "/readyz"))[0] == 503
        async with world.engine(), asyncio.timeout(PATIENCE_S):
            while (await ask(gateway, "/readyz"))[0] != 200:  # noqa: ASYNC110 - nothing says when
                await asyncio.sleep(0.01)
            assert gateway.hub.catalog.models
            status, headers, body = await ask(gateway, "/readyz", "HEAD")
            assert status == 200 and headers["content-length"] == "3" and body == b""


async def test_cluster(world: World) -> None:
    """Exactly the documented keys; seq is the newest chunk."""
    async with world.engine() as engine, world.gateway() as gateway, client_of(gateway) as client:
        session = await begin(client, engine)
        await world.store.publish_session(
            engine.id,
            SessionId(session.session),
            1,
            active=True,
            next_seq=3,
            next_frame=36,
            rev=0,
            slack_ms=9,
        )
        status, headers, body = await ask(gateway, "/v1/cluster")
        assert status == 200 and headers["content-type"] == "application/json"
        found = json.loads(body)
        assert set(found) == {"engines", "sessions", "budget", "queue", "policy", "decisions"}
        assert found["engines"] == [
            {
                "id": engine.id,
                "state": "ready",
                "capacity": 64,
                "sessions": 1,
                "load": 0.0,
                "chunk_ms": 0.0,
                "worst_ms": 0.0,
            }
        ]
        assert found["sessions"] == [
            {
                "id": session.session,
                "state": "active",
                "engine": engine.id,
                "epoch": 1,
                "seq": 2,
                "slack_ms": 9,
            }
        ]


async def test_drain(world: World) -> None:
    """An order for an engine is recorded; unknown engines and broken bodies are refused."""
    json_type = {"content_type": "application/json"}
    async with world.engine() as engine, world.gateway() as gateway:
        body = json.dumps({"engine": engine.id}).encode()
        assert (await ask(gateway, "/v1/admin/drain", "POST", body, **json_type))[0] == 202
        record = await world.store.get_engine(engine.id)
        assert record is not None and record.drain_ordered
        other = json.dumps({"engine": EngineId("e_99999999")}).encode()
        assert (await ask(gateway, "/v1/admin/drain", "POST", other, **json_type))[0] == 404
        for broken in (b"", b"[]", b'{"engine": 5}', b"{" * 5000):
            assert (await ask(gateway, "/v1/admin/drain", "POST", broken, **json_type))[0] == 400


async def test_migrate(world: World) -> None:
    """What can't be done is refused with a sentence that says why."""
    json_type = {"content_type": "application/json"}

    async def order(session: str, engine: str) -> tuple[int, str]:
        body = json.dumps({"session": session, "engine": engine}).encode()
        status, _, answer = await ask(gateway, "/v1/admin/migrate", "POST", body, **json_type)
        return status, json.loads(answer).get("error", {}).get("message", "")

    async with world.engine() as engine, world.gateway() as gateway, client_of(gateway) as client:
        session = (await begin(client, engine)).session
        assert await order(session, engine.id) == (409, "the session is there already")
        assert (await order(session, "e_99999999"))[0] == 404
        assert (await order("s_9999999999999999", engine.id))[0] == 404
        other = EngineId("e_00000042")
        await world.store.register_engine(other, url="ws://h:1/link", model=MODEL, capacity=1)
        assert await order(session, other) == (202, "")
        record = await world.store.get_session(SessionId(session))
        assert record is not None and record.move_to == other
        parts = json.dumps({"session": f"{session}:inputs", "engine": engine.id}).encode()  # of another key
        for broken in (b"", b'{"engine": "e_1"}', b'{"session": "s", "engine": 5}', parts):
            assert (await ask(gateway, "/v1/admin/migrate", "POST", broken, **json_type))[0] == 400


async def test_metrics(world: World) -> None:
    """Relayed parts, sessions by state, TTFC and the cluster's engines are counted."""
    async with world.engine() as engine, world.gateway() as gateway, client_of(gateway) as client:
        session = await begin(client, engine)
        await engine.send_chunk(SessionId(session.session), 0)
        await client.recv()
        await client.recv()
        await until(lambda: gateway.hub.cluster_feed.sample_age_s() < 3600)
        text = (await ask(gateway, "/metrics"))[2].decode()
        for line in (
            "turboserve_gateway_parts_total 2.0",
            'turboserve_gateway_sessions{state="active"} 1.0',
            "turboserve_gateway_ttfc_seconds_count 1.0",
            "turboserve_gateway_relay_seconds_count 2.0",
            "turboserve_gateway_links 1.0",
            'turboserve_cluster_engines{state="ready"} 1.0',
            'turboserve_engine_capacity{engine="e_00000001"} 64.0',
        ):
            assert line in text.split("\n"), line


REFUSALS = [
    ("foreign Host", "GET", "/", {"host": "evil.example"}, 403),
    ("foreign Host with our port", "GET", "/v1/cluster", {"host": "evil.example:8080"}, 403),
    ("foreign Origin", "GET", "/v1/cluster", {"origin": "https://evil.example"}, 403),
    ("null Origin", "GET", "/", {"origin": "null"}, 403),
    ("POST without JSON", "POST", "/v1/admin/drain", {"content_type": "text/plain"}, 415),
    ("GET of a POST route", "GET", "/v1/admin/drain", {}, 405),
    ("POST to a page", "POST", "/", {"content_type": "application/json"}, 405),
    ("unknown path", "GET", "/nothing", {}, 404),
    ("unknown path of the API", "GET", "/v1/nothing", {}, 404),
    ("POST to an unknown path of the API", "POST", "/v1/nothing", {"content_type": "application/json"}, 404),
    ("a stream without upgrade", "GET", "/v1/stream", {}, 426),
]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS]
)
async def test_refusals(world: World, method: str, path: str, headers: dict[str, str], status: int) -> None:
    """Who asks wrongly gets the status that says so, and below /v1/ the reason as JSON."""
    async with world.gateway() as gateway:
        found, answer_headers, body = await ask(gateway, path, method, **headers)
        assert found == status
        assert status != 405 or answer_headers["allow"]
        if path.startswith("/v1/"):
            assert set(json.loads(body)["error"]) == {"code", "message"}
        else:
            assert answer_headers["content-type"].startswith("text/plain")


async def test_configured_hosts_and_origins(world: World) -> None:
    """Names and pages that the operator allows are served."""
    settings = {
        "allowed_hosts": ("video.example",),
        "allowed_origins": ("https://page.example",),
        "insecure": True,
    }
    async with world.gateway(**settings) as gateway:
        assert (await ask(gateway, "/healthz", host="video.example:8080"))[0] == 200
        assert (await ask(gateway, "/healthz", origin="https://page.example"))[0] == 200


async def test_pages_of_configured_origins_may_read_answers(world: World) -> None:
    """Browsers ask before they send a token or JSON, and show the page what is marked for its origin only."""
    ours, asks = "https://page.example", {"access-control-request-method": "POST"}
    path = "/v1/sessions/s_0000000000000000/watch"
    async with world.gateway(allowed_origins=(ours,)) as gateway:
        status, headers, _ = await ask(gateway, path, "OPTIONS", origin=ours, **asks)
        assert (status, headers["access-control-allow-origin"]) == (200, ours)
        assert headers["access-control-allow-methods"] == "POST"
        for expected, (status, headers, _) in (
            (200, await ask(gateway, "/turboserve.js", origin=ours)),
            (400, await ask(gateway, path, "POST", origin=ours, content_type="application/json")),
            (405, await ask(gateway, path, "OPTIONS", origin=ours)),
        ):
            assert (status, headers["access-control-allow-origin"]) == (expected, ours)
        status, headers, _ = await ask(gateway, path, "OPTIONS", origin="https://evil.example", **asks)
        assert status == 403 and "access-control-allow-origin" not in headers
        _, headers, _ = await ask(gateway, "/turboserve.js")
        assert headers["vary"] == "Origin" and "access-control-allow-origin" not in headers


async def test_the_page(world: World) -> None:
    """The page and its modules come with their types, security headers and an ETag that is honoured."""
    async with world.gateway() as gateway:
        status, headers, body = await ask(gateway, "/")
        assert status == 200 and headers["content-type"] == "text/html; charset=utf-8" and b"<html" in body
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in headers["content-security-policy"]
        assert (await ask(gateway, "/", if_none_match=headers["etag"]))[0] == 304
        status, headers, _ = await ask(gateway, "/app.js?v=1")
        assert status == 200 and headers["content-type"] == "text/javascript; charset=utf-8"


@pytest.mark.parametrize(
    "path",
    [
        "/../pyproject.toml",
        "/..%2fpyproject.toml",
        "/%2e%2e/secret.txt",
        "//etc/passwd",
        "/%2fetc/passwd",
        "/sub/../../secret.html",
        "/link.html",
        "/.hidden.html",
        "/__init__.py",
        "/sub",
        "/%00.html",
    ],
)
async def test_nothing_outside_the_folder_can_be_read(world: World, tmp_path: Path, path: str) -> None:
    """No path, link or ending leads to another file."""
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "secret.html").write_text("secret")
    (root / ".hidden.html").write_text("secret")
    (root / "__init__.py").write_text("secret")
    (root / "link.html").symlink_to(tmp_path / "secret.html")
    (root / "index.html").write_text("index")
    async with world.gateway(web_root=str(root)) as gateway:
        assert (await ask(gateway, "/"))[2] == b"index"
        status, _, body = await ask(gateway, path)
        assert status == 404 and b"secret" not in body


async def test_without_redis(own_redis: RedisServer) -> None:  # noqa: F811
    """Alive but not ready, and what needs the store says that it is away."""
    store = await Store.connect(own_redis.url, cluster="away")
    world = World(own_redis.url, "away", store, 1)
    async with world.gateway() as gateway:
        own_redis.kill()
        assert (await ask(gateway, "/healthz"))[0] == 200
        assert (await ask(gateway, "/readyz"))[0] == 503
        status, headers, body = await ask(gateway, "/v1/cluster")
        assert status == 503 and headers["retry-after"]
        assert json.loads(body)["error"]["code"] == "unavailable"
    await store.close()


async def test_a_handler_that_fails_is_answered_500(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As any other error of the path, readable for pages of a configured origin, and counted."""
    ours = "https://page.example"
    async with world.gateway(allowed_origins=(ours,)) as gateway:
        monkeypatch.setattr(gateway.hub.cluster_feed, "answer", lambda: {}["nothing"])
        monkeypatch.setattr(gateway.hub.store, "list_engines", lambda: {}["nothing"])
        status, headers, body = await ask(gateway, "/v1/cluster", origin=ours)
        assert (status, headers["access-control-allow-origin"]) == (500, ours)
        assert json.loads(body)["error"]["code"] == "internal"
        status, _, body = await ask(gateway, "/readyz")
        assert (status, body) == (500, b"internal error\n")
        assert b'turboserve_gateway_faults_total{where="request"} 2.0' in gateway.hub.metrics.page()


async def test_cluster_stream(world: World) -> None:
    """The history first, then the cluster as it is and again as it changes; the gateway's end ends it."""
    async with world.engine() as engine, world.gateway() as gateway, client_of(gateway) as client:
        port = int(gateway.url.rsplit(":", 1)[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET /v1/cluster/stream HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n\r\n".encode())

        async def next_event() -> tuple[str, dict[str, Any]]:
            while not (line := await asyncio.wait_for(reader.readline(), PATIENCE_S)).startswith(b"event: "):
                assert line, "the stream ended"
            data = await reader.readline()
            return line[7:].decode().strip(), json.loads(data.removeprefix(b"data: "))

        name, history = await next_event()
        assert name == "history" and "budget" in history["columns"]
        name, cluster = await next_event()
        assert name == "cluster" and cluster["sessions"] == [] and cluster["t_ms"] > 0
        session = (await begin(client, engine)).session
        while not cluster["sessions"]:
            name, cluster = await next_event()
        assert cluster["sessions"][0]["id"] == session
        asked = json.loads((await ask(gateway, "/v1/cluster"))[2])
        assert set(cluster) == {"t_ms", "num_sessions", *asked} and cluster["num_sessions"] == 1
        await gateway.close()
        assert (await asyncio.wait_for(reader.read(), PATIENCE_S)).endswith(b"0\r\n\r\n")
        writer.close()


async def test_cluster_stream_is_bounded(world: World) -> None:
    """More than 32 readers are refused with a sentence."""
    async with world.gateway() as gateway:
        port = int(gateway.url.rsplit(":", 1)[1])
        writers = []
        for _ in range(32):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET /v1/cluster/stream HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n\r\n".encode())
            await reader.readuntil(b"event: history")
            writers.append(writer)
        assert (await ask(gateway, "/v1/cluster/stream"))[0] == 503
        for writer in writers:
            writer.close()


def test_sample() -> None:
    """Engines that start count for nothing, idle ones not for the worst latency."""
    engines = [
        make_engine("e_00000001", EngineState.READY, load=0.5, chunk_ms=300.0, sessions=2),
        make_engine("e_00000002", EngineState.DRAINING, load=0.1, chunk_ms=900.0, sessions=0),
        make_engine("e_00000003", EngineState.STARTING, load=0.0, chunk_ms=0.0, sessions=0),
    ]
    info = ClusterInfo(policy="slack", budget=3, queue=4, release_interval_ms=1, start_ms=1, term=1)
    assert sample(7, engines, info) == (7, 3, 0.3, 300.0, 2, 4, 600.0)


def make_engine(id: str, state: EngineState, *, load: float, chunk_ms: float, sessions: int) -> EngineRecord:
    return EngineRecord(
        id=EngineId(id),
        state=state,
        url="ws://h:1/link",
        model=MODEL,
        capacity=8,
        sessions=sessions,
        load=load,
        chunk_ms=chunk_ms,
        worst_ms=2 * chunk_ms,
        started_ms=0,
        heartbeat_ms=0,
    )


async def test_usage(world: World) -> None:
    """Closed sessions by subject, and where to go on; broken questions are refused."""
    async with world.engine() as engine, world.gateway() as gateway:
        async with client_of(gateway) as client:
            session = await begin(client, engine)
        await world.store.close_session(SessionId(session.session), "stopped")
        status, _, body = await ask(gateway, "/v1/usage?subject=")
        found = json.loads(body)
        (usage,) = found["usage"]
        assert status == 200 and usage["session"] == session.session and usage["reason"] == "stopped"
        assert {"type", *usage} == set(Usage.__dataclass_fields__)
        for query in ("subject=bob", f"since={found['next']}", f"since={usage['closed_ms'] + 1}"):
            assert json.loads((await ask(gateway, f"/v1/usage?{query}"))[2])["usage"] == []
        for query in ("since=yesterday", "since=-", "until=5"):
            assert (await ask(gateway, f"/v1/usage?{query}"))[0] == 400
