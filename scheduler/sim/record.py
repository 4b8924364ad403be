"""The records of sessions and engines. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.domain import EngineId, EngineRecord, EngineState, InFlight, Phase, Residence, SessionId
from scheduler.sim.profile import Profile

__all__ = ["SimRecord", "new_engine", "new_session"]


@dataclass(slots=True, kw_only=True)
class SimRecord:
    """What the table reads of a `SessionRecord`, by the same names. It changes in place: new records for
    each change would be a tenth of a simulation's time."""

    id: SessionId
    model: str
    phase: Phase
    epoch: int
    engine: EngineId | None
    opened: bool
    active: bool
    slack_ms: int
    created_ms: int
    active_ms: int
    queue_order: int
    residence: Residence
    left_ms: int | None = None
    in_flight: InFlight | None = None
    moved_ms: int = 0
    failed_moves: int = 0
    """None fails here."""
    state_bytes: int = 0
    subject: str = ""


def new_session(id: SessionId, model: str, now_ms: int, order: int) -> SimRecord:
    """It waits for its first place."""
    return SimRecord(
        id=id,
        model=model,
        phase=Phase.QUEUED,
        epoch=0,
        engine=None,
        opened=False,
        active=True,
        slack_ms=0,
        created_ms=now_ms,
        active_ms=now_ms,
        queue_order=order,
        residence=Residence.STORED,
    )


def new_engine(id: EngineId, profile: Profile, now_ms: int) -> EngineRecord:
    """It was just asked for."""
    return EngineRecord(
        id=id,
        state=EngineState.STARTING,
        url="",
        model=profile.model,
        capacity=profile.capacity,
        sessions=0,
        load=0.0,
        chunk_ms=0.0,
        started_ms=now_ms,
        heartbeat_ms=now_ms,
        model_name=profile.model.name,
        costs=profile.costs,
        transfer="-",
    )
