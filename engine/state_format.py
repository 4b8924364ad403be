"""The one form in which session state leaves a slot: for host memory, another engine, or a checkpoint.

A header says what the state belongs to, holds every scalar, and lists flat buffers; the buffers follow.
Parts can be left out (`Part`): a checkpoint has no K/V, a pre-copy has nothing else. As bytes:

    offset  size
    0       4     magic "TSST"
    4       4     FORMAT_VERSION, little-endian like all numbers here
    8       4     length of the header
    12      4     CRC-32 of the header
    16      …     header: JSON of `StateHeader`
                  then each buffer in the header's order, each starting at a multiple of ALIGNMENT

Buffers, with the shape letters of `engine/models/base.py`; n is what the header says:

    kv          the whole slab [L, 2, W, N, H, D], or with `kv_ring` some of its frames [n, L, 2, N, H, D]
    prompt_kv   [L, 2, T, H, D]
    decoder     [decoder_state_numel]
    latents     [n, F, C, h, w] float32, clean, of the chunks in `scalars.history`
    embeds      [n, T, E] every prompt embedding that the scalars refer to, each once
    actions     [n, F, A] float32, of the chunks in `scalars.history`; only if the model takes control input
    replay      [n] bytes of the encoded chunks in `replay`, one after another
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from math import prod
from typing import Annotated

import torch
from torch import Tensor

from scheduler.messages import (
    Applied,
    Chars,
    ControlInput,
    DecodeError,
    Items,
    Range,
    SessionId,
    decode_fields,
)

__all__ = [
    "ALIGNMENT",
    "DTYPES",
    "FORMAT_VERSION",
    "BlendInfo",
    "BufferInfo",
    "ChunkInfo",
    "ExportedState",
    "ModelKey",
    "Part",
    "ReplayInfo",
    "StateFormatError",
    "StateHeader",
    "StateScalars",
    "checksum",
    "decode_header",
    "describe",
    "encode_header",
    "pack",
    "unpack",
    "verify",
]

FORMAT_VERSION = 2
"""Raised by one whenever an older reader could misread the bytes or the header."""
ALIGNMENT = 64
"""Bytes; buffers can be used where they lie."""
MAX_HEADER_BYTES = 256 * 1024
MAX_TEXT_CHARS = 16_384
"""Of a prompt in force, which a model may have combined from many."""
_MAGIC = b"TSST"
_PREFIX = struct.Struct("<4sIII")
DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "uint8": torch.uint8,
}
_ROW_WORDS = 1 << 10

Count = Annotated[int, Range(0, 2**62)]


class StateFormatError(ValueError):
    """These bytes are no state that this version reads, or not the state that was written."""


class Part(Enum):
    """What an export can hold; the scalars come with LATENTS."""

    KV = "kv"
    PROMPT_KV = "prompt_kv"
    DECODER = "decoder"
    LATENTS = "latents"
    """The window of clean latents, the prompt embeddings and the scalars: what a rebuild starts from."""
    REPLAY = "replay"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelKey:
    """State fits only a model with an equal key."""

    name: Annotated[str, Chars(128)]
    weights_hash: Annotated[str, Chars(128)]
    state_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkInfo:
    """A chunk whose latents are in the window."""

    index: Count
    """Chunks since start or reset before it."""
    embeds: Count
    """Row of the buffer `embeds` that its clean pass attends to."""
    joined: bool = False
    """Were its K/V written in one pass with those of the chunk before it?"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlendInfo:
    """A prompt blend in progress; start and target are rows of the buffer `embeds`."""

    start: Count
    target: Count
    chunks: Count
    done: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class StateScalars:
    """The state at the boundary before chunk `seq`."""

    seq: Count
    frame: Count
    """Pixel frames of all chunks before `seq`."""
    index: Count
    """Chunks since start or reset."""
    seed: Annotated[int, Range(0, 2**63 - 1)]
    text: Annotated[str, Chars(MAX_TEXT_CHARS)] | None
    rev: Count
    held: ControlInput
    """Keys and axes as last heard."""
    last_applied: Annotated[str, Chars(64)]
    """Newest entry of the input log that was taken in."""
    embeds: Count | None
    """Row of the embeddings in force; None before the first chunk."""
    blend: BlendInfo | None
    history: Annotated[tuple[ChunkInfo, ...], Items(4_096)]
    """Chunks of the buffer `latents`, oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayInfo:
    """One complete encoded chunk."""

    seq: Count
    start_ms: float
    end_ms: float
    applied: Annotated[tuple[Applied, ...], Items(512)]
    parts: Annotated[tuple[Count, ...], Items(256)]
    """Bytes of each part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferInfo:
    """One buffer."""

    name: Annotated[str, Chars(32)]
    dtype: Annotated[str, Chars(16)]
    shape: Annotated[tuple[Count, ...], Items(8)]
    checksum: int | None
    """`checksum` of its contents; None: it never leaves this process."""

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class StateHeader:
    """What an export says about itself."""

    model: ModelKey
    session: SessionId
    epoch: Count
    """Of the owner that exported it."""
    scalars: StateScalars | None = None
    kv_ring: Annotated[tuple[Count, ...], Items(4_096)] = ()
    """Ring frames in the buffer `kv`; empty: the whole slab."""
    replay: Annotated[tuple[ReplayInfo, ...], Items(64)] = ()
    buffers: Annotated[tuple[BufferInfo, ...], Items(16)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedState:
    """A header and its buffers, which may still be views of a slot, or lie in host memory."""

    header: StateHeader
    buffers: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Of all buffers."""
        return sum(info.num_bytes for info in self.header.buffers)


def describe(header: StateHeader, buffers: Mapping[str, Tensor], *, checked: bool) -> ExportedState:
    """The export of these buffers: the header lists them, with checksums if `checked`."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    infos = tuple(
        BufferInfo(
            name=name,
            dtype=names[tensor.dtype],
            shape=tuple(tensor.shape),
            checksum=checksum(tensor) if checked else None,
        )
        for name, tensor in buffers.items()
    )
    return ExportedState(header=replace(header, buffers=infos), buffers=dict(buffers))


