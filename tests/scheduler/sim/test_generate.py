"""Generated traces have the statistics that they should, and repeat."""

from __future__ import annotations

import math

import pytest

from scheduler.sim.generate import FAMILIES, describe, generate, resize
from scheduler.trace import EventKind, Trace, TraceEvent


def test_the_demo_trace_has_the_published_statistics() -> None:
    """On the mean of ten seeds. Active and idle times are shorter than what they are drawn with, published
    means, as the end of a session cuts its last one."""
    found = [describe(generate("demo", seed=seed)) for seed in range(10)]
    mean = {name: sum(each[name] for each in found) / len(found) for name in found[0]}
    assert mean["sessions"] == pytest.approx(1_719, rel=0.05)
    assert mean["peak_active"] == pytest.approx(107, rel=0.15)
    assert mean["peak_present"] == pytest.approx(186, rel=0.15)
    assert mean["active_mean_s"] == pytest.approx(15.4, rel=0.15)
    assert mean["idle_mean_s"] == pytest.approx(22.5, rel=0.25)
    assert mean["active_events"] == pytest.approx(3_205, rel=0.16)
    assert mean["idle_events"] == pytest.approx(4_042, rel=0.16)
    assert mean["active_share"] == pytest.approx(0.45, rel=0.1)
    assert 85 <= mean["life_mean_s"] <= 100


def test_about_half_of_the_demo_traces_sessions_leave_while_idle() -> None:
    """49 % as published."""
    last: dict[str, list[EventKind]] = {}
    for event in generate("demo", seed=0).events:
        last.setdefault(event.session, []).append(event.event)
    assert all(kinds[-1] is EventKind.DEPART for kinds in last.values())
    assert sum(kinds[-2] is EventKind.IDLE for kinds in last.values()) / len(last) == pytest.approx(
        0.49, abs=0.08
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_gives_the_same_trace(family: str) -> None:
    """And another seed another."""
    one, again, other = (generate(family, seed=seed, duration_s=120.0) for seed in (1, 1, 2))
    assert one == again and one != other and one.duration_s <= 120.0


def test_everybody_resumes_at_once() -> None:
    """Where a family says so."""
    trace = generate("thundering", seed=3)
    at = [event.t for event in trace.events if event.event is EventKind.ACTIVE and event.t == 0.4 * 1_800]
    assert len(at) > 20


def test_resizing_keeps_order_and_length() -> None:
    """Half, and three times as many, all within the trace."""
    trace = generate("steady", seed=1, duration_s=300.0)
    sessions = describe(trace)["sessions"]
    for factor in (0.5, 3.0):
        resized = resize(trace, factor, seed=1)
        assert describe(resized)["sessions"] == pytest.approx(sessions * factor, rel=0.15)
        assert resized.duration_s <= trace.duration_s


def test_what_a_trace_is_said_to_be() -> None:
    """Counted by hand."""
    events = [(0, "a", "arrive"), (2, "b", "arrive"), (4, "a", "idle"), (10, "b", "depart")]
    trace = Trace(tuple(TraceEvent(t=t, session=s, event=EventKind(e)) for t, s, e in events))
    found = describe(trace)
    assert (found["sessions"], found["peak_active"], found["peak_present"]) == (2, 2, 2)
    assert found["mean_active"] == 1.2 and found["active_mean_s"] == 6.0
    assert found["active_share"] == round(12 / 18, 3)


def test_repeated_sessions_have_names_of_their_own() -> None:
    """Whatever names there are, and none longer than a trace may have."""
    names = ("a", "a-1", "a--1", "x" * 64, "x" * 62 + "-1")
    trace = Trace(tuple(TraceEvent(t=0.0, session=name, event=EventKind.ARRIVE) for name in names))
    found = {event.session for event in resize(trace, 3.0, seed=0).events}
    assert len(found) == 15 and found >= set(names) and max(map(len, found)) == 64


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf, 1e12])
def test_a_factor_that_can_not_be_is_refused(factor: float) -> None:
    """Rather than tried for ever."""
    with pytest.raises(ValueError, match="at most a million sessions"):
        resize(generate("steady", seed=1, duration_s=20.0), factor, seed=1)
