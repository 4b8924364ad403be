"""What of a session's KV slab can be sent while chunks are made, and what must be sent again. Pure.

While chunk `index` is in work, its passes write the ring frames of that chunk; all other live frames are
immutable until a later chunk writes over them. A frame that was sent counts as long as no chunk that was in
work since the look before it was read has written it.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.ring import live_frames, slot_of_frame, write_slots

__all__ = ["Look", "Precopy", "Ring"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """The numbers of a model's window, as in `ring.py`."""

    chunk: int
    window: int
    sink: int

    def live(self, index: int) -> frozenset[int]:
        """Ring frames that hold K/V at the boundary before chunk `index`."""
        frames = live_frames(index, chunk=self.chunk, window=self.window, sink=self.sink)
        return frozenset(slot_of_frame(frame, window=self.window, sink=self.sink) for frame in frames)

    def written(self, index: int) -> frozenset[int]:
        """Ring frames that chunk `index` writes."""
        return frozenset(write_slots(index, chunk=self.chunk, window=self.window, sink=self.sink))


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Where a session's slab stood between two passes."""

    place: tuple[int, int]
    """Slot, and how often the session was reset: frames sent under another place count no more."""
    index: int
    """Chunk in work, or the next one."""


class Precopy:
    """What the other engine has."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._look: Look | None = None
        self._has: frozenset[int] = frozenset()
        self.is_afresh = False
        """Did what was sent first become worthless, so that the other side must clear it?"""

    def wanted(self, look: Look) -> tuple[int, ...]:
        """Immutable frames that are not there yet."""
        self._forget(look, look.index + 1)
        return tuple(sorted(self._ring.live(look.index) - self._ring.written(look.index) - self._has))

    def sent(self, look: Look, frames: tuple[int, ...]) -> None:
        """These frames, read at or after that look, are there."""
        self._look, self._has = look, self._has | frozenset(frames)

    def dirty(self, look: Look) -> tuple[int, ...]:
        """Frames to be sent at the boundary before chunk `look.index`, where the session rests."""
        self._forget(look, look.index)
        has = frozenset[int]() if self.is_afresh else self._has  # it clears what came after the reset, too
        return tuple(sorted(self._ring.live(look.index) - has))

    def _forget(self, look: Look, end: int) -> None:
        before = self._look
        if before is None:
            return
        if before.place != look.place or look.index < before.index:
            self.is_afresh = self.is_afresh or bool(self._has)
            self._has = frozenset()
        for index in range(before.index, end):
            self._has -= self._ring.written(index)
        self._look = look
