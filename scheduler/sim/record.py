"""The records of new sessions and engines. Pure."""

from __future__ import annotations

from scheduler.domain import EngineId, EngineRecord, EngineState, Phase, Residence, SessionId, SessionRecord
from scheduler.sim.profile import Profile

__all__ = ["new_engine", "new_session"]


def new_session(id: SessionId, model: str, now_ms: int, order: int) -> SessionRecord:
    """It waits for its first place."""
    return SessionRecord(
        id=id,
        model=model,
        phase=Phase.QUEUED,
        epoch=0,
        engine=None,
        opened=False,
        active=True,
        paused=False,
        seed=0,
        lead_ms=0,
        codec="",
        resume_hash="",
        controller_epoch=1,
        gateway=None,
        next_seq=0,
        next_frame=0,
        rev=0,
        last_applied="0-0",
        slack_ms=0,
        created_ms=now_ms,
        active_ms=now_ms,
        reason="",
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
