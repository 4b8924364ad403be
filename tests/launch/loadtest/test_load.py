"""From traces to what each client does, and loads made up."""

from __future__ import annotations

import random

import pytest

from launch.loadtest.load import SLOW_FACTOR, Do, Script, clip, invent, make_scripts, share_out
from scheduler.trace import EventKind, Trace, read_trace

TEXT = """
{"t": 0.5, "session": "a", "event": "arrive", "prompt": "a red ball", "seed": 3, "model": "m"}
{"t": 1, "session": "b", "event": "arrive"}
{"t": 2, "session": "a", "event": "idle"}
{"t": 4, "session": "a", "event": "active"}
{"t": 5, "session": "a", "event": "prompt", "prompt": "a star"}
{"t": 6, "session": "a", "event": "depart"}
{"t": 8, "session": "b", "event": "idle"}
{"t": 9, "session": "b", "event": "prompt"}
"""


def trace() -> Trace:
    return read_trace(TEXT.splitlines())


def scripts(*, slow_share: float = 0.0, reconnect_every_s: float = 0.0) -> tuple[Script, ...]:
    chance = random.Random(1)
    return make_scripts(
        trace(), slow_share=slow_share, reconnect_every_s=reconnect_every_s, draw=chance.random
    )


def test_a_script_does_what_the_trace_says() -> None:
    """In order of time, from a start to a stop."""
    first, second = scripts()
    assert [(step.at_s, step.do) for step in first.steps] == [
        (0.5, Do.START),
        (2.0, Do.PAUSE),
        (4.0, Do.RESUME),
        (5.0, Do.PROMPT),
        (6.0, Do.STOP),
    ]
    assert (first.seed, first.model, first.steps[0].prompt, first.steps[3].prompt) == (
        3,
        "m",
        "a red ball",
        "a star",
    )
    assert [step.do for step in second.steps] == [Do.START, Do.PAUSE, Do.PROMPT, Do.STOP]
    assert second.steps[-1].at_s == 9.0 and second.model is None


def test_prompts_that_the_trace_leaves_open_differ() -> None:
    """A prompt change that changes nothing would not be one."""
    second = scripts()[1]
    assert second.steps[0].prompt and second.steps[2].prompt
    assert second.steps[0].prompt != second.steps[2].prompt


def test_slow_clients_and_cuts_are_laid_over_the_trace() -> None:
    """By chance, the same for the same seed."""
    plain = scripts()
    assert all(script.slow_factor == 0.0 for script in plain)
    rough = scripts(slow_share=1.0, reconnect_every_s=0.5)
    assert all(script.slow_factor == SLOW_FACTOR for script in rough)
    cuts = [step for script in rough for step in script.steps if step.do is Do.CUT]
    assert cuts and rough == scripts(slow_share=1.0, reconnect_every_s=0.5)
    for script in rough:
        times = [step.at_s for step in script.steps]
        assert times == sorted(times) and script.steps[-1].do is Do.STOP


def test_clipping_makes_everybody_leave() -> None:
    """Those who are there at that moment; a longer time changes nothing."""
    clipped = clip(trace(), 3.0)
    assert [(event.t, event.session, event.event) for event in clipped.events[-2:]] == [
        (3.0, "a", EventKind.DEPART),
        (3.0, "b", EventKind.DEPART),
    ]
    assert clip(trace(), 100.0) == trace()


@pytest.mark.parametrize("viewers", [1.0, 16.0])
def test_a_made_up_load_has_as_many_at_once_as_asked(viewers: float) -> None:
    """On average over its length, up to chance; some of them idle, all gone at the end."""
    made = invent(
        viewers=viewers,
        seconds=2_000.0,
        life_s=30.0,
        idle_share=0.25,
        edit_every_s=10.0,
        draw=random.Random(2).random,
    )
    lives = made.lives()
    present_s = sum(life.depart_s - life.arrive_s for life in lives)
    assert 0.75 * viewers < present_s / 2_000.0 < 1.3 * viewers
    active = sum(life.total_active_s for life in lives) / present_s
    assert 0.7 < active < 0.8
    assert 5.0 < present_s / sum(len(life.edits) for life in lives) < 20.0
    assert max(life.depart_s for life in lives) <= 2_000.0


def test_clients_are_shared_out_in_turn() -> None:
    """Every one once; no process has none."""
    all_of_them = scripts()
    assert share_out(all_of_them, 2) == ((all_of_them[0],), (all_of_them[1],))
    assert share_out(all_of_them, 5) == ((all_of_them[0],), (all_of_them[1],))
    assert share_out(all_of_them, 1) == (all_of_them,)


def test_who_pauses_and_goes_on_as_it_arrives_does_not_stay_paused() -> None:
    """Times of traces may be coarse."""
    kinds = ("arrive", "idle", "active")
    lines = [f'{{"t": 1, "session": "a", "event": "{kind}"}}' for kind in kinds]
    trace = read_trace([*lines, '{"t": 9, "session": "a", "event": "depart"}'])
    (script,) = make_scripts(trace, slow_share=0.0, reconnect_every_s=0.0, draw=random.Random(1).random)
    assert [step.do for step in script.steps] == [Do.START, Do.PAUSE, Do.RESUME, Do.STOP]
