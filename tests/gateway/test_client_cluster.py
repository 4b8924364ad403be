"""The Python client against a real cluster and the real model."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Protocol

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.client import Chunk, Session, SessionEnded, TakenOver, connect, record
from gateway.protocol import JSON_SUBPROTOCOL, MSGPACK_SUBPROTOCOL

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

RED_ON_BLUE = "a red ball bouncing on a blue background"
YELLOW_ON_GREEN = "a yellow ball bouncing on a green background"
GREEN, BLUE = 1, 2


class Cluster(Protocol):
    url: str

    def pids(self, prefix: str) -> dict[str, int]: ...


def share(picture: NDArray[np.uint8], channel: int) -> float:
    """Share of the pixels in which one channel clearly exceeds both others."""
    values = picture.astype(int)
    others = np.delete(values, channel, axis=2).max(axis=2)
    return float((values[..., channel] > others + 40).mean())


async def take(session: Session, count: int) -> list[Chunk]:
    return [await anext(session) for _ in range(count)]


@pytest.mark.parametrize(("flavour", "codec"), [(JSON_SUBPROTOCOL, "h264"), (MSGPACK_SUBPROTOCOL, "vp9")])
async def test_steered_session(cluster: Cluster, flavour: str, codec: str) -> None:
    """Chunks are contiguous, carry the revision they were made with, and show the prompt's background."""
    async with connect(cluster.url, flavour=flavour) as client:
        session = await client.start(RED_ON_BLUE, seed=1, accept=("theora", codec), mode="recorder")
        chunks = await take(session, 3)
        assert {session.info.codec, *(chunk.codec for chunk in chunks)} == {codec}
        applied = await session.prompt(YELLOW_ON_GREEN)
        while chunks[-1].seq < applied.seq + 4:
            chunks += await take(session, 1)
        assert [chunk.seq for chunk in chunks] == list(range(len(chunks)))
        assert [chunk.rev for chunk in chunks] == [0] * applied.seq + [applied.rev] * 5
        assert share(chunks[2].frames()[-1], BLUE) > 0.5
        assert share(chunks[-1].frames()[-1], GREEN) > 0.5
        assert [chunk.pts_ms for chunk in chunks] == [
            sum(earlier.num_frames for earlier in chunks[:k]) * 1000 / session.info.fps
            for k in range(len(chunks))
        ]


async def test_every_button(cluster: Cluster) -> None:
    """Pause, resume, reset and stop do what they say, and the client can start again."""
    async with connect(cluster.url) as client:
        session = await client.start(RED_ON_BLUE, seed=1)
        await take(session, 1)
        await session.pause()
        await session.resume()
        before = (await take(session, 1))[-1]
        applied = await session.reset(seed=2)
        assert applied.rev > before.rev
        while (chunk := await anext(session)).seq < applied.seq:
            assert chunk.rev < applied.rev
        assert (chunk.seq, chunk.rev) == (applied.seq, applied.rev)
        await session.stop()
        with pytest.raises(SessionEnded):
            await session.prompt(YELLOW_ON_GREEN)
        again = await client.start(YELLOW_ON_GREEN)
        assert again.id != session.id
        assert (await anext(again)).seq == 0


async def test_attach_takes_over(cluster: Cluster) -> None:
    """A second client attaches from a chunk of its choice; the first is told and stays away."""
    async with connect(cluster.url) as first, connect(cluster.url) as second:
        session = await first.start(RED_ON_BLUE, seed=1)
        chunks = await take(session, 3)
        heir = await second.attach(session.id, session.info.resume, next_seq=1)
        assert [chunk.units for chunk in await take(heir, 2)] == [chunk.units for chunk in chunks[1:]]
        with pytest.raises(TakenOver):
            while True:
                await anext(session)


async def test_recording_has_exactly_its_frames(cluster: Cluster, tmp_path: Path) -> None:
    """The MP4 decodes to as many frames as the recording says: the fewest chunks that reach two seconds."""
    path = tmp_path / "out.mp4"
    recording = await record(cluster.url, RED_ON_BLUE, 2, 7, path)
    with av.open(str(path)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) == recording.num_frames
    assert 2.0 <= recording.duration_s < 2.0 + 0.75
    assert recording.num_frames == round(recording.duration_s * 16)
    assert share(pictures[-1], BLUE) > 0.5


@pytest.mark.faults
async def test_killed_gateway_leaves_no_gap(restored_cluster: Cluster) -> None:
    """kill -9 of the gateway: the client attaches again, chunks contiguous, a prompt sent meanwhile kept."""
    async with connect(restored_cluster.url) as client:
        session = await client.start(RED_ON_BLUE, seed=1, mode="recorder")
        chunks = await take(session, 3)
        os.kill(min(restored_cluster.pids("gateway-").values()), signal.SIGKILL)
        steering = asyncio.create_task(session.prompt(YELLOW_ON_GREEN))
        while not steering.done() or chunks[-1].seq < steering.result().seq:
            chunks += await take(session, 1)
        assert [chunk.seq for chunk in chunks] == list(range(len(chunks)))
        assert chunks[-1].rev == steering.result().rev
