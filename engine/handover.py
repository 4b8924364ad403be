"""What source and target of a migration say to each other over their pair.

    source                                target
    frames (some K/V, or prompt K/V)  ─>           as often as it pays
                                      <─  ready    first, and after each of them: it is in place
    final (everything else)           ─>
                                      <─  verified
    committed                         ─>           or nothing: the target reads its ownership from Redis

A note is a prologue of three int64 (magic, length and CRC-32 of the body), the body in JSON, and the buffers
that its state header lists. No byte of it is code.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from engine.credit import Player
from engine.hosted import Hosted
from engine.lifecycle import Life
from engine.pairs import Pair, PairLost
from engine.replay import Replay
from engine.session_state import SessionState
from engine.state_format import DTYPES, ExportedState, StateFormatError, StateHeader, verify
from scheduler.messages import (
    LINK_REPLIES,
    ChunkPart,
    DecodeError,
    SessionRecord,
    decode_fields,
    decode_json,
    encode_json,
    frame_media,
    unframe_media,
)

__all__ = [
    "Arrival",
    "HostFacts",
    "Kind",
    "Note",
    "expect",
    "facts_of",
    "player_of",
    "receive_note",
    "restamped",
    "send_note",
]

MAGIC = 0x5453_4D49
MAX_BODY_BYTES = 1 << 20
MAX_BUFFER_BYTES = 1 << 36

Kind = Literal["ready", "frames", "final", "verified", "committed", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What the event loop of the source knows of a session. Ages are ms before this was written."""

    controller_epoch: int
    next_seq: int
    next_frame: int
    rev: int
    end_ms: float
    """Media end of the complete chunks."""
    anchor_media_ms: float
    anchor_age_ms: float | None
    delivered_media_ms: float
    delivered_seq: int
    emitted_seq: int
    acked_seq: int
    has_acked: bool
    active: bool
    reason: str
    active_age_ms: float
    paused_age_ms: float | None
    left_age_ms: float | None
    full_age_ms: float | None
    suspended_age_ms: float | None

    def life(self, now_ms: float) -> Life:
        """Nobody has subscribed here yet."""

        def since(age_ms: float | None) -> float | None:
            return None if age_ms is None else now_ms - age_ms

        left_ms = now_ms if self.left_age_ms is None else now_ms - self.left_age_ms
        return Life(
            paused_ms=since(self.paused_age_ms),
            left_ms=left_ms,
            full_ms=since(self.full_age_ms),
            suspended_ms=since(self.suspended_age_ms),
        )


