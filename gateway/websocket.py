"""One server-side WebSocket on an asyncio transport: framing, keepalive, bounded sending.

`websockets` parses what comes, but for small messages in one frame, and answers pings and closes (sans-I/O);
this class owns the queue, the timers and the only writes to the transport. Policies:

* Outgoing messages queue up to `queue_bytes`; beyond that the socket is aborted.
* A peer that takes nothing for `send_timeout_s` while something waits is gone. The keepalive alone would not
  notice: its ping waits behind the full buffer.
* So is one for which a message waits `MAX_WAIT` times as long: who takes a little now and then would hold a
  full queue for ever.
* A peer from which no frame arrives for two ping intervals is gone.
* Pings, pongs and fragments, which are no messages, have the rate that messages have (`gateway/limits.py`).
  Far beyond it the socket is aborted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from gateway.frames import FrameCutter, frame_head, is_text, is_whole_message, payload_of
from gateway.limits import MessageBucket, Verdict

MAX_CLOSE_REASON_BYTES = 123
MAX_WAIT = 4
"""In `send_timeout_s`. A controller with the longest lead may hold up a message for its length, and longer on
a network that carries less than the video."""
MAX_UNHEARD_BYTES = 128 * 1024
"""That may come behind our close: two of the largest messages that were on their way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketLimits:
    """Times and sizes of one client socket."""

    ping_interval_s: float = 20.0
    send_timeout_s: float = 5.0
    close_timeout_s: float = 5.0
    """How long the peer may take to answer a close frame."""
    queue_bytes: int = 16 * 1024 * 1024
    """The longest lead of video of 12 Mbit/s."""


class Receiver(Protocol):
    """Whoever stands behind a WebSocket. All calls come from the event loop, in order."""

    def receive_open(self, socket: WebSocket) -> None:
        """The handshake is done: `socket` may be used."""

    def receive_frame(self, data: str | bytes) -> None:
        """A complete message arrived."""

    def receive_lost(self) -> None:
        """Nothing more will arrive and nothing more can be sent. Called exactly once."""


