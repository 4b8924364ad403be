"""One client of a load test against a scripted server: what it tells of each thing that can go wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Self

import pytest

from gateway.client import Client, ConnectionLost, Session
from gateway.client_stream import OnPart
from gateway.protocol import ChunkHeader
from launch.loadtest import player
from launch.loadtest.load import Do, Script, Step
from launch.loadtest.player import Player
from launch.loadtest.samples import (
    ChunkSeen,
    Edited,
    Ended,
    Fault,
    FirstPart,
    GapSaid,
    Outcome,
    Refused,
    Sample,
    Started,
)
from tests.browser.stream_server import StreamServer, stream_server


@pytest.fixture
async def server() -> AsyncIterator[StreamServer]:
    async with stream_server() as instance:
        instance.faults.gen_s = 0
        yield instance


class Watched:
    """A player and everything that it has told."""

    def __init__(self, url: str, *steps: tuple[float, Do], decode: bool = False) -> None:
        self.samples: list[Sample] = []
        self._news = asyncio.Event()
        script = Script(
            client=7, steps=tuple(Step(at_s=at_s, do=do, prompt="a red ball") for at_s, do in steps), seed=1
        )
        self._player = Player(script, url, begin_s=time.monotonic(), decode=decode, put=self._put)

    def _put(self, sample: Sample) -> None:
        self.samples.append(sample)
        self._news.set()

    async def run(self) -> Ended:
        """To its end; how it was."""
        async with asyncio.timeout(30):
            await self._player.run()
        assert all(getattr(sample, "client", 7) == 7 for sample in self.samples)
        ended = self.samples[-1]
        assert isinstance(ended, Ended)
        return ended

    async def until(self, kind: type[Sample]) -> None:
        """Something of this kind was told."""
        async with asyncio.timeout(30):
            while not self.of(kind):
                self._news.clear()
                await self._news.wait()

    def of(self, kind: type[Sample]) -> list[Sample]:
        return [sample for sample in self.samples if isinstance(sample, kind)]


async def test_a_session_from_start_to_stop(server: StreamServer) -> None:
    """Accepted, a first part, every chunk in order, a prompt that reaches the picture, its own end."""
    watched = Watched(server.url, (0.0, Do.START), (1.5, Do.PROMPT), (5.0, Do.STOP), decode=True)
    ended = await watched.run()
    assert (ended.outcome, ended.reason) == (Outcome.DONE, "")
    chunks = [sample for sample in watched.samples if isinstance(sample, ChunkSeen)]
    assert [chunk.seq for chunk in chunks] == list(range(ended.chunks)) and chunks
    assert len(watched.of(Started)) == len(watched.of(FirstPart)) == len(watched.of(Edited)) == 1
    assert ended.played_ms > 0 and ended.gaps == 0


async def test_cut_connections_are_no_loss(server: StreamServer) -> None:
    """The session goes on, and the stream is whole."""
    watched = Watched(server.url, (0.0, Do.START), (0.3, Do.CUT), (1.5, Do.STOP))
    ended = await watched.run()
    assert (ended.outcome, ended.cuts, server.attaches) == (Outcome.DONE, 1, 1)


async def test_a_prompt_of_a_paused_viewer_is_not_timed(server: StreamServer) -> None:
    """It waits for the viewer, not for the server."""
    steps = ((0.0, Do.START), (0.3, Do.PAUSE), (0.5, Do.PROMPT), (1.0, Do.RESUME), (3.0, Do.STOP))
    watched = Watched(server.url, *steps)
    ended = await watched.run()
    assert ended.outcome is Outcome.DONE and server.only.rev == 1 and not watched.of(Edited)


async def test_a_session_that_gets_nothing_tells_how_long_it_waited(server: StreamServer) -> None:
    """Up to its stop; not while it was paused."""
    server.faults.queue = asyncio.Event()  # which never comes
    ended = await Watched(server.url, (0.0, Do.START), (0.3, Do.STOP)).run()
    assert (ended.outcome, ended.chunks) == (Outcome.DONE, 0)
    assert ended.waited_ms is not None and 0.0 < ended.waited_ms <= ended.at_ms
    paused = await Watched(server.url, (0.0, Do.START), (0.0, Do.PAUSE), (1.5, Do.STOP)).run()
    assert paused.waited_ms is not None and paused.waited_ms < 1_500.0 <= paused.at_ms


async def test_who_got_a_chunk_or_no_session_waited_for_nothing(server: StreamServer) -> None:
    """The one has its time to the first chunk, the other was told at once."""
    assert (await Watched(server.url, (0.0, Do.START), (1.5, Do.STOP)).run()).waited_ms is None
    server.faults.refusals.append({"code": "capacity", "message": "all places are taken"})
    assert (await Watched(server.url, (0.0, Do.START), (60.0, Do.STOP)).run()).waited_ms is None


async def test_a_gap_is_counted(server: StreamServer) -> None:
    """By the chunks that it takes away."""
    server.faults.gap_at = 1
    watched = Watched(server.url, (0.0, Do.START), (2.5, Do.STOP))
    ended = await watched.run()
    assert ended.outcome is Outcome.DONE and ended.gaps > 0
    assert sum(gap.chunks for gap in watched.samples if isinstance(gap, GapSaid)) == ended.gaps


async def test_a_server_that_goes_away_is_a_lost_session(server: StreamServer) -> None:
    """With the reason; what was played until then counts."""
    watched = Watched(server.url, (0.0, Do.START), (60.0, Do.STOP))
    running = asyncio.create_task(watched.run())
    await watched.until(ChunkSeen)
    await server.close_all(4404)
    ended = await running
    assert ended.outcome is Outcome.LOST and "no longer exists" in ended.reason


async def test_a_session_that_may_not_come_back_is_lost(server: StreamServer) -> None:
    """It had started: nobody refused that."""
    watched = Watched(server.url, (0.0, Do.START), (60.0, Do.STOP))
    running = asyncio.create_task(watched.run())
    await watched.until(ChunkSeen)
    server.faults.refusals.append({"code": "unsupported", "message": "not this one"})
    server.abort_all()
    ended = await running
    assert (ended.outcome, ended.reason) == (Outcome.LOST, "not this one")
    assert not watched.of(Refused)


async def test_a_first_chunk_that_comes_again_is_one_first(server: StreamServer) -> None:
    """The connection was lost amid it."""
    server.faults.parts, server.faults.cut_in_chunk = 2, 0
    watched = Watched(server.url, (0.0, Do.START), (2.5, Do.STOP))
    assert (await watched.run()).outcome is Outcome.DONE
    assert server.attaches == 1 and len(watched.of(FirstPart)) == 1


class Eager(Client):
    """Reads the server's word that it has started, and the first part, in one go; then it is lost."""

    def __init__(self) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def start(self, prompt: str, *, on_part: OnPart | None = None, **_: object) -> Session:  # type: ignore[override]
        assert on_part is not None
        await on_part(
            ChunkHeader(
                **{"session": "s", "seq": 0, "part": 0, "parts": 1, "key": True, "frames": 1, "sizes": (1,)},
                **{"pts_ms": 0.0, "duration_ms": 62.5, "codec": "h264", "rev": 0, "engine": "e"},
            )
        )
        raise ConnectionLost("gone")