def facts_of(hosted: Hosted, now_ms: float) -> HostFacts:
    """Of a session all of whose chunks are in the replay window."""
    player, life = hosted.player, hosted.life

    def age(since_ms: float | None) -> float | None:
        return None if since_ms is None else now_ms - since_ms

    return HostFacts(
        controller_epoch=hosted.controller_epoch,
        next_seq=hosted.replay.next_seq,
        next_frame=hosted.next_frame,
        rev=hosted.rev,
        end_ms=hosted.replay.end_ms,
        anchor_media_ms=player.anchor_media_ms,
        anchor_age_ms=age(player.anchor_ms),
        delivered_media_ms=player.delivered_media_ms,
        delivered_seq=player.delivered_seq,
        emitted_seq=player.emitted_seq,
        acked_seq=player.acked_seq,
        has_acked=player.has_acked,
        active=hosted.active,
        reason=hosted.reason,
        active_age_ms=now_ms - hosted.active_since_ms,
        paused_age_ms=age(life.paused_ms),
        left_age_ms=age(life.left_ms),
        full_age_ms=age(life.full_ms),
        suspended_age_ms=age(life.suspended_ms),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A session that has come with its state, before it is owned."""

    migration_id: str
    record: SessionRecord
    """As read when the migration began."""
    state: SessionState
    """Of the epoch that a commit makes."""
    away: ExportedState | None
    """What lies in host memory; None: it is in a slot."""
    replay: Replay
    facts: HostFacts


def player_of(facts: HostFacts, *, lead_ms: float, chunk_ms: float, now_ms: float) -> Player:
    """The player as the source knew it."""
    age_ms = facts.anchor_age_ms
    return Player(
        lead_ms=lead_ms,
        chunk_ms=chunk_ms,
        anchor_media_ms=facts.anchor_media_ms,
        anchor_ms=None if age_ms is None else now_ms - age_ms,
        delivered_media_ms=facts.delivered_media_ms,
        delivered_seq=facts.delivered_seq,
        emitted_seq=facts.emitted_seq,
        acked_seq=facts.acked_seq,
        has_acked=facts.has_acked,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One message."""

    kind: Kind
    migration_id: str
    why: str = ""
    """Of cancelled: a sentence for the log."""
    header: StateHeader | None = None
    """Of frames and final: lists the buffers that follow."""
    facts: HostFacts | None = None
    """Of final."""
    afresh: bool = False
    """Of final: K/V that came before is worthless."""
    rebuild: bool = False
    """Of final: K/V does not come at all; the target makes it from the latents."""


def send_note(pair: Pair, note: Note, buffers: Mapping[str, Tensor] | None = None, *, limit_s: float) -> None:
    """Send a note, with the buffers of its header. Raises PairLost."""
    body = json.dumps(asdict(note), separators=(",", ":")).encode()
    prologue = torch.tensor([MAGIC, len(body), zlib.crc32(body)], dtype=torch.int64)
    infos = note.header.buffers if note.header is not None else ()
    data = [(buffers or {})[info.name].contiguous() for info in infos]
    pair.send([prologue, torch.frombuffer(bytearray(body), dtype=torch.uint8), *data], limit_s=limit_s)


def receive_note(pair: Pair, migration_id: str, *, limit_s: float) -> tuple[Note, ExportedState | None]:
    """The next note of this migration, and the state in it, verified.

    Raises:
        PairLost: nothing came, or it is not a note of this migration.
        StateFormatError: a buffer is not what its header says.
    """
    prologue = torch.empty(3, dtype=torch.int64)
    pair.receive([prologue], limit_s=limit_s)
    magic, length, crc = prologue.tolist()
    if magic != MAGIC or not 0 < length <= MAX_BODY_BYTES:
        raise PairLost("what came is no note")
    body = torch.empty(length, dtype=torch.uint8)
    pair.receive([body], limit_s=limit_s)
    data = body.numpy().tobytes()
    if zlib.crc32(data) != crc:
        raise PairLost("a note has another checksum than it says")
    try:
        note = decode_fields(Note, json.loads(data))
    except (DecodeError, ValueError, AttributeError, RecursionError) as exc:
        raise PairLost(f"a note can't be read: {exc}") from exc
    if note.migration_id != migration_id:
        raise PairLost(f"a note of {note.migration_id} came, not of {migration_id}")
    return note, None if note.header is None else _receive_state(pair, note.header, limit_s)


def expect(kind: Kind, note: Note) -> Note:
    """The note, if it is of this kind. Raises PairLost."""
    if note.kind != kind:
        raise PairLost(note.why or f"{note.kind} came where {kind} was due")
    return note


def _receive_state(pair: Pair, header: StateHeader, limit_s: float) -> ExportedState:
    for info in header.buffers:
        if info.dtype not in DTYPES or info.num_bytes > MAX_BUFFER_BYTES:
            raise StateFormatError(f"buffer {info.name} is {info.dtype} of {info.num_bytes} bytes")
        if info.checksum is None:
            raise StateFormatError(f"buffer {info.name} has no checksum")
    buffers = {info.name: torch.empty(info.shape, dtype=DTYPES[info.dtype]) for info in header.buffers}
    pair.receive(list(buffers.values()), limit_s=limit_s)
    state = ExportedState(header=header, buffers=buffers)
    verify(state)
    return state


def restamped(replay: Replay, *, epoch: int, next_seq: int, start_ms: float) -> Replay:
    """The replay window as an owner at `epoch` would have made it."""
    chunks = replay.since(replay.oldest_seq)
    fresh = Replay(next_seq=chunks[0].seq if chunks else next_seq, start_ms=start_ms)
    for chunk in chunks:
        applied = tuple(replace(item, epoch=epoch) for item in chunk.applied)
        fresh.begin(start_ms=chunk.start_ms, end_ms=chunk.end_ms, applied=applied)
        for number, part in enumerate(chunk.parts, 1):
            fresh.add(_restamped_part(part, epoch), last=number == len(chunk.parts))
    return fresh


def _restamped_part(part: bytes, epoch: int) -> bytes:
    try:
        head, payload = unframe_media(part)
        header = decode_json(LINK_REPLIES, head)
    except DecodeError as exc:
        raise StateFormatError(f"the replay window has a part that can't be read: {exc}") from exc
    if not isinstance(header, ChunkPart):
        raise StateFormatError(f"the replay window has a {header.type} among its parts")
    return frame_media(encode_json(replace(header, epoch=epoch)), bytes(payload))
