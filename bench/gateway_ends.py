"""The two ends of `bench.gateway`: a source that speaks an engine's side of the link, a sink of many clients.

Both are one epoll loop on raw sockets, because what they cost is taken from the measured machine: frames are
built from templates and skipped by their lengths, payloads are never looked at. When a message left is noted
in memory that both share, so the sink knows how long each took.

Each is a process that reads one JSON command a line and answers each with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import select
import socket
import struct
import sys
import time
from array import array
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from bench.raw_websocket import Skipper, masked_text, read_frame, read_head, switching
from bench.stats import percentile
from gateway.frames import frame_head
from scheduler.messages import (
    LINK_REQUESTS,
    SessionState,
    Subscribe,
    Subscribed,
    decode_json,
    encode_json,
)

CHUNK_S = 0.75
CHUNK_BYTES = 60_000
FRAMES = 12
STAMPS = 64
"""Newest messages of a stream whose time of leaving is known."""
MAX_WAITING_BYTES = 256 * 1024 * 1024
"""More in front of the links means that they don't keep up: the run ends."""
FLUSH_S = 5.0
"""For what waits at the end of a run."""
ACK_EVERY_S = 0.5
RECV_BYTES = 256 * 1024
WARM_MESSAGES = 2
"""Of each stream in each run; not counted."""


class Stamps:
    """Seconds of time.perf_counter(), which all processes share, by stream and message."""

    def __init__(self, path: str, streams: int) -> None:
        size = 8 * STAMPS * streams
        with open(path, "a+b") as file:
            file.truncate(size)
            self._map = memoryview(mmap.mmap(file.fileno(), size)).cast("d")

    def note(self, stream: int, message: int, now_s: float) -> None:
        self._map[stream * STAMPS + message % STAMPS] = now_s

    def age_s(self, stream: int, message: int, now_s: float) -> float:
        return now_s - self._map[stream * STAMPS + message % STAMPS]


def pin(core: int) -> None:
    """Run on this core only, this process and what it starts."""
    os.sched_setaffinity(0, {core})


# --- source ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Out:
    """One link, and what waits in front of it."""

    raw: socket.socket
    skipper: Skipper = field(default_factory=Skipper)
    waiting: deque[memoryview] = field(default_factory=deque)
    waiting_bytes: int = 0
    is_polled: bool = False
    """For room to write?"""

    def send(self, pieces: list[bytes | memoryview]) -> None:
        if not self.waiting:
            try:
                sent = self.raw.sendmsg(pieces)
            except BlockingIOError:
                sent = 0
        else:
            sent = 0
        for piece in pieces:
            if sent >= len(piece):
                sent -= len(piece)
                continue
            self.waiting.append(memoryview(piece)[sent:])
            self.waiting_bytes += len(piece) - sent
            sent = 0

    def pong(self, payload: bytes) -> None:
        self.send([frame_head(10, len(payload)) + payload])

    def flush(self) -> None:
        while self.waiting:
            batch = [self.waiting[i] for i in range(min(len(self.waiting), 64))]
            try:
                sent = self.raw.sendmsg(batch)
            except BlockingIOError:
                return
            self.waiting_bytes -= sent
            while sent:
                if sent < len(self.waiting[0]):
                    self.waiting[0] = self.waiting[0][sent:]
                    break
                sent -= len(self.waiting.popleft())


@dataclass(slots=True)
class Stream:
    """One session: where it goes and which chunk is next."""

    session: str
    epoch: int
    out: Out
    seq: int = 0


