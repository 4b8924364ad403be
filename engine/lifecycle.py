"""Is a session active or idle, and when is it closed? Pure; times are milliseconds on one monotonic clock.

A session is idle from the earliest of: pause; linger_ms after its subscriber left; full_ms after its player
took no more chunks; its slot being wanted for others while nobody subscribed. It leaves its slot offload_ms
after it became idle, at once when its slot is wanted. It is closed retain_ms after its subscriber left, or
idle_close_ms after it became idle.
Without a subscriber since opening, it counts as left at opening.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Life", "LifeLimits", "Verdict", "judge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LifeLimits:
    """Durations in milliseconds."""

    linger_ms: float = 30_000
    retain_ms: float = 600_000
    idle_close_ms: float = 600_000
    full_ms: float = 30_000
    offload_ms: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """Since when things are as they are; None: they are not."""

    paused_ms: float | None = None
    left_ms: float | None = None
    """The subscriber is gone."""
    full_ms: float | None = None
    """The player took no more chunks, or stopped acknowledging them."""
    suspended_ms: float | None = None
    """Its slot is wanted for others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What follows now, and when to ask again if nothing else happens."""

    active: bool
    reason: str
    """Why it is idle: "paused", "disconnected" or "player_full"; "" while active."""
    offload: bool
    """Must it leave its slot?"""
    close: str | None
    """Why it must be closed now: "disconnected" or "idle"."""
    next_ms: float | None
    """The verdict stays the same before this time; None: until something happens."""


def judge(life: Life, limits: LifeLimits, now_ms: float) -> Verdict:
    """The verdict for `life` at `now_ms`."""
    causes = sorted(_idle_causes(life, limits))
    ends = [(since + limits.idle_close_ms, "idle") for since, _ in causes[:1]]
    if life.left_ms is not None:
        ends.append((life.left_ms + limits.retain_ms, "disconnected"))
    idle = bool(causes) and causes[0][0] <= now_ms
    close = next((why for at, why in sorted(ends) if at <= now_ms), None)
    offload_ms = [since + limits.offload_ms for since, _ in causes[:1]]
    ahead = [at for at in (*(at for at, _ in causes[:1] + ends), *offload_ms) if now_ms < at < math.inf]
    return Verdict(
        active=not idle and close is None,
        reason=causes[0][1] if idle else "",
        offload=idle and (life.suspended_ms is not None or offload_ms[0] <= now_ms),
        close=close,
        next_ms=min(ahead, default=None),
    )


def _idle_causes(life: Life, limits: LifeLimits) -> list[tuple[float, str]]:
    """(idle from, cause) for each cause at hand, also future ones."""
    causes: list[tuple[float, str]] = []
    if life.paused_ms is not None:
        causes.append((life.paused_ms, "paused"))
    if life.left_ms is not None:
        causes.append((life.left_ms + limits.linger_ms, "disconnected"))
    if life.suspended_ms is not None and life.left_ms is not None:
        causes.append((life.suspended_ms, "disconnected"))
    if life.full_ms is not None:
        causes.append((life.full_ms + limits.full_ms, "player_full"))
    return causes
