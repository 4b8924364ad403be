"""When engines die. Pure."""

from __future__ import annotations

import numpy as np

__all__ = ["draw_failures"]


def draw_failures(
    seed: int, mtbf_s: float | None, duration_s: float, slots: int
) -> tuple[tuple[float, int], ...]:
    """(seconds, slot) of deaths: what is in a slot lives mtbf_s on average. None: nobody dies.

    In a slot that is empty then nobody dies, so deaths per engine-second do not depend on how many slots are
    in use. The deaths of a slot do not depend on how many slots there are.
    """
    if mtbf_s is None:
        return ()
    deaths = []
    for slot in range(slots):
        rng = np.random.default_rng((seed, slot))
        number = rng.poisson(duration_s / mtbf_s)
        deaths += [(float(at_s), slot) for at_s in rng.uniform(0, duration_s, number)]
    return tuple(sorted(deaths))
