"""What load tests and the simulator report alike: names, percentiles. Pure.

Both give these keys, so that one tool can compare them:

    sessions, chunks, chunk_latency_ms {p50, p95, p99, max}, ttfc_ms {p50, p99}, cpr {mean, p5, min},
    cost_engine_s, migrations, gaps, planning_ms {p50, p99, max}

A figure of no samples is None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

__all__ = ["common_results", "flat", "percentile", "play_ratio", "spread"]


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


def common_results(
    *,
    sessions: int,
    chunk_latency_ms: Sequence[float],
    chunks: int,
    ttfc_ms: Sequence[float],
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
