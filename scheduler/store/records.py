"""Redis hashes ↔ records. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache

from scheduler.messages import (
    DecodeError,
    DesiredEngine,
    EngineCosts,
    EngineId,
    EngineRecord,
    EngineState,
    GatewayId,
    InFlight,
    Input,
    ModelInfo,
    Phase,
    Residence,
    SessionId,
    SessionRecord,
    decode_fields,
    encode_json,
)
from scheduler.store.values import AppliedRecord, CheckpointPointer, SessionOutline

MAX_DESIRED = 4_096
MAX_CACHED = 1_024
"""Texts of models, which many engines share and which change rarely."""

MAX_TABLES = 4_096


def session_record(session: SessionId, h: Mapping[str, str]) -> SessionRecord:
    """Layout of the hash `session:<id>`: the record's fields; "" stands for None, "1"/"0" for booleans."""
    return SessionRecord(
        id=session,
        model=h["model"],
        phase=Phase(h["phase"]),
        epoch=int(h["epoch"]),
        engine=EngineId(h["engine"]) if h["engine"] else None,
        opened=h["opened"] == "1",
        active=h["active"] == "1",
        paused=h["paused"] == "1",
        seed=int(h["seed"]),
        lead_ms=int(h["lead_ms"]),
        codec=h["codec"],
        resume_hash=h["resume_hash"],
        controller_epoch=int(h["controller_epoch"]),
        gateway=GatewayId(h["gateway"]) if h["gateway"] else None,
        next_seq=int(h["next_seq"]),
        next_frame=int(h["next_frame"]),
        rev=int(h["rev"]),
        last_applied=h["last_applied"],
        slack_ms=int(h["slack_ms"]),
        created_ms=int(h["created_ms"]),
        active_ms=int(h["active_ms"]),
        reason=h["reason"],
        queue_order=int(h["queue_order"] or 0),
        left_ms=int(h["left_ms"]) if h["left_ms"] else None,
        residence=Residence(h.get("residence", Residence.RESIDENT.value)),
        in_flight=_in_flight(h),
        failed_moves=int(h.get("failed_moves", 0)),
        move_to=EngineId(h["move_to"]) if h.get("move_to") else None,
        move_until_ms=int(h.get("move_until_ms", 0)),
        moved_ms=int(h.get("moved_ms", 0)),
        state_bytes=int(h.get("state_bytes", 0)),
        subject=h.get("subject", ""),
    )


def session_outline(session: str, fields: Sequence[str]) -> SessionOutline:
    """From phase, active, engine, epoch, next_seq, slack_ms of that hash."""
    phase, active, engine, epoch, next_seq, slack_ms = fields
    return SessionOutline(
        id=SessionId(session),
        phase=Phase(phase),
        active=active == "1",
        engine=EngineId(engine) if engine else None,
        epoch=int(epoch),
        next_seq=int(next_seq),
        slack_ms=int(slack_ms),
    )


def owned_fields(r: SessionRecord) -> list[str | int]:
    """Field, value, ... of the same hash that an owner knows of a session, flat."""
    return [
        *("model", r.model, "epoch", r.epoch, "engine", r.engine or "", "active", int(r.active)),
        *("paused", int(r.paused), "seed", r.seed, "lead_ms", r.lead_ms, "codec", r.codec),
        *("resume_hash", r.resume_hash, "controller_epoch", r.controller_epoch, "gateway", r.gateway or ""),
        *("next_seq", r.next_seq, "next_frame", r.next_frame, "rev", r.rev, "last_applied", r.last_applied),
        *("slack_ms", r.slack_ms, "created_ms", r.created_ms, "residence", r.residence.value),
        *("state_bytes", r.state_bytes, "subject", r.subject),
    ]


def inputs_json(inputs: Sequence[tuple[str, Input]]) -> str:
    """Log entries for a script: [[entry, JSON Input, message id or ""], ...]."""
    items = [[entry, encode_json(message).decode(), message.id or ""] for entry, message in inputs]
    return json.dumps(items, separators=(",", ":"))


def applied_json(applied: Sequence[AppliedRecord]) -> str:
    """Applied records for a script, a list."""
    items = [{k: v for k, v in asdict(record).items() if v is not None} for record in applied]
    return json.dumps(items, separators=(",", ":"))


