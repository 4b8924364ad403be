"""A client on a thin network, over real sockets: it ends up with the video at the lower rung, all of it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.encoder import EncodedPart, SessionEncoder
from gateway import protocol as wire
from gateway.client_chunks import Chunk, ChunkAssembler
from gateway.client_playback import Playhead
from gateway.connection import ClientConnection
from gateway.listener import ListenerLimits
from gateway.server import Gateway
from gateway.websocket import SocketLimits
from scheduler.messages import (
    ChooseRungs,
    ChunkPart,
    Credit,
    Rung,
    SessionId,
    SessionState,
    StateChanged,
    Subscribe,
    Subscribed,
    Unwatch,
    Watch,
    encode_json,
    frame_media,
)
from tests.gateway.gateway_fixtures import Client, World, begin, client_of
from tests.gateway.scripted_engine import ScriptedEngine, make_part

MEGABYTE = 1_000_000
PATIENCE_S = 60
MEDIA_HEAD_BYTES = 4096
"""More than any."""
CHUNK_S, CHUNK_FRAMES, SIDE = 0.5, 12, 96
BYTES_PER_S = 13_000
"""The thin network: FULL is some 22 kB/s here, LOW some 8."""
PIECE_BYTES = 650
MAX_AHEAD = 3
"""Chunks that are sent and not acknowledged, as a `lead_ms` of a second allows."""
AT_LOW = 2
"""Chunks that must arrive at the lower rung while there is a full one too."""


def scene(seq: int) -> NDArray[np.uint8]:
    """Grain that scrolls over a ramp, which takes bytes; a square whose brightness is the chunk's number."""
    grain = np.random.default_rng(seq).integers(0, 48, (2 * SIDE, SIDE, 3), np.uint8)
    ramp = np.arange(SIDE, dtype=np.uint8)[:, None, None]
    frames = np.stack([grain[k : k + SIDE] + ramp for k in range(CHUNK_FRAMES)])
    frames[:, 32:64, 32:64] = 16 * (seq % 16)
    return frames


def is_scene(chunk: Chunk) -> bool:
    """Does the chunk decode, to the pictures of its number?"""
    pictures = chunk.frames()
    wanted = 16 * (chunk.seq % 16)
    return len(pictures) == CHUNK_FRAMES and all(
        abs(float(picture[40:56, 40:56].mean()) - wanted) < 6 for picture in pictures
    )


@dataclass
class Streamer:
    """Makes real video on a scripted engine: just in time for its controller, at what gateways choose."""

    engine: ScriptedEngine
    session: SessionId
    rungs: tuple[Rung, ...] = (Rung.FULL,)
    sizes: dict[tuple[int, Rung], int] = field(default_factory=dict)
    """Bytes of each (chunk, rung) that was sent."""
    chosen: list[tuple[Rung, ...]] = field(default_factory=list)
    acked_seq: int = -1
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen())
            tasks.create_task(self._stream())

    async def until_chosen(self, *rungs: Rung) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.rungs != rungs:
                self.changed.clear()
                await self.changed.wait()

    async def _listen(self) -> None:
        while True:
            match await self.engine.requests.get():
                case Credit(seq=seq):
                    self.acked_seq = seq
                case ChooseRungs(rungs=rungs):
                    self.rungs = rungs
                    self.chosen.append(rungs)
                case Watch(session=session, epoch=epoch):
                    state = StateChanged(session=session, epoch=epoch, state=SessionState.ACTIVE)
                    await self.engine.say(state)
                case Unwatch():
                    pass
                case other:
                    raise AssertionError(other)
            self.changed.set()

    async def _stream(self) -> None:
        coder = SessionEncoder(width=SIDE, height=SIDE, fps=24)
        loop = asyncio.get_running_loop()
        for seq in itertools.count():
            due_s = loop.time() + CHUNK_S
            while seq - self.acked_seq > MAX_AHEAD:
                self.changed.clear()
                await self.changed.wait()
            for made in coder.encode(scene(seq), self.rungs):
                alone = made.rung or self.rungs[0]
                self.sizes[seq, alone] = len(made.payload)
                await self.engine.links[-1].send(
                    frame_media(encode_json(self._header(seq, made)), made.payload)
                )
            await asyncio.sleep(due_s - loop.time())

    def _header(self, seq: int, made: EncodedPart) -> ChunkPart:
        plain = make_part(self.session, self.engine.epochs[self.session], seq)
        return replace(plain, sizes=made.sizes, rung=made.rung)


