"""Views, and plans on them, for tests of policies."""

from __future__ import annotations

from dataclasses import replace

from scheduler.config import SchedulerConfig
from scheduler.messages import (
    DesiredEngine,
    EngineCosts,
    EngineId,
    EngineRecord,
    EngineState,
    GatewayId,
    InFlight,
    Phase,
    Residence,
    SessionId,
    SessionRecord,
)
from scheduler.policy.base import (
    Action,
    Activate,
    Changes,
    DrainEngine,
    LoseEngine,
    Memory,
    Migrate,
    Place,
    Policy,
    Requeue,
    SetDesired,
    StopDrained,
    Suspend,
    Sweep,
)
from scheduler.table import build_table
from scheduler.view import View

NOW_MS = 1_000_000
CONFIG = SchedulerConfig(redis="redis://x", engines=2)
FRESH = tuple(EngineId(f"e_fresh{n}") for n in range(2))
CHANGES, MEMORY = Changes(fresh_ids=FRESH), Memory()


def engine(
    id: str,
    state: EngineState = EngineState.READY,
    *,
    capacity: int = 2,
    model: str = "shapes",
    started_ms: int = NOW_MS - 100_000,
    heartbeat_ms: int = NOW_MS,
    deadline_ms: int | None = None,
    drain_ordered: bool = False,
    costs: EngineCosts | None = None,
    transfer: str = "-",
) -> EngineRecord:
    """An engine's record."""
    return EngineRecord(
        id=EngineId(id),
        state=state,
        url="",
        model=None,
        capacity=capacity,
        sessions=0,
        load=0,
        chunk_ms=0,
        started_ms=started_ms,
        heartbeat_ms=heartbeat_ms,
        deadline_ms=deadline_ms,
        drain_ordered=drain_ordered,
        model_name=model,
        costs=costs,
        transfer=transfer,
    )


def session(
    id: str,
    on: str | None = None,
    *,
    order: int = 1,
    model: str = "shapes",
    left_ms: int | None = None,
    active: bool = True,
    active_ms: int = NOW_MS,
    residence: Residence = Residence.RESIDENT,
    to: str | None = None,
    slack_ms: int = 0,
    created_ms: int = 0,
    moved_ms: int = 0,
    state_bytes: int = 0,
    opened: bool = True,
    failed_moves: int = 0,
    subject: str = "",
) -> SessionRecord:
    """A session's record: placed on an engine, or queued; `to`: it migrates there."""
    return SessionRecord(
        id=SessionId(id),
        model=model,
        phase=Phase.PLACED if on else Phase.QUEUED,
        epoch=3,
        engine=EngineId(on) if on else None,
        opened=opened and on is not None,
        active=active,
        paused=False,
        seed=0,
        lead_ms=1500,
        codec="h264",
        resume_hash="",
        controller_epoch=1,
        gateway=GatewayId("g"),
        next_seq=0,
        next_frame=0,
        rev=0,
        last_applied="0-0",
        slack_ms=slack_ms,
        created_ms=created_ms,
        active_ms=active_ms,
        reason="",
        queue_order=order,
        left_ms=left_ms,
        residence=residence,
        in_flight=InFlight(
            migration_id="m", source=EngineId(on), target=EngineId(to), deadline_ms=NOW_MS + 5_000
        )
        if on and to
        else None,
        moved_ms=moved_ms,
        failed_moves=failed_moves,
        state_bytes=state_bytes,
        subject=subject,
    )


def world(
    *records: EngineRecord | SessionRecord, desired: tuple[str, ...] = ("e_1", "e_2"), read_ms: int = NOW_MS
) -> View:
    """A view of these records."""
    engines = [r for r in records if isinstance(r, EngineRecord)]
    sessions = [r for r in records if isinstance(r, SessionRecord)]
    models = {e.id: e.model_name for e in engines}
    wanted = [DesiredEngine(id=EngineId(d), model=models.get(EngineId(d), "shapes")) for d in desired]
    table = build_table(engines, sessions, wanted)
    table.read_ms = read_ms
    return table.view()


def decide(
    policy: Policy,
    view: View,
    changes: Changes = CHANGES,
    memory: Memory = MEMORY,
    now_ms: int = NOW_MS,
    config: SchedulerConfig = CONFIG,
) -> list[tuple[str, ...]]:
    """The actions without their reasons: (class, ids …)."""
    actions, _ = policy.plan(view, changes, memory, now_ms, config)
    return [short(action) for action in actions]