async def test_a_first_part_that_comes_with_the_start_has_not_been_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rather than since the load's start."""
    monkeypatch.setattr(player, "connect", lambda *_, **__: Eager())
    watched = Watched("http://nowhere", (0.001, Do.START), (60.0, Do.STOP))
    assert (await watched.run()).outcome is Outcome.LOST
    (first,) = watched.of(FirstPart)
    assert isinstance(first, FirstPart) and first.ttfc_ms == 0.0 and first.at_ms > 0.0


async def test_repeated_chunks_are_faults(server: StreamServer) -> None:
    """The client library forgives them; a load test does not."""
    server.faults.overlap_chunks = 1
    watched = Watched(server.url, (0.0, Do.START), (1.5, Do.CUT), (4.0, Do.STOP))
    ended = await watched.run()
    assert ended.outcome is Outcome.DONE
    faults = [sample.what for sample in watched.samples if isinstance(sample, Fault)]
    assert faults and all("came again" in fault for fault in faults)


async def test_a_damaged_chunk_is_a_fault_when_decoded(server: StreamServer) -> None:
    """And is not noticed otherwise."""
    for decode in (True, False):
        server.faults.damaged = range(1)
        watched = Watched(server.url, (0.0, Do.START), (2.5, Do.STOP), decode=decode)
        await watched.run()
        assert bool(watched.of(Fault)) is decode


