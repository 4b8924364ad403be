"""What no policy can be better than, by arithmetic on chunks. Pure.

With no chunk later than L, an active time of d seconds takes at least (d − L)⁺ / max(play, L) chunks: one
chunk follows another within what it plays, or within L where that is longer, and the last one of an active
time may be cut off. Video made ahead in one active time counts in the next, so chunks are summed over a
session's life and rounded up there. A chunk of n sessions' passes occupies an engine for t(n)/n per pass, and
its passes take L altogether at most: the cheapest mix of batches within that is a point on the lower hull of
(t(n), t(n)/n). Clean passes come after the frames, in time or not: each costs the least t(n)/n, that of a
session's last chunk nothing, as it may be cut off. Chunks times that is the least engine time. A session's
first chunks, before its window is full, count by what their own windows cost: beside wider ones they
cost no less. Nothing else is held against a policy: engines are there when they are wanted and gone when they
are not, for free, and sessions move for free, so the bound holds for every policy, with or without knowledge
of the future, but need not be within anybody's reach.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.sim.profile import Profile
from scheduler.trace import Trace

__all__ = ["Fluid", "clean_ms_per_chunk", "engine_ms_per_chunk"]

STEPS = 50
"""Of the bisection for a latency."""


def engine_ms_per_chunk(profile: Profile, limit_ms: float, window: int = -1) -> float:
    """Least engine time of a chunk up to its frames, done within limit_ms of its beginning; infinite if none
    is. window: of `profile.windows_ms`; unset, the full one."""
    costs = profile.costs
    passes = min(costs.chunk_passes, costs.first_chunk_passes) - profile.clean_passes
    table = _batches_ms(profile, window)
    most_ms = (limit_ms - costs.decode_ms) / passes
    points = [(ms, ms / rows) for rows, ms in enumerate(table, start=1)]
    within = [point for point in points if point[0] <= most_ms]
    if not within:
        return math.inf
    best_ms = min(share for _, share in within)
    for ms, share in within:
        for far_ms, far_share in points:
            if far_ms > most_ms:
                part = (most_ms - ms) / (far_ms - ms)
                best_ms = min(best_ms, share + part * (far_share - share))
    return passes * best_ms + costs.decode_ms


def clean_ms_per_chunk(profile: Profile, window: int = -1) -> float:
    """Least engine time of what a chunk costs after its frames."""
    shares = (ms / rows for rows, ms in enumerate(_batches_ms(profile, window), start=1))
    return profile.clean_passes * min(shares)


def _batches_ms(profile: Profile, window: int) -> tuple[float, ...]:
    """Of a pass with 1, 2 … rows over this window, or a wider one if that is cheaper: at most one for each
    slot, but for clean passes beside them."""
    table = tuple(map(min, zip(*profile.windows_ms[window:], strict=True)))
    return table[1:] if profile.clean_passes else table[1 : 1 + profile.capacity]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fluid:
    """The bounds for one trace on engines of one profile."""

    profile: Profile
    spans_ms: NDArray[np.float64]
    """f64[active times], by session."""
    starts: NDArray[np.intp]
    """Index of the first one of each session."""

    @classmethod
    def of(cls, trace: Trace, profile: Profile) -> Fluid:
        """From a trace's active times."""
        lives = [[1000.0 * (end - begin) for begin, end in life.active_s] for life in trace.lives()]
        lengths = [len(spans) for spans in lives]
        return cls(
            profile=profile,
            spans_ms=np.array([ms for spans in lives for ms in spans]),
            starts=np.cumsum([0, *lengths[:-1]]),
        )

    def least_engine_s(self, worst_ms: float) -> float:
        """Of any policy whose worst chunk latency is at most that."""
        served_ms = np.add.reduceat(np.maximum(self.spans_ms - worst_ms, 0.0), self.starts)
        chunks = np.ceil(served_ms / max(self.profile.play_ms, worst_ms) - 1e-9)
        total_ms, full = 0.0, len(self.profile.windows_ms) - 1
        for window in range(full + 1):
            made, followed = (_of_window(chunks - last, window, full) for last in (0.0, 1.0))
            if made:
                total_ms += made * engine_ms_per_chunk(self.profile, worst_ms, window)
                total_ms += followed * clean_ms_per_chunk(self.profile, window)
        return total_ms / 1000

    def least_worst_ms(self, engine_s: float) -> float:
        """Least worst chunk latency of any policy with at most so many engine-seconds."""
        low_ms, high_ms = 0.0, float(self.spans_ms.max())
        for _ in range(STEPS):
            middle_ms = (low_ms + high_ms) / 2
            if self.least_engine_s(middle_ms) <= engine_s:
                high_ms = middle_ms
            else:
                low_ms = middle_ms
        return high_ms


def _of_window(chunks: NDArray[np.float64], window: int, full: int) -> float:
    """How many of all sessions' chunks, so many each, are made over this window."""
    most = 1.0 if window < full else math.inf
    return float(np.clip(chunks - window, 0.0, most).sum())
