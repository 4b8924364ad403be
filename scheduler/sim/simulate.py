"""A policy over a trace: `simulate(trace, scenario)`. Pure: the same input gives the same result.

The policy is asked as the control loop asks it: after every event that it hears of and at every tick, with a
view kept by deltas, one plan at a time. An action takes effect when the plan is over, against the world of
that moment.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from heapq import heappop
from typing import Any, Final

from scheduler.config import SchedulerConfig
from scheduler.domain import DesiredEngine, EngineId, EngineState, SessionId
from scheduler.policy.base import Action, Changes, Memory, Policy, SetDesired
from scheduler.results import FAIR_WAIT_MS, common_results, play_ratio, waits_ms
from scheduler.sim.cluster import START_MS, SimCluster
from scheduler.sim.engine import BOUNDARY, CHUNK_DUE, Figures, SimSession
from scheduler.sim.profile import Profile
from scheduler.trace import EventKind, Trace

__all__ = ["Result", "Scenario", "Simulation", "simulate"]

TRACE: Final = 20
PLAN: Final = 21
APPLY: Final = 22
TICK: Final = 23
FAIL: Final = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Everything but the trace."""

    policy: Policy
    profile: Profile
    min_engines: int
    """A fixed budget if it equals max_engines."""
    max_engines: int
    first_engines: int = 0
    """Ready when the trace begins, if they are more than min_engines."""
    speeds: tuple[float, ...] = (1.0,)
    """Of engines in the order of their start, again and again."""
    failures_s: tuple[tuple[float, int], ...] = ()
    """(seconds, n): the n-th ready engine by id, from 0, dies unheard; nobody does if there are fewer."""
    react_ms: float = 1.0
    """From an event to the plan that knows of it, when none is being made."""
    plan_ms: float = 1.0
    """What a plan takes; unless `is_real_time`."""
    stopwatch_ms: Callable[[], float] | None = None
    """To time plans with; its readings change nothing unless `is_real_time`."""
    is_real_time: bool = False
    """Do actions take effect as much later as their plan took?"""
    tick_ms: float = 500.0

    def config(self) -> SchedulerConfig:
        """As the policy gets it."""
        return SchedulerConfig(
            redis="unix:///simulated",
            policy=self.policy.name,
            model=self.profile.model.name,
            engines=self.min_engines,
            max_engines=self.max_engines,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What a tick saw."""

    at_s: float
    active: int
    """Sessions that want chunks."""
    engines: int
    """That cost."""
    latency_ms: float
    """Predicted, of the fullest engine; of who waits for an engine what it has waited, and a chunk alone."""
    worst_ms: float
    """Largest latency of the chunks that were delivered since the tick before."""


@dataclass(slots=True, kw_only=True)
class Result:
    """What came of it."""

    figures: Figures
    duration_s: float
    cpr: list[float] = field(default_factory=list)
    """Of each session that was shown anything: played / (played + stalled)."""
    sessions: int = 0
    vain_ms: list[float] = field(default_factory=list)
    """Of each session that got no chunk: for how long it had wanted one, pauses left out."""
    suffering: int = 0
    """Sessions that stalled."""
    stalled_s: float = 0.0
    engine_s: float = 0.0
    budget: list[tuple[float, int]] = field(default_factory=list)
    """(seconds, engines that cost from then on)."""
    moments: list[Moment] = field(default_factory=list)
    migrations: int = 0
    deaths: int = 0
    """Of engines."""
    rebuilds: int = 0
    refused: int = 0
    plans: int = 0
    events: int = 0
    planning_ms: array[float] = field(default_factory=lambda: array("d"))

    @property
    def unserved(self) -> int:
        """Sessions that got no chunk."""
        return len(self.vain_ms)

    @property
    def worst_ms(self) -> float:
        """Largest latency of a chunk, of those that were never done how long they had waited."""
        return max(self.figures.worst_abandoned_ms, max(self.figures.latency_ms, default=0.0))

    def results(self) -> dict[str, object]:
        """Under the names that load tests use, and those that only a simulation knows."""
        figures = self.figures
        found = common_results(
            sessions=self.sessions,
            chunks=figures.delivered,
            chunk_latency_ms=figures.latency_ms,
            ttfc_ms=figures.ttfc_ms,
            waited_ms=waits_ms(figures.ttfc_ms, self.vain_ms),
            unserved=self.unserved,
            left_waiting=sum(ms >= FAIR_WAIT_MS for ms in self.vain_ms),
            cpr=self.cpr,
            cost_engine_s=self.engine_s,
            migrations=self.migrations,
            gaps=0,
            planning_ms=self.planning_ms,
        )
        return found | {
            "worst_chunk_ms": round(self.worst_ms, 1),
            "abandoned_chunks": figures.abandoned,
            "suffering": self.suffering,
            "stalled_s": round(self.stalled_s, 1),
            "max_engines": max((n for _, n in self.budget), default=0),
            "deaths": self.deaths,
            "rebuilds": self.rebuilds,
            "refused": self.refused,
            "plans": self.plans,
            "events": self.events,
        }


def simulate(trace: Trace, scenario: Scenario) -> Result:
    """Run it to the trace's last event, at which everybody leaves."""
    simulation = Simulation(trace, scenario)
    simulation.advance(trace.duration_s)
    return simulation.finish()


class Simulation:
    """One that can be looked at on its way: `advance` as often as wanted, then `finish`."""

    def __init__(self, trace: Trace, scenario: Scenario) -> None:
        self._trace, self._scenario = trace, scenario
        self._config = scenario.config()
        self.cluster = cluster = SimCluster(scenario.profile, scenario.speeds)
        self._memory = Memory()
        self._ids = [EngineId(f"e_{n:08x}") for n in range(1, scenario.max_engines + 1)]
        """Not used yet; refilled as they go."""
        self._named = scenario.max_engines
        self._none: Changes | None = None
        """Nothing but the ids that are fresh, as long as they are."""
        self._is_planning = False
        self._seen = 0
        """Delivered chunks up to the last tick."""
        self._result = Result(figures=cluster.figures, duration_s=trace.duration_s)
        first = [self._take_id() for _ in range(max(scenario.min_engines, scenario.first_engines))]
        cluster.table.desired = tuple(DesiredEngine(id=id, model=scenario.profile.model.name) for id in first)
        for id in first:
            cluster.start(id, start_ms=0.0)
        # Ready when the trace begins, but they started before it as any does, and the scheduler saw that.
        cluster.starts_ms[:] = [round(engine.profile.start_ms) for engine in cluster.engines.values()]
        cluster.agenda.add(START_MS, TICK)
        for at_s, slot in scenario.failures_s:
            cluster.agenda.add(START_MS + 1000.0 * at_s, FAIL, slot)
        self._end_ms = START_MS + 1000.0 * trace.duration_s
        self._next_event(0)

    def advance(self, until_s: float) -> None:
        """Play up to this second of the trace, at most to its end."""
        cluster = self.cluster
        heap, until_ms = cluster.agenda.heap, min(self._end_ms, START_MS + 1000.0 * until_s)
        events = 0
        while heap and heap[0][0] <= until_ms:
            at_ms, _, kind, subject, token = heappop(heap)
            events += 1
            cluster.now_ms = at_ms
            if kind == BOUNDARY:
                if subject.next_ms != at_ms:
                    continue
                subject.boundary(at_ms)
                if not subject.rested:
                    continue
                self._rest(subject.rested)
            elif kind == CHUNK_DUE:
                if subject.token == token:
                    cluster.become_due(subject)
                continue
            elif kind >= TRACE:
                self._handle(kind, subject, token)
            else:
                cluster.handle(kind, subject, token)
            if cluster.is_changed and not self._is_planning:
                self._is_planning = True
                cluster.agenda.add(at_ms + self._scenario.react_ms, PLAN)
        cluster.now_ms = until_ms
        self._result.events += events

    def finish(self) -> Result:
        """Everybody leaves; what came of it. The last call."""
        self.cluster.now_ms = self._end_ms
        self.cluster.close()
        return self._summary()

    def _rest(self, sessions: list[SimSession]) -> None:
        for session in sessions:
            if session.wants_rest:
                self.cluster.rest(session)
        sessions.clear()

    def _handle(self, kind: int, subject: Any, token: int) -> None:
        cluster = self.cluster
        if kind == TRACE:
            self._play(token)
        elif kind == PLAN:
            self._plan()
        elif kind == APPLY:
            self._is_planning = False
            cluster.apply(subject)
        elif kind == TICK:
            self._look()
            cluster.hear()
            cluster.is_changed = True
            cluster.agenda.add(cluster.now_ms + self._scenario.tick_ms, TICK)
        else:
            self._fail(subject)

    def _look(self) -> None:
        cluster, latencies_ms = self.cluster, self._result.figures.latency_ms
        self._result.moments.append(
            Moment(
                at_s=(cluster.now_ms - START_MS) / 1000,
                active=sum(session.active for session in cluster.sessions.values()),
                engines=len(cluster.engines),
                latency_ms=cluster.latency_ms(),
                worst_ms=max(latencies_ms[self._seen :], default=0.0),
            )
        )
        self._seen = len(latencies_ms)

    # --- the trace

    def _next_event(self, number: int) -> None:
        if number < len(self._trace.events):
            at_ms = START_MS + 1000.0 * self._trace.events[number].t
            self.cluster.agenda.add(at_ms, TRACE, None, number)

    def _play(self, number: int) -> None:
        event = self._trace.events[number]
        session = SessionId(event.session)
        match event.event:
            case EventKind.ARRIVE:
                self.cluster.arrive(session)
            case EventKind.IDLE:
                self.cluster.pause(session)
            case EventKind.ACTIVE:
                self.cluster.resume(session)
            case EventKind.DEPART:
                self.cluster.leave(session)
            case EventKind.PROMPT:
                pass  # it changes the picture, and costs what a chunk costs
        self._next_event(number + 1)

    def _fail(self, slot: int) -> None:
        cluster = self.cluster
        ready = [
            id
            for id in sorted(cluster.engines)
            if cluster.records[id].state is EngineState.READY and not cluster.engines[id].is_dead
        ]
        if slot < len(ready):
            cluster.die(cluster.engines[ready[slot]])
            self._result.deaths += 1

    # --- the control loop

    def _plan(self) -> None:
        cluster, scenario = self.cluster, self._scenario
        cluster.is_changed = False
        changes = self._changes()
        began_ms = scenario.stopwatch_ms() if scenario.stopwatch_ms else 0.0
        actions, self._memory = scenario.policy.plan(
            cluster.table.view(), changes, self._memory, round(cluster.now_ms), self._config
        )
        took_ms = scenario.plan_ms
        if scenario.stopwatch_ms:
            measured_ms = scenario.stopwatch_ms() - began_ms
            self._result.planning_ms.append(measured_ms)
            took_ms = measured_ms if scenario.is_real_time else took_ms
        self._result.plans += 1
        self._use_ids(actions)
        cluster.agenda.add(cluster.now_ms + took_ms, APPLY, actions)

    def _changes(self) -> Changes:
        cluster = self.cluster
        num_fresh = max(0, self._scenario.max_engines - cluster.num_staying)
        if self._none is None or len(self._none.fresh_ids) != num_fresh:
            self._none = Changes(fresh_ids=tuple(self._ids[:num_fresh]))
        if not (cluster.arrivals or cluster.ages_ms or cluster.gone or cluster.starts_ms):
            return self._none
        changes = replace(
            self._none,
            gone=tuple(cluster.gone),
            released=cluster.released,
            arrivals=cluster.arrivals,
            ages_ms=tuple(cluster.ages_ms),
            starts_ms=tuple(cluster.starts_ms),
        )
        cluster.released = cluster.arrivals = 0
        for news in (cluster.gone, cluster.ages_ms, cluster.starts_ms):
            news.clear()
        return changes

    def _use_ids(self, actions: tuple[Action, ...]) -> None:
        """Ids that were wanted are fresh no more."""
        for action in actions:
            if isinstance(action, SetDesired):
                known = self.cluster.engines
                new = [engine.id for engine in action.engines if engine.id not in known]
                used = set(self._ids).intersection(new) if new else ()
                if used:
                    self._ids = [id for id in self._ids if id not in used]
                    self._refill()

    def _take_id(self) -> EngineId:
        id = self._ids.pop(0)
        self._refill()
        return id

    def _refill(self) -> None:
        self._none = None
        while len(self._ids) < self._scenario.max_engines:
            self._named += 1
            self._ids.append(EngineId(f"e_{self._named:08x}"))

    # --- the books

    def _summary(self) -> Result:
        cluster, result = self.cluster, self._result
        for session in cluster.ended:
            if session.dry_ms is None:
                result.vain_ms.append(session.vain_ms)
            ratio = play_ratio(session.played_ms, session.stalled_ms)
            if ratio is not None:
                result.cpr.append(ratio)
            result.suffering += session.stalled_ms > 0
            result.stalled_s += session.stalled_ms / 1000
        result.sessions = len(cluster.ended)
        engines = (*cluster.engines.values(), *cluster.former)
        result.engine_s = sum((e.stopped_ms or 0.0) - e.started_ms for e in engines) / 1000
        result.migrations, result.rebuilds, result.refused = (
            cluster.migrations,
            cluster.rebuilds,
            cluster.refused,
        )
        number = 0
        for at_ms, by in sorted(cluster.budget, key=lambda change: change[0]):
            number += by
            result.budget.append(((at_ms - START_MS) / 1000, number))
        return result