@asynccontextmanager
async def thin_network(gateway: Gateway) -> AsyncIterator[int]:
    """The port of a way to the gateway on which little comes back, and little lies about meanwhile."""
    port = urlsplit(gateway.url).port
    assert port is not None

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(PIECE_BYTES):
            writer.write(data)
        writer.close()

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(PIECE_BYTES):
            writer.write(data)
            await asyncio.sleep(len(data) / BYTES_PER_S)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        way = socket.socket()
        way.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        way.setblocking(False)
        await asyncio.get_running_loop().sock_connect(way, ("127.0.0.1", port))
        back, forth = await asyncio.open_connection(sock=way, limit=PIECE_BYTES)
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(forward(reader, forth), trickle(back, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def chunks(client: Client, *, acks: bool) -> AsyncIterator[Chunk]:
    """What a player gets, whole chunks in order, each acknowledged when it is here. A gap is an error."""
    assembler, playhead, loop = ChunkAssembler(), Playhead(), asyncio.get_running_loop()
    async for data in client.ws:
        if not client.codec.is_media(data):
            message = client.codec.decode_control(wire.SERVER_MESSAGES, data)
            assert isinstance(message, wire.State | wire.Accepted), message
            continue
        header, payload = client.codec.decode_media(data)
        if assembler.next_seq == 0 and not acks:  # a viewer begins where the session is
            assembler.next_seq = header.seq
        chunk = assembler.add(header, payload)
        if chunk is not None:
            now_ms = loop.time() * 1000
            playhead.delivered(chunk.pts_ms, chunk.end_ms, now_ms)
            if acks:
                await client.send(wire.Ack(seq=chunk.seq, buffer_ms=playhead.buffer_ms(now_ms)))
            yield chunk


def size(chunk: Chunk) -> int:
    return sum(map(len, chunk.units))


def sample(page: bytes, name: str) -> float:
    """A figure of the metrics page."""
    return next(float(line.split()[1]) for line in page.decode().splitlines() if line.startswith(name))


async def test_a_client_on_a_thin_network_ends_up_at_the_lower_rung(world: World) -> None:
    """It gets every chunk, and at last at a rate that its network carries; a viewer beside it gets the same
    at the full one. When the viewer has gone, there is no full one any more.
    """
    async with world.engine() as engine, world.gateway() as gateway, thin_network(gateway) as port:
        async with client_of(gateway, port=port) as slow, asyncio.TaskGroup() as tasks:
            session = await begin(slow, engine)
            streamer = Streamer(engine, SessionId(session.session))
            streaming = tasks.create_task(streamer.run())
            async with client_of(gateway) as viewer:
                await viewer.send(wire.Watch(session=session.session))
                await viewer.expect(wire.Session)
                seen: list[Chunk] = []
                watching = tasks.create_task(collect(viewer, seen))
                got = chunks(slow, acks=True)
                low = 0
                taken: list[Chunk] = []
                async with asyncio.timeout(PATIENCE_S):
                    while low < AT_LOW:
                        taken.append(await anext(got))
                        low += size(taken[-1]) == streamer.sizes.get((taken[-1].seq, Rung.LOW))
                watching.cancel()
            page = gateway.hub.metrics.page()
            await streamer.until_chosen(Rung.LOW)
            async with asyncio.timeout(PATIENCE_S):
                taken += [await anext(got) for _ in range(MAX_AHEAD + 2)]
            streaming.cancel()
    assert [chunk.seq for chunk in taken] == list(range(len(taken)))
    assert all(map(is_scene, taken)) and seen and all(map(is_scene, seen))
    at_low = [size(chunk) == streamer.sizes.get((chunk.seq, Rung.LOW)) for chunk in taken]
    assert at_low == sorted(at_low) and not at_low[0]
    rates = {rung: [n / CHUNK_S for (_, at), n in streamer.sizes.items() if at is rung] for rung in Rung}
    assert max(rates[Rung.LOW]) < BYTES_PER_S < min(rates[Rung.FULL])
    assert all(size(chunk) == streamer.sizes[chunk.seq, Rung.FULL] for chunk in seen)
    assert streamer.chosen == [(Rung.FULL, Rung.LOW), (Rung.LOW,)]
    assert (taken[-1].seq, Rung.FULL) not in streamer.sizes
    assert sample(page, 'turboserve_gateway_rung_changes_total{to="low"}') == 1


async def test_a_client_that_never_reads_costs_no_more_than_its_queue(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for it, in the transport too, stays below the limit until it is cut; then nothing does."""
    queued: list[int] = []
    unsent: list[int] = []

    def receive_chunk(self: ClientConnection, *args: Any) -> None:
        received(self, *args)
        assert self._socket is not None
        queued.append(self._socket.queued_bytes)
        unsent.append(self._socket._transport.get_write_buffer_size())

    received = ClientConnection.receive_chunk
    monkeypatch.setattr(ClientConnection, "receive_chunk", receive_chunk)
    async with world.engine() as engine, world.gateway(send_timeout_s=PATIENCE_S) as gateway:
        async with client_of(gateway, max_queue=1) as client:
            session = SessionId((await begin(client, engine)).session)
            seqs = itertools.count()
            async with asyncio.timeout(PATIENCE_S):
                while gateway.hub.connections:
                    part = replace(make_part(session, 1, next(seqs)), frames=1, sizes=(MEGABYTE,))
                    await engine.links[-1].send(frame_media(encode_json(part), bytes(MEGABYTE)))
                    await asyncio.sleep(0)
            client.ws.transport.abort()
    limit = SocketLimits().queue_bytes
    assert limit - 2 * MEGABYTE < max(queued) <= limit and queued[-1] == 0
    assert max(unsent) < ListenerLimits().write_high_bytes + MEGABYTE + MEDIA_HEAD_BYTES


async def collect(viewer: Client, seen: list[Chunk]) -> None:
    got = chunks(viewer, acks=False)
    while True:
        seen.append(await anext(got))


async def read_on(client: Client) -> None:
    async for _ in client.ws:
        pass


async def test_the_next_owner_hears_of_the_lower_rung_too(world: World) -> None:
    """And so does the same one when its link was cut; a gateway where nobody fell says nothing."""
    async with (
        world.engine() as engine,
        world.gateway(send_timeout_s=PATIENCE_S) as gateway,
        world.gateway(send_timeout_s=PATIENCE_S, low_rung=False) as stubborn,
    ):
        async with (
            client_of(gateway) as controller,
            client_of(gateway, max_queue=1) as viewer,
            client_of(stubborn, max_queue=1) as other,
        ):
            session = SessionId((await begin(controller, engine)).session)
            for client in (viewer, other):
                await client.send(wire.Watch(session=session))
                await engine.expect(Watch)
            reading = asyncio.create_task(read_on(controller))
            link, other_link = engine.links
            for seq in range(30):
                part = replace(make_part(session, 1, seq), frames=1, sizes=(MEGABYTE,))
                for each in (link, other_link):
                    await each.send(frame_media(encode_json(part), bytes(MEGABYTE)))
            assert await engine.expect(ChooseRungs) == ChooseRungs(session=session, rungs=tuple(Rung))
            link.transport.abort()
            assert {type(await engine.requests.get()) for _ in range(2)} == {Subscribe, Watch}
            state = Subscribed(session=session, epoch=1, start_seq=30, state=SessionState.ACTIVE)
            await engine.say(state)
            assert await engine.expect(ChooseRungs) == ChooseRungs(session=session, rungs=tuple(Rung))
            reading.cancel()
            for client in (viewer, other):  # they would never read the answer to a close
                client.ws.transport.abort()
