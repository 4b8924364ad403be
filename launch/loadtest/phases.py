"""A load in phases: few sessions, then many, then few again; and what each phase was like. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

from launch.loadtest.load import Draw, invent
from launch.loadtest.stream_check import CAME_AGAIN
from launch.loadtest.tally import ClusterSample, Tally, engine_seconds
from scheduler.results import spread
from scheduler.trace import Trace

__all__ = ["FEW_SHARE", "Phase", "invent_step", "phase_figures", "step_phases"]

FEW_SHARE: Final = 0.2
"""Of the sessions at once, those that are there all the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of a load. What comes after the last one's end is its own, too."""

    name: str
    begin_s: float
    end_s: float


def invent_step(
    *, viewers: float, seconds: float, life_s: float, idle_share: float, edit_every_s: float, draw: Draw
) -> Trace:
    """A steady load of few sessions, and in its middle third another, with which there are `viewers`."""

    def steady(share: float, seconds: float) -> Trace:
        return invent(
            viewers=share * viewers,
            seconds=seconds,
            life_s=life_s,
            idle_share=idle_share,
            edit_every_s=edit_every_s,
            draw=draw,
        )

    few, more = steady(FEW_SHARE, seconds), steady(1.0 - FEW_SHARE, seconds / 3.0)
    later = (
        replace(event, t=event.t + seconds / 3.0, session=f"more-{event.session}") for event in more.events
    )
    return Trace(tuple(sorted((*few.events, *later), key=lambda event: event.t)))


def step_phases(seconds: float) -> tuple[Phase, ...]:
    """Those of `invent_step`."""
    names = ("few", "many", "few again")
    return tuple(
        Phase(name=name, begin_s=seconds * number / 3.0, end_s=seconds * (number + 1) / 3.0)
        for number, name in enumerate(names)
    )


def phase_figures(tally: Tally, phases: Sequence[Phase]) -> list[dict[str, Any]]:
    """Figures of each phase, in order; those of the cluster None where it never answered."""
    last = phases[-1] if phases else None
    return [_figures(tally, phase, is_last=phase is last) for phase in phases]


def _figures(tally: Tally, phase: Phase, *, is_last: bool) -> dict[str, Any]:
    begin_ms, end_ms = 1000.0 * phase.begin_s, 1000.0 * phase.end_s

    def is_in(at_ms: float) -> bool:
        return begin_ms <= at_ms and (is_last or at_ms < end_ms)

    stalls = [stall.length_ms for stall in tally.stalls() if is_in(stall.at_ms)]
    latencies = [sample.latency_ms for sample in tally.latencies if is_in(sample.at_ms)]
    samples = [sample for sample in tally.cluster if begin_ms <= sample.at_ms < end_ms]
    cost_s = engine_seconds(tally.cluster, begin_ms=begin_ms, end_ms=end_ms)
    return {
        "name": phase.name,
        "begin_s": round(phase.begin_s, 3),
        "end_s": round(phase.end_s, 3),
        "sessions": max((sample.active + sample.queue for sample in samples), default=None),
        "engines": max((sample.provisioned for sample in samples), default=None),
        "engines_gone": _gone(tally.cluster, begin_ms, end_ms) if samples else None,
        "cost_engine_s": None if cost_s is None else round(cost_s, 1),
        "chunk_latency_ms": spread(latencies, "p50", "p99", "max"),
        "stalls": len(stalls),
        "stalled_s": round(sum(stalls) / 1000.0, 3),
        "gaps": sum(gap.chunks for gap in tally.gaps if is_in(gap.at_ms)),
        "repeats": sum(CAME_AGAIN in fault.what for fault in tally.faults if is_in(fault.at_ms)),
    }


def _gone(samples: Sequence[ClusterSample], begin_ms: float, end_ms: float) -> int:
    """Engines that went, by a scale in or otherwise. One that another replaced between two samples is not
    seen."""

    def losses() -> Iterator[int]:
        for before, after in pairwise(samples):
            if begin_ms <= after.at_ms < end_ms:
                yield max(0, before.provisioned - after.provisioned)

    return sum(losses())