def short(action: Action) -> tuple[str, ...]:
    """An action in one line."""
    assert action.why
    match action:
        case Place():
            assert action.expect_epoch == 3
            return ("place", action.session, action.engine)
        case Migrate():
            assert action.expect_epoch == 3
            return ("migrate", action.session, action.source, action.target)
        case Requeue() | Suspend() | Activate() | Sweep():
            return (type(action).__name__.lower(), action.session)
        case SetDesired():
            return ("desired", *(e.id for e in action.engines))
        case LoseEngine() | DrainEngine() | StopDrained():
            return (type(action).__name__.lower(), action.engine)


class Cluster:
    """Records that change as a store would change them; migrations and offloads take no time."""

    def __init__(self, *records: EngineRecord | SessionRecord, now_ms: int = NOW_MS) -> None:
        self.engines = {r.id: r for r in records if isinstance(r, EngineRecord)}
        self.sessions = {r.id: r for r in records if isinstance(r, SessionRecord)}
        self.desired = tuple(DesiredEngine(id=e.id, model=e.model_name) for e in self.engines.values())
        self.now_ms = now_ms
        self.memory = Memory()
        self._serial = 0

    def view(self) -> View:
        """Of this moment; every engine was just heard."""
        table = build_table(self.engines.values(), self.sessions.values(), self.desired)
        table.read_ms = 0  # nobody is declared gone here
        return table.view()

    def step(self, policy: Policy, config: SchedulerConfig, changes: Changes | None = None) -> list[Action]:
        """Plan and carry out."""
        self._serial += 1
        fresh = tuple(EngineId(f"e_{self._serial:04}{n:04}") for n in range(config.max_engines or 0))
        changes = replace(changes or Changes(), fresh_ids=fresh)
        actions, self.memory = policy.plan(self.view(), changes, self.memory, self.now_ms, config)
        for action in actions:
            self._carry_out(action)
        return list(actions)

    def start(self, *ids: str) -> Changes:
        """Sessions that start now."""
        for id in ids:
            order = len(self.sessions) + 1
            self.sessions[SessionId(id)] = session(id, order=order, created_ms=self.now_ms)
        return Changes(arrivals=len(ids))

    def make_ready(self) -> None:
        """Engines that start have started."""
        for id, record in self.engines.items():
            if record.state is EngineState.STARTING:
                self.engines[id] = replace(record, state=EngineState.READY, capacity=4)

    def loads(self) -> list[int]:
        """Active sessions by ready engine, most first."""
        ready = [id for id, record in self.engines.items() if record.state is EngineState.READY]
        counts = dict.fromkeys(ready, 0)
        for record in self.sessions.values():
            if record.engine in counts and record.active:
                counts[record.engine] += 1
        return sorted(counts.values(), reverse=True)

    def _carry_out(self, action: Action) -> None:
        match action:
            case Place() | Migrate() | Requeue() | Suspend() | Activate():
                self._change(action)
            case Sweep():
                del self.sessions[action.session]
            case SetDesired():
                self.desired = action.engines
                wanted = {e.id: engine(e.id, EngineState.STARTING, model=e.model) for e in action.engines}
                kept = {
                    id: record
                    for id, record in self.engines.items()
                    if id in wanted or record.state is not EngineState.STARTING
                }
                self.engines = {**wanted, **kept}
            case DrainEngine():
                self.engines[action.engine] = replace(self.engines[action.engine], state=EngineState.DRAINING)
            case StopDrained() | LoseEngine():
                del self.engines[action.engine]

    def _change(self, action: Place | Migrate | Requeue | Suspend | Activate) -> None:
        record = self.sessions[action.session]
        assert record.epoch == action.expect_epoch
        match action:
            case Place():
                away = Residence.RESIDENT if record.active else Residence.STORED
                record = replace(
                    record,
                    phase=Phase.PLACED,
                    engine=action.engine,
                    epoch=record.epoch + 1,
                    opened=True,
                    residence=away,
                )
            case Migrate():
                assert record.engine == action.source and record.opened
                record = replace(record, engine=action.target, epoch=record.epoch + 1, moved_ms=self.now_ms)
            case Requeue():
                record = replace(
                    record,
                    phase=Phase.QUEUED,
                    engine=None,
                    epoch=record.epoch + 1,
                    queue_order=self._serial - 2**52,
                )
            case Suspend():
                record = replace(record, residence=Residence.OFFLOADED)
            case Activate():
                record = replace(record, residence=Residence.RESIDENT)
        self.sessions[action.session] = record
