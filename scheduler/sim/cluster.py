"""The cluster of a simulation: what the store, the engines and the provisioner would make of actions. Pure.

It refuses what the store's scripts refuse, and takes the time that a profile says. Migrations do not slow one
another down, and host memory is never short.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final, assert_never

from scheduler.domain import (
    DesiredEngine,
    EngineId,
    EngineRecord,
    EngineState,
    InFlight,
    Phase,
    Residence,
    SessionId,
)
from scheduler.policy.base import (
    Action,
    Activate,
    CallOff,
    DrainEngine,
    GoneEngine,
    LoseEngine,
    Migrate,
    Place,
    Requeue,
    SetDesired,
    StopDrained,
    Suspend,
    Sweep,
)
from scheduler.sim.engine import AT_REST, CHUNK_DUE, RUNNING, WAITING, Agenda, Figures, SimEngine, SimSession
from scheduler.sim.profile import Profile, scaled
from scheduler.sim.record import new_engine, new_session
from scheduler.table import ClusterTable

OPENED: Final = 10
IDLE_LONG: Final = 11
OFFLOADED: Final = 12
RESTORED: Final = 13
FREEZE: Final = 14
COMMIT: Final = 15
ENGINE_READY: Final = 16

START_MS: Final = 1_000_000.0
"""Time at which simulations start: some fields of records take 0 for never."""
MIGRATION_LIMIT_MS: Final = 20_000
RETURNER: Final = -(1 << 40)


class SimCluster:
    """Sessions and engines, their records in a table as the scheduler's feed keeps it, and its changes."""

    def __init__(self, profile: Profile, speeds: tuple[float, ...] = (1.0,)) -> None:
        """speeds: of engines in the order of their start, again and again."""
        self.agenda, self.figures = Agenda(), Figures()
        self.table = ClusterTable()
        self.now_ms = START_MS
        self.engines: dict[EngineId, SimEngine] = {}
        """Those that are not gone."""
        self.records: dict[EngineId, EngineRecord] = {}
        self.former: list[SimEngine] = []
        self.sessions: dict[SessionId, SimSession] = {}
        self.ended: list[SimSession] = []
        self.budget: list[tuple[float, int]] = []
        """(time, by how many the number of engines that cost changes)."""
        self.migrations = self.rebuilds = self.refused = 0
        self.arrivals = self.released = 0
        self.ages_ms: list[int] = []
        self.starts_ms: list[int] = []
        self.gone: list[GoneEngine] = []
        self.is_changed = False
        """Did anything happen that the scheduler hears of?"""
        self._profiles = tuple(profile if s == 1.0 else scaled(profile, s) for s in speeds)
        self._profile = profile
        self._started = 0
        self._serial = 0
        self._num_staying: int | None = None

    # --- what users do

    def arrive(self, id: SessionId) -> None:
        """A session that wants its first chunk."""
        self._serial += 1
        record = new_session(id, self._profile.model.name, round(self.now_ms), self._serial)
        record.state_bytes = self._profile.state_bytes
        session = SimSession(self._serial, record, self.now_ms, self._profile)
        self.sessions[id] = session
        self.arrivals += 1
        self.become_due(session)
        self._put(session)

    def pause(self, id: SessionId) -> None:
        """Its user wants no chunks."""
        session = self.sessions[id]
        session.pause(self.now_ms, self.figures)
        session.record.active, session.record.active_ms = False, round(self.now_ms)
        self._watch_idle(session)
        self._put(session)

    def resume(self, id: SessionId) -> None:
        """Its user wants chunks again. It takes a slot of its engine if one is free."""
        session = self.sessions[id]
        due_ms = session.resume(self.now_ms)
        if session.stage != RUNNING:
            self.agenda.add(due_ms, CHUNK_DUE, session, session.token)
        record = session.record
        record.active, record.active_ms = True, round(self.now_ms)
        self.arrivals += 1
        home = session.home
        if record.residence is Residence.LEAVING:
            session.turn += 1
            record.residence = Residence.RESIDENT
        elif home is not None and record.in_flight is None and record.residence is not Residence.RESIDENT:
            if len(home.holders) < home.profile.capacity:
                self._restore(session)
        self._put(session)

    def leave(self, id: SessionId) -> None:
        """It ends."""
        session = self.sessions.pop(id)
        record = session.record
        self._finish(session)
        self.released += record.phase is Phase.PLACED
        self.ages_ms.append(max(0, round(self.now_ms) - record.created_ms))
        self._vacate(session)
        self.table.drop_session(id)
        self.is_changed = True

    def _finish(self, session: SimSession) -> None:
        """Close its books."""
        if session.active and session.dry_ms is not None:
            session.stalled_ms += max(0.0, self.now_ms - session.dry_ms)
        if session.dry_ms is None:
            session.vain_ms = (self.now_ms if session.active else session.paused_ms) - session.came_ms
        session.played_ms = session.got_ms - session.slack_ms(self.now_ms)
        session.drop_chunk(self.now_ms, self.figures, also_running=True)
        session.turn += 1
        self.ended.append(session)

    def close(self) -> None:
        """The end: everybody's books are closed, and nothing costs any more."""
        for session in self.sessions.values():
            self._finish(session)
        for engine in (*self.engines.values(), *self.former):
            engine.stopped_ms = min(engine.stopped_ms or self.now_ms, self.now_ms)

    # --- what happens by itself

    def handle(self, kind: int, subject: SimSession | SimEngine, token: int) -> None:
        """An entry of the agenda that is not about a chunk."""
        if isinstance(subject, SimEngine):
            assert kind == ENGINE_READY
            return self._become_ready(subject)
        record = subject.record
        if kind == OPENED:
            if record.epoch == token and record.phase is Phase.PLACED:
                record.opened = True
                self._watch_idle(subject)
                self._attach(subject)
                self._put(subject)
        elif subject.turn == token:
            self._take_turn(kind, subject)
        return None

    def _take_turn(self, kind: int, session: SimSession) -> None:
        if kind == IDLE_LONG:
            # It may have been active in between: then a later one is about this pause.
            if not session.active and session.paused_ms + self._profile.offload_after_ms <= self.now_ms:
                self._take_out(session)
        elif kind in (OFFLOADED, FREEZE) and session.stage == RUNNING:
            session.wants_rest = True
        elif kind == OFFLOADED:
            self._detach(session)
            if session.home is not None:
                session.home.holders.discard(session)
                session.record.residence = Residence.OFFLOADED
            else:  # it waits in the queue, and became idle there
                session.record.residence = Residence.STORED
            self._put(session)
        elif kind == RESTORED:
            session.restoring = False
            self._attach(session)
        elif kind == FREEZE:
            self.freeze(session)
        else:
            assert kind == COMMIT
            self._commit(session)

    def become_due(self, session: SimSession) -> None:
        """Its next chunk is wanted."""
        session.due_ms = self.now_ms
        self.figures.due += 1
        if session.engine is not None:
            session.engine.submit(session, self.now_ms)
        else:
            session.stage = WAITING

    def die(self, engine: SimEngine) -> None:
        """It stops computing and is not heard any more. It costs until somebody notices."""
        engine.die()

    def _become_ready(self, engine: SimEngine) -> None:
        record = self.records.get(engine.id)
        if record is None or record.state is not EngineState.STARTING or engine.is_dead:
            return
        self.starts_ms.append(max(0, round(self.now_ms) - record.started_ms))
        engine.heard_ms = round(self.now_ms)
        self._put_engine(replace(record, state=EngineState.READY, heartbeat_ms=engine.heard_ms))

    def _watch_idle(self, session: SimSession) -> None:
        if not session.active and session.record.residence is Residence.RESIDENT:
            self.agenda.add(self.now_ms + self._profile.offload_after_ms, IDLE_LONG, session, session.turn)

    def latency_ms(self) -> float:
        """Predicted chunk latency of the fullest engine; who has no engine has waited, and needs a chunk."""
        engines = self.table.view().engines
        busy = engines["active"] > 0
        worst_ms = float(engines["latency_ms"][busy].max()) if busy.any() else 0.0
        alone_ms = self._profile.costs.chunk_passes * self._profile.pass_ms[1] + self._profile.costs.decode_ms
        due_ms = [s.due_ms for s in self.sessions.values() if s.stage == WAITING]
        return max(worst_ms, self.now_ms - min(due_ms) + alone_ms if due_ms else 0.0)

    # --- where its chunks can be made

    def _attach(self, session: SimSession) -> None:
        record = session.record
        if session.resting or session.restoring or not record.opened or session.engine is not None:
            return
        if record.phase is Phase.PLACED and record.residence in (Residence.RESIDENT, Residence.LEAVING):
            session.engine = session.home
            if session.stage == WAITING and session.home is not None:
                session.home.submit(session, self.now_ms)

    def _detach(self, session: SimSession) -> None:
        engine = session.engine
        if engine is None:
            return
        if not session.active:
            session.drop_chunk(self.now_ms, self.figures, also_running=True)
        elif session.stage not in (AT_REST, WAITING):
            engine.remove(session, self.now_ms)
            session.stage = WAITING
        session.engine = None

    def _vacate(self, session: SimSession) -> None:
        """It is nowhere any more; what it has in flight is void."""
        self._detach(session)
        session.turn += 1
        session.resting = session.restoring = session.wants_rest = False
        if session.home is not None:
            session.home.holders.discard(session)
            session.home = None
        flight = session.record.in_flight
        if flight is not None and flight.target in self.engines:
            self.engines[flight.target].holders.discard(session)

    def _take_out(self, session: SimSession) -> None:
        """Its slot is wanted, or it has been idle for long."""
        session.turn += 1
        session.record.residence = Residence.LEAVING
        self.agenda.add(self.now_ms + self._profile.offload_ms, OFFLOADED, session, session.turn)
        self._put(session)

    def _restore(self, session: SimSession) -> None:
        """It has a slot of its home again."""
        assert session.home is not None
        session.home.holders.add(session)
        session.turn += 1
        was_stored = session.record.residence is Residence.STORED
        session.record.residence = Residence.RESIDENT
        if was_stored:
            self._rebuild(session)
            self._attach(session)
        else:
            session.restoring = True
            self.agenda.add(self.now_ms + self._profile.offload_ms, RESTORED, session, session.turn)

    def _rebuild(self, session: SimSession) -> None:
        if session.dry_ms is not None:
            self.rebuilds += 1
            session.extra_passes = self._profile.rebuild_passes

    # --- actions

    def apply(self, actions: Iterable[Action]) -> None:
        """Carry out in order; what the world has overtaken is refused."""
        for action in actions:
            if self._apply(action):
                self.is_changed = True
            else:
                self.refused += 1

    def _apply(self, action: Action) -> bool:
        match action:
            case Place() | Migrate() | Requeue() | Suspend() | Activate():
                session = self.sessions.get(action.session)
                if session is None or session.record.epoch != action.expect_epoch:
                    return False
                return self._apply_to_session(action, session)
            case CallOff() | Sweep():
                raise AssertionError("nobody orders migrations or loses a connection here")
            case LoseEngine():
                return self._lose(action.engine)
            case DrainEngine():
                record = self.records.get(action.engine)
                if record is None or record.state is not EngineState.READY:
                    return False
                heard_ms = self.engines[action.engine].heard_ms
                self._put_engine(replace(record, state=EngineState.DRAINING, heartbeat_ms=heard_ms))
                return True
            case StopDrained():
                return action.engine in self.engines and self._stop(action.engine)
            case SetDesired():
                return self._set_desired(action.engines)
            case _:
                assert_never(action)

    def _apply_to_session(
        self, action: Place | Migrate | Requeue | Suspend | Activate, session: SimSession
    ) -> bool:
        record = session.record
        match action:
            case Place():
                return self._move(session, action.engine)
            case Migrate():
                return self._move(session, action.target)
            case Requeue():
                if record.phase is not Phase.PLACED or record.in_flight is not None:
                    return False
                self._requeue(session)
                return True
            case Suspend():
                is_leaving = record.phase is Phase.PLACED and record.residence is Residence.RESIDENT
                if not is_leaving or record.in_flight is not None or session.active:
                    return False
                self._take_out(session)
                return True
            case Activate():
                home = session.home
                if home is None or session in home.holders or record.in_flight is not None:
                    return False
                if len(home.holders) >= home.profile.capacity:
                    return False
                self._restore(session)
                self._put(session)
                return True
            case _:
                assert_never(action)

    def _move(self, session: SimSession, engine: EngineId) -> bool:
        """With its state where there is any to move, else from its checkpoint."""
        record = session.record
        target = self.engines.get(engine)
        if target is None or self.records[engine].state is not EngineState.READY:
            return False
        if session.home is target or record.in_flight is not None or record.phase is Phase.CLOSED:
            return False
        has_state = record.residence in (Residence.RESIDENT, Residence.OFFLOADED)
        needs_slot = session.active or (session.home is not None and record.residence is Residence.RESIDENT)
        is_full = len(target.holders) >= target.profile.capacity
        if session.home is not None and has_state and record.opened and not (needs_slot and is_full):
            self._begin_migration(session, target, needs_slot=needs_slot)
            return True
        if session.active and is_full:
            return False
        self._place(session, target)
        return True

    def _place(self, session: SimSession, target: SimEngine) -> None:
        record = session.record
        was_placed = session.home is not None
        self._vacate(session)
        session.home = target
        if session.active:
            target.holders.add(session)
            self._rebuild(session)
        record.phase, record.engine, record.opened = Phase.PLACED, target.id, False
        record.epoch += 1
        record.queue_order = 0
        record.residence = Residence.RESIDENT if session.active else Residence.STORED
        record.in_flight = None
        if was_placed:
            record.moved_ms = round(self.now_ms)
        self.agenda.add(self.now_ms + self._profile.open_ms, OPENED, session, record.epoch)
        self._put(session)

    def _requeue(self, session: SimSession) -> None:
        self._serial += 1
        self._vacate(session)
        record = session.record
        record.phase, record.engine, record.opened = Phase.QUEUED, None, False
        record.epoch += 1
        record.queue_order = RETURNER + self._serial
        record.in_flight = None
        self._put(session)

    # --- migrations

    def _begin_migration(self, session: SimSession, target: SimEngine, *, needs_slot: bool) -> None:
        record = session.record
        assert session.home is not None
        record.in_flight = InFlight(
            migration_id="",
            source=session.home.id,
            target=target.id,
            deadline_ms=round(self.now_ms) + MIGRATION_LIMIT_MS,
        )
        session.turn += 1
        session.restoring = False
        if needs_slot:
            target.holders.add(session)
        if session.engine is None:
            self.freeze(session)
        else:
            early_ms = self._profile.precopy * record.state_bytes / self._link(session.home, target)
            self.agenda.add(self.now_ms + early_ms, FREEZE, session, session.turn)
        self._put(session)

    def rest(self, session: SimSession) -> None:
        """A chunk boundary for which something waited."""
        session.wants_rest = False
        if session.record.in_flight is not None:
            self.freeze(session)
        elif session.record.residence is Residence.LEAVING:
            self._take_turn(OFFLOADED, session)

    def freeze(self, session: SimSession) -> None:
        """At a chunk boundary: what was not sent before is sent."""
        record = session.record
        flight = record.in_flight
        assert flight is not None and session.home is not None
        precopied = self._profile.precopy if session.engine is not None else 0.0
        self._detach(session)
        session.wants_rest, session.resting = False, True
        target = self.engines.get(flight.target)
        rest_ms = 0.0
        if target is not None:
            rest_bytes = (1.0 - precopied) * record.state_bytes
            rest_ms = self._profile.costs.move_ms + rest_bytes / self._link(session.home, target)
        session.turn += 1
        self.agenda.add(self.now_ms + rest_ms, COMMIT, session, session.turn)

    def _commit(self, session: SimSession) -> None:
        record = session.record
        flight, source = record.in_flight, session.home
        assert flight is not None and source is not None
        target = self.engines.get(flight.target)
        if source.is_dead:
            return  # until that is noticed
        if target is None or target.is_dead:
            return self._abort(session)
        source.holders.discard(session)
        if record.residence is not Residence.RESIDENT:
            if session.active and len(target.holders - {session}) < target.profile.capacity:
                target.holders.add(session)
                record.residence = Residence.RESIDENT
            else:
                target.holders.discard(session)
                record.residence = Residence.OFFLOADED
        session.home = target
        session.resting = False
        session.turn += 1
        self.migrations += 1
        record.engine, record.in_flight, record.moved_ms = target.id, None, round(self.now_ms)
        record.epoch += 1
        self._watch_idle(session)
        self._attach(session)
        self._put(session)
        return None

    def _abort(self, session: SimSession) -> None:
        flight = session.record.in_flight
        if flight is not None and flight.target in self.engines:
            self.engines[flight.target].holders.discard(session)
        session.resting = session.wants_rest = False
        session.turn += 1
        session.record.in_flight, session.record.moved_ms = None, round(self.now_ms)
        self._watch_idle(session)
        self._attach(session)
        self._put(session)

    def _link(self, source: SimEngine, target: SimEngine) -> float:
        """Bytes per ms between two engines."""
        return min(source.profile.costs.link_bytes_per_ms, target.profile.costs.link_bytes_per_ms)

    # --- engines

    def start(self, id: EngineId, start_ms: float | None = None) -> None:
        """It is wanted: it costs from now on. start_ms: unset, what the profile says."""
        profile = self._profiles[self._started % len(self._profiles)]
        self._started += 1
        engine = SimEngine(id, profile, self.agenda, self.figures, self.now_ms)
        self.engines[id] = engine
        self._put_engine(new_engine(id, profile, round(self.now_ms)))
        self._count_budget(+1)
        start_ms = profile.start_ms if start_ms is None else start_ms
        if start_ms > 0:
            self.agenda.add(self.now_ms + start_ms, ENGINE_READY, engine)
        else:
            self._become_ready(engine)

    def _set_desired(self, engines: tuple[DesiredEngine, ...]) -> bool:
        wanted = {engine.id for engine in engines}
        self.table.desired = engines
        for id in [id for id in self.engines if id not in wanted]:
            if self.records[id].state is EngineState.STARTING:
                self._stop(id)
            else:
                self._lose(id)
        for engine in engines:
            if engine.id not in self.engines:
                self.start(engine.id)
        return True

    def _lose(self, id: EngineId) -> bool:
        """It is declared gone: its sessions wait again, migrations to it are off."""
        engine = self.engines.get(id)
        if engine is None:
            return False
        for session in list(self.sessions.values()):
            flight = session.record.in_flight
            if session.home is engine:
                self._requeue(session)
            elif flight is not None and flight.target == id:
                self._abort(session)
        engine.die()
        return self._stop(id, 0.0)

    def _stop(self, id: EngineId, stop_ms: float | None = None) -> bool:
        engine, record = self.engines.pop(id), self.records.pop(id)
        stop_ms = engine.profile.stop_ms if stop_ms is None else stop_ms
        engine.stopped_ms = self.now_ms + stop_ms
        self.former.append(engine)
        self._count_budget(-1, stop_ms)
        self.gone.append(GoneEngine(id=id, state=record.state, started_ms=record.started_ms))
        self._num_staying = None
        self.table.drop_engine(id)
        self.is_changed = True
        return True

    def _count_budget(self, by: int, after_ms: float = 0.0) -> None:
        self.budget.append((self.now_ms + after_ms, by))

    # --- the scheduler's view

    def _put(self, session: SimSession) -> None:
        session.record.slack_ms = int(session.slack_ms(self.now_ms))
        self.table.put_session(session.record)
        self.is_changed = True

    @property
    def num_staying(self) -> int:
        """Engines that nobody drains."""
        if self._num_staying is None:
            records = self.records.values()
            self._num_staying = sum(r.state is not EngineState.DRAINING for r in records)
        return self._num_staying

    def _put_engine(self, record: EngineRecord) -> None:
        self._num_staying = None
        self.records[record.id] = record
        self.table.put_engine(record)
        self.is_changed = True

    def hear(self) -> None:
        """Every engine that lives sends its heartbeat."""
        now = round(self.now_ms)
        starting = EngineState.STARTING
        heard = [
            e for e in self.engines.values() if not e.is_dead and self.records[e.id].state is not starting
        ]
        for engine in heard:
            engine.heard_ms = now
        self.table.hear((engine.id for engine in heard), now)
        self.table.read_ms = now
