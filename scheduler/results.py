"""What load tests and the simulator report alike: names, percentiles. Pure.

Both give these keys, so that one tool can compare them:

    sessions, chunks, chunk_latency_ms {p50, p95, p99, max}, ttfc_ms {p50, p99},
    waited_ms {p50, p95, p99, max}, unserved, left_waiting, cpr {mean, p5, min}, cost_engine_s, migrations,
    gaps, planning_ms {p50, p99, max}

ttfc_ms knows nothing of sessions that never got a chunk (`unserved`). waited_ms has also the waits of those
that left after a fair wait (`left_waiting`): it would have taken at least that. A figure of no samples is
None.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

__all__ = ["FAIR_WAIT_MS", "common_results", "flat", "percentile", "play_ratio", "spread", "waits_ms"]

FAIR_WAIT_MS: Final = 2_000.0
"""Who leaves before a first chunk sooner than this has not been kept waiting: nobody could have served it."""


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest-rank percentile, `share` in (0, 1]; NaN of nothing."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def spread(values: Sequence[float], *names: str, digits: int = 1) -> dict[str, float | None]:
    """Figures by name: p1 to p99 (or p99.9), min, mean, max."""
    ordered = sorted(values)
    return {name: round(_figure(ordered, name), digits) if ordered else None for name in names}


def play_ratio(played_ms: float, stalled_ms: float) -> float | None:
    """CPR: played / (played + stalled); None of a player that did neither."""
    total_ms = played_ms + stalled_ms
    return played_ms / total_ms if total_ms > 0 else None


def waits_ms(
    ttfc_ms: Sequence[float], vain_ms: Iterable[float], fair_wait_ms: float = FAIR_WAIT_MS
) -> list[float]:
    """For a first chunk. vain_ms: of those who never got one, for as long as they wanted it. Who left sooner
    than after a fair wait says nothing of how long it takes."""
    return [*ttfc_ms, *(ms for ms in vain_ms if ms >= fair_wait_ms)]


def common_results(
    *,
    sessions: int,
    chunk_latency_ms: Sequence[float],
    chunks: int,
    ttfc_ms: Sequence[float],
    waited_ms: Sequence[float],
    unserved: int,
    left_waiting: int,
    cpr: Sequence[float],
    cost_engine_s: float | None,
    migrations: int,
    gaps: int,
    planning_ms: Sequence[float] | None = None,
) -> dict[str, object]:
    """The keys above from samples; without `planning_ms` where plans were not timed."""
    results: dict[str, object] = {
        "sessions": sessions,
        "chunks": chunks,
        "chunk_latency_ms": spread(chunk_latency_ms, "p50", "p95", "p99", "max"),
        "ttfc_ms": spread(ttfc_ms, "p50", "p99"),
        "waited_ms": spread(waited_ms, "p50", "p95", "p99", "max"),
        "unserved": unserved,
        "left_waiting": left_waiting,
        "cpr": spread(cpr, "mean", "p5", "min", digits=4),
        "cost_engine_s": None if cost_engine_s is None else round(cost_engine_s, 1),
        "migrations": migrations,
        "gaps": gaps,
    }
    if planning_ms is not None:
        results["planning_ms"] = spread(planning_ms, "p50", "p99", "max", digits=3)
    return results


def flat(results: Mapping[str, object]) -> dict[str, float | int | None]:
    """Every number of a result by its dotted name, e.g. `chunk_latency_ms.p99`."""
    found: dict[str, float | int | None] = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{key}": number for key, number in flat(value).items()}
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            found[name] = value
    return found


def _figure(ordered: Sequence[float], name: str) -> float:
    match name:
        case "min":
            return ordered[0]
        case "max":
            return ordered[-1]
        case "mean":
            return sum(ordered) / len(ordered)
        case _:
            return percentile(ordered, float(name.removeprefix("p")) / 100.0)
