"""Connection pools to the Redis of a URL: over TCP, TLS, a Unix socket, or found through sentinels."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from redis.asyncio import (
    BlockingConnectionPool,
    ConnectionPool,
    Sentinel,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff

from scheduler.address import RedisAddress, parse_address

__all__ = ["make_pool"]

CONNECT_TIMEOUT_S = 2.0
UNSENT_MS = 2_000
"""What a server has not received by then, it never shall. A system goes on sending for minutes what was
written to a connection that has been closed since, and a command that counts as failed would be run long
after."""


class _SentinelPool(SentinelConnectionPool):
    """Asks the sentinels at each new connection; closes its connections to them with its own."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:  # else the master has changed, and the sentinels are being asked just now
            for sentinel in self.sentinel_manager.sentinels:
                await sentinel.aclose()


class _BlockingSentinelPool(_SentinelPool, BlockingConnectionPool):
    """The same; whoever finds no free connection waits, as its second base does."""


def make_pool(
    url: str, *, max_connections: int, wait_s: float | None = None, **options: Any
) -> ConnectionPool:
    """At most so many connections; more wait for wait_s, or are refused at once where it is None.

    No hidden retries: an input appended twice would be applied twice. Nothing is connected yet.

    Raises:
        ValueError: the url can't be used, or a file that it names can't be read.
    """
    address = parse_address(url)
    options |= {
        "max_connections": max_connections,
        "retry": Retry(NoBackoff(), 0),
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "db": address.db,
        "username": address.username,
        "password": address.password,
    }
    if wait_s is not None:
        options["timeout"] = wait_s
    if address.service:
        sentinel_pool: Any = _SentinelPool if wait_s is None else _BlockingSentinelPool
        pool: ConnectionPool = sentinel_pool(
            address.service, _sentinels(address), ssl=address.is_tls, **options, **_unsent(), **_tls(address)
        )
        return pool
    kind = ConnectionPool if wait_s is None else BlockingConnectionPool
    return kind(**options, **_endpoint(address))


def _endpoint(address: RedisAddress) -> dict[str, Any]:
    if address.path:
        return {"connection_class": UnixDomainSocketConnection, "path": address.path}
    host, port = address.hosts[0]
    where = {"host": host, "port": port, **_unsent()}
    return where | {"connection_class": SSLConnection} | _tls(address) if address.is_tls else where


def _unsent() -> dict[str, Any]:
    if not hasattr(socket, "TCP_USER_TIMEOUT"):  # not Linux
        return {}
    return {"socket_keepalive": True, "socket_keepalive_options": {socket.TCP_USER_TIMEOUT: UNSENT_MS}}


def _tls(address: RedisAddress) -> dict[str, Any]:
    if not address.is_tls:
        return {}
    for name in (address.ca_certs, address.certfile, address.keyfile):
        if name is not None and not Path(name).is_file():
            raise ValueError(f"redis: there is no file {name} with certificates or a key")
    return {
        "ssl_ca_certs": address.ca_certs,
        "ssl_certfile": address.certfile,
        "ssl_keyfile": address.keyfile,
        "ssl_check_hostname": address.check_hostname,
    }


def _sentinels(address: RedisAddress) -> Sentinel:
    """The sentinels themselves are spoken to as the server is: with TLS or without."""
    kwargs: dict[str, Any] = {
        "socket_connect_timeout": CONNECT_TIMEOUT_S / 2,
        "socket_timeout": CONNECT_TIMEOUT_S / 2,
        "retry": Retry(NoBackoff(), 0),
        "username": address.sentinel_username,
        "password": address.sentinel_password,
    }
    if address.is_tls:
        kwargs |= {"ssl": True} | _tls(address)
    make: Any = Sentinel  # untyped
    sentinels: Sentinel = make(list(address.hosts), sentinel_kwargs=kwargs)
    return sentinels
