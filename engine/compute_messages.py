"""What the I/O side and the compute thread tell each other.

`Command` and `Wish` go to the compute thread, `ComputeEvent` comes back. All are immutable.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from engine.codecs import H264
from engine.credit import Player
from engine.encoder import EncodedPart
from engine.offload import HostSlab
from engine.precopy import Look
from engine.session_state import SessionState
from engine.state_format import ExportedState
from engine.steering import AppliedInput, LogEntry, RecordedInput, Steering
from scheduler.messages import MigrateSession, ReceiveSession, Residence, Rung, SessionId

__all__ = [
    "Absent",
    "Adopt",
    "AdoptShare",
    "CheckpointMade",
    "Command",
    "ComputeDied",
    "ComputeEvent",
    "Drop",
    "Encoded",
    "Feed",
    "Freeze",
    "Frozen",
    "InputsTaken",
    "MigrationEvent",
    "MoveDone",
    "MoveShare",
    "Offload",
    "Open",
    "PartMade",
    "Reserve",
    "Reserved",
    "Resided",
    "Restore",
    "SessionFailed",
    "Survey",
    "Surveyed",
    "Thaw",
    "Unreserve",
    "Wish",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Take in a session: with fresh model state, or where a checkpoint has it."""

    session: SessionId
    epoch: int
    steering: Steering
    """What earlier owners had applied."""
    pending: tuple[LogEntry, ...]
    """Inputs for its first chunk; with a fresh `steering`, the first is the start prompt."""
    seq: int
    """First chunk to send."""
    frame: int
    """Pixel frames of all chunks before `seq`; a checkpoint knows better."""
    codec: str = H264
    """What its client decodes."""
    last_applied: str = "0-0"
    """Newest entry of the input log in `steering`."""
    recorded: tuple[RecordedInput, ...] = ()
    """Inputs before the pending ones that an earlier owner applied; they are applied at the same chunks."""
    checkpoint: ExportedState | None = None
    """State before a chunk ≤ `seq`, with a steering of its own; the chunks in between are made again and not
    sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """New inputs, in log order."""

    session: SessionId
    epoch: int
    entries: tuple[LogEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """Forget a session and free its slot."""

    session: SessionId
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Offload:
    """Take a session out of its slot at its next chunk boundary. Answered by Resided."""

    session: SessionId
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """Bring a session back into a slot, or let it stay there. Answered by Resided when it was elsewhere."""

    session: SessionId
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveDone:
    """A copy between slot and host memory has ended. The loop says it to itself."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Every part of chunk `seq` was emitted, or none after one that could not be encoded. The loop says it to
    itself."""

    session: SessionId
    epoch: int
    seq: int
    is_failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Where does a session that is about to move stand? Answered by Surveyed."""

    session: SessionId
    epoch: int
    is_last: bool = False
    """Before Freeze: ranks above 0 say when what can go ahead is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeze:
    """Hold a session at its next chunk boundary; answered by Frozen once it rests there."""

    session: SessionId
    epoch: int
    rebuild: bool = False
    """Does its K/V stay here, because the target makes it from the latents?"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thaw:
    """Let a session go on that was, or was to be, frozen."""

    session: SessionId
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """Hold a place for a session that comes from another engine. Answered by Reserved."""

    migration_id: str
    in_slot: bool
    """False: in host memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreserve:
    """Give that place up."""

    migration_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """The session that came is ours: its state is complete in the reserved place."""

    migration_id: str
    state: SessionState
    away: ExportedState | None
    """What lies in host memory; None if it is in a slot."""
    codec: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptShare:
    """An Adopt as ranks above 0 hear it: each has its own share of the state in the place reserved there."""

    migration_id: str
    codec: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveShare:
    """Ranks above 0 move their share of a session too, each with the same rank of the other engine."""

    order: MigrateSession | ReceiveSession
    meeting: str
    """host:port of this engine's meeting point, see `pairs.py`."""


Command = (
    Open
    | Feed
    | Drop
    | Offload
    | Restore
    | Encoded
    | MoveDone
    | Survey
    | Freeze
    | Thaw
    | Reserve
    | Unreserve
    | Adopt
    | AdoptShare
    | MoveShare
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is wanted of a session now; a newer one replaces it."""

    running: bool
    since_ms: float
    """Since when `running` is so."""
    player: Player
    rungs: tuple[Rung, ...] = (Rung.FULL,)
    """At which its next chunk is encoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartMade:
    """A part of a chunk is encoded."""

    session: SessionId
    epoch: int
    seq: int
    frame: int
    """Pixel frames of the session before this part."""
    chunk_frame: int
    """Pixel frames of the session before its chunk."""
    chunk_frames: int
    rev: int
    applied: tuple[AppliedInput, ...]
    """Inputs that this chunk is the first to show."""
    encoded: EncodedPart
    due_ms: float
    gen_ms: float
    """From the chunk's first pass to this part."""
    batch: float
    """Mean rows of the chunk's passes so far."""
    engine_ms: float = 0.0
    """Compute time since the chunk before, a share of each pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputsTaken:
    """So many of a session's pending inputs were applied."""

    session: SessionId
    epoch: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFailed:
    """This session cannot go on; it is already dropped here."""

    session: SessionId
    epoch: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeDied:
    """The loop itself ended by an error: the engine must exit."""

    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class Resided:
    """Where a session's state is now; STORED: the compute thread has nothing of it any more."""

    session: SessionId
    epoch: int
    residence: Residence
    seq: int | None = None
    """First chunk that is not made; every part of those before was emitted. None: nothing is known of it."""
    frame: int = 0
    """Pixel frames of all chunks before `seq`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointMade:
    """What a session can be rebuilt from at the boundary before chunk `seq`."""

    session: SessionId
    epoch: int
    seq: int
    state: ExportedState
    """Tensors of the compute thread's device, never written to again. Without checksums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """Where a session stands between two passes."""

    session: SessionId
    epoch: int
    look: Look | None
    """None: it is not in a slot, or its slot is being rebuilt: nothing of it can go ahead."""
    embeds: Tensor | None
    """The prompt embeddings whose K/V its slot has; another tensor later means other K/V."""
    is_last: bool = False
    """As asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent:
    """What was to be surveyed or frozen is not here: it waits for a slot, or was forgotten."""

    session: SessionId
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """A session rests at a chunk boundary, everything made is encoded. Its state stays as it is until Thaw or
    Drop."""

    session: SessionId
    epoch: int
    look: Look | None
    embeds: Tensor | None
    exported: ExportedState
    """Without checksums, its slabs views of the slot or of host memory; K/V only if it is in host memory."""
    at_ms: float
    """When it came to rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """A place for a session that comes; neither slot nor slab: there is none."""

    migration_id: str
    slot: int | None = None
    slab: HostSlab | None = None


MigrationEvent = Surveyed | Frozen | Absent | Reserved
ComputeEvent = (
    PartMade | InputsTaken | SessionFailed | Resided | CheckpointMade | ComputeDied | MigrationEvent
)
