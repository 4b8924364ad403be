"""A foreign client: raw `websockets`, JSON and msgpack as the protocol page says; nothing of ours."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import av
import msgpack
import numpy as np
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

TIMEOUT_S = 30.0 * float(os.environ.get("TURBOSERVE_TEST_TIME_SCALE", "1"))

Flavour = Literal["json", "msgpack"] | None
Message = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One media message."""

    header: Message
    payload: bytes


@dataclass(slots=True, kw_only=True)
class Chunk:
    """A chunk whose parts all came."""

    parts: list[Part] = field(default_factory=list)

    @property
    def header(self) -> Message:
        return self.parts[0].header

    @property
    def seq(self) -> int:
        return int(self.header["seq"])

    @property
    def rev(self) -> int:
        return int(self.header["rev"])

    @property
    def pts_ms(self) -> float:
        return float(self.header["pts_ms"])

    @property
    def num_frames(self) -> int:
        return sum(part.header["frames"] for part in self.parts)

    @property
    def duration_ms(self) -> float:
        return float(sum(part.header["duration_ms"] for part in self.parts))

    @property
    def payload(self) -> bytes:
        return b"".join(part.payload for part in self.parts)

    def decoded(self) -> list[NDArray[np.uint8]]:
        """Its frames [height, width, 3] RGB, by a decoder that has seen nothing else."""
        decoder = av.CodecContext.create("h264", "r")
        frames = []
        for part in self.parts:
            offset = 0
            for size in part.header["sizes"]:
                frames += decoder.decode(av.Packet(part.payload[offset : offset + size]))
                offset += size
        frames += decoder.decode(None)
        return [frame.to_ndarray(format="rgb24") for frame in frames]