class Source:
    """Listens as several engines (or one link per bare connection), sends chunks on command."""

    def __init__(self, links: int, parts: int, stamps: Stamps, *, with_stats: bool) -> None:
        self._parts = parts
        self._stamps = stamps
        self._with_stats = with_stats
        self._listeners = [_listen() for _ in range(links)]
        self._outs: list[Out] = []
        self._by_fd: dict[int, Out] = {}
        self._subscribed: dict[str, Stream] = {}
        self._streams: list[Stream] = []
        self._poll = select.epoll()
        self._has_run = False
        self._sizes = _split(CHUNK_BYTES // parts, FRAMES // parts)
        self._payload = memoryview(os.urandom(CHUNK_BYTES // parts))

    @property
    def urls(self) -> list[str]:
        return [f"ws://127.0.0.1:{raw.getsockname()[1]}/link" for raw in self._listeners]

    def accept(self) -> None:
        """One connection on each listener. Blocks."""
        for listener in self._listeners:
            raw, _ = listener.accept()
            head = read_head(raw).decode()
            key = next(
                line.split(":", 1)[1].strip()
                for line in head.split("\r\n")
                if line.lower().startswith("sec-websocket-key")
            )
            raw.sendall(switching(key))
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            raw.setblocking(False)
            out = self._by_fd[raw.fileno()] = Out(raw)
            self._outs.append(out)
            self._poll.register(raw.fileno(), select.EPOLLIN)

    def subscribe(self, sessions: list[str]) -> None:
        """Answer until each of these sessions is subscribed; they are the streams, in this order. Blocks."""
        while not all(session in self._subscribed for session in sessions):
            self._read_requests(1.0)
        self._streams = [self._subscribed[session] for session in sessions]

    def _read_requests(self, timeout_s: float) -> None:
        """Before the first run: whole frames, one at a time."""
        for fd, _ in self._poll.poll(timeout_s):
            out = self._by_fd[fd]
            out.raw.setblocking(True)
            opcode, payload = read_frame(out.raw)
            if opcode == 1:
                self._receive(out, payload)
            elif opcode == 9:
                out.pong(payload)
            out.raw.setblocking(False)

    def bare(self, streams: int) -> None:
        """Streams of the bare relay need no subscription."""
        outs = self._outs
        self._streams = [Stream(f"s_{i:016x}", 1, outs[i % len(outs)]) for i in range(streams)]

    def _receive(self, out: Out, payload: bytes) -> None:
        request = decode_json(LINK_REQUESTS, payload)
        if isinstance(request, Subscribe):
            self._subscribed[request.session] = Stream(request.session, request.epoch, out, request.next_seq)
            reply = Subscribed(
                session=request.session,
                epoch=request.epoch,
                start_seq=request.next_seq,
                state=SessionState.ACTIVE,
            )
            text = encode_json(reply)
            out.send([frame_head(1, len(text)), text])

    def run(self, streams: int, rounds: int) -> dict[str, Any]:
        """Send so many chunks of each of the first `streams` streams, evenly spread over time."""
        self._has_run = True
        worst_late_s, waiting_bytes = 0.0, 0
        gap_s = CHUNK_S / streams
        cpu_s, began_s = time.process_time(), time.perf_counter()
        due_s, index = began_s, 0
        while index < rounds * streams and waiting_bytes < MAX_WAITING_BYTES:
            now_s = time.perf_counter()
            while due_s <= now_s and index < rounds * streams:
                worst_late_s = max(worst_late_s, now_s - due_s)
                self._send_chunk(index % streams)
                index, due_s = index + 1, due_s + gap_s
            waiting_bytes = sum(out.waiting_bytes for out in self._outs)
            self._serve(max(0.001, due_s - time.perf_counter()))
        while any(out.waiting for out in self._outs) and time.perf_counter() < due_s + FLUSH_S:
            self._serve(0.01)
        return {
            "chunks": index,
            "cpu_s": time.process_time() - cpu_s,
            "wall_s": time.perf_counter() - began_s,
            "worst_late_ms": worst_late_s * 1000,
            "kept_up": waiting_bytes < MAX_WAITING_BYTES,
        }

    def idle(self) -> None:
        """Answer pings until something is said on standard input."""
        while not select.select([sys.stdin], [], [], 0)[0]:
            if self._has_run:
                self._serve(0.05)
            else:
                self._read_requests(0.05)

    def _send_chunk(self, index: int) -> None:
        s = self._streams[index]
        tail = struct.pack(">I", index)
        for part in range(self._parts):
            header = self._header(s, part)
            length = 4 + len(header) + len(self._payload) + 4
            self._stamps.note(index, s.seq * self._parts + part, time.perf_counter())
            head = frame_head(2, length) + struct.pack(">I", len(header)) + header
            s.out.send([head, self._payload, tail])
        if self._with_stats:
            text = _STATS % (s.session.encode(), s.epoch, s.seq)
            s.out.send([frame_head(1, len(text)) + text])
        s.seq += 1

    def _header(self, s: Stream, part: int) -> bytes:
        parts, frames = self._parts, FRAMES // self._parts
        pts_ms = 1000 * (s.seq * CHUNK_S + part * CHUNK_S / parts)
        gen = b',"gen_ms":123.45' if part + 1 == parts else b""
        key = b"true" if part == 0 else b"false"
        return _HEADER % (
            s.session.encode(),
            s.epoch,
            s.seq,
            part,
            parts,
            key,
            frames,
            self._sizes,
            pts_ms,
            1000 * CHUNK_S / parts,
            gen,
        )

    def _serve(self, timeout_s: float) -> None:
        for out in self._outs:
            if out.is_polled != bool(out.waiting):
                out.is_polled = not out.is_polled
                self._poll.modify(out.raw.fileno(), select.EPOLLIN | (select.EPOLLOUT * out.is_polled))
        for fd, mask in self._poll.poll(timeout_s):
            out = self._by_fd[fd]
            if mask & select.EPOLLOUT:
                out.flush()
            if mask & select.EPOLLIN:
                data = out.raw.recv(RECV_BYTES)
                if not data:
                    raise ConnectionError("the relay hung up")
                for opcode in out.skipper.walk(memoryview(data)):
                    if opcode == 9:
                        out.pong(out.skipper.pong())


_HEADER = (
    b'{"type":"chunk","session":"%s","epoch":%d,"seq":%d,"part":%d,"parts":%d,"key":%s,"frames":%d,'
    b'"sizes":%s,"pts_ms":%.3f,"duration_ms":%.3f,"codec":"h264","rev":0%s}'
)
_STATS = (
    b'{"type":"stats","session":"%s","epoch":%d,"seq":%d,"latency_ms":212.41,"gen_ms":123.45,'
    b'"slack_ms":1210.0,"batch":2.25}'
)


def _split(total: int, frames: int) -> bytes:
    """JSON list of access unit sizes; the last four bytes of a message, the stream's number, are theirs."""
    size = total // frames
    sizes = [size] * frames
    sizes[0] += total - size * frames + 4
    return json.dumps(sizes, separators=(",", ":")).encode()


def _listen() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.listen(16)
    return listener


def source_main(options: argparse.Namespace) -> None:
    source = Source(
        options.links, options.parts, Stamps(options.stamps, options.streams), with_stats=options.stats
    )
    _say({"urls": source.urls})
    for command in _commands():
        match command["do"]:
            case "accept":
                source.accept()
                _say({})
            case "subscribe":
                source.subscribe(command["sessions"])
                _say({})
            case "bare":
                source.bare(command["streams"])
                _say({})
            case "run":
                _say(source.run(command["streams"], command["rounds"]))
        if command["do"] != "accept":
            source.idle()


# --- sink -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class In:
    """One client: its connection, the stream that it gets, and how far it is."""

    raw: socket.socket
    stream: int
    skipper: Skipper = field(default_factory=Skipper)
    session: str = ""
    resume: str = ""
    media: int = 0
    """Messages that were received."""


class Sink:
    """Connects clients, then measures on command."""

    def __init__(self, parts: int, stamps: Stamps, *, with_acks: bool) -> None:
        self._parts = parts
        self._with_acks = with_acks
        self._stamps = stamps
        self._clients: list[In] = []
        self._by_fd: dict[int, In] = {}
        self._poll = select.epoll()
        self._buffer = memoryview(bytearray(RECV_BYTES))
        self._acks: deque[tuple[float, In]] = deque()

    def connect(self, address: tuple[str, int], path: str, stream: int) -> In:
        """A WebSocket; nothing was said on it. Blocks."""
        raw = socket.create_connection(address)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        host = f"{address[0]}:{address[1]}"
        raw.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = read_head(raw)
        if b" 101 " not in head:
            raise ConnectionError(f"no WebSocket: {head!r}")
        client = In(raw, stream)
        self._clients.append(client)
        return client

    def start(self, address: tuple[str, int], count: int) -> list[str]:
        """So many more sessions. Returns their ids; they wait for an engine. Blocks."""
        clients = [self.connect(address, "/v1/stream", len(self._clients)) for _ in range(count)]
        for client in clients:
            client.raw.sendall(masked_text(b'{"type":"start","prompt":"a red ball","seed":1}'))
        for client in clients:
            message = _read_until(client.raw, "session")
            client.session, client.resume = message["session"], message["resume"]
        return [client.session for client in clients]

    def watch(self, address: tuple[str, int], session: str, count: int) -> None:
        """So many viewers of one session, which is stream 0. Blocks."""
        for _ in range(count):
            client = self.connect(address, "/v1/stream", 0)
            client.raw.sendall(masked_text(json.dumps({"type": "watch", "session": session}).encode()))
            _read_until(client.raw, "session")

    def await_active(self) -> None:
        """Until every session is active; from then on nothing blocks."""
        for client in self._clients:
            if client.raw.fileno() in self._by_fd:
                continue
            if client.session:
                while _read_until(client.raw, "state")["state"] != "active":
                    pass
            client.raw.setblocking(False)
            self._by_fd[client.raw.fileno()] = client
            self._poll.register(client.raw.fileno(), select.EPOLLIN)

    def run(self, first: int, until: float) -> dict[str, Any]:
        """Receive until `until` (time.perf_counter()); message `first` is the first that this run sends."""
        latency_ms = array("d")
        skip = first + WARM_MESSAGES * self._parts
        media_before = sum(client.media for client in self._clients)
        cpu_s, began_s = time.process_time(), time.perf_counter()
        while (now_s := time.perf_counter()) < until:
            for fd, _ in self._poll.poll(min(0.05, until - now_s)):
                self._receive(self._by_fd[fd], skip, latency_ms)
            self._ack_again()
        cpu_s = time.process_time() - cpu_s
        values = sorted(latency_ms)
        return {
            "cpu_s": cpu_s,
            "wall_s": time.perf_counter() - began_s,
            "media": sum(client.media for client in self._clients) - media_before,
            "counted": len(values),
            "p50_ms": percentile(values, 0.5) if values else None,
            "p99_ms": percentile(values, 0.99) if values else None,
            "max_ms": values[-1] if values else None,
        }

    def idle(self) -> None:
        """Take what comes until something is said on standard input."""
        while not select.select([sys.stdin], [], [], 0)[0]:
            for fd, _ in self._poll.poll(0.05):
                self._receive(self._by_fd[fd], sys.maxsize, array("d"))

    def _receive(self, client: In, skip: int, latency_ms: array[float]) -> None:
        length = client.raw.recv_into(self._buffer)
        if not length:
            raise ConnectionError(f"the relay hung up on client {client.stream}")
        now_s = time.perf_counter()
        for opcode in client.skipper.walk(self._buffer[:length]):
            if opcode == 2:
                if client.media >= skip:
                    latency_ms.append(1000 * self._stamps.age_s(client.stream, client.media, now_s))
                client.media += 1
                if self._with_acks and client.session and client.media % self._parts == 0:
                    self._ack(client)
                    self._acks.append((now_s + ACK_EVERY_S, client))
            elif opcode == 9:
                pong = client.skipper.pong()
                client.raw.send(bytes((0x8A, 0x80 | len(pong))) + b"\0\0\0\0" + pong)
            elif opcode == 8:
                raise ConnectionError(f"the relay closed client {client.stream}")

    def _ack(self, client: In) -> None:
        seq = client.media // self._parts - 1
        client.raw.send(masked_text(b'{"type":"ack","seq":%d,"buffer_ms":1432.25}' % seq))

    def _ack_again(self) -> None:
        now_s = time.perf_counter()
        while self._acks and self._acks[0][0] <= now_s:
            self._ack(self._acks.popleft()[1])


def _read_until(raw: socket.socket, kind: str) -> dict[str, Any]:
    """The next message of this type; others are skipped."""
    while True:
        opcode, payload = read_frame(raw)
        if opcode != 1:
            continue
        message: dict[str, Any] = json.loads(payload)
        if message["type"] == kind:
            return message
        if message["type"] == "error":
            raise ConnectionError(message["message"])


def sink_main(options: argparse.Namespace) -> None:
    sink = Sink(options.parts, Stamps(options.stamps, options.streams), with_acks=options.acks)
    _say({})
    for command in _commands():
        address = ("127.0.0.1", command.get("port", 0))
        match command["do"]:
            case "start":
                _say({"sessions": sink.start(address, command["count"])})
                continue
            case "watch":
                sink.watch(address, command["session"], command["count"])
                _say({})
                continue
            case "bare":
                for stream in range(command["count"]):
                    sink.connect(address, f"/{stream}", stream)
                sink.await_active()
                _say({})
            case "active":
                sink.await_active()
                _say({})
            case "run":
                _say({})  # from here on it counts
                _say(sink.run(command["first"], command["until"]))
        sink.idle()


def _commands() -> Any:
    for line in iter(sys.stdin.readline, ""):
        yield json.loads(line)


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=("source", "sink"))
    parser.add_argument("--core", type=int, required=True)
    parser.add_argument("--stamps", required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--links", type=int, default=1)
    parser.add_argument("--stats", action="store_true")
    parser.add_argument("--acks", action="store_true")
    options = parser.parse_args()
    pin(options.core)
    {"source": source_main, "sink": sink_main}[options.role](options)


if __name__ == "__main__":
    main()
