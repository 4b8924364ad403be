"""Reading a cluster for all who look at it: how much, how often, and what they are sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway import cluster_reader
from gateway.cluster_feed import ClusterFeed
from gateway.cluster_reader import EVERY_S, MAX_LISTED, SHOWN_PER_S, ClusterReader, rest_s
from gateway.cluster_view import Snapshot
from gateway.http import Response
from scheduler.messages import EngineId, EngineRecord, Phase, SessionId
from scheduler.store import StoreUnavailable
from scheduler.store.values import ClusterInfo, Decision, SessionOutline


class Source:
    """A cluster of `count` sessions, told in parts of two, as soon as `gate` is open."""

    def __init__(self, count: int = 0) -> None:
        self.count = count
        self.num_reads = 0
        """Of all sessions."""
        self.clock_ms = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.reading = asyncio.Event()

    async def now_ms(self) -> int:
        self.clock_ms += 1
        return self.clock_ms

    async def list_engines(self) -> list[EngineRecord]:
        return []

    async def count_sessions(self) -> int:
        return self.count

    async def read_outlines(self) -> AsyncIterator[list[SessionOutline]]:
        self.num_reads += 1
        self.reading.set()
        await self.gate.wait()
        for at in range(0, self.count, 2):
            yield [outline(number) for number in range(at, min(at + 2, self.count))]

    async def cluster_info(self) -> ClusterInfo:
        return ClusterInfo(policy="slack", budget=3, queue=1, release_interval_ms=1, start_ms=1, term=1)

    async def decisions(self, count: int) -> list[Decision]:
        return [Decision(at_ms=7, text="placed")][:count]


def outline(number: int) -> SessionOutline:
    return SessionOutline(
        id=SessionId(f"s_{number:016x}"),
        phase=Phase.PLACED,
        active=number % 2 == 0,
        engine=EngineId("e_00000001"),
        epoch=1,
        next_seq=number,
        slack_ms=5,
    )


def value(snapshot: Snapshot, **more: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(b"".join(snapshot.pieces(**more)))
    return found


@pytest.mark.parametrize("count", [0, 1, 5])
async def test_the_pieces_are_one_object(count: int) -> None:
    """With every session once, whatever the parts, and the entries that were asked for."""
    snapshot = await ClusterReader(Source(count)).read_whole()
    found = value(snapshot, t_ms=9)
    assert [session["seq"] for session in found["sessions"]] == list(range(-1, count - 1))
    assert [session["state"] for session in found["sessions"]] == [
        "active",
        "idle",
        "active",
        "idle",
        "active",
    ][:count]
    assert (found["t_ms"], found["policy"], found["budget"], found["queue"]) == (9, "slack", 3, 1)
    assert found["decisions"] == [{"t_ms": 7, "text": "placed"}]
    assert set(value(snapshot)) == {"engines", "sessions", "budget", "queue", "policy", "decisions"}


async def test_a_crowd_is_counted_and_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page costs what the engines do, however many sessions there are; few enough are listed again."""
    monkeypatch.setattr(cluster_reader, "LISTED_AGAIN", MAX_LISTED - 1)
    source = Source()
    reader = ClusterReader(source)
    for count, is_listed in ((MAX_LISTED, True), (MAX_LISTED + 1, False), (MAX_LISTED, False), (4, True)):
        source.count, source.num_reads = count, 0
        snapshot = await reader.read_shown()
        assert (source.num_reads, snapshot.num_sessions) == (is_listed, count)
        assert len(value(snapshot)["sessions"]) == (count if is_listed else 0)
        assert snapshot.num_records == (count if is_listed else 0)


def test_the_page_is_sent_less_often_what_is_more() -> None:
    """So many records a second."""
    assert rest_s(10) == rest_s(round(SHOWN_PER_S * EVERY_S)) == EVERY_S
    assert rest_s(10 * SHOWN_PER_S) == 10


async def test_who_asks_for_everything_shares_a_read() -> None:
    """Whoever comes while it is read gets, with all others who came meanwhile, what is read after that."""
    source = Source(1)
    source.gate.clear()
    reader = ClusterReader(source)
    first = asyncio.create_task(reader.read_whole())
    await source.reading.wait()
    later = [asyncio.create_task(reader.read_whole()) for _ in range(5)]
    await asyncio.sleep(0)
    source.count = 2
    later.pop().cancel()  # who leaves does not take it from the others
    source.gate.set()
    snapshots = await asyncio.gather(*later)
    assert (await first).now_ms == 1 and {snapshot.now_ms for snapshot in snapshots} == {2}
    assert source.num_reads == 2
    assert (await reader.read_whole()).now_ms == 3


async def test_an_unreadable_store_is_told_to_all_who_ask() -> None:
    """And the next who asks has it read again."""
    source = Source(1)
    reader = ClusterReader(source)

    async def fail() -> list[EngineRecord]:
        raise StoreUnavailable("away")

    source.list_engines, real = fail, source.list_engines  # type: ignore[method-assign]
    asked = [asyncio.create_task(reader.read_whole()) for _ in range(2)]
    for result in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(result, StoreUnavailable)
    source.list_engines = real  # type: ignore[method-assign]
    assert (await reader.read_whole()).num_sessions == 1


async def test_all_who_watch_see_one_reader() -> None:
    """Each state is read once and sent to everybody."""
    source = Source(3)
    feed = ClusterFeed(source)
    running = asyncio.create_task(feed.run())
    try:
        seen = await asyncio.gather(*(watch(feed.respond(), 2) for _ in range(8)))
    finally:
        running.cancel()
    assert len(set(seen)) == 1 and source.num_reads == 2


async def watch(response: Response, count: int) -> tuple[int, ...]:
    """Times of the first states that a watcher is sent."""
    assert not isinstance(response.body, bytes)
    times: list[int] = []
    async for data in response.body:
        if data.startswith(b"event: cluster"):
            times.append(json.loads(data.split(b"data: ")[1])["t_ms"])
        if len(times) == count:
            break
    await response.body.aclose()
    return tuple(times)
