"""What earlier owners left of a session, and where it goes on from there.

With a checkpoint, the inputs after it that earlier owners applied are applied at the same chunks again, so
that the chunks come out the same. Without one, the picture starts afresh with the prompt in force.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.state_format import ExportedState
from engine.steering import Combine, LogEntry, RecordedInput, Steering, fold, split_log
from scheduler.messages import SessionRecord
from scheduler.store import AppliedRecord, CheckpointPointer

__all__ = ["Opening", "Past", "plan_opening"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What Redis and the place of the checkpoints know."""

    record: SessionRecord
    log: tuple[LogEntry, ...]
    """The input log, without what was trimmed from it."""
    applied: tuple[AppliedRecord, ...] = ()
    """Where entries of the log were applied, as far as it is recorded."""
    pointer: CheckpointPointer | None = None
    checkpoint: ExportedState | None = None
    """None: there is none, its bytes are gone, or they can't be used here."""
    data: bytes | None = None
    """Its bytes."""


@dataclass(slots=True, kw_only=True)
class Opening:
    """A session that the compute thread does not have, and what it will be given."""

    steering: Steering
    """Prompts as of `last_applied`; with a checkpoint, its own count."""
    last_applied: str
    checkpoint: ExportedState | None
    recorded: tuple[RecordedInput, ...]
    pending: list[LogEntry]
    """Inputs that no chunk was made with yet."""

    @property
    def earliest_seq(self) -> int:
        """Chunks before this one can't be made any more."""
        if self.checkpoint is None or self.checkpoint.header.scalars is None:
            return 0
        return self.checkpoint.header.scalars.seq


def plan_opening(past: Past, combine: Combine, wanted: Sequence[LogEntry]) -> Opening:
    """Where the session goes on.

    Args:
        wanted: the entries of the log after the checkpoint that mean something to the model, also such as
            came after the past was read.
    """
    record, base = past.record, past.pointer
    before, pending = split_log(wanted, record.last_applied)
    scalars = past.checkpoint.header.scalars if past.checkpoint is not None else None
    if scalars is not None:
        _, after = split_log(before, scalars.last_applied)
        seqs = {item.entry: item.seq for item in past.applied}
        recorded = tuple(
            RecordedInput(seq=max(scalars.seq, seqs.get(item.entry, 0)), entry=item) for item in after
        )
        return Opening(
            steering=Steering(text=scalars.text, seed=scalars.seed, rev=scalars.rev, held=scalars.held),
            last_applied=scalars.last_applied,
            checkpoint=past.checkpoint,
            recorded=recorded,
            pending=list(pending),
        )
    steering, after = Steering(seed=record.seed), before
    if base is not None:  # older entries may be gone from the log
        steering = Steering(text=base.text, seed=base.seed, rev=base.rev)
        _, after = split_log(before, base.last_applied)
    steering, _ = fold(steering, after, combine)
    return Opening(
        steering=steering,
        last_applied=record.last_applied,
        checkpoint=None,
        recorded=(),
        pending=list(pending),
    )
