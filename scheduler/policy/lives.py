"""How much longer a session will live, by its age, learned from those that were closed. Pure.

Ages fall into buckets that double. In each, sessions are closed at a constant rate: those closed in it over
the time lived in it. Where most lives are short and some are long, an old session has more ahead of it than a
new one, and moving it pays for longer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from scheduler.policy.base import Memory

EDGES_S = (0.0, *(2.0**n for n in range(1, 14)))
"""Lower ends of the buckets; the last is open."""
_PRIOR_S = 120.0
"""Remaining life at any age before anything is known, with the weight of one session."""
_FADE = 1.0 - 1.0 / 500
"""What is known counts so much less with each session that is closed."""


def note_lives(memory: Memory, ages_ms: Sequence[int]) -> Memory:
    """Memory after these sessions were closed."""
    if not ages_ms:
        return memory
    exits = list(memory.exits) or [0.0] * len(EDGES_S)
    exposure_s = list(memory.exposure_s) or [0.0] * len(EDGES_S)
    if not len(exits) == len(exposure_s) == len(EDGES_S):  # of another version
        exits, exposure_s = [0.0] * len(EDGES_S), [0.0] * len(EDGES_S)
    for age_ms in ages_ms:
        bucket = bucket_of(age_ms)
        exits = [number * _FADE + (n == bucket) for n, number in enumerate(exits)]
        ends_s = (*EDGES_S[1:], math.inf)
        lived_s = [
            max(0.0, min(age_ms / 1000, end) - start) for start, end in zip(EDGES_S, ends_s, strict=True)
        ]
        exposure_s = [known * _FADE + new for known, new in zip(exposure_s, lived_s, strict=True)]
    return replace(memory, exits=tuple(exits), exposure_s=tuple(exposure_s))


def bucket_of(age_ms: int) -> int:
    """Bucket of an age."""
    return min(len(EDGES_S) - 1, max(0, age_ms // 1000).bit_length() - 1 if age_ms >= 2_000 else 0)


def remaining_s(memory: Memory) -> tuple[float, ...]:
    """Expected remaining life at the start of each bucket, seconds."""
    return _remaining_s(memory.exits, memory.exposure_s)


@lru_cache(maxsize=8)
def _remaining_s(exits: tuple[float, ...], exposure_s: tuple[float, ...]) -> tuple[float, ...]:
    if not len(exits) == len(exposure_s) == len(EDGES_S):
        exits = exposure_s = (0.0,) * len(EDGES_S)
    left_s = 0.0
    lives: list[float] = []
    for bucket in reversed(range(len(EDGES_S))):
        rate = (exits[bucket] + 1.0) / (exposure_s[bucket] + _PRIOR_S)
        is_last = bucket == len(EDGES_S) - 1
        survive = 0.0 if is_last else math.exp(-rate * (EDGES_S[bucket + 1] - EDGES_S[bucket]))
        left_s = (1.0 - survive) / rate + survive * left_s
        lives.append(left_s)
    return tuple(reversed(lives))
