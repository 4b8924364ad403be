"""The encoded replay window of a session as a part of its exported state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from engine.replay import Replay
from engine.state_format import ExportedState, ReplayInfo, StateFormatError, describe

__all__ = ["add_replay", "replay_of"]


def add_replay(exported: ExportedState, replay: Replay) -> ExportedState:
    """The export with the replay window's complete chunks, as the bytes that the link takes."""
    chunks = [chunk for chunk in replay.since(replay.oldest_seq) if chunk.complete]
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
    flat = torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())
    buffers: Mapping[str, Tensor] = {"replay": flat}
    described = describe(exported.header, buffers, checked=True)
    header = replace(
        exported.header, replay=infos, buffers=(*exported.header.buffers, *described.header.buffers)
    )
    return ExportedState(header=header, buffers={**exported.buffers, **buffers})


def replay_of(exported: ExportedState, *, next_seq: int, end_ms: float) -> Replay:
    """The replay window in an export; without one, an empty window that goes on at `next_seq`, `end_ms`.

    Raises:
        StateFormatError: the lengths do not fit, or the chunks are not those before `next_seq`.
    """
    infos = exported.header.replay
    first = infos[0].seq if infos else next_seq
    if [info.seq for info in infos] != list(range(first, next_seq)):
        raise StateFormatError(f"the replay window is not of the chunks before {next_seq}")
    flat = exported.buffers.get("replay")
    data = b"" if flat is None else flat.cpu().numpy().tobytes()
    if sum(sum(info.parts) for info in infos) != len(data):
        raise StateFormatError("the replay window's lengths do not fit its bytes")
    replay = Replay(next_seq=first, start_ms=infos[0].start_ms if infos else end_ms)
    offset = 0
    for info in infos:
        replay.begin(start_ms=info.start_ms, end_ms=info.end_ms, applied=info.applied)
        for number, length in enumerate(info.parts, 1):
            replay.add(data[offset : offset + length], last=number == len(info.parts))
            offset += length
    return replay
