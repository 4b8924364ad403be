"""WebSocket on raw sockets, for benchmarks whose ends must cost little: no fragments, no checks."""

from __future__ import annotations

import base64
import hashlib
import socket
from dataclasses import dataclass

from gateway.frames import frame_head


def masked_text(text: bytes) -> bytes:
    """A client's text frame, masked with zeros."""
    return frame_head(1, len(text), is_masked=True) + b"\0\0\0\0" + text


def read_head(raw: socket.socket) -> bytes:
    """An HTTP head, read to its end. Blocks. Raises ConnectionError."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        byte = raw.recv(1)
        if not byte:
            raise ConnectionError(f"closed in the handshake: {data!r}")
        data += byte
    return data


def read_exactly(raw: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        piece = raw.recv(length - len(data))
        if not piece:
            raise ConnectionError("closed in the middle of a frame")
        data += piece
    return data


def read_frame(raw: socket.socket) -> tuple[int, bytes]:
    """(opcode, payload) of the next frame, unmasked. Blocks."""
    first, second = read_exactly(raw, 2)
    length = second & 0x7F
    if length >= 126:
        size = 2 if length == 126 else 8
        length = int.from_bytes(read_exactly(raw, size))
    mask = read_exactly(raw, 4) if second & 0x80 else b"\0\0\0\0"
    return first & 0x0F, unmask(mask, read_exactly(raw, length))


def unmask(mask: bytes, payload: bytes) -> bytes:
    return bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload)) if any(mask) else payload


@dataclass(slots=True)
class Skipper:
    """Walks over the frames of a byte stream without looking into them."""

    rest: int = 0
    """Bytes of the current payload that are still to come."""
    opcode: int = 0
    head: bytes = b""
    mask: bytes = b""
    ping: bytes = b""
    """What the newest ping carried, as it came: a pong must repeat it."""

    def pong(self) -> bytes:
        """What the newest ping asked for."""
        return unmask(self.mask, self.ping)

    def walk(self, data: memoryview) -> list[int]:
        """Opcodes of the frames that ended in `data`."""
        ended: list[int] = []
        at, end = 0, len(data)
        while at < end:
            if self.rest:
                taken = min(self.rest, end - at)
                if self.opcode == 9:
                    self.ping += data[at : at + taken]
                self.rest -= taken
                at += taken
                if self.rest == 0:
                    ended.append(self.opcode)
                continue
            head = self.head + bytes(data[at : at + 14 - len(self.head)])
            size = _head_bytes(head)
            if size > len(head):
                self.head = head
                break
            at += size - len(self.head)
            self.head = b""
            self.opcode, self.rest = head[0] & 0x0F, _payload_bytes(head)
            if self.opcode == 9:
                self.ping, self.mask = b"", head[size - 4 : size] if head[1] & 0x80 else b"\0\0\0\0"
            if self.rest == 0:
                ended.append(self.opcode)
        return ended


def _head_bytes(head: bytes) -> int:
    """Length of the frame head that `head` begins with; more than len(head) when that can't be told yet."""
    if len(head) < 2:
        return 14
    length = head[1] & 0x7F
    return 2 + (2 if length == 126 else 8 if length == 127 else 0) + (4 if head[1] & 0x80 else 0)


def _payload_bytes(head: bytes) -> int:
    length = head[1] & 0x7F
    if length == 126:
        return int.from_bytes(head[2:4])
    return int.from_bytes(head[2:10]) if length == 127 else length


def switching(key: str) -> bytes:
    digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
    accept = base64.b64encode(digest).decode()
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n\r\n"
    ).encode()
