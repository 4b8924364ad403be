"""Where frames of clients end, and that small messages mean the same however they arrive."""

from __future__ import annotations

import asyncio
import struct
from dataclasses import replace
from itertools import accumulate, islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.utils import apply_mask

from gateway.frames import FrameCutter, draw_masks, masked_text, message_of, payload_of
from gateway.limits import MAX_REFUSED, MESSAGE_BURST
from gateway.websocket import MAX_UNHEARD_BYTES, MAX_WAIT, SocketLimits, WebSocket

MAX_BYTES = 64 * 1024
MASK = b"\x9a\x01\xf0\x5c"
PAYLOADS = st.one_of(
    st.binary(max_size=8),
    st.integers(120, 140).map(bytes),
    st.sampled_from([65_535, 65_536, 65_537]).map(bytes),
    st.sampled_from([b'{"type":"ack"}', "ü".encode(), b"\xff"]),
)
FRAMES = st.builds(
    Frame,
    st.sampled_from([Opcode.TEXT, Opcode.BINARY, Opcode.CONT, Opcode.PING, Opcode.PONG, Opcode.CLOSE]),
    PAYLOADS,
    st.booleans(),
    st.sampled_from([False, False, False, True]),
)


def raw(frame: Frame, *, mask: bool = True) -> bytes:
    """As it travels, allowed or not (`Frame.serialize` refuses what is not)."""
    first, length = frame.fin << 7 | frame.rsv1 << 6 | frame.opcode, len(frame.data)
    if length < 126:
        head = bytes((first, mask << 7 | length))
    elif length < 65_536:
        head = struct.pack(">BBH", first, mask << 7 | 126, length)
    else:
        head = struct.pack(">BBQ", first, mask << 7 | 127, length)
    return head + (MASK + apply_mask(frame.data, MASK) if mask else bytes(frame.data))


def cuts_of(stream: bytes, cuts: list[int]) -> list[bytes]:
    """The stream in the pieces that the network makes of it."""
    ends = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [stream[low:high] for low, high in pairwise(ends)]


@given(st.lists(st.tuples(FRAMES, st.booleans()), max_size=6), st.lists(st.integers(0, 400_000), max_size=8))
def test_pieces_are_the_stream_cut_where_frames_end(sent: list[tuple[Frame, bool]], cuts: list[int]) -> None:
    """Nothing is lost or added, no piece spans two frames, and what is said to be a frame is one."""
    frames = [raw(frame, mask=mask) for frame, mask in sent]
    cutter, got = FrameCutter(), b""
    ends = ends_of(frames)
    for data in cuts_of(b"".join(frames), cuts):
        for piece, is_frame in cutter.cut(data):
            begin, got = len(got), got + piece
            assert not any(begin < end < len(got) for end in ends)
            assert is_frame == (begin in ends and len(got) in ends)
    assert got == b"".join(frames)


@given(
    st.lists(FRAMES, max_size=6),
    st.lists(st.integers(0, 400_000), max_size=8),
    st.sampled_from([0, 9, 140, 65_550, 2**24]),
)
def test_frames_up_to_a_length_come_whole(sent: list[Frame], cuts: list[int], whole_bytes: int) -> None:
    """However they were read; longer ones do not wait for their end."""
    frames = [raw(frame, mask=False) for frame in sent]
    cutter, got, ends = FrameCutter(whole_bytes=whole_bytes), b"", ends_of(frames)
    for data in cuts_of(b"".join(frames), cuts):
        for piece, is_frame in cutter.cut(data):
            begin, got = len(got), got + piece
            is_short = (
                next(end for end in ends if end > begin) - max(e for e in ends if e <= begin) <= whole_bytes
            )
            assert is_frame or not is_short
            assert is_frame == (begin in ends and len(got) in ends)
    assert got == b"".join(frames)


def ends_of(frames: list[bytes]) -> list[int]:
    """Where each frame ends in the stream, and where the first begins."""
    return [0, *accumulate(map(len, frames))]


def test_only_whole_messages_that_are_not_masked_are_taken_from_engines() -> None:
    """Of any length."""
    for length in (0, 1, 125, 126, 65_535, 65_536):
        for opcode in (Opcode.TEXT, Opcode.BINARY):
            assert message_of(raw(Frame(opcode, b"x" * length), mask=False)) == b"x" * length
    taken = Frame(Opcode.TEXT, b"x")
    for frame in (replace(taken, fin=False), replace(taken, rsv1=True), Frame(Opcode.PING, b"x")):
        assert message_of(raw(frame, mask=False)) is None
    assert message_of(raw(taken)) is None


@pytest.mark.parametrize("length", [0, 1, 125, 126, 65_535, 65_536])
def test_requests_are_the_frames_that_websockets_would_write(length: int) -> None:
    """Of any length."""
    text = b"x" * length
    assert masked_text(text, MASK) == raw(Frame(Opcode.TEXT, text))


def test_masks_differ_also_where_new_ones_are_drawn() -> None:
    """Four bytes each; by chance two of three thousand may be equal once in a thousand runs, not three."""
    masks = list(islice(draw_masks(), 3_000))
    assert {len(mask) for mask in masks} == {4}
    assert len(set(masks)) > 2_997


