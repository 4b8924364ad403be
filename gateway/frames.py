"""WebSocket frames, RFC 6455, 5.2: where they begin and end in what a client or an engine sends, and those
that go to an engine. Pure, but for `draw_masks`.

Checks nothing: whether a frame is allowed is for `websockets` to say. But what a gateway reads all the time
are messages in one frame, small ones of clients (acks) and large ones of engines (chunks). Those cost it less
than half with `payload_of` and `message_of`, and large ones are copied once, not twice.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterator
from typing import Final

try:
    from websockets.speedups import apply_mask
except ImportError:  # not built here
    from websockets.utils import apply_mask

_TEXT: Final = 1
_WHOLE_MESSAGES = (0x81, 0x82)
"""First byte of a text and of a binary message in one frame, no extension bit set."""
_SMALL = range(0x80, 0x80 + 126)
"""Second byte of a masked frame whose length is in it."""
_MASKS_DRAWN: Final = 1024
_LENGTH_BYTES = {126: 2, 127: 8}
"""By the second byte of a frame that is not masked: how many behind it tell the length."""


class FrameCutter:
    """Cuts a byte stream where frames end."""

    def __init__(self, *, whole_bytes: int = 0) -> None:
        """Frames of up to `whole_bytes` come whole, longer ones in the pieces in which they were read."""
        self._whole_bytes = whole_bytes
        self._pieces: list[bytes] = []
        """Of a frame that is to come whole."""
        self._head = b""
        """Begins a frame whose length it does not tell yet; at most 9 bytes."""
        self._owed = 0
        """Bytes of the frame under way that are still to come."""

    def is_small(self, data: bytes) -> bool:
        """Is this all of a small masked frame, as an ack mostly comes? Then it need not be cut."""
        return not (self._owed or self._head) and len(data) > 6 and len(data) == (data[1] ^ 0x80) + 6

    def cut(self, data: bytes) -> Iterator[tuple[bytes, bool]]:
        """(bytes, are they exactly one frame?): all of the stream, in order, never of two frames in one."""
        if self._head:
            data, self._head = self._head + data, b""
        at, end = 0, len(data)
        while at < end:
            is_begun = self._owed > 0
            size = self._owed or _frame_bytes(data, at)
            if size is None:
                self._head = data[at:]
                return
            piece = data[at : at + size]
            self._owed = size - len(piece)
            at += len(piece)
            if self._pieces or (not is_begun and size <= self._whole_bytes):
                self._pieces.append(piece)
                if self._owed == 0:
                    whole, self._pieces = b"".join(self._pieces), []
                    yield whole, True
            else:
                yield piece, not is_begun and self._owed == 0


def _frame_bytes(data: bytes, at: int) -> int | None:
    """Length of the frame that begins there; None: it can't be told yet."""
    if len(data) - at < 2:
        return None
    mask_bytes = 4 if data[at + 1] & 0x80 else 0
    length = data[at + 1] & 0x7F
    if length < 126:
        return 2 + mask_bytes + length
    width = 2 if length == 126 else 8
    if len(data) - at < 2 + width:
        return None
    return 2 + width + mask_bytes + int.from_bytes(data[at + 2 : at + 2 + width])


def payload_of(frame: bytes) -> bytes | None:
    """What a small message says, if this frame is all of one and masked as it must be."""
    if frame[0] not in _WHOLE_MESSAGES or frame[1] not in _SMALL:
        return None
    return apply_mask(frame[6:], frame[2:6])


def message_of(frame: bytes) -> memoryview | None:
    """What a message of any size says, if this frame is all of one and not masked, as a client gets it."""
    if frame[0] not in _WHOLE_MESSAGES or frame[1] & 0x80:
        return None
    return memoryview(frame)[2 + _LENGTH_BYTES.get(frame[1], 0) :]


def is_whole_message(frame: bytes) -> bool:
    """Is this frame all of one, of any size?"""
    return frame[0] in _WHOLE_MESSAGES


def is_text(frame: bytes) -> bool:
    return frame[0] & 0x0F == 1


def draw_masks() -> Iterator[bytes]:
    """Masks without end, which nobody can predict, as clients need them; from few calls of the system."""
    while True:
        drawn = secrets.token_bytes(4 * _MASKS_DRAWN)
        yield from (drawn[at : at + 4] for at in range(0, len(drawn), 4))


def frame_head(opcode: int, length: int, *, is_masked: bool = False) -> bytes:
    """Of a whole message in one frame. A client's is masked, the mask comes behind; a server's is not."""
    mask_bit = 0x80 * is_masked
    if length < 126:
        return bytes((0x80 | opcode, mask_bit | length))
    if length < 1 << 16:
        return struct.pack("!BBH", 0x80 | opcode, mask_bit | 126, length)
    return struct.pack("!BBQ", 0x80 | opcode, mask_bit | 127, length)


def masked_text(message: bytes, mask: bytes) -> bytes:
    """A text message as one frame of a client."""
    return b"".join((frame_head(_TEXT, len(message), is_masked=True), mask, apply_mask(message, mask)))
