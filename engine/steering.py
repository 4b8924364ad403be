"""What the inputs of a session's log amount to at a chunk boundary. Pure.

Inputs apply in log order and each prompt and reset raises `rev` by one, but only what still matters is left
to do: a later cut supersedes earlier prompts, so at most two texts are encoded however many inputs waited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from scheduler.messages import ControlInput, Input, MessageId, PromptInput, ResetInput

__all__ = [
    "AppliedInput",
    "Blend",
    "Changes",
    "Combine",
    "LogEntry",
    "RecordedInput",
    "Steering",
    "fold",
    "held_in_frames",
    "restore",
    "split_log",
]

MAX_PENDING_INPUTS = 256
"""The log of a session is not read on while as many inputs wait for a chunk boundary."""


Combine = Callable[[str, str], str]
"""(prompt in force, new text) → prompt in force afterwards; see `CausalVideoModel.combine_prompts`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One entry of the input log."""

    entry: str
    """Redis stream id, milliseconds-counter."""
    message: Input


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedInput:
    """An input that an earlier owner applied at chunk `seq`; it is applied there again."""

    seq: int
    entry: LogEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Steering:
    """Where a session's prompt history stands."""

    text: str | None = None
    """None before the start prompt."""
    seed: int
    rev: int = 0
    held: ControlInput = ControlInput()
    """Keys and axes as last heard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedInput:
    """An input that changed the picture, or the prompt of the start."""

    entry: str
    id: MessageId | None
    rev: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Blend:
    """Go over to `text` within `chunks` chunks."""

    text: str
    chunks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """To do at this boundary, in this order: reset, cut, blend."""

    reset: bool = False
    cut: str | None = None
    blend: Blend | None = None
    controls: tuple[ControlInput, ...] = ()
    """Every state of keys and axes since the last boundary, in order."""
    applied: tuple[AppliedInput, ...] = ()


def fold(steering: Steering, entries: Iterable[LogEntry], combine: Combine) -> tuple[Steering, Changes]:
    """Apply entries in log order."""
    changes = Changes()
    for item in entries:
        match item.message:
            case PromptInput() as prompt:
                steering, changes = _fold_prompt(steering, changes, prompt, combine)
            case ResetInput(seed=seed):
                # The past is gone, so there is nothing left to blend from.
                cut = changes.blend.text if changes.blend else changes.cut
                changes = replace(changes, reset=True, cut=cut, blend=None)
                new_seed = steering.seed if seed is None else seed
                steering = replace(steering, seed=new_seed, rev=steering.rev + 1)
            case ControlInput() as control:
                steering = replace(steering, held=replace(control, id=None))
                changes = replace(changes, controls=(*changes.controls, steering.held))
            case _:
                assert_never(item.message)
        applied = AppliedInput(entry=item.entry, id=item.message.id, rev=steering.rev)
        changes = replace(changes, applied=(*changes.applied, applied))
    return steering, changes


def _fold_prompt(
    steering: Steering, changes: Changes, prompt: PromptInput, combine: Combine
) -> tuple[Steering, Changes]:
    if steering.text is None:  # the start prompt is revision 0 and has nothing to blend from
        return replace(steering, text=prompt.text), replace(changes, cut=prompt.text)
    text = combine(steering.text, prompt.text)
    steering = replace(steering, text=text, rev=steering.rev + 1)
    if prompt.transition == "cut":
        return steering, replace(changes, cut=text, blend=None)
    return steering, replace(changes, blend=Blend(text=text, chunks=prompt.blend_chunks))


def restore(seed: int, entries: Iterable[LogEntry], combine: Combine) -> Steering:
    """Where a session stands whose inputs were applied by an earlier owner."""
    return fold(Steering(seed=seed), entries, combine)[0]


def held_in_frames(
    before: ControlInput, controls: Sequence[ControlInput], frames: int
) -> tuple[tuple[ControlInput, ...], ...]:
    """Which states of keys and axes each latent frame of a chunk shows, [frames]; never empty.

    Controls are states: the last one holds to the end. A press that was released before the boundary still
    has a frame; where there are more states than frames, the frames before the last share them.
    """
    if not controls:
        return ((before,),) * frames
    *passing, last = controls
    if frames == 1:
        return (tuple(controls),)
    count = min(len(passing), frames - 1)
    shares = [len(passing) * i // count for i in range(count + 1)] if count else [0]
    groups = [tuple(passing[a:b]) for a, b in zip(shares, shares[1:], strict=False)]
    return (*groups, *((last,),) * (frames - count))


def split_log(
    entries: Sequence[LogEntry], last_applied: str
) -> tuple[tuple[LogEntry, ...], tuple[LogEntry, ...]]:
    """(entries up to and including `last_applied`, entries after it)."""
    limit = _order(last_applied)
    return (
        tuple(item for item in entries if _order(item.entry) <= limit),
        tuple(item for item in entries if _order(item.entry) > limit),
    )


def _order(entry: str) -> tuple[int, int]:
    milliseconds, _, counter = entry.partition("-")
    return int(milliseconds), int(counter or 0)
