"""A gateway's side of the link, for tests."""

from __future__ import annotations

import asyncio
from typing import TypeVar

import av
from websockets.asyncio.client import ClientConnection, connect

from scheduler.messages import (
    LINK_REPLIES,
    ChunkPart,
    Event,
    LinkReply,
    LinkRequest,
    SessionId,
    Subscribe,
    decode_json,
    encode_json,
    unframe_media,
)
from scheduler.store import Store
from tests.patience import PATIENCE_S

SECRET = "the link's secret"
R = TypeVar("R", bound=LinkReply)


class LinkClient:
    """Connects to an engine and notes what it says."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.payloads: dict[tuple[int, int], bytes] = {}
        """(seq, part) → access units."""
        self.order: list[LinkReply] = []

    @classmethod
    async def open(cls, url: str, secret: str = SECRET) -> LinkClient:
        headers = {"Authorization": f"Bearer {secret}"}
        return cls(await connect(url, additional_headers=headers, compression=None, max_size=2**24))

    async def close(self) -> None:
        await self.socket.close()

    async def send(self, request: LinkRequest) -> None:
        await self.socket.send(encode_json(request).decode())

    async def subscribe(
        self,
        session: SessionId,
        next_seq: int = 0,
        *,
        epoch: int = 1,
        controller_epoch: int = 1,
        next_frame: int | None = None,
    ) -> None:
        await self.send(
            Subscribe(
                session=session,
                epoch=epoch,
                controller_epoch=controller_epoch,
                next_seq=next_seq,
                next_frame=next_frame,
            )
        )

    async def receive(self) -> LinkReply:
        """The next message of any kind."""
        async with asyncio.timeout(PATIENCE_S):
            data = await self.socket.recv()
        if isinstance(data, str):
            message: LinkReply = decode_json(LINK_REPLIES, data)
        else:
            header, payload = unframe_media(data)
            message = decode_json(LINK_REPLIES, header)
            assert isinstance(message, ChunkPart)
            self.payloads[message.seq, message.part] = bytes(payload)
        self.order.append(message)
        return message

    async def until(self, kind: type[R]) -> R:
        """The next message of this kind; the ones before it are in `order`."""
        while True:
            message = await self.receive()
            if isinstance(message, kind):
                return message

    async def until_event(self, store: Store, tag: str, session: SessionId) -> Event:
        """The first event of this kind about a session that the cluster knows."""
        position = "0-0"
        while True:
            events = await store.read_events(position, block_ms=5_000)
            for _, event in events:
                if event.type == tag and getattr(event, "session", None) == session:
                    return event
            position = events[-1][0] if events else position

    async def until_opened(self, store: Store, session: SessionId) -> None:
        """Wait until the session's owner said that it generates."""
        await self.until_event(store, "session_opened", session)

    async def chunk(self) -> ChunkPart:
        """Receive until a chunk is complete; returns its last header."""
        while True:
            part = await self.until(ChunkPart)
            if part.part + 1 == part.parts:
                return part

    def decoded_frames(self, seq: int) -> int:
        """Frames that chunk `seq` decodes to on its own."""
        units = [self.payloads[key] for key in sorted(self.payloads) if key[0] == seq]
        decoder = av.CodecContext.create("h264", "r")
        decoder.thread_count = 1
        frames = [f for unit in units for p in decoder.parse(unit) for f in decoder.decode(p)]
        frames += [f for p in decoder.parse(b"") for f in decoder.decode(p)]
        return len(frames) + len(decoder.decode(None))
