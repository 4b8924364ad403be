"""Reads the cluster's state for all who look at it: one read at a time, and only so many records a second.

Redis and the streams of this gateway come first: sessions are read in parts, between which the event loop is
free.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final, Protocol

from gateway.cluster_view import Snapshot, describe_cluster, describe_sessions
from scheduler.messages import EngineRecord
from scheduler.store.values import ClusterInfo, Decision, SessionOutline

__all__ = ["MAX_LISTED", "ClusterReader", "ClusterSource", "rest_s"]

MAX_LISTED: Final = 2_000
"""Sessions that the page is shown one by one; of more it gets their number."""
LISTED_AGAIN: Final = 1_800
"""Once there were more, so few must be left: the page shall not change with each who comes or goes."""
EVERY_S: Final = 0.5
"""The page is sent a new state so often, if there is not much to read."""
SHOWN_PER_S: Final = 2_000
"""Records read for the page: 1 to 2 % of a core."""
WHOLE_PER_S: Final = 20_000
"""Records read for `/v1/cluster`."""
DECISIONS: Final = 50


class ClusterSource(Protocol):
    """Where the state comes from: the store, or a simulation. Its methods may raise StoreError."""

    async def now_ms(self) -> int: ...
    async def list_engines(self) -> list[EngineRecord]: ...
    async def count_sessions(self) -> int: ...
    def read_outlines(self) -> AsyncIterator[list[SessionOutline]]: ...
    async def cluster_info(self) -> ClusterInfo: ...
    async def decisions(self, count: int) -> list[Decision]: ...


class ClusterReader:
    """`read_shown` for the page, `read_whole` for who asks for everything."""

    def __init__(self, source: ClusterSource) -> None:
        self._source = source
        self._turn = asyncio.Lock()
        self._whole_turn = asyncio.Lock()
        self._is_crowded = False
        self._next_whole: asyncio.Task[Snapshot] | None = None
        """Has not begun to read."""
        self._wholes: set[asyncio.Task[Snapshot]] = set()
        self._rested_s = 0.0
        """When everything may be read again, by the loop's clock."""

    def close(self) -> None:
        """End what is being read."""
        for task in tuple(self._wholes):
            task.cancel()

    async def read_shown(self) -> Snapshot:
        """Sessions one by one if they are few, else how many. Raises StoreError."""
        async with self._turn:
            return await self._read(LISTED_AGAIN if self._is_crowded else MAX_LISTED)

    async def read_whole(self) -> Snapshot:
        """Everything, as it is after this call. Raises StoreError.

        While it is being read for somebody, all who come wait together for the read after that.
        """
        if self._next_whole is None:
            task = self._next_whole = asyncio.get_running_loop().create_task(self._read_next())
            self._wholes.add(task)
            task.add_done_callback(self._forget)
        return await asyncio.shield(self._next_whole)  # who leaves does not take it from the others

    async def _read_next(self) -> Snapshot:
        loop = asyncio.get_running_loop()
        async with self._whole_turn:
            await asyncio.sleep(self._rested_s - loop.time())
            async with self._turn:
                self._next_whole = None
                snapshot = await self._read(None)
            self._rested_s = loop.time() + snapshot.num_records / WHOLE_PER_S
            return snapshot

    def _forget(self, task: asyncio.Task[Snapshot]) -> None:
        self._wholes.discard(task)
        if self._next_whole is task:  # it was cancelled
            self._next_whole = None
        if not task.cancelled():
            task.exception()  # everybody who asked may have left

    async def _read(self, max_listed: int | None) -> Snapshot:
        source = self._source
        now_ms, num_sessions = await source.now_ms(), await source.count_sessions()
        is_listed = max_listed is None or num_sessions <= max_listed
        if max_listed is not None:
            self._is_crowded = not is_listed
        parts: list[bytes] = []
        if is_listed:
            num_sessions = 0
            async for outlines in source.read_outlines():
                num_sessions += len(outlines)
                parts.append(describe_sessions(outlines))
        info, decisions = await source.cluster_info(), await source.decisions(DECISIONS)
        engines = await source.list_engines()  # last: those that sessions name are there or gone
        head = describe_cluster(engines, info, decisions)
        return Snapshot(
            now_ms=now_ms,
            head=head,
            num_sessions=num_sessions,
            num_records=len(engines) + (num_sessions if is_listed else 0),
            parts=parts,
        )


def rest_s(num_records: int) -> float:
    """Between two reads for the page, after one of so many records."""
    return max(EVERY_S, num_records / SHOWN_PER_S)
