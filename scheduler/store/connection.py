"""The one place that talks to redis-py: connections, timeouts, and the mapping of its errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import orjson
from redis.asyncio import Redis
from redis.client import NEVER_DECODE
from redis.exceptions import (
    ClusterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from scheduler.keys import Keys
from scheduler.store.errors import ServerTooOld, StoreUnavailable
from scheduler.store.pools import make_pool
from scheduler.store.scripts import script_error, scripts

COMMAND_TIMEOUT_S = 2.0
"""A command that takes longer counts as an unreachable Redis."""
BATCH = 250
"""Keys per round trip of what reads many: a few ms of Redis, and each with COMMAND_TIMEOUT_S of its own."""
MAX_CONNECTIONS = 16
"""Commands at once per process; more wait their turn for up to COMMAND_TIMEOUT_S."""
MAX_BLOCKING_CONNECTIONS = 8
"""Blocking reads at once per process."""
MIN_VERSION = (6, 2)
PASSING_TROUBLES = ("OOM", "MISCONF", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "NOREPLICAS")
"""Codes of a server that answers but can't serve now: out of memory, its disk full, being failed over."""
PASSING_ERRORS = (OutOfMemoryError, ReadOnlyError, ClusterDownError, TryAgainError, NoScriptError)
"""The same where redis-py knows the code and takes it out of the text; since Redis 7 also of what a script
does. NoScriptError: the server is another than the one that was given the scripts a moment ago."""

T = TypeVar("T")
Entry = tuple[str, dict[str, str]]
"""Id and fields of a stream entry."""


class Connection:
    """Two bounded connection pools to one Redis: one for commands, one for blocking reads.

    Every method raises StoreUnavailable instead of redis-py's connection errors, and the StoreError that a
    script's error code names. Nothing is retried here: the caller knows whether a repeat is harmless.
    """

    def __init__(self, url: str, cluster: str) -> None:
        self.keys = Keys(cluster)
        # `mapped_errors` limits commands. redis-py would use asyncio.wait_for, which in Python 3.11 loses a
        # cancellation that comes while the command is being sent.
        options: dict[str, Any] = {"decode_responses": True, "protocol": 2, "socket_timeout": None}
        self._commands = Redis(
            connection_pool=make_pool(
                url, max_connections=MAX_CONNECTIONS, wait_s=COMMAND_TIMEOUT_S, **options
            )
        )
        self._blocking = Redis(
            connection_pool=make_pool(url, max_connections=MAX_BLOCKING_CONNECTIONS, **options)
        )
        self._scripts = {name: self._commands.register_script(text) for name, text in scripts().items()}

    async def open(self) -> None:
        """Check the server. Raises StoreUnavailable, ServerTooOld."""
        async with mapped_errors():
            info: dict[str, Any] = await self._commands.info("server")
        version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
        if version < MIN_VERSION:
            raise ServerTooOld(f"Redis 6.2 or newer is needed, the server is {info['redis_version']}")

    async def close(self) -> None:
        """Close every connection. Blocking reads in flight end with StoreUnavailable."""
        for client in (self._commands, self._blocking):
            await close_client(client)

    @property
    def client(self) -> Any:
        """For single commands, inside `mapped_errors()`. Any: redis-py types sync and async alike."""
        return self._commands

    def pipeline(self) -> Any:
        """For several commands in one round trip (not atomic), inside `mapped_errors()`."""
        return self._commands.pipeline(transaction=False)

    async def get_bytes(self, key: str) -> bytes | None:
        """A string that is not text."""
        async with mapped_errors():
            found: bytes | None = await self.client.execute_command("GET", key, **{NEVER_DECODE: True})
        return found

    async def run(self, script: str, key: str, *args: str | int | float | bytes) -> Any:
        """Run the Lua script `script` on its subject's key."""
        async with mapped_errors():
            return await self._scripts[script](keys=[key], args=args)

    async def run_many(self, script: str, calls: Sequence[tuple[str, tuple[str | int, ...]]]) -> list[Any]:
        """Run one script on several subjects in one round trip; a refused one yields its StoreError."""
        # Closed here: a pipeline that fails or is cancelled while it loads scripts keeps its connection.
        async with mapped_errors(), self.pipeline() as pipe:
            for key, args in calls:
                await self._scripts[script](keys=[key], args=args, client=pipe)
            results = await pipe.execute(raise_on_error=False)
        return [_store_error(r) if isinstance(r, RedisError) else r for r in results]

    async def read_hashes(self, keys: Sequence[str]) -> list[dict[str, str]]:
        """Hashes in one round trip, {} for one that does not exist. At most BATCH keys, see `batches`."""
        async with mapped_errors():
            text: str = await self._scripts["read_hashes"](keys=keys)
        found: list[dict[str, str]] = orjson.loads(text)
        return found

    async def read_members(self, key: str) -> list[str]:
        """Members of a sorted set in order, however many, in one round trip."""
        return list(orjson.loads(await self.run("read_members", key)))

    async def read_outlines(self, after: str, created_ms: str) -> list[tuple[str, str, list[str]]]:
        """At most BATCH entries of `read_outlines.lua` behind a session ("" for the first)."""
        key = self.keys.key("sessions")
        return list(orjson.loads(await self.run("read_outlines", key, after, created_ms, BATCH)))

    async def run_commands(self, commands: Sequence[tuple[str, ...]]) -> list[Any]:
        """Replies to any number of commands, BATCH in a round trip."""
        replies: list[Any] = []
        for batch in batches(commands):
            pipe = self.pipeline()
            for command in batch:
                pipe.execute_command(*command)
            async with mapped_errors():
                replies += await pipe.execute()
        return replies

    async def read_streams(
        self, after: Mapping[str, str], *, block_ms: int, count: int
    ) -> dict[str, list[Entry]]:
        """XREAD over the given keys, each after its id. block_ms 0 returns at once. Safe to cancel."""
        client: Any = self._blocking if block_ms > 0 else self._commands
        async with mapped_errors(block_ms / 1000 + COMMAND_TIMEOUT_S):
            reply = await client.xread(dict(after), count=count, block=block_ms or None)
        return {key: [entry for entry in entries if entry[1]] for key, entries in reply or ()}


