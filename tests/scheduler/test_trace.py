"""Traces: reading, writing, and what is refused."""

from __future__ import annotations

import pytest

from scheduler.trace import EventKind, Trace, TraceError, TraceEvent, read_trace, write_trace

TEXT = """
{"t": 0.0, "session": "a", "event": "arrive", "prompt": "a red ball", "seed": 3, "note": "ignored"}
{"t": 1, "session": "b", "event": "arrive"}

{"t": 12.5, "session": "a", "event": "idle"}
{"t": 40, "session": "a", "event": "active"}
{"t": 41.5, "session": "a", "event": "prompt", "prompt": "ein grüner Stern"}
{"t": 55, "session": "a", "event": "depart"}
{"t": 60, "session": "b", "event": "prompt"}
"""


def read(text: str) -> Trace:
    """A trace from one string."""
    return read_trace(text.splitlines())


def test_what_is_written_reads_the_same() -> None:
    """Also beyond ASCII."""
    trace = read(TEXT)
    assert trace.events[0] == TraceEvent(
        t=0.0, session="a", event=EventKind.ARRIVE, prompt="a red ball", seed=3
    )
    assert read_trace(write_trace(trace)) == trace
    assert "ü" in "".join(write_trace(trace))


def test_lives_have_spans_and_edits() -> None:
    """A session is active from its arrival on, and stays to the end if it never departs."""
    first, second = read(TEXT).lives()
    assert (first.session, first.arrive_s, first.depart_s) == ("a", 0.0, 55.0)
    assert first.active_s == ((0.0, 12.5), (40.0, 55.0)) and first.total_active_s == 27.5
    assert [edit.prompt for edit in first.edits] == ["ein grüner Stern"]
    assert second.active_s == ((1.0, 60.0),) and second.first.prompt is None


def test_a_session_that_departs_idle_is_not_active_at_its_end() -> None:
    """Its last span ends with the idle event."""
    trace = read(
        '{"t": 0, "session": "a", "event": "arrive"}\n{"t": 5, "session": "a", "event": "idle"}\n'
        '{"t": 9, "session": "a", "event": "depart"}'
    )
    (life,) = trace.lives()
    assert life.active_s == ((0.0, 5.0),) and life.depart_s == 9.0


def test_scaling_divides_the_times() -> None:
    """Twice as fast is half as long."""
    trace = read(TEXT)
    assert trace.scaled(2).duration_s == trace.duration_s / 2
    with pytest.raises(ValueError, match="time_scale"):
        trace.scaled(0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nonsense", "line 1"),
        ('\n["a"]', "line 2.*object"),
        ("[" * 100_000, "line 1"),
        ('{"session": "a", "event": "arrive"}', "'t' is missing"),
        ('{"t": -1, "session": "a", "event": "arrive"}', "'t' must be between"),
        ('{"t": NaN, "session": "a", "event": "arrive"}', "finite"),
        ('{"t": 0, "session": "", "event": "arrive"}', "'session'"),
        ('{"t": 0, "session": "a", "event": "explode"}', "arrive, active, idle, prompt, depart"),
        ('{"t": 0, "session": "a", "event": "idle"}', "has not arrived"),
        ('{"t": 0, "session": "a", "event": "arrive"}\n' * 2, "has arrived"),
        (
            '{"t": 0, "session": "a", "event": "arrive"}\n{"t": 1, "session": "a", "event": "active"}',
            "'active' can't follow",
        ),
        (
            '{"t": 0, "session": "a", "event": "arrive"}\n{"t": 1, "session": "a", "event": "depart"}\n'
            '{"t": 2, "session": "a", "event": "arrive"}',
            "has departed",
        ),
        (
            '{"t": 5, "session": "a", "event": "arrive"}\n{"t": 4, "session": "b", "event": "arrive"}',
            "in order",
        ),
    ],
)
def test_what_does_not_fit_is_refused(text: str, words: str) -> None:
    """In a sentence that names the place."""
    with pytest.raises(TraceError, match=words):
        read(text)


def test_nothing_is_a_trace() -> None:
    """Of no time and no sessions."""
    assert read("").duration_s == 0.0 and read("").lives() == ()