class Wire:
    """One connection: everything that came, in order."""

    def __init__(self, socket: ClientConnection, flavour: Flavour) -> None:
        self.socket, self.flavour = socket, flavour
        self.log: list[Message | Part] = []
        self.chunks: dict[int, Chunk] = {}
        """Complete ones; one that comes again replaces what is held."""
        self.recording = False
        """Acknowledge each complete chunk with an empty buffer."""
        self.lingers = False
        """Leave without a `stop`."""
        self.closed: tuple[int | None, str | None] | None = None
        self._open: Chunk | None = None
        self._news = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    # --- out ---

    async def send(self, type: str, **fields: Any) -> None:
        message = {"type": type, **fields}
        if self.flavour == "msgpack":
            await self.socket.send(b"\x00" + msgpack.packb(message))
        else:
            await self.socket.send(json.dumps(message))

    async def start(self, prompt: str = "a red ball", *, recording: bool = True, **fields: Any) -> Message:
        """Start a session; returns its `session` message."""
        self.recording = recording
        mark = len(self.log)
        await self.send("start", prompt=prompt, **fields)
        return await self.message("session", after=mark)

    async def attach(
        self, session: Message, next_seq: int, *, recording: bool = True, **fields: Any
    ) -> Message:
        """Attach to a session; returns the `session` message."""
        self.recording = recording
        await self.send(
            "attach", session=session["session"], resume=session["resume"], next_seq=next_seq, **fields
        )
        return await self.message("session")

    # --- in ---

    async def _read(self) -> None:
        try:
            async for data in self.socket:
                await self._receive(data)
        except ConnectionClosed:
            pass
        self.closed = (self.socket.close_code, self.socket.close_reason)
        async with self._news:
            self._news.notify_all()

    async def _receive(self, data: str | bytes) -> None:
        entry = self._parse(data)
        self.log.append(entry)
        if isinstance(entry, Part):
            complete = self._assemble(entry)
            if complete and self.recording:
                try:
                    await self.send("ack", seq=entry.header["seq"], buffer_ms=0)
                except ConnectionClosed:
                    pass
        async with self._news:
            self._news.notify_all()

    def _parse(self, data: str | bytes) -> Message | Part:
        if self.flavour == "msgpack":
            assert isinstance(data, bytes), "msgpack knows no text frames"
            if data[0] == 0:
                message: Message = msgpack.unpackb(data[1:])
                return message
            assert data[0] == 1, f"first byte {data[0]}"
            return self._part(data[1:], msgpack.unpackb)
        if isinstance(data, str):
            message = json.loads(data)
            return message
        return self._part(data, json.loads)

    def _part(self, data: bytes, decode: Callable[[bytes], Any]) -> Part:
        (length,) = struct.unpack(">I", data[:4])
        part = Part(header=decode(data[4 : 4 + length]), payload=data[4 + length :])
        assert part.header["type"] == "chunk"
        assert sum(part.header["sizes"]) == len(part.payload)
        assert len(part.header["sizes"]) == part.header["frames"]
        assert ("gen_ms" in part.header) == (part.header["part"] == part.header["parts"] - 1)
        return part

    def _assemble(self, part: Part) -> bool:
        header = part.header
        if header["part"] == 0:
            assert header["key"], "part 0 must start with an IDR"
            self._open = Chunk()
        assert self._open is not None and len(self._open.parts) == header["part"], "a part is missing"
        self._open.parts.append(part)
        if len(self._open.parts) < header["parts"]:
            return False
        self.chunks[header["seq"]] = self._open
        self._open = None
        return True

    async def until(self, condition: Callable[[], Any], what: str = "") -> Any:
        """The first true value of `condition`, looked at whenever something came."""
        try:
            async with asyncio.timeout(TIMEOUT_S), self._news:
                while not (value := condition()):
                    assert self.closed is None, (
                        f"closed {self.closed} while waiting for {what}: {self.tail()}"
                    )
                    await self._news.wait()
                return value
        except TimeoutError:
            raise AssertionError(f"never came: {what}; last {self.tail()}") from None

    def tail(self) -> list[str]:
        """The end of the log, for people."""
        return [_brief(entry) for entry in self.log[-12:]]

    def messages(self, type: str, /, **fields: Any) -> list[Message]:
        """Control messages so far that have these fields."""
        return [m for m in self.log if isinstance(m, dict) and m["type"] == type and _has(m, fields)]

    async def message(self, type: str, /, *, after: int = 0, **fields: Any) -> Message:
        """The first such message behind the first `after` entries of the log."""

        def found() -> Message | None:
            wanted = (m for m in self.log[after:] if isinstance(m, dict) and m["type"] == type)
            return next((m for m in wanted if _has(m, fields)), None)

        message: Message = await self.until(found, f"{type} {fields}")
        return message

    async def chunk(self, seq: int) -> Chunk:
        """That chunk, once it is complete."""
        chunk: Chunk = await self.until(lambda: self.chunks.get(seq), f"chunk {seq}")
        return chunk

    async def close_code(self) -> int | None:
        """How the server closed the connection."""
        async with asyncio.timeout(TIMEOUT_S), self._news:
            while self.closed is None:
                await self._news.wait()
        return self.closed[0]

    async def quiet(self) -> None:
        """A round trip: everything that the gateway said before it has come."""
        mark = len(self.log)
        await self.send("ping", t=mark)
        await self.message("pong", after=mark, t=mark)

    # --- judging ---

    def order(self, type: str, /, **fields: Any) -> int:
        """Place in the log of a message; it is there exactly once."""
        places = [
            k for k, m in enumerate(self.log) if isinstance(m, dict) and m["type"] == type and _has(m, fields)
        ]
        assert len(places) == 1, f"{type} {fields} came {len(places)} times"
        return places[0]

    def order_of_chunk(self, seq: int) -> int:
        """Place in the log of the first part 0 of a chunk."""
        return next(
            k
            for k, p in enumerate(self.log)
            if isinstance(p, Part) and (p.header["seq"], p.header["part"]) == (seq, 0)
        )

    def check_stream(self, *, fps: int, first_seq: int = 0) -> None:
        """Chunks contiguous, media time exactly the frame index."""
        seqs = [p.header["seq"] for p in self.log if isinstance(p, Part) and p.header["part"] == 0]
        assert seqs == list(range(first_seq, first_seq + len(seqs))), seqs
        frame: float | None = None
        for entry in self.log:
            if isinstance(entry, Part):
                header = entry.header
                if frame is None:
                    frame = header["pts_ms"] * fps / 1000
                    assert frame == int(frame)
                assert header["pts_ms"] == frame * 1000 / fps, (header, frame)
                assert header["duration_ms"] == header["frames"] * 1000 / fps
                frame += header["frames"]


def _has(message: Message, fields: Message) -> bool:
    return all(name in message and message[name] == value for name, value in fields.items())


def _brief(entry: Message | Part) -> str:
    if isinstance(entry, Part):
        h = entry.header
        return f"<chunk {h['seq']}.{h['part']}/{h['parts']} rev {h['rev']} {h['engine']}>"
    return str(entry)[:160]


def stream_url(url: str) -> str:
    """Where the WebSocket of a gateway is."""
    return url.replace("http://", "ws://") + "/v1/stream"


@asynccontextmanager
async def wire(url: str, flavour: Flavour = None) -> AsyncIterator[Wire]:
    """A connection to the gateway at `url`; None offers no subprotocol."""
    offered: Any = None if flavour is None else [f"turboserve.v1+{flavour}"]
    async with connect(stream_url(url), subprotocols=offered, max_size=None, compression=None) as socket:
        assert socket.subprotocol == (None if flavour is None else offered[0])
        client = Wire(socket, flavour)
        try:
            yield client
        finally:
            if client.closed is None and not client.lingers:  # slots are few, and are kept for minutes
                with contextlib.suppress(ConnectionClosed):  # of a moment ago, which it has not read yet
                    await client.send("stop")
            await socket.close()
            await client._reader
