"""Inputs at a chunk boundary."""

from __future__ import annotations

import pytest

from engine import steering as module
from engine.steering import AppliedInput, Blend, Changes, LogEntry, Steering, held_in_frames, split_log
from scheduler.messages import ControlInput, Input, PromptInput, ResetInput

STARTED = Steering(text="old", seed=1, rev=3)


def log(*inputs: Input) -> list[LogEntry]:
    return [LogEntry(entry=f"{n}-0", message=message) for n, message in enumerate(inputs, 1)]


def replaced(shown: str, text: str) -> str:
    """A model that reads each prompt on its own."""
    return text


def fold(steering: Steering, entries: list[LogEntry]) -> tuple[Steering, Changes]:
    return module.fold(steering, entries, replaced)


def restore(seed: int, entries: list[LogEntry]) -> Steering:
    return module.restore(seed, entries, replaced)


def prompt(text: str, chunks: int | None = None, id: str | None = None) -> PromptInput:
    if chunks is None:
        return PromptInput(text=text, id=id)
    return PromptInput(text=text, transition="blend", blend_chunks=chunks, id=id)


def todo(*inputs: Input, steering: Steering = STARTED) -> tuple[bool, str | None, Blend | None]:
    changes = fold(steering, log(*inputs))[1]
    return changes.reset, changes.cut, changes.blend


def test_the_start_prompt_is_revision_0_even_as_a_blend() -> None:
    """There is nothing to blend from."""
    steering, changes = fold(Steering(seed=1), log(prompt("red", 4, id="a")))
    assert (steering.text, steering.rev, changes.cut, changes.blend) == ("red", 0, "red", None)
    assert [(a.entry, a.id, a.rev) for a in changes.applied] == [("1-0", "a", 0)]


def test_each_prompt_and_reset_raises_rev() -> None:
    """Revisions are given in log order; a control has none."""
    inputs = (prompt("x"), ControlInput(keys=("a",)), ResetInput(), prompt("y", 2))
    steering, changes = fold(STARTED, log(*inputs))
    assert [applied.rev for applied in changes.applied] == [4, 4, 5, 6]
    assert (steering.rev, steering.text) == (6, "y")


def test_a_later_cut_supersedes_and_a_blend_starts_from_the_last_cut() -> None:
    """At most one cut and one blend are left to do."""
    assert todo(prompt("a"), prompt("b")) == (False, "b", None)
    assert todo(prompt("a", 2), prompt("b")) == (False, "b", None)
    assert todo(prompt("a"), prompt("b", 3)) == (False, "a", Blend(text="b", chunks=3))
    assert todo(prompt("a", 2), prompt("b", 3)) == (False, None, Blend(text="b", chunks=3))


def test_a_reset_ends_a_blend_at_its_target() -> None:
    """The prompt is kept, the way to it is not."""
    assert todo(prompt("a", 4), ResetInput()) == (True, "a", None)
    assert todo(ResetInput(), prompt("a", 4)) == (True, None, Blend(text="a", chunks=4))


def test_a_reset_takes_a_new_seed_or_keeps_the_old() -> None:
    """Only a given seed changes it."""
    assert fold(STARTED, log(ResetInput()))[0].seed == 1
    assert fold(STARTED, log(ResetInput(seed=9)))[0].seed == 9


def test_nothing_pending_changes_nothing() -> None:
    """The usual boundary."""
    assert fold(STARTED, []) == (STARTED, Changes())


def test_restore_knows_prompt_seed_and_rev() -> None:
    """What earlier owners applied, without doing it again."""
    assert restore(1, log(prompt("a"), ResetInput(seed=5), prompt("b", 3))) == Steering(
        text="b", seed=5, rev=2
    )


def test_prompts_are_combined_in_log_order() -> None:
    """A model that takes prompts as edits loses none of them, whichever is shown first."""
    steering, changes = module.fold(
        STARTED, log(prompt("red"), prompt("night", 2)), lambda shown, text: f"{shown} {text}"
    )
    assert (steering.text, changes.cut) == ("old red night", "old red")
    assert changes.blend == Blend(text="old red night", chunks=2)


def test_controls_are_held_and_kept_in_order() -> None:
    """The last state goes on, each one since the boundary is there to be shown, and none raises rev."""
    press, release = ControlInput(keys=("left",), id="a"), ControlInput(axes={"x": 0.5})
    steering, changes = fold(STARTED, log(press, release))
    assert steering.held == release and steering.rev == STARTED.rev
    assert changes.controls == (ControlInput(keys=("left",)), release)
    assert changes.applied == (
        AppliedInput(entry="1-0", id="a", rev=3),
        AppliedInput(entry="2-0", id=None, rev=3),
    )


A, B, C, D = (ControlInput(keys=(key,)) for key in "abcd")


@pytest.mark.parametrize(
    ("controls", "frames"),
    [
        ((), ((A,), (A,), (A,))),
        ((B,), ((B,), (B,), (B,))),
        ((B, C), ((B,), (C,), (C,))),
        ((B, C, D), ((B,), (C,), (D,))),
        ((B, C, D, A), ((B,), (C, D), (A,))),
    ],
)
def test_every_state_of_the_keys_has_a_frame(
    controls: tuple[ControlInput, ...], frames: tuple[tuple[ControlInput, ...], ...]
) -> None:
    """A press released before the boundary is shown; the last state holds to the end."""
    assert held_in_frames(A, controls, 3) == frames


def test_a_single_frame_shows_all_states() -> None:
    """There is no other to show them in."""
    assert held_in_frames(A, (B, C), 1) == ((B, C),)


def test_split_log_compares_ids_as_numbers() -> None:
    """ "10-0" comes after "9-5"."""
    entries = [LogEntry(entry=id, message=ResetInput()) for id in ("9-0", "9-5", "10-0", "10-1")]
    before, after = split_log(entries, "9-5")
    assert [e.entry for e in before] == ["9-0", "9-5"]
    assert [e.entry for e in after] == ["10-0", "10-1"]
    assert split_log(entries, "0-0") == ((), tuple(entries))
