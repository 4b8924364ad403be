"""The form of exported state: round trips, golden bytes, and bytes that are refused."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.state_format import (
    ALIGNMENT,
    FORMAT_VERSION,
    BlendInfo,
    ChunkInfo,
    ExportedState,
    ModelKey,
    ReplayInfo,
    StateFormatError,
    StateHeader,
    StateScalars,
    checksum,
    decode_header,
    describe,
    encode_header,
    pack,
    unpack,
    verify,
)
from scheduler.messages import Applied, ControlInput, SessionId

GOLDEN = Path(__file__).parents[1] / "golden" / "state"
SCALARS = StateScalars(
    seq=7,
    frame=84,
    index=5,
    seed=2**63 - 1,
    text="a red ball, “quoted”",
    rev=3,
    held=ControlInput(keys=("left",), axes={"zoom": -0.5}),
    last_applied="1700000000000-1",
    embeds=1,
    blend=BlendInfo(start=0, target=2, chunks=4, done=1),
    history=(ChunkInfo(index=3, embeds=0), ChunkInfo(index=4, embeds=1)),
)
HEADER = StateHeader(
    model=ModelKey(name="shapes", weights_hash="ab" * 32, state_version=1),
    session=SessionId("s_0000000000000001"),
    epoch=2,
    scalars=SCALARS,
    kv_ring=(0, 3),
    replay=(
        ReplayInfo(
            seq=6,
            start_ms=4500.0,
            end_ms=5250.0,
            applied=(Applied(session=SessionId("s_0000000000000001"), epoch=2, rev=3, seq=6, id="p"),),
            parts=(3, 2),
        ),
    ),
)
BUFFERS = {
    "latents": torch.arange(24, dtype=torch.float32).view(2, 3, 4),
    "replay": torch.tensor(list(b"12345"), dtype=torch.uint8),
    "kv": torch.tensor([[1.5, -2.0, 0.25]], dtype=torch.bfloat16),
}
STATE = describe(HEADER, BUFFERS, checked=True)


def same(ours: ExportedState, theirs: ExportedState) -> bool:
    return ours.header == theirs.header and all(
        ours.buffers[name].dtype is tensor.dtype and torch.equal(ours.buffers[name], tensor)
        for name, tensor in theirs.buffers.items()
    )


def test_a_state_survives_its_bytes() -> None:
    """Header, scalars, replay and every buffer, bit for bit; buffers are aligned."""
    assert same(unpack(pack(STATE)), STATE)
    _, length = decode_header(pack(STATE))
    assert pack(STATE)[length + -length % ALIGNMENT :].startswith(struct.pack("<ff", 0.0, 1.0))


dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.uint8])


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.tuples(dtypes, st.lists(st.integers(0, 5), max_size=4)), max_size=6),
    text=st.text(max_size=40) | st.none(),
    seed=st.integers(0, 2**63 - 1),
)
def test_any_state_survives_its_bytes(
    shapes: list[tuple[torch.dtype, list[int]]], text: str | None, seed: int
) -> None:
    """Empty buffers, odd lengths, any text."""
    generator = torch.Generator().manual_seed(0)
    buffers = {
        f"b{number}": torch.randint(0, 255, shape, generator=generator).to(dtype)
        for number, (dtype, shape) in enumerate(shapes)
    }
    if text is not None:
        text = text.encode("utf-8", "replace").decode()
    header = replace(HEADER, scalars=replace(SCALARS, text=text, seed=seed))
    state = describe(header, buffers, checked=True)
    assert same(unpack(pack(state)), state)


def test_the_bytes_stay_what_they_were() -> None:
    """What this version wrote when the format was fixed is still read: raise FORMAT_VERSION to change it."""
    assert same(unpack((GOLDEN / "good.state").read_bytes()), STATE)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("empty", "too few"),
        ("other_magic", "no session state"),
        ("other_version", "state format 3"),
        ("header_truncated", "header is truncated"),
        ("header_changed", "header has another checksum"),
        ("header_not_json", "can't be read"),
        ("header_field_missing", "field 'session' is missing"),
        ("buffer_truncated", "buffer kv is truncated"),
        ("buffer_changed", "buffer latents has another checksum"),
        ("bytes_too_many", "too many"),
    ],
)
def test_bad_bytes_are_refused(name: str, why: str) -> None:
    """With a sentence that says what is wrong."""
    with pytest.raises(StateFormatError, match=why):
        unpack((GOLDEN / f"{name}.state").read_bytes())


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_change_of_a_byte_is_found(data: st.DataObject) -> None:
    """One flipped bit anywhere but in the padding between buffers, or any truncation, is an error."""
    packed = bytearray(pack(STATE))
    _, length = decode_header(bytes(packed))
    padding = set(range(length, length + -length % ALIGNMENT))
    offset = length + -length % ALIGNMENT
    for info in STATE.header.buffers:
        offset += info.num_bytes
        padding |= set(range(offset, offset + -offset % ALIGNMENT))
        offset += -offset % ALIGNMENT
    position = data.draw(st.sampled_from(sorted(set(range(len(packed))) - padding)))
    cut = data.draw(st.integers(0, len(packed) - 1))
    packed[position] ^= 1 << data.draw(st.integers(0, 7))
    for bad in (bytes(packed), pack(STATE)[:cut]):
        with pytest.raises(StateFormatError):
            unpack(bad)


@pytest.mark.parametrize("count", [0, 1, 3, 1023, 1024, 1025, 5000])
def test_the_checksum_is_a_sum_of_words_by_odd_numbers(count: int) -> None:
    """However many there are: in whole rows, and in what is left of them."""
    words = torch.randint(-(2**63), 2**63 - 1, (count,), generator=torch.Generator().manual_seed(count))
    wanted = sum(word * (2 * at + 1) for at, word in enumerate(words.tolist()))
    assert (checksum(words) - wanted) % 2**64 == 0


def test_the_checksum_finds_changed_and_swapped_words() -> None:
    """Also the highest bit of a word, bytes behind the last whole word, and data that lies askew."""
    words = torch.arange(2000)
    changed, swapped = words.clone(), words.clone()
    changed[1001] ^= -(2**63)
    swapped[[3, 1500]] = swapped[[1500, 3]]
    assert len({checksum(tensor) for tensor in (words, changed, swapped)}) == 3
    odd = torch.arange(13, dtype=torch.uint8)
    assert checksum(odd) != checksum(torch.cat([odd[:-1], odd[:1]]))
    assert checksum(odd[1:]) == checksum(odd[1:].clone())


def test_buffers_that_do_not_fit_the_header_are_found() -> None:
    """A receiver that filled buffers itself verifies them."""
    verify(STATE)
    for bad in ({}, BUFFERS | {"kv": BUFFERS["kv"].float()}, BUFFERS | {"kv": BUFFERS["kv"] * 2}):
        with pytest.raises(StateFormatError):
            verify(ExportedState(header=STATE.header, buffers=bad))


def write_golden() -> None:
    """Writes tests/golden/state; for a new format version only."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    good = pack(STATE)
    _, length = decode_header(good)
    body = encode_header(STATE.header)[16:]

    def framed(text: bytes, version: int = FORMAT_VERSION, magic: bytes = b"TSST") -> bytes:
        return struct.pack("<4sIII", magic, version, len(text), zlib.crc32(text)) + text

    flipped = bytearray(good)
    flipped[30] ^= 1
    changed = bytearray(good)
    changed[length + -length % ALIGNMENT] ^= 1
    files = {
        "good": good,
        "empty": b"",
        "other_magic": framed(body, magic=b"TSSX"),
        "other_version": framed(body, version=FORMAT_VERSION + 1),
        "header_truncated": good[:40],
        "header_changed": bytes(flipped),
        "header_not_json": framed(b"{"),
        "header_field_missing": framed(body.replace(b'"session":"s_0000000000000001","epoch":2,"sc', b'"sc')),
        "buffer_truncated": good[:-1],
        "buffer_changed": bytes(changed),
        "bytes_too_many": good + b"\0",
    }
    for name, data in files.items():
        (GOLDEN / f"{name}.state").write_bytes(data)
