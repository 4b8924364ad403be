"""The answer of `/v1/cluster`. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.messages import EngineRecord, Phase, SessionRecord, SessionState
from scheduler.store.values import ClusterInfo, Decision


def describe_cluster(
    engines: Sequence[EngineRecord],
    sessions: Sequence[SessionRecord],
    info: ClusterInfo,
    decisions: Sequence[Decision],
) -> dict[str, object]:
    """Engines, sessions (`seq` is the newest chunk, −1 before the first), budget, queue length, policy, and
    the scheduler's newest decisions, newest first.
    """
    return {
        "engines": [
            {
                "id": engine.id,
                "state": engine.state.value,
                "capacity": engine.capacity,
                "sessions": engine.sessions,
                "load": engine.load,
                "chunk_ms": engine.chunk_ms,
            }
            for engine in engines
        ],
        "sessions": [
            {
                "id": session.id,
                "state": session_state(session).value,
                "engine": session.engine,
                "epoch": session.epoch,
                "seq": session.next_seq - 1,
                "slack_ms": session.slack_ms,
            }
            for session in sessions
        ],
        "budget": info.budget,
        "queue": info.queue,
        "policy": info.policy,
        "decisions": [{"t_ms": decision.at_ms, "text": decision.text} for decision in decisions],
    }


def session_state(session: SessionRecord) -> SessionState:
    """What a client would be told."""
    match session.phase:
        case Phase.QUEUED:
            return SessionState.QUEUED
        case Phase.CLOSED:
            return SessionState.CLOSED
        case Phase.PLACED:
            return SessionState.ACTIVE if session.active else SessionState.IDLE
