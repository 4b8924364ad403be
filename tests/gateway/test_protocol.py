"""The wire: golden bytes, limits, and that no input makes a decoder raise anything but MessageError."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace

import msgpack
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import protocol as wire
from gateway.protocol import (
    CLIENT_MESSAGES,
    CODECS,
    JSON_SUBPROTOCOL,
    MSGPACK_SUBPROTOCOL,
    SERVER_MESSAGES,
    ChunkHeader,
    MessageError,
)
from scheduler.messages import ErrorCode, SessionState, encode

JSON = CODECS[JSON_SUBPROTOCOL]
MSGPACK = CODECS[MSGPACK_SUBPROTOCOL]
BOTH = sorted(CODECS)

HEADER = ChunkHeader(
    session="s_0123456789abcdef",
    seq=3,
    part=0,
    parts=2,
    key=True,
    frames=2,
    sizes=(3, 2),
    pts_ms=1500.0,
    duration_ms=83.5,
    codec="h264",
    rev=1,
    engine="e_00000001",
)
LAST_HEADER = replace(HEADER, part=1, key=False, gen_ms=123.0)
GOLDEN_HEADER = (
    b'{"type":"chunk","session":"s_0123456789abcdef","seq":3,"part":0,"parts":2,"key":true,"frames":2,'
    b'"sizes":[3,2],"pts_ms":1500.0,"duration_ms":83.5,"codec":"h264","rev":1,"engine":"e_00000001"}'
)

SERVER_EXAMPLES: list[wire.ServerMessage] = [
    wire.Session(
        session="s_0123456789abcdef",
        resume="r",
        model="shapes",
        width=96,
        height=96,
        fps=24,
        chunk_frames=12,
        codec="h264",
        lead_ms=1500,
    ),
    wire.Queued(position=2, eta_ms=60_000),
    wire.State(state=SessionState.ACTIVE, engine="e_00000001"),
    wire.Accepted(id="a"),
    wire.Applied(rev=1, seq=4, id="a"),
    wire.Gap(from_seq=1, to_seq=2),
    wire.Stats(seq=0, latency_ms=1.5, gen_ms=1.0, slack_ms=500.0, batch=2.0),
    wire.Pong(t=1.25),
    wire.Error(code=ErrorCode.RATE, message="slow down", retry_after_ms=1000),
    wire.Closed(reason="stopped"),
]
CLIENT_EXAMPLES: list[wire.ClientMessage] = [
    wire.Start(prompt="a red ball", seed=7, model="shapes", accept=("h264",), lead_ms=500, id="1"),
    wire.Prompt(text="blau ☂", transition="blend", blend_chunks=3),
    wire.Control(keys=("w",), axes={"x": 0.5}),
    wire.Ack(seq=-1, buffer_ms=0.0),
    wire.Pause(id="p"),
    wire.Resume(),
    wire.Stop(),
    wire.Reset(seed=0),
    wire.Attach(session="s_0123456789abcdef", resume="r", next_seq=4),
    wire.Watch(session="s_0123456789abcdef"),
    wire.Ping(t=2.5),
    wire.Ping(t=2**62 + 1),  # nanoseconds, exact to the last digit
]


def refuse(codec: wire.Codec, data: str | bytes) -> MessageError:
    with pytest.raises(MessageError) as caught:
        codec.decode_control(CLIENT_MESSAGES, data)
    return caught.value


@pytest.mark.parametrize("name", BOTH)
def test_every_message_survives_the_wire(name: str) -> None:
    """What one side encodes the other decodes to an equal message, in both flavours."""
    codec = CODECS[name]
    assert {m.type for m in SERVER_EXAMPLES} == set(SERVER_MESSAGES)
    assert {m.type for m in CLIENT_EXAMPLES} == set(CLIENT_MESSAGES)
    for server in SERVER_EXAMPLES:
        assert codec.decode_control(SERVER_MESSAGES, codec.encode_control(server)) == server
    for client in CLIENT_EXAMPLES:
        assert codec.decode_control(CLIENT_MESSAGES, codec.encode_control(client)) == client


@pytest.mark.parametrize("header", [HEADER, LAST_HEADER], ids=["first", "last"])
def test_heads_are_written_as_the_schema_says(header: ChunkHeader) -> None:
    """Byte for byte, by the shorter way that is taken."""
    plain = encode(header)
    assert JSON.encode_media_head(header)[4:] == orjson.dumps(plain)
    assert MSGPACK.encode_media_head(header)[5:] == msgpack.packb(plain)


ACK_PARTS = st.lists(
    st.sampled_from(
        [
            '"seq":1', '"seq":-1', '"seq":-0', '"seq":1.0', '"seq":0.5', '"seq":9007199254740993',
            '"seq":99999999999999999999', '"se\\u0071":2', '"seq": 3', '"buffer_ms":5', '"buffer_ms":-0.0',
            '"buffer_ms":1e999', '"buffer_ms":1e3', '"buffer_ms":NaN', '"buffer_ms":1' + "0" * 400,
            '"buffer_ms":true', '"buffer_ms":"5"', '"buffer_ms":123456.789012345678', '"id":"a"', '"id":null',
            '"id":"a:b"', '"id":"\\ud800"', '"id":"\\ud83d\\ude00"', '"id":"ü"', '"id":5', '"x":{"seq":1}',
            '"x":[{"a":1}]', '"x":{}', '"type":"ping"', '"t":1', "x", '"x":01',
        ]
    ),
    max_size=5,
)  # fmt: skip


@given(ACK_PARTS, st.sampled_from(["}", "} ", "", "}}", ",}", "]"]))
def test_acks_are_read_as_the_schema_says(parts: list[str], end: str) -> None:
    """The quick way gives the same message, or the same refusal."""
    text = ",".join(['{"type":"ack"', *parts]) + end

    def result(parsed: Callable[[], object]) -> object:
        try:
            message = wire._decode(CLIENT_MESSAGES, parsed())
        except MessageError as exc:
            return exc.code, exc.id, str(exc)
        return message, repr(message).replace("-0.0", "0.0")

    try:
        got: object = JSON.decode_control(CLIENT_MESSAGES, text)
        got = got, repr(got).replace("-0.0", "0.0")
    except MessageError as exc:
        got = exc.code, exc.id, str(exc)
    assert got == result(lambda: wire._load_json(text))


def test_golden_json_media() -> None:
    """JSON flavour: 4-byte big-endian header length, JSON header, payload."""
    expected = struct.pack(">I", len(GOLDEN_HEADER)) + GOLDEN_HEADER + b"\x00\x01\x02\x03\x04"
    assert JSON.encode_media_head(HEADER) + b"\x00\x01\x02\x03\x04" == expected
    header, payload = JSON.decode_media(expected)
    assert (header, bytes(payload)) == (HEADER, b"\x00\x01\x02\x03\x04")


def test_golden_msgpack_media() -> None:
    """msgpack flavour: byte 0x01, 4-byte big-endian header length, msgpack header, payload."""
    data = MSGPACK.encode_media_head(HEADER) + b"abcde"
    (length,) = struct.unpack(">I", data[1:5])
    assert data[:1] == b"\x01" and data[5 + length :] == b"abcde"
    assert msgpack.unpackb(data[5 : 5 + length]) == json.loads(GOLDEN_HEADER)


def test_golden_control() -> None:
    """Control is JSON text, or the byte 0x00 and a msgpack map; absent fields are left out."""
    assert JSON.encode_control(wire.Accepted(id="x")) == '{"type":"accepted","id":"x"}'
    assert MSGPACK.encode_control(wire.Accepted(id="x")) == b"\x00\x82\xa4type\xa8accepted\xa2id\xa1x"


def test_defaults_are_those_of_the_protocol() -> None:
    """A client that sends only what it must gets the documented defaults."""
    start = JSON.decode_control(CLIENT_MESSAGES, '{"type":"start","prompt":"x","extra":[1]}')
    assert start == wire.Start(
        prompt="x", seed=None, model=None, accept=("h264",), lead_ms=1500, token=None, id=None
    )
    assert JSON.decode_control(CLIENT_MESSAGES, '{"type":"prompt","text":""}') == wire.Prompt(
        text="", transition="cut", blend_chunks=2
    )


BAD_JSON = {
    "not an object": "[]",
    "no type": "{}",
    "type is a number": '{"type":1}',
    "missing field": '{"type":"prompt"}',
    "wrong type": '{"type":"prompt","text":5}',
    "bool for a number": '{"type":"ping","t":true}',
    "string for a number": '{"type":"ack","seq":"1","buffer_ms":0}',
    "fraction for an integer": '{"type":"ack","seq":0.5,"buffer_ms":0}',
    "seq below -1": '{"type":"ack","seq":-2,"buffer_ms":0}',
    "seed too large": '{"type":"start","prompt":"","seed":9223372036854775808}',
    "lead too short": '{"type":"start","prompt":"","lead_ms":99}',
    "lead too long": '{"type":"start","prompt":"","lead_ms":10001}',
    "NaN": '{"type":"ping","t":NaN}',
    "infinite": '{"type":"ping","t":1e999}',
    "huge integer": '{"type":"ping","t":1' + "0" * 400 + "}",
    "duplicate key": '{"type":"ping","t":1,"t":2}',
    "deep nesting": "[" * 60_000,
    "deep nesting in a field": '{"type":"ping","t":1,"x":' + "[" * 30_000 + "]" * 30_000 + "}",
    "lone surrogate": '{"type":"prompt","text":"\\ud800"}',
    "unknown transition": '{"type":"prompt","text":"","transition":"fade"}',
    "long id": '{"type":"stop","id":"' + "x" * 65 + '"}',
    "too many keys": json.dumps({"type": "control", "keys": ["k"] * 17}),
    "axis out of range": '{"type":"control","axes":{"x":1.5}}',
    "trailing text": '{"type":"stop"} x',
    "empty": "",
}


@pytest.mark.parametrize("name", sorted(BAD_JSON))
def test_bad_json_is_a_bad_message(name: str) -> None:
    """Each breach of the schema has a sentence and the code bad_message."""
    error = refuse(JSON, BAD_JSON[name])
    assert error.code is ErrorCode.BAD_MESSAGE and str(error)


BAD_MSGPACK = {
    "text": "text",
    "empty": b"",
    "only the first byte": b"\x00",
    "media from a client": b"\x01\x00\x00\x00\x00",
    "truncated": b"\x00\x82\xa4type",
    "trailing bytes": b"\x00" + msgpack.packb({"type": "stop"}) + b"\x00",
    "extension type": b"\x00" + msgpack.packb({"type": "stop", "x": msgpack.ExtType(5, b"ab")}),
    "timestamp": b"\x00" + msgpack.packb({"type": "stop", "x": msgpack.Timestamp(1)}),
    "binary value": b"\x00" + msgpack.packb({"type": "stop", "x": b"abc"}),
    "integer key": b"\x00" + msgpack.packb({1: 2, "type": "stop"}),
    "duplicate key": b"\x00\x82\xa4type\xa4stop\xa4type\xa4stop",
    "invalid UTF-8": b"\x00\x81\xa4type\xa2\xff\xfe",
    "array that claims 4 billion entries": b"\x00\xdd\xff\xff\xff\xff",
    "deep nesting": b"\x00" + b"\x91" * 60_000,
    "NaN": b"\x00" + msgpack.packb({"type": "ping", "t": float("nan")}),
}


@pytest.mark.parametrize("name", sorted(BAD_MSGPACK))
def test_bad_msgpack_is_a_bad_message(name: str) -> None:
    """Same for the binary flavour, whose parser must not believe announced sizes."""
    assert refuse(MSGPACK, BAD_MSGPACK[name]).code is ErrorCode.BAD_MESSAGE


def test_codes_and_ids_of_refusals() -> None:
    """Unknown types and oversize prompts have codes of their own; a usable id is given back."""
    unknown = refuse(JSON, '{"type":"dance","id":"q"}')
    assert (unknown.code, unknown.id) == (ErrorCode.UNKNOWN_TYPE, "q")
    long = refuse(JSON, json.dumps({"type": "prompt", "text": "x" * 2001, "id": "p"}))
    assert (long.code, long.id) == (ErrorCode.TOO_LARGE, "p")
    assert refuse(JSON, json.dumps({"type": "start", "prompt": "x" * 2001})).code is ErrorCode.TOO_LARGE
    assert refuse(JSON, b"{}").code is ErrorCode.BAD_MESSAGE  # wrong frame kind
    JSON.decode_control(CLIENT_MESSAGES, json.dumps({"type": "prompt", "text": "ü" * 2000}))


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(
    "data", ["text", b"", b"\x00\x00", b"\x01\x00\x00", b"\x00\x00\xff\xff", b"\x01\xff\xff\xff\xff{}"]
)
def test_broken_media(name: str, data: str | bytes) -> None:
    """Lengths that do not fit are refused."""
    with pytest.raises(MessageError):
        CODECS[name].decode_media(data)


@pytest.mark.parametrize("name", BOTH)
def test_media_whose_sizes_do_not_sum_up(name: str) -> None:
    """The sizes of the access units must sum to the payload."""
    data = CODECS[name].encode_media_head(HEADER) + b"abcd"
    with pytest.raises(MessageError):
        CODECS[name].decode_media(data)


@given(st.one_of(st.binary(max_size=300), st.text(max_size=300)))
def test_no_bytes_break_a_decoder(data: str | bytes) -> None:
    """Random frames raise MessageError or decode; nothing else escapes."""
    for codec in CODECS.values():
        codec.is_media(data)
        for decode in (lambda c: c.decode_control(CLIENT_MESSAGES, data), lambda c: c.decode_media(data)):
            try:
                decode(codec)
            except MessageError as exc:
                assert str(exc)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
_names = sorted({name for cls in CLIENT_MESSAGES.values() for name in cls.__dataclass_fields__})


@given(st.sampled_from(sorted(CLIENT_MESSAGES)), st.dictionaries(st.sampled_from(_names), _values))
def test_no_fields_break_a_decoder(tag: str, fields: dict[str, object]) -> None:
    """Any values in the known fields raise MessageError or give a message that encodes again."""
    data = json.dumps({"type": tag, **fields})
    try:
        message = JSON.decode_control(CLIENT_MESSAGES, data)
    except MessageError:
        return
    assert MSGPACK.decode_control(CLIENT_MESSAGES, MSGPACK.encode_control(message)) == message
