"""Where a session's latent frames lie in its KV slab: pinned sink frames, then a ring. Pure.

K is stored after RoPE, so the order of slots carries no meaning and nothing is ever shifted:

    window 6, sink 2      frame  0 1 2 3 4 5 6 7 8 9 ...
                          slot   0 1 2 3 4 5 2 3 4 5 ...
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

__all__ = ["Rebuild", "WindowPass", "live_chunks", "live_frames", "num_valid", "plan_anchor"]
__all__ += ["plan_rebuild", "plan_recache", "sink_start", "slot_of_frame", "write_slots"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowPass:
    """A clean pass that writes the K/V of chunks of the window again; they see each other."""

    indices: tuple[int, ...]
    """Chunks since start or reset before each; rising without a gap."""
    frame_start: int
    """As `PassRow.frame_start`."""
    write: tuple[int, ...]
    """As `PassRow.write`."""
    num_valid: int
    """As `PassRow.num_valid`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuild:
    """How to write the slab of a window again from its chunks' latents, into a cleared slab."""

    passes: tuple[WindowPass, ...]
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


def sink_start(index: int, *, chunk: int, window: int, sink: int, reach: int | None) -> int:
    """Position in time of the first sink frame at chunk `index`.

    The sink stays at 0 while the newest frame is less than `reach` frames after it (None: for ever). Then it
    is written again right before the frames that the chunk still sees, and stays there as long.
    """
    start = window // chunk - 1
    if reach is None or not sink or index < start:
        return 0
    period = (reach - window) // chunk + 1
    return period * ((index - start) // period) * chunk


def plan_anchor(
    index: int, have: Collection[int], *, chunk: int, window: int, sink: int, reach: int | None
) -> tuple[WindowPass, ...]:
    """The passes that give the sink its new position at the boundary before chunk `index`; mostly none.

    Args:
        have: chunks whose latents are known; without those of the sink it stays where it is.
    """
    start, before = (
        sink_start(at, chunk=chunk, window=window, sink=sink, reach=reach)
        for at in (index, max(0, index - 1))
    )
    numbers = range(-(-sink // chunk))
    if start == before or any(number not in have for number in numbers):
        return ()
    return tuple(
        WindowPass(
            indices=(number,),
            frame_start=start + number * chunk,
            write=tuple(range(number * chunk, (number + 1) * chunk)),
            num_valid=(number + 1) * chunk,
        )
        for number in numbers
    )


def plan_recache(
    index: int, have: Collection[int], *, chunk: int, window: int, sink: int
) -> WindowPass | None:
    """The pass that writes the window again for a new prompt, at the boundary before chunk `index`.

    Chunks in the sink are left alone once the window has been full. None: there is nothing to write.

    Args:
        have: chunks whose latents are known; of others and of those before them nothing is written.
    """
    live = set(live_frames(index, chunk=chunk, window=window, sink=sink))
    fixed = sink if index * chunk > window else 0
    numbers: list[int] = []
    for number in range(index - 1, -1, -1):
        frames = set(range(number * chunk, (number + 1) * chunk))
        if number not in have or not frames <= live or number * chunk < fixed:
            break
        numbers.insert(0, number)
    if not numbers:
        return None
    write = [write_slots(number, chunk=chunk, window=window, sink=sink) for number in numbers]
    return WindowPass(
        indices=tuple(numbers),
        frame_start=numbers[0] * chunk,
        write=tuple(slot for slots in write for slot in slots),
        num_valid=num_valid(index - 1, chunk=chunk, window=window),
    )


def plan_rebuild(
    index: int,
    have: Sequence[int],
    *,
    chunk: int,
    window: int,
    sink: int,
    reach: int | None = None,
    joined: Collection[int] = (),
) -> Rebuild:
    """The passes that rebuild the slab at the boundary before chunk `index`.

    Each pass sees the live frames before it and nothing else: what was evicted is not there any more, and a
    zeroed frame must not be attended to. So live frames are written without holes from ring frame 0 on.

    Args:
        have: the live chunks whose latents are known, rising; frames of others stay zero.
        reach: as in `sink_start`.
        joined: chunks that were written in one pass with the chunk before them, and are so again.
    """
    live = set(live_frames(index, chunk=chunk, window=window, sink=sink))
    anchor = sink_start(index, chunk=chunk, window=window, sink=sink, reach=reach)
    passes: list[WindowPass] = []
    moves: list[tuple[int, int]] = []
    filled = 0
    for numbers in _groups(have, joined, first_free=-(-sink // chunk) if anchor else 0):
        frames = range(numbers[0] * chunk, (numbers[-1] + 1) * chunk)
        # Dead frames of a chunk lie behind its live ones, where the next chunk overwrites them.
        order = sorted(frames, key=lambda frame: frame not in live)
        write = {frame: filled + place for place, frame in enumerate(order)}
        passes.append(
            WindowPass(
                indices=numbers,
                frame_start=frames[0] + (anchor if frames[0] < sink else 0),
                write=tuple(write[frame] for frame in frames),
                num_valid=filled + len(frames),
            )
        )
        alive = [frame for frame in order if frame in live]
        moves += [(write[frame], slot_of_frame(frame, window=window, sink=sink)) for frame in alive]
        filled += len(alive)
    if all(source == target for source, target in moves):
        moves = []
    return Rebuild(passes=tuple(passes), moves=tuple(moves))


def _groups(have: Sequence[int], joined: Collection[int], *, first_free: int) -> list[tuple[int, ...]]:
    """Chunks pass by pass; those before `first_free` each alone."""
    groups: list[tuple[int, ...]] = []
    for number in have:
        if number in joined and number > first_free and groups and groups[-1][-1] == number - 1:
            groups[-1] = (*groups[-1], number)
        else:
            groups.append((number,))
    return groups
