"""What must hold under a load, and whether it did. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from launch.loadtest.config import LoadtestConfig
from launch.loadtest.tally import FAIR_WAIT_MS
from scheduler.results import flat

__all__ = ["Objective", "fair_wait_ms", "judge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """One stated limit and what was measured."""

    name: str
    """In words, with its unit."""
    limit: float
    value: float | None
    """None: nothing was measured, so it is not shown to hold."""
    at_least: bool = False
    """Is the limit the least that may be, not the most?"""

    @property
    def held(self) -> bool:
        if self.value is None:
            return False
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def fair_wait_ms(config: LoadtestConfig) -> float:
    """After how long without a first chunk a session has been kept waiting."""
    return FAIR_WAIT_MS if config.max_ttfc_ms is None else config.max_ttfc_ms


def judge(figures: Mapping[str, object], config: LoadtestConfig) -> tuple[Objective, ...]:
    """Every objective that was stated, after those that always are: sound streams, no lost session, and
    chunks at all.

    Where any is stated, nobody may have been left without a chunk beyond what is allowed: of those the
    others say nothing.
    """
    value = flat(figures).__getitem__
    stated = [
        ("chunk latency p99, ms", config.max_p99_ms, "chunk_latency_ms.p99", False),
        ("worst chunk latency, ms", config.max_worst_ms, "chunk_latency_ms.max", False),
        ("time to first chunk p99, ms", config.max_ttfc_ms, "waited_ms.p99", False),
        ("mean CPR", config.min_cpr, "cpr.mean", True),
        ("worst CPR", config.min_worst_cpr, "cpr.min", True),
        ("chunks missing in gaps", None if config.gaps else 0, "gaps", False),
    ]
    without = [
        ("refused sessions", config.max_refused, "refused"),
        ("sessions that left unserved", config.max_unserved, "left_waiting"),
    ]
    limits = [limit for _, limit, *_ in (*stated, *without)]
    default = None if all(limit is None for limit in limits) else 0
    stated += [(name, default if limit is None else limit, key, False) for name, limit, key in without]
    always = [
        Objective(name="chunks", limit=1, value=value("chunks"), at_least=True),
        Objective(name="faults of streams", limit=0, value=value("faults")),
        Objective(name="lost sessions", limit=0, value=value("lost")),
    ]
    return (
        *always,
        *(
            Objective(name=name, limit=limit, value=value(key), at_least=at_least)
            for name, limit, key, at_least in stated
            if limit is not None
        ),
    )