class WebSocket:
    """See the module's docstring. Created by the listener after a successful handshake."""

    def __init__(
        self,
        transport: asyncio.Transport,
        protocol: ServerProtocol,
        receiver: Receiver,
        limits: SocketLimits,
    ) -> None:
        self._transport = transport
        self._protocol = protocol
        self._receiver = receiver
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[Opcode, tuple[bytes | memoryview, ...], int, float]] = deque()
        """What, how many bytes, and since when."""
        self._queued_bytes = 0
        self._closing: tuple[int, str] | None = None
        self._unheard_bytes = 0
        """Came behind our close."""
        self._cutter = FrameCutter()
        self._fragments: list[bytes] = []
        self._in_message = False
        """Are fragments of a message still to come?"""
        self._text = False
        self._writable = True
        self._lost = False
        self._failed = False
        """Broken by the peer: what it sent behind that does not count."""
        self._heard = True
        self._bucket = MessageBucket()
        """Of frames that are not a message."""
        self.why_aborted: str | None = None
        """By us, unless None."""
        self._send_timer: asyncio.TimerHandle | None = None
        self._close_timer: asyncio.TimerHandle | None = None
        self._ping_timer = self._loop.call_later(limits.ping_interval_s, self._keep_alive)

    @property
    def subprotocol(self) -> str | None:
        """What the handshake selected."""
        return self._protocol.subprotocol

    @property
    def close_code(self) -> int:
        """That the peer closed with, or we did for what it sent; 1006: the connection broke."""
        close = self._protocol.close_rcvd or self._protocol.close_sent
        return int(close.code) if close is not None else int(CloseCode.ABNORMAL_CLOSURE)

    @property
    def queued_bytes(self) -> int:
        """Bytes handed to `send` and not yet to the transport."""
        return self._queued_bytes

    def is_open(self) -> bool:
        """May messages still be sent?"""
        return not self._lost and self._closing is None and self._protocol.state is State.OPEN

    def send(self, data: str | bytes) -> None:
        """Queue one message; written at once if the peer keeps up. Does nothing on a closing socket."""
        if isinstance(data, str):
            self._send(Opcode.TEXT, (data.encode(),))
        else:
            self._send(Opcode.BINARY, (data,))

    def send_pieces(self, *pieces: bytes | memoryview) -> None:
        """`send` of one binary message that is in pieces, which are not copied."""
        self._send(Opcode.BINARY, pieces)

    def _send(self, opcode: Opcode, pieces: tuple[bytes | memoryview, ...]) -> None:
        if not self.is_open():
            return
        num_bytes = sum(map(len, pieces))
        if self._writable and not self._queue:
            self._write(opcode, pieces, num_bytes)
            return
        now_s = self._loop.time()
        self._queue.append((opcode, pieces, num_bytes, now_s))
        self._queued_bytes += num_bytes
        max_wait_s = MAX_WAIT * self._limits.send_timeout_s
        if self._queued_bytes > self._limits.queue_bytes:
            self.abort(f"more than {self._limits.queue_bytes} bytes wait for the peer")
        elif now_s - self._queue[0][3] > max_wait_s:
            self.abort(f"a message has waited for the peer for more than {max_wait_s:g} s")

    def close(self, code: int, reason: str = "") -> None:
        """Send a close frame behind what is queued. A peer that does not answer in time is cut off."""
        if not self.is_open():
            return
        self._closing = (code, reason.encode()[:MAX_CLOSE_REASON_BYTES].decode(errors="ignore"))
        self._start_close_timer()
        self._pump()

    def abort(self, why: str) -> None:
        """Drop the connection at once."""
        if not self._lost:
            self.why_aborted = why
            self._transport.abort()
            self._end()

    # --- called by the listener ---

    def receive_data(self, data: bytes) -> None:
        if self._lost:
            return
        if self._closing is not None:
            self._unheard_bytes += len(data)
            if self._unheard_bytes > MAX_UNHEARD_BYTES:
                self.abort("the peer goes on behind our close")
                return
        if self._cutter.is_small(data) and self._take_small(data):
            return
        for piece, is_frame in self._cutter.cut(data):
            if not (is_frame and self._take_small(piece)):
                self._protocol.receive_data(piece)
                self._handle_frames()
            if self._lost:  # what comes behind would cost as much as before
                return

    def receive_eof(self) -> None:
        self._protocol.receive_eof()
        self._handle_frames()
        self._end()

    def receive_connection_lost(self) -> None:
        self._end()

    def pause_writing(self) -> None:
        self._writable = False
        self._restart_send_timer()

    def resume_writing(self) -> None:
        self._writable = True
        self._cancel_send_timer()
        self._pump()

    # --- inside ---

    def _take_small(self, frame: bytes) -> bool:
        """Hand on a small message that is nothing special, or drop one behind our close.

        False: the frame is for `websockets`.
        """
        if self._in_message:
            return False
        if self._closing is not None:
            return is_whole_message(frame)
        if self._protocol.state is not State.OPEN:
            return False
        payload = payload_of(frame)
        if payload is None:
            return False
        try:
            message = payload.decode() if is_text(frame) else payload
        except UnicodeDecodeError:
            return False
        self._heard = True
        if not self._lost:
            self._receiver.receive_frame(message)
        return True

    def _handle_frames(self) -> None:
        for event in self._protocol.events_received():
            assert isinstance(event, Frame)
            self._heard = True
            self._handle_frame(event)
        self._flush()
        if self._protocol.state is not State.OPEN and not self._lost:
            self._start_close_timer()
            if self._closing is None:  # the peer closes, or broke the WebSocket protocol
                self._end()

    def _handle_frame(self, frame: Frame) -> None:
        is_message = frame.opcode in (Opcode.TEXT, Opcode.BINARY) and frame.fin
        if not is_message and self._bucket.spend(self._loop.time() * 1000) is Verdict.CLOSE:
            self.abort("too many pings, pongs or fragments")
        if frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return
        if frame.opcode is not Opcode.CONT:
            self._text = frame.opcode is Opcode.TEXT
        self._in_message = not frame.fin
        if frame.data:  # of empty ones there may be any number: they count nothing towards a message's size
            self._fragments.append(bytes(frame.data))
        if not frame.fin:
            return
        message = b"".join(self._fragments)
        self._fragments.clear()
        # Not `is_open`: what came in one read with the peer's close frame was sent before it and counts.
        if self._lost or self._failed or self._closing is not None:
            return
        if not self._text:
            self._receiver.receive_frame(message)
            return
        try:
            text = message.decode()
        except UnicodeDecodeError:
            self._failed = True
            self._protocol.fail(1007, "a text frame must be UTF-8")
            return
        self._receiver.receive_frame(text)

    def _pump(self) -> None:
        """Hand queued messages to the transport while it takes them, then the close frame if one waits."""
        while self._queue and self._writable and not self._lost:
            opcode, pieces, num_bytes, _since_s = self._queue.popleft()
            self._queued_bytes -= num_bytes
            self._write(opcode, pieces, num_bytes)
        if self._closing is not None and not self._queue and self._protocol.state is State.OPEN:
            self._protocol.send_close(*self._closing)
            self._flush()

    def _write(self, opcode: Opcode, pieces: tuple[bytes | memoryview, ...], num_bytes: int) -> None:
        """A message as one frame. Not by `websockets`, which would copy it twice."""
        if self._protocol.state is State.OPEN and not self._transport.is_closing():
            self._transport.writelines((frame_head(opcode, num_bytes), *pieces))

    def _flush(self) -> None:
        """What `websockets` has to say: pongs, pings, the closing handshake."""
        for data in self._protocol.data_to_send():
            if self._transport.is_closing():
                return
            if data:
                self._transport.write(data)
            elif self._transport.can_write_eof():
                self._transport.write_eof()
            else:  # TLS: who waits for the end of the connection would wait until we cut it
                self._transport.close()

    def _keep_alive(self) -> None:
        if not self._heard:
            self._protocol.fail(1011, "no answer to keepalive ping")
            self._flush()
            self.abort("no answer to keepalive ping")
            return
        self._heard = False
        if self.is_open() and self._writable:
            self._protocol.send_ping(b"")
            self._flush()
        self._ping_timer = self._loop.call_later(self._limits.ping_interval_s, self._keep_alive)

    def _restart_send_timer(self) -> None:
        self._cancel_send_timer()
        timeout_s = self._limits.send_timeout_s
        self._send_timer = self._loop.call_later(
            timeout_s, self.abort, f"a send was not finished within {timeout_s:g} s"
        )

    def _cancel_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _start_close_timer(self) -> None:
        if self._close_timer is None:
            self._close_timer = self._loop.call_later(self._limits.close_timeout_s, self._transport.abort)

    def _end(self) -> None:
        if self._lost:
            return
        self._lost = True
        self._queue.clear()
        self._queued_bytes = 0
        self._ping_timer.cancel()
        self._cancel_send_timer()
        # Not at once: this may be inside the receiver's own call of `send`.
        self._loop.call_soon(self._receiver.receive_lost)

    def release(self) -> None:
        """Cancel the last timer; called when the transport is closed for good.

        What refers to itself stays until the next full collection, which is rare (`gateway/__main__.py`).
        """
        if self._close_timer is not None:
            self._close_timer.cancel()
        self._protocol.parser.close()
        self._protocol.parser_exc = None
