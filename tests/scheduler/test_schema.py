"""The decoder under fire: whatever comes in, it returns a message within its limits or raises DecodeError."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler import messages as m
from scheduler.messages import DecodeError, Message, decode_json, encode_json

TABLES: Mapping[str, Mapping[str, type[Any]]] = {
    "inputs": m.INPUTS,
    "commands": m.ENGINE_COMMANDS,
    "events": m.EVENTS,
    "requests": m.LINK_REQUESTS,
    "replies": m.LINK_REPLIES,
}
FIELDS = sorted({name for t in TABLES.values() for c in t.values() for name in c.__dataclass_fields__})
TAGS = sorted({tag for table in TABLES.values() for tag in table})
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=80)
values = st.recursive(plain, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(), v, max_size=4))
objects = st.dictionaries(st.sampled_from(FIELDS), values, max_size=12)
tagged = st.builds(lambda tag, body: {**body, "type": tag}, st.sampled_from(TAGS), objects)


def check(table: Mapping[str, type[Message]], data: bytes) -> None:
    """Assert: a DecodeError, or a message that survives its own encoding."""
    try:
        message = decode_json(table, data)
    except DecodeError as exc:
        assert str(exc)
        return
    assert decode_json(table, encode_json(message)) == message


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
@settings(deadline=None)
@given(data=st.binary(max_size=200) | (tagged | values).map(lambda v: json.dumps(v).encode()))
def test_anything_decodes_or_is_refused(table: Mapping[str, type[Message]], data: bytes) -> None:
    """No input gets another exception out of the decoder."""
    check(table, data)


CASES = {
    "a prompt at its limit": (m.INPUTS, {"type": "prompt", "text": "x" * 2_000}, True),
    "a prompt over its limit": (m.INPUTS, {"type": "prompt", "text": "x" * 2_001}, False),
    "an id over its limit": (m.INPUTS, {"type": "prompt", "text": "x", "id": "i" * 65}, False),
    "a number as text": (m.INPUTS, {"type": "prompt", "text": 5}, False),
    "true is not 1": (m.INPUTS, {"type": "reset", "seed": True}, False),
    "a whole float is an integer": (m.INPUTS, {"type": "reset", "seed": 5.0}, True),
    "a negative seed": (m.INPUTS, {"type": "reset", "seed": -1}, False),
    "an axis out of range": (m.INPUTS, {"type": "control", "axes": {"x": 1.5}}, False),
    "too many keys": (m.INPUTS, {"type": "control", "keys": ["a"] * 17}, False),
    "an unknown transition": (m.INPUTS, {"type": "prompt", "text": "x", "transition": "fade"}, False),
    "an unknown field": (m.INPUTS, {"type": "prompt", "text": "x", "new": 1}, True),
    "an unknown type": (m.INPUTS, {"type": "open"}, False),
    "no type": (m.INPUTS, {"text": "x"}, False),
    "a list": (m.INPUTS, ["prompt"], False),
    "a missing field": (m.ENGINE_COMMANDS, {"type": "open", "session": "s_1"}, False),
    "None may be left out": (m.ENGINE_COMMANDS, {"type": "release", "session": "s_1", "epoch": 1}, True),
    "half a surrogate pair": (m.INPUTS, {"type": "prompt", "text": "\ud800"}, False),
    "a whole pair": (m.INPUTS, {"type": "prompt", "text": "\U0001f534"}, True),
    "an unknown state": (m.EVENTS, {"type": "engine_changed", "engine": "e", "state": "odd"}, False),
}


@pytest.mark.parametrize(("table", "data", "is_good"), CASES.values(), ids=CASES.keys())
def test_limits(table: Mapping[str, type[Message]], data: object, is_good: bool) -> None:
    """Each limit holds on both sides."""
    text = json.dumps(data).encode()
    if is_good:
        check(table, text)
        decode_json(table, text)
    else:
        with pytest.raises(DecodeError):
            decode_json(table, text)


def test_bounds_are_written_out() -> None:
    """A client that is told the largest seed can use it."""
    with pytest.raises(DecodeError, match="between 0 and 9223372036854775807"):
        decode_json(m.INPUTS, b'{"type": "reset", "seed": -1}')


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999", "9" * 400])
def test_numbers_must_be_finite(text: str) -> None:
    """What JSON readers accept beyond JSON does not get in."""
    with pytest.raises(DecodeError):
        decode_json(m.INPUTS, f'{{"type": "control", "axes": {{"x": {text}}}}}')


def test_media_framing() -> None:
    """Header and payload come back; truncated frames are refused."""
    data = m.frame_media(b"{}", b"payload")
    header, payload = m.unframe_media(data)
    assert (header, bytes(payload)) == (b"{}", b"payload")
    for cut in range(6):
        with pytest.raises(DecodeError):
            m.unframe_media(data[:cut])


@pytest.mark.parametrize("seq", [2**63, -(2**63) - 1, 1e300])
def test_integers_have_64_bits(seq: float) -> None:
    """Others could be read, but not be sent on in msgpack."""
    message = {"type": "moved", "session": "s_1", "epoch": 1, "engine": None, "next_seq": seq}
    with pytest.raises(DecodeError, match="'next_seq' must be an integer of 64 bits"):
        decode_json(m.LINK_REPLIES, json.dumps(message).encode())
