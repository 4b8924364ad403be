"""Where a session's latent frames lie in its KV slab: pinned sink frames, then a ring. Pure.

K is stored after RoPE, so the order of slots carries no meaning and nothing is ever shifted:

    window 6, sink 2      frame  0 1 2 3 4 5 6 7 8 9 ...
                          slot   0 1 2 3 4 5 2 3 4 5 ...
"""

from __future__ import annotations

__all__ = ["num_valid", "slot_of_frame", "write_slots"]


def slot_of_frame(frame: int, *, window: int, sink: int) -> int:
    """Ring frame that holds latent frame `frame` (counted since start or reset)."""
    if frame < sink:
        return frame
    return sink + (frame - sink) % (window - sink)


def write_slots(index: int, *, chunk: int, window: int, sink: int) -> tuple[int, ...]:
    """Ring frames [chunk] that receive the K/V of chunk `index`; all different."""
    first = index * chunk
    return tuple(slot_of_frame(frame, window=window, sink=sink) for frame in range(first, first + chunk))


def num_valid(index: int, *, chunk: int, window: int) -> int:
    """Ring frames [0, num_valid) hold K/V once chunk `index` has written its own."""
    return min((index + 1) * chunk, window)
