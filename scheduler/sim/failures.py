"""When engines die. Pure."""

from __future__ import annotations

import numpy as np

__all__ = ["draw_failures"]


def draw_failures(
    seed: int, mtbf_s: float | None, duration_s: float, engines: int
) -> tuple[tuple[float, int], ...]:
    """Deaths of engines, each of which lives mtbf_s on average."""
    if mtbf_s is None:
        return ()
    rng = np.random.default_rng(seed)
    number = rng.poisson(duration_s * engines / mtbf_s)
    return tuple(sorted((float(rng.uniform(0, duration_s)), int(rng.integers(4_096))) for _ in range(number)))
