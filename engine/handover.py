"""What source and target of a migration say to each other over their pair.

    source                                target
    frames (some K/V, or prompt K/V)  ─>           as often as it pays
                                      <─  ready    first, and after each of them: it is in place
    final (everything else)           ─>
                                      <─  verified
    committed                         ─>           or nothing: the target reads its ownership from Redis

A note is one message: a prologue of four int64 (magic, length of the body, end of the message, `checksum` of
all after the prologue), the body in JSON, and the buffers that its state header lists, each of these starting
at a multiple of ALIGNMENT. Buffers too large for it follow, with checksums of their own. No byte is code.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from engine.credit import Player
from engine.hosted import Hosted
from engine.lifecycle import Life
from engine.pairs import MAX_MESSAGE_BYTES, Pair, PairLost
from engine.replay import Replay
from engine.session_state import SessionState
from engine.state_format import (
    ALIGNMENT,
    DTYPES,
    ExportedState,
    StateFormatError,
    StateHeader,
    checksum,
    verify,
)
from scheduler.messages import DecodeError, SessionRecord, decode_fields

__all__ = [
    "Arrival",
    "HostFacts",
    "Kind",
    "Note",
    "expect",
    "facts_of",
    "player_of",
    "receive_note",
    "send_note",
]

MAGIC = 0x5453_4D49
PROLOGUE_BYTES = ALIGNMENT
MAX_BODY_BYTES = 1 << 20
MAX_WHOLE_BYTES = MAX_MESSAGE_BYTES - MAX_BODY_BYTES - PROLOGUE_BYTES
"""Of the buffers in a note's own message, padding included."""
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
    ranks: int = 1
    """Of ready: how many ranks the target has."""
    on_gpu: tuple[str, ...] = ()
    """The buffers behind the message that go from GPU to GPU; the others go from host to host."""


def send_note(pair: Pair, note: Note, buffers: Mapping[str, Tensor] | None = None, *, limit_s: float) -> None:
    """Send a note, with the buffers of its header, whose checksums are added. Raises PairLost."""
    infos = note.header.buffers if note.header is not None else ()
    tensors = [(buffers or {})[info.name] for info in infos]
    is_whole = note.header is None or _is_whole(note.header)
    if note.header is not None and not is_whole:
        tensors = [tensor.contiguous() for tensor in tensors]
        infos = tuple(replace(i, checksum=checksum(t)) for i, t in zip(infos, tensors, strict=True))
        on_gpu = tuple(i.name for i, t in zip(infos, tensors, strict=True) if t.is_cuda)
        note = replace(note, header=replace(note.header, buffers=infos), on_gpu=on_gpu)
    body = json.dumps(asdict(note), separators=(",", ":")).encode()
    end = _place(pair.outbox, PROLOGUE_BYTES, torch.frombuffer(bytearray(body), dtype=torch.uint8))
    for tensor in tensors if is_whole else ():
        end = _place(pair.outbox, end, tensor)
    prologue = [MAGIC, len(body), end, checksum(pair.outbox[PROLOGUE_BYTES:end])]
    pair.outbox[:PROLOGUE_BYTES].view(torch.int64)[: len(prologue)] = torch.tensor(prologue)
    pair.send_message(end, limit_s=limit_s)
    if not is_whole:
        pair.send(tensors, limit_s=limit_s)


def _is_whole(header: StateHeader) -> bool:
    """Do the buffers come in the note's own message?"""
    return sum(_padded(info.num_bytes) for info in header.buffers) <= MAX_WHOLE_BYTES


def _padded(num_bytes: int) -> int:
    return num_bytes + -num_bytes % ALIGNMENT


def _place(box: Tensor, start: int, tensor: Tensor) -> int:
    """Copy a tensor's bytes to this place of the box; returns where the next one goes."""
    flat = tensor.contiguous().view(-1).view(torch.uint8) if tensor.numel() else box[:0]
    end = start + len(flat)
    box[start:end] = flat
    box[end : start + _padded(len(flat))] = 0
    return start + _padded(len(flat))


def receive_note(pair: Pair, migration_id: str, *, limit_s: float) -> tuple[Note, ExportedState | None]:
    """The next note of this migration, and the state in it, verified: it is valid until something is sent.

    Raises:
        PairLost: nothing came, or it is not a note of this migration.
        StateFormatError: a buffer is not what its header says.
    """
    message = pair.receive_message(limit_s=limit_s)
    magic, length, end, check = message[:PROLOGUE_BYTES].view(torch.int64)[:4].tolist()
    begin = PROLOGUE_BYTES + _padded(length)
    if magic != MAGIC or not 0 < length <= MAX_BODY_BYTES or not begin <= end <= len(message):
        raise PairLost("what came is no note")
    if checksum(message[PROLOGUE_BYTES:end]) != check:
        raise PairLost("a note has another checksum than it says")
    try:
        body = message[PROLOGUE_BYTES : PROLOGUE_BYTES + length].numpy().tobytes()
        note = decode_fields(Note, json.loads(body))
    except (DecodeError, ValueError, AttributeError, RecursionError) as exc:
        raise PairLost(f"a note can't be read: {exc}") from exc
    if note.migration_id != migration_id:
        raise PairLost(f"a note of {note.migration_id} came, not of {migration_id}")
    if note.header is None:
        return note, None
    for info in note.header.buffers:
        if info.dtype not in DTYPES or info.num_bytes > MAX_BUFFER_BYTES:
            raise StateFormatError(f"buffer {info.name} is {info.dtype} of {info.num_bytes} bytes")
    if _is_whole(note.header):
        return note, _state_in(message[begin:end], note.header)
    return note, _receive_state(pair, note.header, note.on_gpu, limit_s)


def expect(kind: Kind, note: Note) -> Note:
    """The note, if it is of this kind. Raises PairLost."""
    if note.kind != kind:
        raise PairLost(note.why or f"{note.kind} came where {kind} was due")
    return note


def _state_in(data: Tensor, header: StateHeader) -> ExportedState:
    """The buffers that came in the note's own message."""
    buffers, start = dict[str, Tensor](), 0
    for info in header.buffers:
        end = start + info.num_bytes
        if end > len(data):
            raise StateFormatError(f"buffer {info.name} is truncated")
        buffers[info.name] = data[start:end].view(DTYPES[info.dtype]).view(info.shape)
        start += _padded(info.num_bytes)
    return ExportedState(header=header, buffers=buffers)


def _receive_state(pair: Pair, header: StateHeader, on_gpu: Collection[str], limit_s: float) -> ExportedState:
    """The buffers that come as messages of their own."""
    if on_gpu and pair.device.type != "cuda":
        raise StateFormatError("buffers come from a GPU, and this engine has none")
    for info in header.buffers:
        if info.checksum is None:
            raise StateFormatError(f"buffer {info.name} has no checksum")
    host = torch.device("cpu")
    buffers = {
        info.name: torch.empty(
            info.shape, dtype=DTYPES[info.dtype], device=pair.device if info.name in on_gpu else host
        )
        for info in header.buffers
    }
    pair.receive(list(buffers.values()), limit_s=limit_s)
    state = ExportedState(header=header, buffers=buffers)
    verify(state)
    return state
