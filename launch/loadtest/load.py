"""What each client of a load test does and when, from a trace. Pure: chance is a `draw` in [0, 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from scheduler.trace import EventKind, Life, Trace, TraceEvent

__all__ = ["PROMPTS", "Do", "Script", "Step", "clip", "invent", "make_scripts", "share_out"]

Draw = Callable[[], float]

PROMPTS: Final = (
    "a red ball bouncing on a blue background",
    "a green star spinning on a black background",
    "a small yellow square drifting left on grey",
    "a white triangle orbiting on a blue background",
    "a large purple circle on a white background",
    "make it night",
)
SLOW_FACTOR: Final = 1.5
"""A slow client reads a chunk in so many times the time in which it plays."""
RAMP_SHARE: Final = 0.1
"""Of the made-up load's length, in which its first sessions arrive."""
_MAX_RAMP_S: Final = 5.0
_MIN_LIFE_S: Final = 1.0


class Do(Enum):
    """What a client can do."""

    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    PROMPT = "prompt"
    CUT = "cut"
    STOP = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing a client does."""

    at_s: float
    """Since the load's start."""
    do: Do
    prompt: str = ""
    """Of a start or prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """One client's session: a start, what it does meanwhile, a stop."""

    client: int
    steps: tuple[Step, ...]
    seed: int
    model: str | None = None
    """None: the cluster's default."""
    slow_factor: float = 0.0
    """Reads each chunk in so many times its play time; 0: as it comes."""


def invent(
    *, viewers: float, seconds: float, life_s: float, idle_share: float, edit_every_s: float, draw: Draw
) -> Trace:
    """A steady load: Poisson arrivals, lives and times in between drawn from exponential distributions.

    It begins with `viewers` sessions, which arrive within a short while, and ends with everybody leaving.
    """
    ramp_s = min(RAMP_SHARE * seconds, _MAX_RAMP_S)
    arrivals = [ramp_s * draw() for _ in range(round(viewers))]
    at_s = ramp_s
    while (at_s := at_s + _exponential(life_s / viewers, draw)) < seconds - _MIN_LIFE_S:
        arrivals.append(at_s)
    events: list[TraceEvent] = []
    for number, arrive_s in enumerate(sorted(arrivals)):
        depart_s = min(seconds, arrive_s + max(_MIN_LIFE_S, _exponential(life_s, draw)))
        events += _invent_session(f"c{number}", arrive_s, depart_s, idle_share, edit_every_s, draw)
    return Trace(tuple(sorted(events, key=lambda event: event.t)))


def _invent_session(
    name: str, arrive_s: float, depart_s: float, idle_share: float, edit_every_s: float, draw: Draw
) -> Iterator[TraceEvent]:
    yield TraceEvent(t=arrive_s, session=name, event=EventKind.ARRIVE)
    busy_s = (depart_s - arrive_s) * (1.0 - idle_share)
    pause_s = (depart_s - arrive_s) * idle_share
    if pause_s > _MIN_LIFE_S:  # one pause, at a time of its own
        begin_s = arrive_s + busy_s * draw()
        yield TraceEvent(t=begin_s, session=name, event=EventKind.IDLE)
        yield TraceEvent(t=begin_s + pause_s, session=name, event=EventKind.ACTIVE)
    for at_s in _times(arrive_s, depart_s, edit_every_s, draw):
        yield TraceEvent(t=at_s, session=name, event=EventKind.PROMPT)
    yield TraceEvent(t=depart_s, session=name, event=EventKind.DEPART)


def make_scripts(
    trace: Trace, *, slow_share: float, reconnect_every_s: float, draw: Draw
) -> tuple[Script, ...]:
    """A script for every session of the trace, in order of arrival. `draw` chooses seeds, who is slow, and
    when connections are lost."""
    return tuple(
        _script(number, life, slow_share, reconnect_every_s, draw)
        for number, life in enumerate(trace.lives())
    )


def _script(number: int, life: Life, slow_share: float, reconnect_every_s: float, draw: Draw) -> Script:
    is_slow = draw() < slow_share
    seed = life.first.seed if life.first.seed is not None else int(draw() * 2**31)
    prompts = iter(range(number, number + len(life.edits) + 1))  # neighbours differ, so an edit is one

    def prompt(event: TraceEvent) -> str:
        return event.prompt or PROMPTS[next(prompts) % len(PROMPTS)]

    first = Step(at_s=life.arrive_s, do=Do.START, prompt=prompt(life.first))
    between = [Step(at_s=edit.t, do=Do.PROMPT, prompt=prompt(edit)) for edit in life.edits]
    for turn, (begin_s, end_s) in enumerate(life.active_s):
        if turn > 0:
            between.append(Step(at_s=begin_s, do=Do.RESUME))
        if end_s < life.depart_s:
            between.append(Step(at_s=end_s, do=Do.PAUSE))
    cuts = _times(life.arrive_s, life.depart_s, reconnect_every_s, draw)
    between += [Step(at_s=at_s, do=Do.CUT) for at_s in cuts]
    between.sort(key=lambda step: step.at_s)
    return Script(
        client=number,
        steps=(first, *between, Step(at_s=life.depart_s, do=Do.STOP)),
        seed=seed,
        model=life.first.model,
        slow_factor=SLOW_FACTOR if is_slow else 0.0,
    )


def share_out(scripts: Sequence[Script], processes: int) -> tuple[tuple[Script, ...], ...]:
    """Clients per process, in turn: neighbours in time run in different ones. No process without clients."""
    shares = (tuple(scripts[number::processes]) for number in range(processes))
    return tuple(share for share in shares if share)


def clip(trace: Trace, seconds: float) -> Trace:
    """The trace up to a moment; who is there then leaves then."""
    events = [event for event in trace.events if event.t < seconds]
    gone = {event.session for event in events if event.event is EventKind.DEPART}
    here = dict.fromkeys(event.session for event in events if event.session not in gone)
    ends = [TraceEvent(t=seconds, session=name, event=EventKind.DEPART) for name in here]
    return Trace((*events, *ends)) if trace.duration_s > seconds else trace


def _times(begin_s: float, end_s: float, every_s: float, draw: Draw) -> Iterator[float]:
    """Moments of a Poisson process; none for `every_s` 0."""
    at_s = begin_s
    while every_s > 0 and (at_s := at_s + _exponential(every_s, draw)) < end_s:
        yield at_s


def _exponential(mean: float, draw: Draw) -> float:
    return -mean * math.log(1.0 - draw())