def _in_flight(h: Mapping[str, str]) -> InFlight | None:
    if not h.get("flight_id"):
        return None
    return InFlight(
        migration_id=h["flight_id"],
        source=EngineId(h["engine"]),
        target=EngineId(h["flight_to"]),
        deadline_ms=int(h["flight_deadline_ms"]),
    )


class CostTables:
    """Cost tables by their text: most are read again as they were, and engines that are alike share one. What
    nobody has any more is forgotten: an engine has many in its life."""

    def __init__(self) -> None:
        self._newer: dict[str, EngineCosts] = {}
        self._older: dict[str, EngineCosts] = {}
        self._readers = 0

    def __len__(self) -> int:
        return len(self._newer.keys() | self._older.keys())

    def read(self, text: str) -> EngineCosts:
        """Raises DecodeError."""
        costs = self._newer.get(text) or self._older.get(text)
        if costs is None:
            costs = decode_fields(EngineCosts, json.loads(text))
        if len(self._newer) >= MAX_TABLES:
            self._age()
        self._newer[text] = costs
        return costs

    @contextmanager
    def reading_all(self) -> Iterator[None]:
        """Inside all engines are read: what is not among them, the end of the next one forgets. Several may
        overlap: they end with the last of them."""
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1
        if not self._readers:
            self._age()

    def _age(self) -> None:
        self._newer, self._older = {}, self._newer


def engine_record(engine: EngineId, h: Mapping[str, str], tables: CostTables) -> EngineRecord:
    """Layout of the hash `engine:<id>`: the record's fields, `model` as JSON, plus `model_name`."""
    return EngineRecord(
        id=engine,
        state=EngineState(h["state"]),
        url=h["url"],
        model=model_info(h["model"]) if h["model"] else None,
        capacity=int(h["capacity"]),
        sessions=int(h["sessions"]),
        load=float(h["load"]),
        chunk_ms=float(h["chunk_ms"]),
        worst_ms=float(h.get("worst_ms", 0.0)),
        started_ms=int(h["started_ms"]),
        heartbeat_ms=int(h["heartbeat_ms"]),
        phase=h["phase"],
        deadline_ms=int(h["deadline_ms"]) if h["deadline_ms"] else None,
        drain_ordered=h["drain_ordered"] == "1",
        model_name=h["model_name"],
        costs=tables.read(h["costs"]) if h.get("costs") else None,
        transfer=h.get("transfer", ""),
    )


@lru_cache(MAX_CACHED)
def model_info(text: str) -> ModelInfo:
    """Raises DecodeError."""
    return decode_fields(ModelInfo, json.loads(text))


def model_json(model: ModelInfo) -> str:
    """The inverse."""
    return json.dumps(asdict(model), separators=(",", ":"), sort_keys=True)


def costs_json(costs: EngineCosts) -> str:
    """As the hash `engine:<id>` holds it."""
    return json.dumps(asdict(costs), separators=(",", ":"))


def desired_engines(text: str) -> tuple[DesiredEngine, ...]:
    """Raises DecodeError."""
    items = json.loads(text)
    if not isinstance(items, list) or len(items) > MAX_DESIRED:
        raise DecodeError(f"the desired set must be a list of at most {MAX_DESIRED} engines")
    return tuple(decode_fields(DesiredEngine, item) for item in items)


def desired_json(engines: Sequence[DesiredEngine]) -> str:
    """The inverse."""
    return json.dumps([asdict(engine) for engine in engines], separators=(",", ":"))


def applied_record(text: str) -> AppliedRecord:
    """Raises DecodeError."""
    return decode_fields(AppliedRecord, json.loads(text))


def checkpoint_pointer(h: Mapping[str, str]) -> CheckpointPointer:
    """Layout of the hash `session:<id>:checkpoint`: the pointer's fields, `base` as JSON."""
    base = json.loads(h["base"])
    return CheckpointPointer(
        epoch=int(h["epoch"]),
        seq=int(h["seq"]),
        last_applied=h["last_applied"],
        text=base["text"],
        seed=base["seed"],
        rev=base["rev"],
        size=int(h["size"]),
    )


def checkpoint_base(pointer: CheckpointPointer) -> str:
    """The field `base` of the same hash."""
    base = {"text": pointer.text, "seed": pointer.seed, "rev": pointer.rev}
    return json.dumps(base, separators=(",", ":"))
