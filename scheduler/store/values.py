"""What goes into and comes out of the store besides the records of `scheduler.messages`. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.messages import (
    EngineId,
    Input,
    MessageId,
    Phase,
    PromptInput,
    Residence,
    SessionId,
    SessionRecord,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedRecord:
    """An entry of the input log is in the picture from chunk `seq` on."""

    entry: str
    """Its id in the input log."""
    id: MessageId | None = None
    """The client's message id, if it gave one."""
    rev: int
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InputReceipt:
    """The answer to an appended input."""

    entry: str
    """Id in the input log; of the first append if this is a repeat."""
    repeat: bool
    """True: the message id was seen before and the input had no second effect."""
    applied: AppliedRecord | None
    """On a repeat: where it was applied, if it has been."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionProgress:
    """What an owner publishes about a session after a chunk or a change of activity."""

    session: SessionId
    epoch: int
    active: bool
    next_seq: int
    next_frame: int
    rev: int
    slack_ms: int
    residence: Residence = Residence.RESIDENT
    engine_ms: int = 0
    """Compute time of what was made under this epoch."""
    media_bytes: int = 0
    """Made under this epoch."""
    asks_slot: bool = False
    """It waits for a slot: one that Redis has granted meanwhile counts, whatever `residence` says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPointer:
    """The newest checkpoint of a session, and where its prompts stood in it."""

    epoch: int
    """Of the owner that wrote it."""
    seq: int
    """The first chunk that is not in it."""
    last_applied: str
    """Newest entry of the input log that is in it. Older entries may have been trimmed from the log."""
    text: str | None
    """Prompt in force."""
    seed: int
    rev: int
    size: int
    """Bytes."""

    def object_name(self, session: SessionId) -> str:
        """Names the bytes, which never change."""
        return f"{session}:{self.epoch}:{self.seq}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionCopy:
    """What the owner of a session writes when Redis has lost it."""

    record: SessionRecord
    """Placed, of this owner and epoch. Times that only Redis knows are not taken from it."""
    left_age_ms: int | None
    """For how long nobody has controlled it; None while somebody does."""
    position: str
    """Newest entry of the input log that the owner has read."""
    inputs: Sequence[tuple[str, Input]] = ()
    """The log, id by id, as far as a rebuild needs it."""
    applied: Sequence[AppliedRecord] = ()
    """The newest, in log order."""


@dataclass(slots=True, kw_only=True)
class QueuedCopy:
    """What the gateway that took a session in writes when Redis lost it before it had any owner."""

    session: SessionId
    model: str
    prompt: PromptInput
    seed: int
    lead_ms: int
    codec: str
    resume_hash: str
    subject: str = ""
    created_ms: int
    """Redis time."""
    paused: bool = False
    inputs: list[tuple[str, Input]]
    """Accepted since, with their ids in the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOutline:
    """What is shown of a session: a part of its record, a seventh of the work to read."""

    id: SessionId
    phase: Phase
    active: bool
    engine: EngineId | None
    epoch: int
    next_seq: int
    slack_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the leader did and why."""

    at_ms: int
    """Redis time."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterInfo:
    """What the leader publishes, and the length of the queues."""

    policy: str
    """"" before any leader."""
    budget: int
    """Engines that the leader keeps provisioned."""
    queue: int
    """Sessions that wait, all models."""
    release_interval_ms: int
    """Mean time between two places becoming free."""
    start_ms: int
    """What an engine's start takes, as measured."""
    term: int
    """Term of the leader that wrote the desired set; 0 before the first."""


PRIOR_START_MS = 10_000
"""Assumed until the leader has measured one."""
PRIOR_RELEASE_INTERVAL_MS = 30_000
"""Assumed until the leader has measured one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueOutlook:
    """How soon those who wait for a model may get places."""

    release_interval_ms: int
    """Mean time between two places becoming free."""
    starting_ms: Sequence[int]
    """Time until each engine that starts should be ready, soonest first; 0 for one that is late."""
    capacity: int
    """Places of one of them."""

    def eta_ms(self, position: int) -> int:
        """Expected wait at a position, from 1: until so many places became free, or engines that start bring
        them, whichever is sooner."""
        number = -(-position // max(1, self.capacity))
        waits_ms = [position * self.release_interval_ms, *self.starting_ms[number - 1 : number]]
        return min(waits_ms)