async def close_client(client: Redis) -> None:
    """All its connections. One whose end takes long, on a machine that stands still, is closed all the same:
    that redis-py gives up waiting for it is nobody's error."""
    for end in (client.aclose, client.connection_pool.disconnect):
        with suppress(RedisTimeoutError):
            await end()


def batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """The same in order, at most BATCH at a time."""
    return (items[at : at + BATCH] for at in range(0, len(items), BATCH))


@asynccontextmanager
async def mapped_errors(timeout_s: float | None = None) -> AsyncIterator[None]:
    """Limit what is inside to timeout_s, COMMAND_TIMEOUT_S unless given, and turn redis-py's errors into the
    StoreError tree."""
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT_S if timeout_s is None else timeout_s):
            yield
    except (RedisError, OSError) as exc:  # TimeoutError, the builtin, is an OSError
        raise _store_error(exc) from exc


def _store_error(exc: RedisError | OSError) -> Exception:
    """What an error means to our callers, raised or among the replies to a pipeline."""
    if isinstance(exc, ResponseError):
        return _response_error(exc)
    if isinstance(exc, RedisConnectionError | RedisTimeoutError | OSError):
        return StoreUnavailable(f"Redis can't be reached: {str(exc) or 'no answer in time'}")
    return StoreUnavailable(f"Redis can't be used: {exc}")


def _response_error(exc: ResponseError) -> Exception:
    """What an error reply means to our callers: an error inside a script carries the code in its text."""
    text = str(exc)
    known = script_error(text)
    if known is not None:
        return known
    words = text.replace("-", " ").split()
    if isinstance(exc, NoPermissionError) or "NOPERM" in words:
        return StoreUnavailable(f"the Redis user of the URL lacks a permission: {text}")
    if isinstance(exc, PASSING_ERRORS) or any(code in words for code in PASSING_TROUBLES):
        return StoreUnavailable(f"Redis can't serve now: {text}")
    return exc