def checksum(tensor: Tensor) -> int:
    """Sum of all 64-bit words, each times an odd number, 1, 3, 5, …, modulo 2^64; runs where the tensor lies.

    Finds every change of one word (odd numbers have inverses), and nearly always words that changed places.
    The words are those in memory, zero-padded. The sums run over rows and over columns of the words, because
    that reads each of them twice and writes nothing.
    """
    flat = tensor.contiguous().view(-1).view(torch.uint8) if tensor.numel() else tensor.new_empty(0)
    if flat.numel() % 8 or flat.storage_offset() % 8:
        flat = torch.cat([flat, flat.new_zeros(-flat.numel() % 8)])
    words = flat.view(torch.int64) if flat.numel() else flat.to(torch.int64)
    whole = len(words) // _ROW_WORDS * _ROW_WORDS
    rows, rest = words[:whole].view(-1, _ROW_WORDS), words[whole:]
    by_row, by_column = rows.sum(1), rows.sum(0)  # all sums wrap around, the same on every device

    def weighted(sums: Tensor, first: int, step: int) -> Tensor:
        return (sums * torch.arange(first, first + step * len(sums), step, device=sums.device)).sum()

    total = weighted(by_row, 0, 2 * _ROW_WORDS) + weighted(by_column, 1, 2) + weighted(rest, 2 * whole + 1, 2)
    return int(total.item())


