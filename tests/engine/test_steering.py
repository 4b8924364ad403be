"""Inputs at a chunk boundary."""

from __future__ import annotations

from engine.steering import Blend, Changes, LogEntry, Steering, fold, restore, split_log
from scheduler.messages import ControlInput, Input, PromptInput, ResetInput

STARTED = Steering(text="old", seed=1, rev=3)


def log(*inputs: Input) -> list[LogEntry]:
    return [LogEntry(entry=f"{n}-0", message=message) for n, message in enumerate(inputs, 1)]


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
    assert [applied.rev for applied in changes.applied] == [4, 5, 6]
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


def test_split_log_compares_ids_as_numbers() -> None:
    """ "10-0" comes after "9-5"."""
    entries = [LogEntry(entry=id, message=ResetInput()) for id in ("9-0", "9-5", "10-0", "10-1")]
    before, after = split_log(entries, "9-5")
    assert [e.entry for e in before] == ["9-0", "9-5"]
    assert [e.entry for e in after] == ["10-0", "10-1"]
    assert split_log(entries, "0-0") == ((), tuple(entries))
