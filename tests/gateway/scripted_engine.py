"""A real link server that stands in for an engine and says what the test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from websockets.asyncio.server import Server, ServerConnection, serve

from scheduler.messages import (
    LINK_REQUESTS,
    ChunkPart,
    EngineId,
    LinkReply,
    LinkRequest,
    ModelInfo,
    SessionId,
    SessionState,
    Subscribe,
    Subscribed,
    decode_json,
    encode_json,
    frame_media,
)
from scheduler.store import Store
from tests.patience import PATIENCE_S

SECRET = "link-secret"
MODEL = ModelInfo(
    name="shapes",
    weights_hash="00",
    state_version=1,
    width=96,
    height=96,
    fps=24,
    chunk_frames=12,
    controls=True,
)


class ScriptedEngine:
    """Registered in the store; requests of gateways arrive in `requests`."""

    def __init__(self, engine: EngineId, store: Store, term: int) -> None:
        self.id = engine
        self.store = store
        self.term = term
        self.requests: asyncio.Queue[LinkRequest] = asyncio.Queue()
        self.links: list[ServerConnection] = []
        self.epochs: dict[SessionId, int] = {}
        self._server: Server | None = None

    async def start(self) -> None:
        self._server = await serve(self._serve, "127.0.0.1", 0, compression=None)
        port = self._server.sockets[0].getsockname()[1]
        await self.store.register_engine(self.id, url=f"ws://127.0.0.1:{port}/link", model=MODEL, capacity=64)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def cut(self) -> None:
        """Drop every link without a goodbye."""
        for link in self.links:
            link.transport.abort()
        self.links.clear()

    async def take(self, session: SessionId, expect_epoch: int = 0) -> int:
        """Become the owner of a session and announce it."""
        epoch = await self.store.place_session(session, self.id, expect_epoch=expect_epoch, term=self.term)
        self.epochs[session] = epoch
        await self.store.announce_session(self.id, session, epoch)
        return epoch

    async def expect(self, kind: type[LinkRequest]) -> LinkRequest:
        """The next request, which must be of this kind."""
        request = await asyncio.wait_for(self.requests.get(), PATIENCE_S)
        assert isinstance(request, kind), request
        return request

    async def accept(self, session: SessionId, *, start_seq: int | None = None) -> Subscribe:
        """Wait for a subscription and answer it."""
        request = await self.expect(Subscribe)
        assert isinstance(request, Subscribe) and request.session == session
        await self.say(
            Subscribed(
                session=session,
                epoch=request.epoch,
                start_seq=request.next_seq if start_seq is None else start_seq,
                state=SessionState.ACTIVE,
            )
        )
        return request

    async def say(self, reply: LinkReply) -> None:
        await self.links[-1].send(encode_json(reply).decode())

    async def send_chunk(
        self, session: SessionId, seq: int, *, parts: int = 2, upto: int | None = None
    ) -> None:
        """Send a chunk of `parts` parts, or only its first `upto`."""
        for part in range(parts if upto is None else upto):
            await self.send_part(make_part(session, self.epochs[session], seq, part, parts))

    async def send_part(self, header: ChunkPart) -> None:
        payload = b"".join(bytes([header.seq % 256]) * size for size in header.sizes)
        await self.links[-1].send(frame_media(encode_json(header), payload))

    async def _serve(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        assert connection.request.headers["Authorization"] == f"Bearer {SECRET}"
        self.links.append(connection)
        async for data in connection:
            await self.requests.put(decode_json(LINK_REQUESTS, data))


def make_part(session: SessionId, epoch: int, seq: int, part: int = 0, parts: int = 1) -> ChunkPart:
    """A part of a 12-frame chunk whose access units have 10 bytes."""
    frames = 12 // parts
    return ChunkPart(
        session=session,
        epoch=epoch,
        seq=seq,
        part=part,
        parts=parts,
        key=part == 0,
        frames=frames,
        sizes=(10,) * frames,
        pts_ms=500.0 * seq + part * frames * 1000 / 24,
        duration_ms=frames * 1000 / 24,
        codec="h264",
        rev=0,
        gen_ms=123.0 if part == parts - 1 else None,
    )


@asynccontextmanager
async def scripted_engine(store: Store, engine: str, term: int) -> AsyncIterator[ScriptedEngine]:
    scripted = ScriptedEngine(EngineId(engine), store, term)
    await scripted.start()
    try:
        yield scripted
    finally:
        await scripted.stop()
