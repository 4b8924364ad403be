"""Where a session's latent frames lie in its KV slab: pinned sink frames, then a ring. Pure.

K is stored after RoPE, so the order of slots carries no meaning and nothing is ever shifted:

    window 6, sink 2      frame  0 1 2 3 4 5 6 7 8 9 ...
                          slot   0 1 2 3 4 5 2 3 4 5 ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Rebuild", "RebuildPass", "live_chunks", "live_frames", "num_valid", "plan_rebuild"]
__all__ += ["slot_of_frame", "write_slots"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildPass:
    """A clean pass that writes the K/V of one chunk of the window again."""

    index: int
    """Chunks since start or reset before it."""
    write: tuple[int, ...]
    """As `PassRow.write`."""
    num_valid: int
    """As `PassRow.num_valid`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuild:
    """How to write the slab of a window again from its chunks' latents, into a cleared slab."""

    passes: tuple[RebuildPass, ...]
    moves: tuple[tuple[int, int], ...]
    """(ring frame written, ring frame where it belongs) of every live frame, to be moved at once at the end;
    empty when each lies where it belongs already: nothing was evicted."""


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


def live_frames(index: int, *, chunk: int, window: int, sink: int) -> tuple[int, ...]:
    """Latent frames that a slab holds at the boundary before chunk `index`, rising."""
    made = index * chunk
    return (*range(min(sink, made)), *range(max(sink, made - (window - sink)), made))


def live_chunks(index: int, *, chunk: int, window: int, sink: int) -> tuple[int, ...]:
    """Chunks with a live frame at the boundary before chunk `index`, rising."""
    return tuple(
        sorted({frame // chunk for frame in live_frames(index, chunk=chunk, window=window, sink=sink)})
    )


def plan_rebuild(index: int, have: Sequence[int], *, chunk: int, window: int, sink: int) -> Rebuild:
    """The passes that rebuild the slab at the boundary before chunk `index`.

    Each pass sees the live frames before it and nothing else: what was evicted is not there any more, and a
    zeroed frame must not be attended to. So live frames are written without holes from ring frame 0 on.

    Args:
        have: the live chunks whose latents are known, rising; frames of others stay zero.
    """
    live = set(live_frames(index, chunk=chunk, window=window, sink=sink))
    passes: list[RebuildPass] = []
    moves: list[tuple[int, int]] = []
    filled = 0
    for number in have:
        frames = range(number * chunk, (number + 1) * chunk)
        # Dead frames of a chunk lie behind its live ones, where the next chunk overwrites them.
        order = sorted(frames, key=lambda frame: frame not in live)
        write = {frame: filled + place for place, frame in enumerate(order)}
        passes.append(
            RebuildPass(index=number, write=tuple(write[frame] for frame in frames), num_valid=filled + chunk)
        )
        alive = [frame for frame in order if frame in live]
        moves += [(write[frame], slot_of_frame(frame, window=window, sink=sink)) for frame in alive]
        filled += len(alive)
    if all(source == target for source, target in moves):
        moves = []
    return Rebuild(passes=tuple(passes), moves=tuple(moves))