def test_only_whole_masked_small_messages_are_taken() -> None:
    """Everything that RFC 6455 has a rule about stays with `websockets`."""
    taken = Frame(Opcode.TEXT, b"x" * 125)
    assert payload_of(raw(taken)) == b"x" * 125
    assert payload_of(raw(Frame(Opcode.BINARY, b""))) == b""
    for frame in (
        Frame(Opcode.TEXT, b"x" * 126),
        Frame(Opcode.TEXT, b"x", fin=False),
        Frame(Opcode.TEXT, b"x", rsv1=True),
        Frame(Opcode.CONT, b"x"),
        Frame(Opcode.PING, b"x"),
        Frame(Opcode.CLOSE, b""),
    ):
        assert payload_of(raw(frame)) is None
    assert payload_of(raw(taken, mask=False)) is None


class Wire:
    """Both a transport that keeps what is written and a receiver that keeps what arrives."""

    def __init__(self) -> None:
        self.written = b""
        self.got: list[str | bytes] = []
        self.closed = False

    def receive_open(self, socket: WebSocket) -> None: ...

    def receive_frame(self, data: str | bytes) -> None:
        self.got.append(data)

    def receive_lost(self) -> None: ...

    def write(self, data: bytes) -> None:
        self.written += data

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


class Counting(ServerProtocol):
    """Tells how often it is asked to read."""

    num_reads = 0

    def receive_data(self, data: bytes) -> None:
        self.num_reads += 1
        super().receive_data(data)


def open_socket() -> tuple[WebSocket, Wire, Counting]:
    wire = Wire()
    protocol = Counting(state=State.OPEN, max_size=MAX_BYTES)
    return WebSocket(wire, protocol, wire, SocketLimits()), wire, protocol  # type: ignore[arg-type]


@given(st.lists(FRAMES, max_size=6), st.lists(st.integers(0, 400_000), max_size=8))
def test_messages_do_not_depend_on_who_reads_them(sent: list[Frame], cuts: list[int]) -> None:
    """The same messages, answers and close codes as where `websockets` alone reads the stream."""

    async def run() -> None:
        socket, wire, ours = open_socket()
        theirs, expected, answers = ServerProtocol(state=State.OPEN, max_size=MAX_BYTES), [], b""
        fragments, is_text = b"", False
        for data in cuts_of(b"".join(map(raw, sent)), cuts):
            socket.receive_data(data)
            theirs.receive_data(data)
        answers = b"".join(theirs.data_to_send())
        for frame in theirs.events_received():
            assert isinstance(frame, Frame)
            if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
                fragments, is_text = b"", frame.opcode is Opcode.TEXT
            if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                fragments += bytes(frame.data)
                if frame.fin:
                    expected.append((fragments, is_text))
        broken = [at for at, (data, text) in enumerate(expected) if text and not is_utf8(data)]
        if broken:  # where reading ends for us: `websockets` leaves the text to whoever reads it
            del expected[broken[0] :]
            assert ours.close_sent is not None and ours.close_sent.code == 1007
        else:
            assert wire.written == answers
            assert (ours.close_sent, ours.close_rcvd) == (theirs.close_sent, theirs.close_rcvd)
        assert wire.got == [data.decode() if text else data for data, text in expected]
        socket.receive_connection_lost()
        socket.release()

    asyncio.run(run())


class Trickle(Wire):
    """Takes one message, then no more until it is told to."""

    socket: WebSocket

    def writelines(self, pieces: tuple[bytes, ...]) -> None:
        self.written += b"".join(pieces)
        self.socket.pause_writing()


async def test_who_takes_too_little_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """It never stops for long, but what waits for it grows older; that nothing does is no reason."""
    loop, limits, wire = asyncio.get_running_loop(), SocketLimits(), Trickle()
    began_s = now_s = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now_s)
    protocol = ServerProtocol(state=State.OPEN)
    socket = wire.socket = WebSocket(wire, protocol, wire, limits)  # type: ignore[arg-type]
    for _ in range(100):  # as much is taken as comes, one message late
        socket.send(bytes(1000))
        now_s += 1
        socket.resume_writing()
    assert socket.is_open()
    while socket.is_open() and now_s < began_s + 1000:
        now_s += 1
        for _ in range(4):
            socket.send(bytes(1000))
        socket.resume_writing()
    assert socket.why_aborted is not None and "has waited" in socket.why_aborted
    assert now_s - began_s - 100 > MAX_WAIT * limits.send_timeout_s and socket.queued_bytes == 0
    socket.release()


async def test_nothing_is_read_behind_the_end() -> None:
    """Whatever else came in the same read, or comes later: it would hold up everybody."""
    socket, wire, protocol = open_socket()
    socket.receive_data(raw(Frame(Opcode.PING, b"")) * 50_000)
    assert wire.closed and protocol.num_reads < 2 * (MESSAGE_BURST + MAX_REFUSED)
    read = protocol.num_reads
    socket.receive_data(raw(Frame(Opcode.TEXT, b"x")) + raw(Frame(Opcode.PING, b"")))
    assert protocol.num_reads == read and wire.got == []
    socket.release()


async def test_messages_behind_our_close_are_not_read() -> None:
    """The answer to it is; who goes on for too long is cut off."""
    for num_messages, is_cut in ((1000, False), (MAX_UNHEARD_BYTES, True)):
        socket, wire, protocol = open_socket()
        socket.close(4400, "bye")
        messages = raw(Frame(Opcode.TEXT, b"x")) * num_messages
        for data in (messages, raw(Frame(Opcode.CLOSE, b"\x11\x30"))):
            socket.receive_data(data)
        assert (socket.why_aborted is not None, protocol.close_rcvd is None) == (is_cut, is_cut)
        assert protocol.num_reads == (0 if is_cut else 1) and wire.got == []
        socket.receive_connection_lost()
        socket.release()


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
