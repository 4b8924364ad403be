"""The encoded replay window of a session as a part of its exported state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from engine.replay import Replay, ReplayChunk
from engine.state_format import ExportedState, ReplayInfo, StateFormatError, describe
from scheduler.messages import (
    LINK_REPLIES,
    ChunkPart,
    DecodeError,
    decode_json,
    encode_json,
    frame_media,
    unframe_media,
)

__all__ = ["add_replay", "chunks_of", "replay_of", "restamped"]


def add_replay(exported: ExportedState, chunks: Sequence[ReplayChunk]) -> ExportedState:
    """The export with these complete chunks, as the bytes that the link takes. Without checksum."""
    if not chunks:
        return exported
    infos = tuple(
        ReplayInfo(
            seq=chunk.seq,
            start_ms=chunk.start_ms,
            end_ms=chunk.end_ms,
            applied=chunk.applied,
            parts=tuple(map(len, chunk.parts)),
        )
        for chunk in chunks
    )
    data = b"".join(part for chunk in chunks for part in chunk.parts)
    replay = torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())
    described = describe(exported.header, {"replay": replay}, checked=False)
    header = replace(
        exported.header, replay=infos, buffers=(*exported.header.buffers, *described.header.buffers)
    )
    return ExportedState(header=header, buffers={**exported.buffers, "replay": replay})


def chunks_of(exported: ExportedState) -> list[ReplayChunk]:
    """The chunks in an export.

    Raises:
        StateFormatError: the lengths do not fit.
    """
    infos, flat = exported.header.replay, exported.buffers.get("replay")
    data = b"" if flat is None else flat.cpu().numpy().tobytes()
    if sum(sum(info.parts) for info in infos) != len(data):
        raise StateFormatError("the replay window's lengths do not fit its bytes")
    chunks, offset = list[ReplayChunk](), 0
    for info in infos:
        ends = [offset := offset + length for length in info.parts]
        parts = [data[end - length : end] for end, length in zip(ends, info.parts, strict=True)]
        chunks.append(
            ReplayChunk(
                seq=info.seq,
                start_ms=info.start_ms,
                end_ms=info.end_ms,
                applied=info.applied,
                parts=parts,
                complete=True,
            )
        )
    return chunks


def restamped(chunk: ReplayChunk, epoch: int) -> ReplayChunk:
    """The chunk as an owner at `epoch` would have made it. Raises StateFormatError."""
    applied = tuple(replace(item, epoch=epoch) for item in chunk.applied)
    return replace(chunk, applied=applied, parts=[_restamped_part(part, epoch) for part in chunk.parts])


def _restamped_part(part: bytes, epoch: int) -> bytes:
    try:
        head, payload = unframe_media(part)
        header = decode_json(LINK_REPLIES, head)
    except DecodeError as exc:
        raise StateFormatError(f"the replay window has a part that can't be read: {exc}") from exc
    if not isinstance(header, ChunkPart):
        raise StateFormatError(f"the replay window has a {header.type} among its parts")
    return frame_media(encode_json(replace(header, epoch=epoch)), bytes(payload))


def replay_of(chunks: Sequence[ReplayChunk], *, next_seq: int, end_ms: float) -> Replay:
    """A replay window of these chunks; of none, an empty one that goes on at `next_seq`, `end_ms`.

    Raises:
        StateFormatError: they are not the chunks before `next_seq`.
    """
    first = chunks[0].seq if chunks else next_seq
    if [chunk.seq for chunk in chunks] != list(range(first, next_seq)):
        raise StateFormatError(f"the replay window is not of the chunks before {next_seq}")
    replay = Replay(next_seq=first, start_ms=chunks[0].start_ms if chunks else end_ms)
    for chunk in chunks:
        replay.begin(start_ms=chunk.start_ms, end_ms=chunk.end_ms, applied=chunk.applied)
        for number, part in enumerate(chunk.parts, 1):
            replay.add(part, last=number == len(chunk.parts))
    return replay
