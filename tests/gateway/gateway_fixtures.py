"""A gateway in this process on a real Redis, and a plain client to poke it with."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from gateway import protocol as wire
from gateway.config import GatewayConfig
from gateway.server import Gateway
from scheduler.messages import SessionId
from scheduler.store import Store, draw_id
from tests.gateway.scripted_engine import SECRET, ScriptedEngine, scripted_engine
from tests.patience import PATIENCE_S

M = TypeVar("M")

_serial = itertools.count()


def make_cluster_name() -> str:
    return f"gateway-{next(_serial)}"


class Client:
    """Sends raw frames or messages, receives typed ones. Media is kept apart in `parts`."""

    def __init__(self, ws: ClientConnection, codec: wire.Codec) -> None:
        self.ws = ws
        self.codec = codec

    async def send(self, *messages: wire.ClientMessage) -> None:
        for message in messages:
            await self.ws.send(self.codec.encode_control(message))

    async def recv(self) -> wire.ServerMessage | wire.ChunkHeader:
        data = await asyncio.wait_for(self.ws.recv(), PATIENCE_S)
        if self.codec.is_media(data):
            return self.codec.decode_media(data)[0]
        return self.codec.decode_control(wire.SERVER_MESSAGES, data)

    async def expect(self, kind: type[M], *, skip: tuple[type, ...] = (wire.Queued,)) -> M:
        """The next message that is not to be skipped, which must be of this kind."""
        while True:
            message = await self.recv()
            if isinstance(message, kind):
                return message
            assert isinstance(message, skip), message

    async def close_code(self) -> int | None:
        """Read until the server closes."""
        try:
            while True:
                await asyncio.wait_for(self.ws.recv(), PATIENCE_S)
        except ConnectionClosed as exc:
            return exc.rcvd.code if exc.rcvd is not None else None


class World:
    """One cluster: its store, gateways, a leader's term."""

    def __init__(self, redis_url: str, cluster: str, store: Store, term: int) -> None:
        self.redis_url = redis_url
        self.cluster = cluster
        self.store = store
        self.term = term

    @asynccontextmanager
    async def gateway(self, **settings: object) -> AsyncIterator[Gateway]:
        values: dict[str, object] = {
            "port": 0,
            "link_secret": SECRET,
            "gateway_id": draw_id("g", 4),
            **settings,
        }
        config = GatewayConfig(redis=self.redis_url, cluster=self.cluster, **values)  # type: ignore[arg-type]
        store = await Store.connect(self.redis_url, cluster=self.cluster)
        gateway = Gateway(config, store)
        await gateway.start()
        try:
            yield gateway
        finally:
            await gateway.close()
            await store.close()

    @asynccontextmanager
    async def engine(self, name: str = "e_00000001") -> AsyncIterator[ScriptedEngine]:
        async with scripted_engine(self.store, name, self.term) as engine:
            yield engine


@asynccontextmanager
async def client_of(
    gateway: Gateway,
    subprotocol: str = wire.JSON_SUBPROTOCOL,
    extra_subprotocols: Sequence[str] = (),
    port: int | None = None,
    **options: object,
) -> AsyncIterator[Client]:
    """`port`: of another way to it."""
    url = gateway.url.replace("http", "ws") if port is None else f"ws://127.0.0.1:{port}"
    async with connect(
        url + "/v1/stream",
        subprotocols=[subprotocol, *extra_subprotocols],
        compression=None,
        proxy=None,
        **options,  # type: ignore[arg-type, list-item]
    ) as ws:
        yield Client(ws, wire.CODECS[subprotocol])


async def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1, which is its own authority, and its key."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    name = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
    new = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    command = [*new, "-days", "2", "-keyout", str(key), "-out", str(cert), *name]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True, timeout=PATIENCE_S)
    return cert, key


async def begin(client: Client, engine: ScriptedEngine, **fields: object) -> wire.Session:
    """Start a session and let the engine serve it."""
    await client.send(wire.Start(prompt="a red ball", **fields))  # type: ignore[arg-type]
    session = await client.expect(wire.Session)
    await engine.take(SessionId(session.session))
    await engine.accept(SessionId(session.session))
    await client.expect(wire.State, skip=(wire.Queued, wire.Accepted))
    return session


@asynccontextmanager
async def make_world(redis_url: str) -> AsyncIterator[World]:
    cluster = make_cluster_name()
    store = await Store.connect(redis_url, cluster=cluster)
    await store.mark_new()
    term = await store.acquire_lease("test", 600_000)
    assert term is not None
    yield World(redis_url, cluster, store, term)
    await store.close()
