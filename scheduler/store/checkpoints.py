"""Where the bytes of checkpoints lie: the control Redis, a second Redis, or a directory.

An object is named once and never changes. The pointer to the newest one lies in the control Redis in any
case and moves under the epoch, so that a writer that lost its session changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from redis.asyncio import Redis

from scheduler.address import is_redis_url
from scheduler.messages import EngineId, SessionId
from scheduler.store.connection import COMMAND_TIMEOUT_S, close_client, mapped_errors
from scheduler.store.engine import EngineStore
from scheduler.store.errors import CheckpointsUnavailable, StaleEpoch, StoreUnavailable
from scheduler.store.pools import make_pool
from scheduler.store.values import CheckpointPointer

__all__ = ["Checkpoints", "open_checkpoints"]

KEPT_S = 3.0
"""How long the bytes before the newest ones are kept: a control Redis that comes back older names them. It
has lost less than that."""
MAX_KEPT = 3
"""Of a session at most so many of them: checkpoints may be large."""

_OBJECT = re.compile(r"s_[0-9a-f]{16}:[0-9]{1,18}:[0-9]{1,18}")
_SWEEP_INTERVAL_S = 60.0
_MAX_CONNECTIONS = 16


class _Objects(Protocol):
    """Raises CheckpointsUnavailable."""

    async def put(self, name: str, data: bytes) -> None:
        """Keep the bytes for as long as the checkpoints' ttl."""

    async def get(self, name: str) -> bytes | None: ...

    async def delete(self, name: str) -> None: ...

    async def close(self) -> None: ...


