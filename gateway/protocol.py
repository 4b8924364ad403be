"""The public wire, v1: every message between a client and a gateway, its limits, and the two encodings.

Prose, examples and rules of use: `docs/protocol.md`. This module is pure; the session rules are in
`gateway/session.py`.

    client -> server    `ClientMessage`, decoded with `CLIENT_MESSAGES`
    server -> client    `ServerMessage`, decoded with `SERVER_MESSAGES`
    media               `ChunkHeader` + payload
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from operator import attrgetter
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar, get_args

import msgpack
import orjson

from scheduler.messages import (
    MAX_PROMPT_CHARS,
    Chars,
    DecodeError,
    ErrorCode,
    Items,
    Message,
    MessageId,
    Range,
    SessionState,
    decode,
    encode,
)

MAX_CLIENT_MESSAGE_BYTES = 64 * 1024
"""Raw size of a client message; a longer one closes 1009."""
MAX_SERVER_MESSAGE_BYTES = 16 * 1024 * 1024
"""What a client must be ready to receive in one message."""
MAX_MEDIA_HEADER_BYTES = 64 * 1024
MAX_CONTAINER_ENTRIES = 1024
"""Entries of one list or object in a msgpack message."""
MAX_BAD_MESSAGES = 3
"""The third bad message without a good one between closes 4400."""
MAX_SEQ = 2**53 - 1
MAX_SEED = 2**63 - 1
MIN_LEAD_MS = 100
MAX_LEAD_MS = 10_000
DEFAULT_LEAD_MS = 1_500
MAX_BUFFER_MS = 3_600_000
MAX_TOKEN_CHARS = 8_192
MAX_CODECS = 16
"""That a client names."""
MAX_KEYS = 16
"""Held at once, of a `control`; as many axes."""
MAX_NAME_CHARS = 64
"""Names and ids that a client sends: model, session, resume token."""

JSON_SUBPROTOCOL = "turboserve.v1+json"
MSGPACK_SUBPROTOCOL = "turboserve.v1+msgpack"
TOKEN_SUBPROTOCOL_PREFIX = "turboserve.token."
"""A subprotocol item that carries a token instead of naming a protocol; never echoed."""


class CloseCode(IntEnum):
    """WebSocket close codes that a gateway sends."""

    DONE = 1000
    GOING_AWAY = 1001
    TOO_BIG = 1009
    INTERNAL = 1011
    RESTART = 1012
    PROTOCOL = 4400
    NOT_AUTHORISED = 4401
    ORIGIN = 4403
    NO_SUCH_SESSION = 4404
    IDLE = 4408
    TAKEN_OVER = 4409
    RATE = 4429
    NO_CAPACITY = 4503


class MessageError(DecodeError):
    """A received message breaks the schema: what to answer. `str()` is a sentence for the sender."""

    def __init__(self, text: str, *, code: ErrorCode, id: str | None = None) -> None:
        super().__init__(text, unknown_type=code is ErrorCode.UNKNOWN_TYPE)
        self.code = code
        self.id = id


# --- client -> server ------------------------------------------------------------------------------------

Name = Annotated[str, Chars(MAX_NAME_CHARS)]
KeyName = Annotated[str, Chars(32)]
Token = Annotated[str, Chars(MAX_TOKEN_CHARS)]
PromptText = Annotated[str, Chars(MAX_PROMPT_CHARS)]
Seed = Annotated[int, Range(0, MAX_SEED)]
Seq = Annotated[int, Range(0, MAX_SEQ)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A new session; one session per connection at a time."""

    type: ClassVar[str] = "start"
    prompt: PromptText
    seed: Seed | None = None
    """None: random."""
    model: Name | None = None
    """None: the cluster's default."""
    accept: Annotated[tuple[Name, ...], Items(MAX_CODECS)] = ("h264",)
    """Codecs that the client decodes, the one that it likes best first."""
    lead_ms: Annotated[int, Range(MIN_LEAD_MS, MAX_LEAD_MS)] = DEFAULT_LEAD_MS
    """Unplayed media that the server keeps ahead of the playhead."""
    token: Token | None = None
    id: MessageId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """Steer the running video; does not wake a paused session."""

    type: ClassVar[str] = "prompt"
    text: PromptText
    transition: Literal["cut", "blend"] = "cut"
    blend_chunks: Annotated[int, Range(1, 16)] = 2
    id: MessageId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """The state of keys and axes, not events."""

    type: ClassVar[str] = "control"
    keys: Annotated[tuple[KeyName, ...], Items(MAX_KEYS)] = ()
    axes: Annotated[dict[KeyName, Annotated[float, Range(-1, 1)]], Items(MAX_KEYS)] | None = None
    id: MessageId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """How far the client is: on every complete chunk and at least every 500 ms."""

    type: ClassVar[str] = "ack"
    seq: Annotated[int, Range(-1, MAX_SEQ)]
    """Newest completely received chunk, -1 before the first."""
    buffer_ms: Annotated[float, Range(-MAX_BUFFER_MS, MAX_BUFFER_MS)]
    """Media time from the playhead to the end of that chunk; below 0 counts as 0."""
    id: MessageId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Make the session idle."""

    type: ClassVar[str] = "pause"
    id: MessageId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Make the session active."""

    type: ClassVar[str] = "resume"
    id: MessageId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """End the session; the connection may `start` again."""

    type: ClassVar[str] = "stop"
    id: MessageId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset:
    """Forget the past, keep the prompt."""

    type: ClassVar[str] = "reset"
    seed: Seed | None = None
    """None: keep the seed."""
    id: MessageId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach:
    """Continue a session after a lost connection, at any gateway."""

    type: ClassVar[str] = "attach"
    session: Name
    resume: Name
    next_seq: Seq
    """First chunk that the client does not hold completely."""
    token: Token | None = None
    id: MessageId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Read-only viewer of a session."""

    type: ClassVar[str] = "watch"
    session: Name
    token: Token | None = None
    id: MessageId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """Answered by `pong` with the same number."""

    type: ClassVar[str] = "ping"
    t: float
    id: MessageId | None = None


ClientMessage = Start | Prompt | Control | Ack | Pause | Resume | Stop | Reset | Attach | Watch | Ping
CLIENT_MESSAGES: Mapping[str, type[ClientMessage]] = {c.type: c for c in get_args(ClientMessage)}


# --- server -> client --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The answer to `start` and `attach`, before anything else about the session."""

    type: ClassVar[str] = "session"
    session: str
    resume: str
    """Secret that `attach` needs; the same for the session's life."""
    model: str
    width: int
    height: int
    fps: int
    chunk_frames: int
    codec: str
    lead_ms: int
    controls: bool = False
    """Does the model take `control` messages?"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """The session waits for a place on an engine."""

    type: ClassVar[str] = "queued"
    position: int
    """1 = next."""
    eta_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    type: ClassVar[str] = "state"
    state: SessionState
    engine: str | None = field(default=None, metadata={"nullable": True})
    """None while no engine has the session."""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The message with this id is in the session's log, or took effect."""

    type: ClassVar[str] = "accepted"
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """The picture follows an input from chunk `seq` on; sent before that chunk's part 0."""

    type: ClassVar[str] = "applied"
    rev: int
    seq: int
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """These chunks will not come; both ends included."""

    type: ClassVar[str] = "gap"
    from_seq: int
    to_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """After each chunk, for display."""

    type: ClassVar[str] = "stats"
    seq: int
    latency_ms: float
    """From due to the last byte handed to the gateway link."""
    gen_ms: float
    slack_ms: float
    """Media that the player still held when the chunk left."""
    batch: float
    """Mean number of sessions that shared this chunk's passes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pong:
    type: ClassVar[str] = "pong"
    t: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """A message could not be served; the session lives on unless a close follows."""

    type: ClassVar[str] = "error"
    code: ErrorCode
    message: str
    id: str | None = None
    retry_after_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """The session is over."""

    type: ClassVar[str] = "closed"
    reason: str


ServerMessage = Session | Queued | State | Accepted | Applied | Gap | Stats | Pong | Error | Closed
SERVER_MESSAGES: Mapping[str, type[ServerMessage]] = {c.type: c for c in get_args(ServerMessage)}


# --- media ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkHeader:
    """Header of a media message: one part of one chunk. Payload: access units, one per frame."""

    type: ClassVar[str] = "chunk"
    session: str
    seq: Seq
    part: Annotated[int, Range(0, 4095)]
    parts: Annotated[int, Range(1, 4096)]
    key: bool
    """The part starts with a key frame; always so in part 0."""
    frames: Annotated[int, Range(1, 4096)]
    """Frames in this part."""
    sizes: Annotated[tuple[Annotated[int, Range(1, MAX_SERVER_MESSAGE_BYTES)], ...], Items(4096)]
    """Bytes of each access unit; they sum to the payload."""
    pts_ms: float
    """Media time of the part's first frame since the session's start."""
    duration_ms: float
    """Media time of this part."""
    codec: str
    rev: int
    """Prompt revision that the chunk was made with."""
    engine: str
    gen_ms: float | None = None
    """Generation time of the chunk, on its last part."""


CHUNK_HEADERS: Mapping[str, type[ChunkHeader]] = {ChunkHeader.type: ChunkHeader}


# --- the two flavours --------------------------------------------------------------------------------------

M = TypeVar("M")


class Codec(Protocol):
    """One flavour of the wire. Frames are `str` (text) or `bytes` (binary), as WebSocket delivers them."""

    subprotocol: str

    def encode_control(self, message: ClientMessage | ServerMessage) -> str | bytes:
        """A control message as one WebSocket frame."""

    def decode_control(self, table: Mapping[str, type[M]], data: str | bytes) -> M:
        """The inverse, with `CLIENT_MESSAGES` or `SERVER_MESSAGES`. Raises MessageError, never another."""

    def encode_media_head(self, header: ChunkHeader) -> bytes:
        """What stands before the payload in the binary frame of a media message."""

    def decode_media(self, data: str | bytes) -> tuple[ChunkHeader, memoryview]:
        """(header, payload). Raises MessageError when they do not fit each other."""

    def is_media(self, data: str | bytes) -> bool:
        """Does this frame, from a server, carry media?"""


class JsonCodec:
    """`turboserve.v1+json`: control is text, media is binary with a JSON header."""

    subprotocol = JSON_SUBPROTOCOL

    def encode_control(self, message: ClientMessage | ServerMessage) -> str:
        return _dump_json(message).decode()

    def decode_control(self, table: Mapping[str, type[M]], data: str | bytes) -> M:
        if not isinstance(data, str):
            raise _bad("in turboserve.v1+json a control message is a text frame, this one is binary")
        parsed = _load_flat(data) if data.startswith(_ACK_BEGINS) else None
        return _decode(table, _load_json(data) if parsed is None else parsed)

    def encode_media_head(self, header: ChunkHeader) -> bytes:
        return _with_length(orjson.dumps(_header_fields(header)))

    def decode_media(self, data: str | bytes) -> tuple[ChunkHeader, memoryview]:
        header, payload = _split_media(data, 0)
        return _check_media(_decode(CHUNK_HEADERS, _load_json(header)), payload)

    def is_media(self, data: str | bytes) -> bool:
        return not isinstance(data, str)


class MsgpackCodec:
    """`turboserve.v1+msgpack`: every frame is binary, its first byte says control or media."""

    subprotocol = MSGPACK_SUBPROTOCOL
    CONTROL = b"\x00"
    MEDIA = b"\x01"

    def encode_control(self, message: ClientMessage | ServerMessage) -> bytes:
        return self.CONTROL + _dump_msgpack(message)

    def decode_control(self, table: Mapping[str, type[M]], data: str | bytes) -> M:
        if isinstance(data, str):
            raise _bad("in turboserve.v1+msgpack every message is a binary frame, this one is text")
        if data[:1] != self.CONTROL:
            raise _bad("a msgpack control message starts with the byte 0x00")
        return _decode(table, _load_msgpack(memoryview(data)[1:]))

    def encode_media_head(self, header: ChunkHeader) -> bytes:
        return self.MEDIA + _with_length(msgpack.packb(_header_fields(header)))

    def decode_media(self, data: str | bytes) -> tuple[ChunkHeader, memoryview]:
        if not self.is_media(data):
            raise _bad("a msgpack media message starts with the byte 0x01")
        header, payload = _split_media(data, 1)
        return _check_media(_decode(CHUNK_HEADERS, _load_msgpack(header)), payload)

    def is_media(self, data: str | bytes) -> bool:
        return not isinstance(data, str) and data[:1] == self.MEDIA


CODECS: Mapping[str, Codec] = {c.subprotocol: c for c in (JsonCodec(), MsgpackCodec())}


def _bad(text: str) -> MessageError:
    return MessageError(text, code=ErrorCode.BAD_MESSAGE)


def _decode(table: Mapping[str, type[M]], data: object) -> M:
    try:
        return decode(table, data)
    except DecodeError as exc:
        code = ErrorCode.UNKNOWN_TYPE if exc.unknown_type else ErrorCode.BAD_MESSAGE
        if _has_long_prompt(data):
            code = ErrorCode.TOO_LARGE
        raise MessageError(str(exc), code=code, id=_find_id(data)) from None
    except (OverflowError, TypeError, ValueError):
        raise MessageError(
            "a field is out of its range", code=ErrorCode.BAD_MESSAGE, id=_find_id(data)
        ) from None


def _has_long_prompt(data: object) -> bool:
    texts = (data.get("text"), data.get("prompt")) if isinstance(data, dict) else ()
    return any(isinstance(text, str) and len(text) > MAX_PROMPT_CHARS for text in texts)


def _find_id(data: object) -> str | None:
    """The id to answer with, if the broken message still has a usable one."""
    id_ = data.get("id") if isinstance(data, dict) else None
    return id_ if isinstance(id_, str) and len(id_) <= 64 else None


def _unique(pairs: Sequence[tuple[Any, object]]) -> dict[str, object]:
    """An object from its pairs. Which of two equal keys wins differs between parsers, so none does."""
    found: dict[str, object] = {}
    for key, value in pairs:
        if not isinstance(key, str):
            raise DecodeError("keys must be strings")
        if key in found:
            raise DecodeError(f"the key {key[:32]!r} appears twice")
        found[key] = value
    return found


def _no_constant(name: str) -> object:
    raise DecodeError(f"{name} is not a JSON number")


def _load_json(data: str | bytes) -> object:
    try:
        text = data if isinstance(data, str) else data.decode()
        parsed = _JSON_IN.decode(text)
        # A lone surrogate can be written in JSON, but nowhere else: it would break the first UTF-8 encoder.
        if "\\u" in text or not text.isascii():
            json.dumps(parsed, ensure_ascii=False).encode()
    except DecodeError as exc:
        raise _bad(str(exc)) from None
    except UnicodeEncodeError:
        raise _bad("strings must be valid Unicode, without lone surrogates") from None
    except (ValueError, RecursionError):
        raise _bad("not valid JSON") from None
    return parsed


_ACK_BEGINS = '{"type":"ack",'
"""As clients mostly write what they send most."""


def _load_flat(text: str) -> object | None:
    """`_load_json` in a fifth of the time, or None: it has to look closer.

    Each key has a colon: where there are no more, no key is there twice, and no object inside.
    """
    try:
        parsed = orjson.loads(text)
    except ValueError:
        return None
    return parsed if len(parsed) == text.count(":") else None


_JSON_IN = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _load_msgpack(data: bytes | memoryview) -> object:
    try:
        return msgpack.unpackb(
            data,
            object_pairs_hook=_unique,
            ext_hook=_no_ext,
            max_str_len=MAX_CLIENT_MESSAGE_BYTES,
            max_bin_len=0,
            max_array_len=4 * MAX_CONTAINER_ENTRIES,
            max_map_len=MAX_CONTAINER_ENTRIES,
            max_ext_len=0,
        )
    except DecodeError as exc:
        raise _bad(str(exc)) from None
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise _bad("not valid msgpack") from None


def _no_ext(code: int, data: bytes) -> object:
    raise DecodeError("extension types are not used")


def _dump_json(message: Message) -> bytes:
    return orjson.dumps(encode(message))


def _dump_msgpack(message: Message) -> bytes:
    packed: bytes = msgpack.packb(encode(message))
    return packed


_HEADER_NAMES = ("type", *(each.name for each in fields(ChunkHeader)))
_header_values = attrgetter(*_HEADER_NAMES)


def _header_fields(header: ChunkHeader) -> dict[str, object]:
    """`encode` in less time, for what is sent most: serializers take tuples as they are."""
    found = dict(zip(_HEADER_NAMES, _header_values(header), strict=True))
    if header.gen_ms is None:
        del found["gen_ms"]
    return found


def _with_length(header: bytes) -> bytes:
    return struct.pack(">I", len(header)) + header


def _split_media(data: str | bytes, offset: int) -> tuple[bytes, memoryview]:
    if isinstance(data, str):
        raise _bad("media is binary, this frame is text")
    if len(data) < offset + 4:
        raise _bad("a media message has a 4-byte header length")
    (length,) = struct.unpack_from(">I", data, offset)
    start = offset + 4
    if length > min(MAX_MEDIA_HEADER_BYTES, len(data) - start):
        raise _bad("the header length exceeds the message")
    return data[start : start + length], memoryview(data)[start + length :]


def _check_media(header: ChunkHeader, payload: memoryview) -> tuple[ChunkHeader, memoryview]:
    if header.part >= header.parts or header.frames != len(header.sizes):
        raise _bad("the header contradicts itself: part < parts and one size per frame must hold")
    if sum(header.sizes) != len(payload):
        raise _bad(f"sizes sum to {sum(header.sizes)} bytes, the payload has {len(payload)}")
    return header, payload
