"""A small protocol-v1 server for tests of the page and the Python client: real video, scripted faults.

It stands at the far edge only: what it sends is what a gateway may send, paced by acks. Every fault a test
needs (lost connections, chunks cut in the middle and sent again, gaps, close codes, queueing) is ordered from
outside.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import mimetypes
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import av
import msgpack
import numpy as np
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from engine.codecs import CODECS
from engine.encoder import SessionEncoder
from engine.encoder_child import ChildEncoder
from scheduler.messages import Rung

WEB = Path(__file__).resolve().parents[2] / "web_demo"
FPS = 16
CHUNK_FRAMES = 12
SIDE = 96
REPLAY_CHUNKS = 16
COLOURS = {
    "red": (235, 45, 45), "green": (20, 190, 60), "blue": (25, 60, 200), "yellow": (250, 225, 55),
    "black": (8, 8, 8), "white": (250, 250, 250), "purple": (120, 40, 170), "orange": (255, 145, 35),
}  # fmt: skip


def colours_of(prompt: str) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Object and background colour: the first and the last colour word of a prompt."""
    found = [COLOURS[word] for word in prompt.lower().split() if word in COLOURS]
    return (found or [COLOURS["white"]])[0], (found[1:] or [COLOURS["black"]])[-1]


def draw(prompt: str, index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Frame `index` of a bouncing ball, RGB [SIDE, SIDE, 3]; the top row of blocks is `index` in binary."""
    fore, back = colours_of(prompt)
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    cy = SIDE - 22 - abs(np.sin(index * 0.13)) * 50
    cx = SIDE / 2 + np.sin(index * 0.05) * 26
    inside = np.clip(15.5 - np.hypot(y - cy, x - cx), 0, 1)[..., None]
    picture = np.array(back) * (1 - inside) + np.array(fore) * inside
    for bit in range(12):
        picture[0:6, bit * 8 : bit * 8 + 8] = 255 if index >> bit & 1 else 0
    return picture.astype(np.uint8)


class Encoder:
    """One key frame per chunk, one access unit per frame."""

    def __init__(self, codec: str = "h264") -> None:
        self.codec = codec
        self._coder = SessionEncoder(width=SIDE, height=SIDE, fps=FPS, codec=codec)

    def encode(
        self, pictures: list[np.ndarray[Any, np.dtype[np.uint8]]], rung: Rung = Rung.FULL
    ) -> list[bytes]:
        (part,) = self._coder.encode(np.stack(pictures), (rung,))
        ends = list(itertools.accumulate(part.sizes))
        return [part.payload[end - size : end] for end, size in zip(ends, part.sizes, strict=True)]

    def encode_losing_it(self, pictures: list[np.ndarray[Any, np.dtype[np.uint8]]]) -> list[bytes]:
        """The same, but the encoder's process is killed amid the chunk: a key frame comes there too."""
        half = len(pictures) // 2
        at_work = self._coder._at_work[Rung.FULL]
        assert isinstance(at_work, ChildEncoder) and at_work.pid is not None
        units = at_work.encode(np.stack(pictures[:half]), key=True)
        os.kill(at_work.pid, signal.SIGKILL)
        return units + at_work.encode(np.stack(pictures[half:]), key=False)

    def close(self) -> None:
        self._coder.close()


@dataclass(slots=True)
class Chunk:
    seq: int
    rev: int
    units: list[bytes]
    applied: list[dict[str, Any]]
    """What is told before it: the inputs that it is the first to show."""


@dataclass(slots=True)
class Session:
    id: str
    resume: str
    prompt: str
    lead_ms: float
    rev: int = 0
    chunks: list[Chunk] = field(default_factory=list)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    answers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    paused: bool = False
    sent_seq: int = -1
    acked_seq: int = -1
    buffer_ms: float = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    socket: ServerConnection | None = None
    encoder: Encoder = field(default_factory=Encoder)
    messages: list[dict[str, Any]] = field(default_factory=list)
    viewers: list[ServerConnection] = field(default_factory=list)


@dataclass(slots=True)
class Faults:
    """What to do wrong. Tests change these while the server runs."""

    gen_s: float = 0.05
    parts: int = 1
    cut_in_chunk: int | None = None
    """Abort the connection after part 0 of this chunk, once; needs parts > 1."""
    away_after_cut: bool = False
    """Refuse connections from that moment on."""
    gap_at: int | None = None
    """Skip this chunk and say so, once."""
    lose_encoder_in: int | None = None
    """Kill the encoder amid this chunk. AV1 only."""
    low_chunks: range = range(0)
    """Chunks that come at the lower rung."""
    damaged: range = range(0)
    """Chunks that come with their first access unit overwritten."""
    hold_chunks: asyncio.Event | None = None
    """Sessions have a place, and nothing is generated for them until it is set."""
    queue: asyncio.Event | None = None
    """New sessions wait in line until it is set."""
    close_on_start: tuple[int, dict[str, Any]] | None = None
    close_starts: int | None = None
    """So many of them; None: all."""
    refusals: list[dict[str, Any]] = field(default_factory=list)
    """Errors that answer the next starts and attaches, one each; the connection stays open."""
    hold_start: asyncio.Event | None = None
    """Starts are not answered until it is set."""
    hold_inputs: asyncio.Event | None = None
    """Prompts and resets are not taken until it is set, as while the cluster's records are away."""
    stray_error: dict[str, Any] | None = None
    """An error about some other message, said once before a start or attach is answered."""
    overlap_chunks: int = 0
    """Send so many chunks before `next_seq` again after an attach."""
    refuse_connections: bool = False
    part_gap_s: float = 0
    """Wait so long before each part: a thin network."""
    ignore_pauses: bool = False
    """Never answer a pause."""


class Line(ServerConnection):
    """A connection that can die without a word: it stays open, and nothing comes through."""

    is_mute = False

    async def send(self, *args: Any, **options: Any) -> None:
        if not self.is_mute:
            await super().send(*args, **options)


class StreamServer:
    """Sessions outlive their sockets. `url` is the address of the page."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.sessions: dict[str, Session] = {}
        self.attaches = 0
        self.asked_from: list[int] = []
        """The `next_seq` of each attach."""
        self.out_of_place: list[dict[str, Any]] = []
        """Messages that came without a session on their connection, and were refused."""
        self._server: Server | None = None
        self._news = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://localhost:{next(iter(self._server.sockets)).getsockname()[1]}"

    @property
    def only(self) -> Session:
        (session,) = self.sessions.values()
        return session

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that this server knows has become true."""
        async with self._news:
            await self._news.wait_for(condition)

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()

    def abort_all(self) -> None:
        """Break every connection without a closing handshake."""
        for session in self.sessions.values():
            if session.socket is not None:
                session.socket.transport.abort()

    def go_mute(self) -> None:
        """Say nothing more on the connections that there are, not even a pong."""
        for session in self.sessions.values():
            if session.socket is not None:
                assert isinstance(session.socket, Line)
                session.socket.is_mute = True

    async def close_all(self, code: int) -> None:
        for session in self.sessions.values():
            if session.socket is not None:
                await session.socket.close(code)

    async def open(self, server: Server) -> None:
        self._server = server

    async def close(self) -> None:
        if self.faults.hold_start is not None:
            self.faults.hold_start.set()  # else its handler would never end
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for session in self.sessions.values():
            session.encoder.close()

    def serve_file(self, connection: ServerConnection, request: Request) -> Response | None:
        """Static files; None lets the WebSocket handshake go on."""
        if request.path.startswith("/v1/stream"):
            if self.faults.refuse_connections:
                return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "")
            return None
        path = WEB / (request.path.split("?")[0].lstrip("/") or "index.html")
        if path.parent != WEB or not path.is_file():
            return connection.respond(HTTPStatus.NOT_FOUND, "")
        body = path.read_bytes()
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        headers = Headers({"Content-Type": kind, "Content-Length": str(len(body)), "Connection": "close"})
        return Response(200, "OK", headers, body)

    async def handle(self, socket: ServerConnection) -> None:
        session: Session | None = None
        try:
            async for data in socket:
                message = unpack(socket, data)
                if message["type"] in ("start", "attach"):
                    session = await self._open(socket, message)
                elif message["type"] == "watch":
                    await self._watch(socket, message)
                elif message["type"] == "ping":
                    await say(socket, type="pong", t=message["t"])
                elif session is None and not self._is_viewer(socket):
                    await self._refuse(socket, message)
                elif session is not None and session.socket is socket:
                    await self._take(session, socket, message)
        except ConnectionClosed:
            pass
        finally:
            if session is not None and session.socket is socket:
                session.socket = None
            await self._tell()

    async def _open(self, socket: ServerConnection, message: dict[str, Any]) -> Session | None:
        await self._tell()
        if self.faults.stray_error is not None:
            await say(socket, type="error", **self.faults.stray_error)
            self.faults.stray_error = None
        if self.faults.refusals:
            await say(socket, type="error", **self.faults.refusals.pop(0))
            await self._tell()
            return None
        return await (self._start if message["type"] == "start" else self._attach)(socket, message)

    async def _refuse(self, socket: ServerConnection, message: dict[str, Any]) -> None:
        """As a gateway does it: the error names the message, if that has a name."""
        self.out_of_place.append(message)
        about = {"id": message["id"]} if "id" in message else {}
        text = "there is no session on this connection"
        await say(socket, type="error", code="bad_state", message=text, **about)

    def _is_viewer(self, socket: ServerConnection) -> bool:
        return any(socket in session.viewers for session in self.sessions.values())

    async def _start(self, socket: ServerConnection, message: dict[str, Any]) -> Session | None:
        if self.faults.close_on_start is not None and self.faults.close_starts != 0:
            if self.faults.close_starts is not None:
                self.faults.close_starts -= 1
            code, error = self.faults.close_on_start
            await say(socket, **error)
            await socket.close(code)
            return None
        session = Session(
            f"s_{secrets.token_hex(8)}", secrets.token_hex(16), message["prompt"], message["lead_ms"]
        )
        session.encoder = Encoder(next(codec for codec in message.get("accept", ["h264"]) if codec in CODECS))
        session.messages.append(message)
        self.sessions[session.id] = session
        session.socket = socket
        await self._tell()
        if self.faults.hold_start is not None:
            await self.faults.hold_start.wait()
        await say_session(socket, session)
        if "id" in message:
            await say(socket, type="accepted", id=message["id"])
        if self._is_queued():
            await say(socket, type="queued", position=2, eta_ms=12_000)
        task = asyncio.create_task(self._generate(session))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return session

    async def _attach(self, socket: ServerConnection, message: dict[str, Any]) -> Session | None:
        self.attaches += 1
        self.asked_from.append(message["next_seq"])
        session = self.sessions.get(message["session"])
        if session is None or session.resume != message["resume"]:
            await socket.close(4404)
            return None
        older, session.socket = session.socket, None
        if older is not None:
            await older.close(4409)
        await say_session(socket, session)
        if self._is_queued():
            await say(socket, type="state", state="queued", engine=None, reason="")
            await say(socket, type="queued", position=2, eta_ms=12_000)
        else:
            await say_state(socket, session)
        oldest = max(0, len(session.chunks) - REPLAY_CHUNKS)
        if message["next_seq"] < oldest:
            await say(socket, type="gap", from_seq=message["next_seq"], to_seq=oldest - 1)
        seq = max(oldest, message["next_seq"] - self.faults.overlap_chunks)
        while seq < len(session.chunks):  # it may grow while earlier chunks are being sent
            for applied in session.chunks[seq].applied:
                await say(socket, **applied)
            await self._send_chunk(session, socket, session.chunks[seq], parts=2)
            seq += 1
        session.socket = socket
        session.changed.set()
        return session

    async def _watch(self, socket: ServerConnection, message: dict[str, Any]) -> None:
        session = self.sessions.get(message["session"])
        if session is None:
            await say(socket, type="error", code="unsupported", message="this server takes no viewers")
            return
        await say_session(socket, session, resume="")
        await say_state(socket, session)
        session.viewers.append(socket)

    def _is_queued(self) -> bool:
        return self.faults.queue is not None and not self.faults.queue.is_set()

    async def _take(self, session: Session, socket: ServerConnection, message: dict[str, Any]) -> None:
        session.messages.append(message)
        name = message.get("id")
        if name in session.answers:
            for answer in session.answers[name]:
                await say(socket, **answer)
            return
        match message["type"]:
            case "ack":
                session.acked_seq, session.buffer_ms = message["seq"], message["buffer_ms"]
            case "pause" if self.faults.ignore_pauses:
                pass
            case "pause" | "resume":
                session.paused = message["type"] == "pause"
                await say(socket, type="accepted", id=name)
                await say_state(socket, session)
            case "prompt" | "reset":
                task = asyncio.create_task(self._take_input(session, socket, message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case "control":
                await say(socket, type="applied", rev=0, seq=len(session.chunks))
            case "stop":
                await say(socket, type="accepted", id=name)
                await say(socket, type="closed", reason="stopped")
        session.changed.set()
        await self._tell()

    async def _take_input(self, session: Session, socket: ServerConnection, message: dict[str, Any]) -> None:
        if self.faults.hold_inputs is not None:
            await self.faults.hold_inputs.wait()
        session.inputs.append(message)
        session.answers[message["id"]] = [{"type": "accepted", "id": message["id"]}]
        await say(socket, type="accepted", id=message["id"])

    async def _generate(self, session: Session) -> None:
        if self.faults.queue is not None:
            await self.faults.queue.wait()
        if session.socket is not None:
            await say_state(session.socket, session)
        if self.faults.hold_chunks is not None:
            await self.faults.hold_chunks.wait()
        while True:
            while session.paused or self._unplayed_ms(session) >= max(session.lead_ms, 750):
                session.changed.clear()
                await session.changed.wait()
            applied = await self._apply(session)
            await asyncio.sleep(self.faults.gen_s)
            await self._emit(session, applied)

    def _unplayed_ms(self, session: Session) -> float:
        return session.buffer_ms + (len(session.chunks) - 1 - session.acked_seq) * 750

    async def _apply(self, session: Session) -> list[dict[str, Any]]:
        told = []
        for message in session.inputs:
            session.rev += 1
            if message["type"] == "prompt":
                session.prompt = message["text"]
            applied = {"type": "applied", "id": message["id"], "rev": session.rev, "seq": len(session.chunks)}
            session.answers[message["id"]].append(applied)
            told.append(applied)
            if session.socket is not None:
                await say(session.socket, **applied)
        session.inputs.clear()
        return told

    async def _emit(self, session: Session, applied: list[dict[str, Any]]) -> None:
        seq = len(session.chunks)
        pictures = [draw(session.prompt, seq * CHUNK_FRAMES + k) for k in range(CHUNK_FRAMES)]
        if self.faults.lose_encoder_in == seq:
            units = session.encoder.encode_losing_it(pictures)
        else:
            units = session.encoder.encode(pictures, Rung.LOW if seq in self.faults.low_chunks else Rung.FULL)
        chunk = Chunk(seq, session.rev, units, applied)
        session.chunks.append(chunk)
        await self._tell()
        for viewer in session.viewers:
            await self._send_chunk(session, viewer, chunk, parts=1)
        if session.socket is None:
            return
        if self.faults.gap_at == seq:
            self.faults.gap_at = None
            session.acked_seq = seq
            await say(session.socket, type="gap", from_seq=seq, to_seq=seq)
            return
        await self._send_chunk(session, session.socket, chunk, parts=self.faults.parts)

    async def _send_chunk(self, session: Session, socket: ServerConnection, chunk: Chunk, parts: int) -> None:
        units = chunk.units
        if chunk.seq in self.faults.damaged:
            units = [units[0][:60] + bytes(len(units[0]) - 60), *units[1:]]
        groups = [list(group) for group in np.array_split(np.arange(len(units)), parts)]
        for part, group in enumerate(groups):
            await asyncio.sleep(self.faults.part_gap_s)
            header = make_header(session, chunk, part, parts, [units[i] for i in group], int(group[0]))
            await say_media(socket, header, b"".join(units[i] for i in group))
            if self.faults.cut_in_chunk == chunk.seq and part == 0 and parts > 1:
                self.faults.cut_in_chunk = None
                self.faults.refuse_connections |= self.faults.away_after_cut
                await socket.ping()  # what was written so far is on its way
                await asyncio.sleep(0.05)
                socket.transport.abort()
                return


def make_header(
    session: Session, chunk: Chunk, part: int, parts: int, units: list[bytes], first_frame: int
) -> dict[str, Any]:
    header = {
        "type": "chunk",
        "session": session.id,
        "seq": chunk.seq,
        "part": part,
        "parts": parts,
        "key": part == 0,
        "frames": len(units),
        "sizes": [len(unit) for unit in units],
        "pts_ms": (chunk.seq * CHUNK_FRAMES + first_frame) * 1000 / FPS,
        "duration_ms": len(units) * 1000 / FPS,
        "codec": session.encoder.codec,
        "rev": chunk.rev,
        "engine": "e_test",
    }
    return header | ({"gen_ms": 50.0} if part == parts - 1 else {})


def is_msgpack(socket: ServerConnection) -> bool:
    return socket.subprotocol == "turboserve.v1+msgpack"


def unpack(socket: ServerConnection, data: str | bytes) -> dict[str, Any]:
    message: dict[str, Any] = msgpack.unpackb(data[1:]) if is_msgpack(socket) else json.loads(data)
    return message


async def say(socket: ServerConnection, **message: Any) -> None:
    packed = b"\0" + msgpack.packb(message) if is_msgpack(socket) else json.dumps(message)
    try:
        await socket.send(packed)
    except ConnectionClosed:
        pass


async def say_media(socket: ServerConnection, header: dict[str, Any], payload: bytes) -> None:
    packed = msgpack.packb(header) if is_msgpack(socket) else json.dumps(header).encode()
    prefix = b"\1" if is_msgpack(socket) else b""
    try:
        await socket.send(prefix + len(packed).to_bytes(4, "big") + packed + payload)
    except ConnectionClosed:
        pass


async def say_session(socket: ServerConnection, session: Session, resume: str | None = None) -> None:
    await say(
        socket,
        type="session",
        session=session.id,
        resume=session.resume if resume is None else resume,
        model="test",
        width=SIDE,
        height=SIDE,
        fps=FPS,
        chunk_frames=CHUNK_FRAMES,
        codec=session.encoder.codec,
        lead_ms=session.lead_ms,
        controls=True,
    )


async def say_state(socket: ServerConnection, session: Session, engine: str = "e_test") -> None:
    await say(
        socket,
        type="state",
        state="idle" if session.paused else "active",
        engine=engine,
        reason="paused" if session.paused else "",
    )


@asynccontextmanager
async def stream_server(port: int = 0) -> AsyncIterator[StreamServer]:
    """A server on localhost, stopped with everything it started at the end."""
    av.logging.set_level(av.logging.ERROR)
    state = StreamServer()
    async with serve(
        state.handle, "localhost", port, process_request=state.serve_file, compression=None,
        subprotocols=["turboserve.v1+json", "turboserve.v1+msgpack"],  # type: ignore[list-item]
        create_connection=Line,
    ) as server:  # fmt: skip
        await state.open(server)
        try:
            yield state
        finally:
            await state.close()