class Checkpoints:
    """Checkpoints of a cluster, as its engines write and read them.

    Every method raises StoreUnavailable; CheckpointsUnavailable where only the bytes are out of reach.
    """

    def __init__(
        self,
        store: EngineStore,
        objects: _Objects | None,
        *,
        ttl_s: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`objects`: None keeps the bytes in the control Redis. `clock` gives monotonic seconds."""
        self._store, self._objects, self._ttl_s, self._clock = store, objects, ttl_s, clock
        self._superseded: dict[SessionId, deque[tuple[float, str]]] = {}
        """Since when objects of a session are not needed any more; who was written last comes last."""

    async def write(
        self, engine: EngineId, session: SessionId, pointer: CheckpointPointer, data: bytes
    ) -> None:
        """Keep a checkpoint; it counts from when the pointer has moved to it. Those before are dropped: in
        the control Redis at once, elsewhere with later ones of the session.

        Raises:
            StaleEpoch
            CheckpointRefused: too large, or no room.
        """
        name = pointer.object_name(session)
        if self._objects is None:
            await self._store.point_checkpoint(engine, session, pointer, data=data, ttl_s=self._ttl_s)
            return
        await self._objects.put(name, data)
        try:
            unneeded = await self._store.point_checkpoint(
                engine, session, pointer, data=None, ttl_s=self._ttl_s
            )
        except StaleEpoch:
            # Not where an earlier try, whose answer was lost, has moved the pointer: the next owner needs it.
            named = await self._store.checkpoint_pointer(session)
            if named is None or named.object_name(session) != name:
                await self._objects.delete(name)
            raise
        for old in self._supersede(session, unneeded):
            await self._objects.delete(old)

    async def read(self, session: SessionId) -> tuple[CheckpointPointer, bytes | None] | None:
        """(pointer, bytes) of the newest checkpoint; without bytes, what the pointer says still holds."""
        get = self._store.checkpoint_data if self._objects is None else self._objects.get
        pointer = await self._store.checkpoint_pointer(session)
        while pointer is not None:
            data = await get(pointer.object_name(session))
            if data is not None:
                return pointer, data
            before, pointer = pointer, await self._store.checkpoint_pointer(session)
            if pointer == before:
                return before, None
            # Its owner has written a newer one in between, and dropped that one's bytes.
        return None

    def _supersede(self, session: SessionId, name: str | None) -> list[str]:
        """The pointer has just moved on, from `name` if that is known. Returns what may be dropped by now."""
        now_s = self._clock()
        kept = self._superseded.pop(session, deque())
        if name is not None:
            kept.append((now_s, name))
        due: list[str] = []
        while kept and (len(kept) > MAX_KEPT or kept[0][0] <= now_s - KEPT_S):
            due.append(kept.popleft()[1])
        if kept:
            self._superseded[session] = kept
        oldest = next(iter(self._superseded), session)
        if oldest != session and self._superseded[oldest][-1][0] < now_s - self._ttl_s:
            del self._superseded[oldest]  # it has ended; the bytes go by their age
        return due

    async def close(self) -> None:
        """Close what was opened besides the store."""
        if self._objects is not None:
            await self._objects.close()


def open_checkpoints(
    store: EngineStore, where: str | None, *, ttl_s: int, clock: Callable[[], float] = time.monotonic
) -> Checkpoints:
    """`where`: None, the URL of a second Redis, or a directory, which is made. `clock`: see Checkpoints.

    Raises:
        ValueError: the URL can't be used, or the directory can't be made or written to.
    """
    objects: _Objects | None = None
    if where is not None and is_redis_url(where):
        objects = _SecondRedis(where, prefix=store.prefix, ttl_s=ttl_s)
    elif where is not None:
        objects = _Directory(Path(where), ttl_s=ttl_s)
    return Checkpoints(store, objects, ttl_s=ttl_s, clock=clock)


class _SecondRedis:
    def __init__(self, url: str, *, prefix: str, ttl_s: int) -> None:
        pool = make_pool(url, max_connections=_MAX_CONNECTIONS, wait_s=COMMAND_TIMEOUT_S, protocol=2)
        self._client = Redis(connection_pool=pool)
        self._prefix, self._ttl_s = prefix, ttl_s

    async def put(self, name: str, data: bytes) -> None:
        async with _mapped_redis():
            await self._client.set(self._key(name), data, ex=self._ttl_s)

    async def get(self, name: str) -> bytes | None:
        async with _mapped_redis():
            found: Any = await self._client.get(self._key(name))  # typed as text or bytes alike
        return found if isinstance(found, bytes) else None

    async def delete(self, name: str) -> None:
        async with _mapped_redis():
            await self._client.delete(self._key(name))

    async def close(self) -> None:
        await close_client(self._client)

    def _key(self, name: str) -> str:
        return f"{self._prefix}checkpoint:{name}"


class _Directory:
    """One file per object, replaced by nothing: written under another name, then renamed."""

    def __init__(self, folder: Path, *, ttl_s: int) -> None:
        self._folder, self._ttl_s = folder, ttl_s
        self._swept_s = 0.0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise ValueError(f"checkpoints: cannot make the directory {folder}: {exc.strerror}") from exc
        if not os.access(folder, os.W_OK):
            raise ValueError(f"checkpoints: cannot write to the directory {folder}")

    async def put(self, name: str, data: bytes) -> None:
        with _mapped():
            await asyncio.to_thread(self._put, name, data)

    async def get(self, name: str) -> bytes | None:
        with _mapped():
            return await asyncio.to_thread(self._get, name)

    async def delete(self, name: str) -> None:
        with _mapped():
            await asyncio.to_thread(self._path(name).unlink, missing_ok=True)

    async def close(self) -> None:
        pass

    def _put(self, name: str, data: bytes) -> None:
        path = self._path(name)
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(data)
        unfinished.replace(path)
        now_s = time.time()
        if now_s - self._swept_s > _SWEEP_INTERVAL_S:
            self._swept_s = now_s
            self._sweep(now_s - self._ttl_s)

    def _get(self, name: str) -> bytes | None:
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            return None

    def _sweep(self, limit_s: float) -> None:
        """Remove files written before: of sessions that were closed, or of writers that died."""
        for path in self._folder.iterdir():
            with contextlib.suppress(OSError):
                if _OBJECT.fullmatch(path.stem.replace("_at_", ":")) and path.stat().st_mtime < limit_s:
                    path.unlink()

    def _path(self, name: str) -> Path:
        assert _OBJECT.fullmatch(name), f"no object has the name {name!r}"
        return self._folder / f"{name.replace(':', '_at_')}.state"


@contextlib.contextmanager
def _mapped() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise CheckpointsUnavailable(f"the directory of checkpoints can't be used: {exc}") from exc


@contextlib.asynccontextmanager
async def _mapped_redis() -> AsyncIterator[None]:
    try:
        async with mapped_errors():
            yield
    except StoreUnavailable as exc:
        raise CheckpointsUnavailable(f"the Redis of the checkpoints: {exc}") from exc
