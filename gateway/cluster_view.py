"""The answer of `/v1/cluster`, and what the cluster page is sent. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import orjson

from scheduler.messages import EngineRecord, Phase, SessionState
from scheduler.store.values import ClusterInfo, Decision, SessionOutline


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The cluster at one moment, written already: whoever asks for it is sent the same bytes."""

    now_ms: int
    """Redis time."""
    head: bytes
    """A JSON object of all but sessions."""
    num_sessions: int
    """That are not closed."""
    num_records: int
    """Engines and sessions in it."""
    parts: Sequence[bytes]
    """The sessions, each part a JSON list; none where there are more than were asked for."""

    def pieces(self, **more: int) -> Iterator[bytes]:
        """One JSON object, in pieces of bounded size but for the first, which has the engines. `more`: its
        further entries."""
        yield (orjson.dumps(more)[:-1] + b"," if more else b"{") + self.head[1:-1] + b',"sessions":['
        is_first = True
        for part in self.parts:
            if len(part) > len(b"[]"):
                yield part[1:-1] if is_first else b"," + part[1:-1]
                is_first = False
        yield b"]}"


def describe_cluster(
    engines: Sequence[EngineRecord], info: ClusterInfo, decisions: Sequence[Decision]
) -> bytes:
    """Everything but sessions: engines, budget, queue length, policy, and the scheduler's newest decisions,
    newest first.
    """
    return orjson.dumps(
        {
            "engines": [
                {
                    "id": engine.id,
                    "state": engine.state.value,
                    "capacity": engine.capacity,
                    "sessions": engine.sessions,
                    "load": engine.load,
                    "chunk_ms": engine.chunk_ms,
                    "worst_ms": engine.worst_ms,
                }
                for engine in engines
            ],
            "budget": info.budget,
            "queue": info.queue,
            "policy": info.policy,
            "decisions": [{"t_ms": decision.at_ms, "text": decision.text} for decision in decisions],
        }
    )


def describe_sessions(sessions: Sequence[SessionOutline]) -> bytes:
    """A list; `seq` is the newest chunk, −1 before the first."""
    return orjson.dumps(
        [
            {
                "id": session.id,
                "state": session_state(session).value,
                "engine": session.engine,
                "epoch": session.epoch,
                "seq": session.next_seq - 1,
                "slack_ms": session.slack_ms,
            }
            for session in sessions
        ]
    )


def session_state(session: SessionOutline) -> SessionState:
    """What a client would be told."""
    match session.phase:
        case Phase.QUEUED:
            return SessionState.QUEUED
        case Phase.CLOSED:
            return SessionState.CLOSED
        case Phase.PLACED:
            return SessionState.ACTIVE if session.active else SessionState.IDLE