def verify(state: ExportedState) -> None:
    """Compare the buffers with what the header says.

    Raises:
        StateFormatError: a buffer is missing, misshapen or changed.
    """
    for info in state.header.buffers:
        tensor = state.buffers.get(info.name)
        if tensor is None:
            raise StateFormatError(f"buffer {info.name} is missing")
        if tuple(tensor.shape) != info.shape or tensor.dtype is not DTYPES.get(info.dtype):
            raise StateFormatError(f"buffer {info.name} is not {info.dtype} {list(info.shape)}")
        if info.checksum is not None and checksum(tensor) != info.checksum:
            raise StateFormatError(f"buffer {info.name} has another checksum than its header says")


def encode_header(header: StateHeader) -> bytes:
    """Magic, version, length, CRC and JSON of a header; the inverse is `decode_header`."""
    body = json.dumps(asdict(header), separators=(",", ":"), ensure_ascii=False).encode()
    assert len(body) <= MAX_HEADER_BYTES, f"a state header of {len(body)} bytes"
    return _PREFIX.pack(_MAGIC, FORMAT_VERSION, len(body), zlib.crc32(body)) + body


def decode_header(data: bytes | memoryview) -> tuple[StateHeader, int]:
    """(header, bytes that it takes) of the header at the start of `data`.

    Raises:
        StateFormatError: not a header, another version, truncated, or changed.
    """
    view = memoryview(data)
    if len(view) < _PREFIX.size:
        raise StateFormatError(f"{len(view)} bytes are too few for a state")
    magic, version, length, crc = _PREFIX.unpack_from(view)
    if magic != _MAGIC:
        raise StateFormatError("this is no session state")
    if version != FORMAT_VERSION:
        raise StateFormatError(f"state format {version} is not the {FORMAT_VERSION} that this version reads")
    if length > min(MAX_HEADER_BYTES, len(view) - _PREFIX.size):
        raise StateFormatError("the state's header is truncated")
    body = bytes(view[_PREFIX.size : _PREFIX.size + length])
    if zlib.crc32(body) != crc:
        raise StateFormatError("the state's header has another checksum than it says")
    try:
        header = decode_fields(StateHeader, json.loads(body))
    except (DecodeError, ValueError, AttributeError, RecursionError) as exc:
        raise StateFormatError(f"the state's header can't be read: {exc}") from exc
    unknown = [info.dtype for info in header.buffers if info.dtype not in DTYPES]
    if unknown or len({info.name for info in header.buffers}) < len(header.buffers):
        raise StateFormatError(f"buffers of unknown type {unknown} or of one name twice")
    return header, _PREFIX.size + length


def pack(state: ExportedState) -> bytes:
    """The whole state as bytes. Every buffer must have a checksum."""
    assert all(info.checksum is not None for info in state.header.buffers), "unchecked state is not for bytes"
    pieces, size = [encode_header(state.header)], 0
    for info in state.header.buffers:
        size = sum(map(len, pieces))
        pieces.append(b"\0" * (-size % ALIGNMENT))
        flat = state.buffers[info.name].contiguous().view(-1).view(torch.uint8)
        pieces.append(flat.cpu().numpy().tobytes())
    return b"".join(pieces)


def unpack(data: bytes | memoryview) -> ExportedState:
    """The inverse of `pack`; the buffers are copies.

    Raises:
        StateFormatError: the bytes are not exactly a state as it was packed.
    """
    header, offset = decode_header(data)
    view, buffers = memoryview(data), {}
    for info in header.buffers:
        offset += -offset % ALIGNMENT
        if info.num_bytes > len(view) - offset:
            raise StateFormatError(f"buffer {info.name} is truncated")
        flat = (
            torch.frombuffer(bytearray(view[offset : offset + info.num_bytes]), dtype=torch.uint8)
            if (info.num_bytes)
            else torch.empty(0, dtype=torch.uint8)
        )
        buffers[info.name] = flat.view(DTYPES[info.dtype]).view(info.shape)
        offset += info.num_bytes
    if offset != len(view):
        raise StateFormatError(f"{len(view) - offset} bytes too many")
    state = ExportedState(header=header, buffers=buffers)
    verify(state)
    return state
