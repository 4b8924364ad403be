"""Traces: when sessions begin, want chunks, rest, change their prompt and leave. Pure.

A trace is JSON lines, one event each, in order of time:

    {"t": 0.0, "session": "a", "event": "arrive", "prompt": "a red ball"}
    {"t": 12.5, "session": "a", "event": "idle"}
    {"t": 40, "session": "a", "event": "active"}
    {"t": 41.5, "session": "a", "event": "prompt", "prompt": "a green star"}
    {"t": 55, "session": "a", "event": "depart"}

`t` is seconds since the trace's start. A session is active from its arrival on; `idle` and `active` take
turns. One that never departs stays until the end of the trace. Blank lines and unknown fields are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Annotated, Final

from scheduler.schema import Chars, DecodeError, Range, decode_fields

__all__ = [
    "MAX_SESSION_CHARS",
    "MAX_T_S",
    "EventKind",
    "Life",
    "Trace",
    "TraceError",
    "TraceEvent",
    "read_trace",
    "write_trace",
]

MAX_T_S: Final = 10_000_000.0
"""Latest event: some four months."""
MAX_SESSION_CHARS: Final = 64


class TraceError(ValueError):
    """A trace is not what this module says. `str()` is a sentence that names the event or line."""


class EventKind(Enum):
    """What happens to a session."""

    ARRIVE = "arrive"
    ACTIVE = "active"
    IDLE = "idle"
    PROMPT = "prompt"
    DEPART = "depart"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceEvent:
    """One line."""

    t: Annotated[float, Range(0, MAX_T_S)]
    """Seconds since the trace's start."""
    session: Annotated[str, Chars(MAX_SESSION_CHARS, low=1)]
    """Any name, unique within the trace."""
    event: EventKind
    prompt: Annotated[str | None, Chars(2_000, low=1)] = None
    """`arrive`: the first prompt, None: any; `prompt`: the next one, None: any other."""
    seed: Annotated[int | None, Range(0, 2**63 - 1)] = None
    """`arrive`: of the video; None: any."""
    model: Annotated[str | None, Chars(64, low=1)] = None
    """`arrive`: None: the cluster's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """One session of a trace."""

    session: str
    arrive_s: float
    depart_s: float
    active_s: tuple[tuple[float, float], ...]
    """[from, to) of each time in which it wants chunks; the first begins with the arrival."""
    edits: tuple[TraceEvent, ...]
    """Its `prompt` events."""
    first: TraceEvent
    """Its `arrive` event."""

    @property
    def total_active_s(self) -> float:
        return sum(end - begin for begin, end in self.active_s)


@dataclass(frozen=True, slots=True)
class Trace:
    """Events in order of time. Checked on construction.

    Raises:
        TraceError: time goes back, or an event does not fit what its session has done before.
    """

    events: tuple[TraceEvent, ...]

    def __post_init__(self) -> None:
        _check(self.events)

    @property
    def duration_s(self) -> float:
        """From the start to the last event."""
        return self.events[-1].t if self.events else 0.0

    def lives(self) -> tuple[Life, ...]:
        """Every session, in order of arrival."""
        by_session: dict[str, list[TraceEvent]] = {}
        for event in self.events:
            by_session.setdefault(event.session, []).append(event)
        return tuple(_life(events, self.duration_s) for events in by_session.values())

    def scaled(self, time_scale: float) -> Trace:
        """The same, `time_scale` times as fast."""
        if not time_scale > 0:
            raise ValueError(f"time_scale must be above 0, got {time_scale:g}")
        return Trace(tuple(replace(event, t=event.t / time_scale) for event in self.events))


def read_trace(lines: Iterable[str]) -> Trace:
    """Parse JSON lines.

    Raises:
        TraceError: naming the line that can't be read, or the event that does not fit.
    """
    return Trace(tuple(_event(text, number) for number, text in enumerate(lines, start=1) if text.strip()))


def write_trace(trace: Trace) -> Iterator[str]:
    """Its lines, each with a newline. Times are rounded to microseconds."""
    for event in trace.events:
        line: dict[str, object] = {
            "t": round(event.t, 6),
            "session": event.session,
            "event": event.event.value,
        }
        line |= {
            name: value for name in ("prompt", "seed", "model") if (value := getattr(event, name)) is not None
        }
        yield json.dumps(line, ensure_ascii=False) + "\n"


def _event(text: str, number: int) -> TraceEvent:
    try:
        line = json.loads(text)
        if not isinstance(line, dict):
            raise DecodeError("it must be a JSON object")
        return decode_fields(TraceEvent, line)
    except (ValueError, RecursionError) as exc:
        raise TraceError(f"line {number} of the trace can't be read: {exc}") from exc


_ALLOWED: Final[Mapping[EventKind | None, frozenset[EventKind]]] = {
    None: frozenset({EventKind.ARRIVE}),
    EventKind.ACTIVE: frozenset({EventKind.IDLE, EventKind.PROMPT, EventKind.DEPART}),
    EventKind.IDLE: frozenset({EventKind.ACTIVE, EventKind.PROMPT, EventKind.DEPART}),
    EventKind.DEPART: frozenset(),
}
"""What a session does now (None: it has not arrived) → the events that may follow."""


def _check(events: Iterable[TraceEvent]) -> None:
    last_s = 0.0
    doing: dict[str, EventKind] = {}
    for event in events:
        where = f"session {event.session!r}, t = {event.t:g}: {event.event.value!r}"
        if event.t < last_s:
            raise TraceError(f"{where} comes after an event at t = {last_s:g}; events must be in order")
        last_s = event.t
        before = doing.get(event.session)
        if event.event not in _ALLOWED[before]:
            raise TraceError(f"{where} can't follow: the session {_STATE[before]}")
        match event.event:
            case EventKind.ARRIVE:
                doing[event.session] = EventKind.ACTIVE
            case EventKind.PROMPT:
                pass
            case kind:
                doing[event.session] = kind


_STATE: Final[Mapping[EventKind | None, str]] = {
    None: "has not arrived",
    EventKind.ACTIVE: "has arrived and is active",
    EventKind.IDLE: "is idle",
    EventKind.DEPART: "has departed",
}


def _life(events: list[TraceEvent], end_s: float) -> Life:
    first, last = events[0], events[-1]
    depart_s = last.t if last.event is EventKind.DEPART else end_s
    spans, since = [], first.t
    is_active = True
    for event in events[1:]:
        if event.event is EventKind.ACTIVE:
            since, is_active = event.t, True
        elif event.event is EventKind.IDLE:
            spans.append((since, event.t))
            is_active = False
    if is_active:
        spans.append((since, depart_s))
    return Life(
        session=first.session,
        arrive_s=first.t,
        depart_s=depart_s,
        active_s=tuple(spans),
        edits=tuple(event for event in events if event.event is EventKind.PROMPT),
        first=first,
    )
