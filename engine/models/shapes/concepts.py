"""What a scene of the `shapes` world can be: the closed sets of concepts that words map to. Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "COUNTS",
    "MOTIONS",
    "SHAPES",
    "SIZES",
    "SLOTS",
    "SPEEDS",
    "TEXT_LEN",
    "VOCAB_SIZE",
    "Scene",
    "scene_ids",
    "scene_tokens",
]

COLOURS: Final = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "white")
SHAPES: Final = ("circle", "square", "triangle", "star", "ring")
SIZES: Final = ("small", "large")
MOTIONS: Final = ("bounce", "left", "right", "up", "down", "orbit", "spin", "pulse", "rest")
SPEEDS: Final = ("slow", "normal", "fast")
BACKGROUNDS: Final = (
    "black",
    "white",
    "grey",
    "blue",
    "green",
    "red",
    "purple",
    "yellow",
    "night",
    "sunset",
    "grid",
)
COUNTS: Final = ("one", "two", "three")

SLOTS: Final = (COLOURS, SHAPES, SIZES, MOTIONS, SPEEDS, BACKGROUNDS, COUNTS)
"""Concept sets in the order of a scene's fields: slot i of a prompt holds one concept of SLOTS[i]."""

TEXT_LEN: Final = 8
"""Prompt slots. Seven are used; the last holds the empty token."""

_OFFSETS: Final = tuple(1 + sum(len(slot) for slot in SLOTS[:i]) for i in range(len(SLOTS)))
VOCAB_SIZE: Final = 1 + sum(len(slot) for slot in SLOTS)
"""Concept tokens; 0 is the empty token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One fully specified scene: objects of one kind, moving together. Field order is slot order."""

    colour: str = "white"
    shape: str = "circle"
    size: str = "large"
    motion: str = "bounce"
    speed: str = "normal"
    background: str = "black"
    count: str = "one"

    def __post_init__(self) -> None:
        for value, slot in zip(self.values(), SLOTS, strict=True):
            if value not in slot:
                raise ValueError(f"unknown concept {value!r}, known here: {', '.join(slot)}")

    def values(self) -> tuple[str, ...]:
        """Field values in slot order."""
        return (
            self.colour,
            self.shape,
            self.size,
            self.motion,
            self.speed,
            self.background,
            self.count,
        )


def scene_ids(scene: Scene) -> tuple[int, ...]:
    """Index of each field within its own slot, [7]."""
    return tuple(slot.index(value) for slot, value in zip(SLOTS, scene.values(), strict=True))


def scene_tokens(ids: tuple[int, ...]) -> tuple[int, ...]:
    """Slot indices [7] → concept tokens [TEXT_LEN], padded with the empty token."""
    used = tuple(offset + index for offset, index in zip(_OFFSETS, ids, strict=True))
    return used + (0,) * (TEXT_LEN - len(used))