async def test_a_pause_without_an_answer_is_not_waited_for_for_ever(
    server: StreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told, and the script goes on to its stop."""
    monkeypatch.setattr(player, "ANSWER_S", 0.5)
    server.faults.ignore_pauses = True
    watched = Watched(server.url, (0.0, Do.START), (0.1, Do.PAUSE), (2.5, Do.STOP))
    assert (await watched.run()).outcome is Outcome.DONE
    (refused,) = watched.of(Refused)
    assert isinstance(refused, Refused) and (refused.what, refused.code) == (
        "pause",
        "not answered for 0.5 s",
    )


async def test_a_refused_start_is_told_with_its_code(server: StreamServer) -> None:
    """The client does nothing more."""
    server.faults.refusals.append({"code": "capacity", "message": "all places are taken"})
    watched = Watched(server.url, (0.0, Do.START), (60.0, Do.STOP))
    ended = await watched.run()
    assert (ended.outcome, ended.reason, ended.chunks) == (Outcome.REFUSED, "capacity", 0)
    (refused,) = watched.of(Refused)
    assert isinstance(refused, Refused) and (refused.what, refused.code) == ("start", "capacity")


async def test_a_session_without_a_server_at_its_stop_is_lost(
    server: StreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However short a time ago that went away: nobody saw the video's end."""
    monkeypatch.setattr(player, "STOP_S", 0.3)
    watched = Watched(server.url, (0.0, Do.START), (1.5, Do.STOP))
    running = asyncio.create_task(watched.run())
    await watched.until(ChunkSeen)
    server.faults.refuse_connections = True
    server.abort_all()
    ended = await running
    assert (ended.outcome, ended.reason) == (Outcome.LOST, "its stop was not answered for 0.3 s")
    assert ended.chunks > 0 and ended.played_ms > 0


async def test_who_goes_on_watching_stands_still_until_the_server_goes_on(
    server: StreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resume that is not answered is no pause."""
    monkeypatch.setattr(player, "ANSWER_S", 0.5)
    monkeypatch.setattr(player, "STOP_S", 0.3)
    steps = ((0.0, Do.START), (0.4, Do.PAUSE), (0.6, Do.RESUME), (3.5, Do.STOP))
    watched = Watched(server.url, *steps)
    running = asyncio.create_task(watched.run())
    await watched.until(ChunkSeen)
    await server.until(lambda: server.only.paused)
    server.go_mute()
    ended = await running
    assert ended.stalled_ms > 0 and ended.played_ms > 0


async def test_a_prompt_that_never_reaches_the_picture_is_told(
    server: StreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the time since it was sent; but for those of a paused viewer."""
    monkeypatch.setattr(player, "STOP_S", 0.3)
    watched = Watched(server.url, (0.0, Do.START), (0.8, Do.PROMPT), (1.5, Do.STOP))
    running = asyncio.create_task(watched.run())
    await watched.until(ChunkSeen)
    server.go_mute()
    (waited_ms,) = (await running).prompts_ms
    assert waited_ms > 0 and not watched.of(Edited)
    steps = ((0.0, Do.START), (0.3, Do.PAUSE), (0.5, Do.PROMPT), (1.5, Do.STOP))
    assert (await Watched(server.url, *steps).run()).prompts_ms == ()


async def test_who_waits_for_an_answer_leaves_when_it_wants_to(server: StreamServer) -> None:
    """Time after that is nobody's stall."""
    server.faults.ignore_pauses = True
    watched = Watched(server.url, (0.0, Do.START), (0.1, Do.PAUSE), (1.0, Do.STOP))
    assert (await watched.run()).outcome is Outcome.DONE and not watched.of(Refused)


async def test_a_prompt_that_a_lost_session_leaves_without_an_answer_is_in_vain(
    server: StreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not refused."""
    monkeypatch.setattr(player, "GIVE_UP_S", 3.0)
    watched = Watched(server.url, (0.0, Do.START), (1.5, Do.PROMPT), (60.0, Do.STOP))
    running = asyncio.create_task(watched.run())
    await watched.until(ChunkSeen)
    server.faults.refuse_connections = True
    server.abort_all()
    ended = await running
    assert ended.outcome is Outcome.LOST and len(ended.prompts_ms) == 1
