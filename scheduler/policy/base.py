"""What a policy gets and gives. Pure.

    plan(view, changes, memory, now_ms, config) -> (actions, memory)

Same input, same output: time, randomness (fresh ids) and history (memory) are arguments. Actions carry the
epoch that the plan saw; when the world moved on, the store refuses them and the next plan sees why.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Protocol

from scheduler.config import SchedulerConfig
from scheduler.messages import DecodeError, DesiredEngine, EngineId, EngineState, SessionId, decode_fields
from scheduler.view import View


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Give a queued session to an engine, or a placed one to another: rebuilt from its checkpoint."""

    session: SessionId
    engine: EngineId
    expect_epoch: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Migrate:
    """Move a generating session to another engine with all its state; its stream goes on meanwhile."""

    session: SessionId
    source: EngineId
    target: EngineId
    expect_epoch: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOff:
    """Call off the migration of a session whose deadline has passed."""

    session: SessionId
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Requeue:
    """Take a placed session back: it waits at the front of its queue."""

    session: SessionId
    expect_epoch: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspend:
    """Have a session that nobody watches, or that is idle, give up its slot; its state stays there."""

    session: SessionId
    expect_epoch: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Activate:
    """Give an active session whose state is out of its slot a slot of its engine again."""

    session: SessionId
    expect_epoch: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Close a queued session that nobody controls since left_ms."""

    session: SessionId
    left_ms: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoseEngine:
    """Declare an engine gone; its sessions wait again."""

    engine: EngineId
    why: str
    hangs: bool = False
    """It is heard, and yet its work does not end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainEngine:
    """No new sessions for this engine."""

    engine: EngineId
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopDrained:
    """Tell a drained, empty engine to exit."""

    engine: EngineId
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetDesired:
    """Say which engines should exist: provisioners start what is missing and stop the rest."""

    engines: tuple[DesiredEngine, ...]
    why: str


SessionAction = Place | Migrate | CallOff | Requeue | Suspend | Activate | Sweep
Action = SessionAction | LoseEngine | DrainEngine | StopDrained | SetDesired


@dataclass(frozen=True, slots=True, kw_only=True)
class GoneEngine:
    """An engine that was declared gone or exited since the last plan."""

    id: EngineId
    state: EngineState
    """What it was before."""
    started_ms: int
    """Redis time at which it was wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What a plan must know besides the view."""

    gone: tuple[GoneEngine, ...] = ()
    released: int = 0
    """Placed sessions that were closed since the last plan: places that became free."""
    fresh_ids: tuple[EngineId, ...] = ()
    """Ids never used, for new engines."""
    reachable_ms: int = 0
    """Redis time since which this leader reached Redis without a break."""
    breaks: tuple[tuple[int, int], ...] = ()
    """The breaks before that, as far as this leader knows of them and an engine that starts has seen them:
    Redis time at the end, and ms that it took. A step of the Redis clock is one."""
    arrivals: int = 0
    """Sessions that began to want chunks since the last plan: new ones, and idle ones active again."""
    ages_ms: tuple[int, ...] = ()
    """Of the sessions that were closed since the last plan."""
    starts_ms: tuple[int, ...] = ()
    """How long engines that became ready since the last plan took for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Demand within one second."""

    at_s: int
    """Redis time."""
    demand: int
    """Sessions that want chunks, at the last plan of that second."""
    arrivals: int
    """See Changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """A drain that an administrator ordered (`scheduler/policy/drains.py`). Times are Redis times."""

    engine: EngineId
    ordered_ms: int
    """When a plan saw the order first."""
    since_ms: int
    """From when its time counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What one plan leaves for the next, across leaders. Small: it is written whole."""

    failures: int = 0
    """Engines in a row that died young."""
    retry_ms: int = 0
    """Redis time before which no replacement is asked for."""
    release_interval_ms: float = 30_000.0
    """Mean time between two places becoming free."""
    released_ms: int = 0
    """Redis time of the last one; 0 before the first."""
    last_engine: str = ""
    """Engine that got the last session, for policies that go round."""
    window: tuple[Sample, ...] = ()
    """Of the last WINDOW_S seconds, those with a plan."""
    closing: tuple[EngineId, ...] = ()
    """Ready engines that are being emptied, so that they can go."""
    drains: tuple[Drain, ...] = ()
    """Those that were ordered and are not over."""
    surplus_ms: int = 0
    """Redis time since which fewer engines would do; 0 while they would not."""
    start_ms: float = 10_000.0
    """Mean time from wanting an engine to its being ready; a guess before the first."""
    starts: int = 0
    """Engines that were seen to become ready."""
    exits: tuple[float, ...] = ()
    exposure_s: tuple[float, ...] = ()
    """By age (`scheduler/policy/lives.py`): sessions closed, and time lived by them. Old ones fade."""


Plan = tuple[tuple[Action, ...], Memory]


class Policy(Protocol):
    """One algorithm. Pure: no I/O, no clock, no random numbers, no state of its own."""

    @property
    def name(self) -> str:
        """As in `--policy`."""

    def plan(
        self, view: View, changes: Changes, memory: Memory, now_ms: int, config: SchedulerConfig
    ) -> Plan:
        """Decide. now_ms is Redis time."""


def encode_memory(memory: Memory) -> bytes:
    """The form that Redis keeps."""
    return json.dumps(asdict(memory), separators=(",", ":")).encode()


def decode_memory(data: bytes | None) -> Memory:
    """The inverse; what can't be read (nothing kept, or by another version) is a fresh memory."""
    try:
        return decode_fields(Memory, json.loads(data or b"{}"))
    except (DecodeError, ValueError, TypeError, AttributeError):
        return Memory()
