"""English ↔ scenes: a small, bounded reading of free text, and captions of a scene in many wordings. Pure.

Reading never fails: words that mean nothing here are skipped, what is left out has a default. A colour
belongs to the background if a background word follows it, or a preposition such as "on" or "against" stands
before it with no shape after it; every other colour is the object's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from engine.models.shapes.concepts import BACKGROUNDS, COLOURS, Scene

__all__ = ["MAX_WORDS", "describe", "read"]

MAX_WORDS: Final = 64
"""Words of a prompt that are read; the rest is ignored."""

_Pick = TypeVar("_Pick")

_COLOUR_WORDS: Final = {
    "red": "red crimson scarlet ruby",
    "green": "green lime emerald",
    "blue": "blue navy azure cobalt indigo",
    "yellow": "yellow gold golden",
    "purple": "purple violet magenta pink lilac",
    "orange": "orange amber",
    "cyan": "cyan turquoise teal aqua",
    "white": "white silver",
    "black": "black",
    "grey": "grey gray",
}
_SHAPE_WORDS: Final = {
    "ball": "ball balls circle disc disk sphere dot round orb bubble balloon",
    "square": "square box cube block rectangle tile",
    "triangle": "triangle triangular pyramid arrow",
    "star": "star starfish",
    "ring": "ring donut doughnut hoop torus",
}
_SIZE_WORDS: Final = {
    "small": "small tiny little mini",
    "large": "large big huge giant",
}
_SPEED_WORDS: Final = {
    "slow": "slow slowly gently lazily calmly",
    "normal": "normal steadily",
    "fast": "fast quickly quick rapidly rapid swiftly",
}
_MOTION_WORDS: Final = {
    "bounce": "bounce bounces bouncing jump jumps jumping hop hops hopping bouncy",
    "orbit": "orbit orbits orbiting circling circles revolve revolves revolving loops looping",
    "spin": "spin spins spinning rotate rotates rotating twirl twirls twirling turning whirling",
    "rest": "rest rests resting still static stationary motionless standing sitting stops frozen unmoving",
    "left": "left leftward leftwards",
    "right": "right rightward rightwards",
    "up": "up upward upwards rising rises ascending climbing",
    "down": "down downward downwards falling falls sinking dropping descending",
}
_MOVING_WORDS: Final = (
    "move moves moving drift drifts drifting fly flies flying slide slides sliding glide glides gliding"
)
_GROUND_WORDS: Final = "background backdrop backgrounds wall ground canvas field screen"
_GROUND_ONLY: Final = {
    "night": "night starry space",
    "sunset": "sunset gradient dusk",
    "blue": "sky",
    "green": "grass meadow",
}
_PREPOSITIONS: Final = frozenset("on against over before behind upon across".split())
_SKIPPED: Final = frozenset("plain solid dark bright light deep pale flat very colored coloured".split())


def _index(table: dict[str, str]) -> dict[str, str]:
    return {word: concept for concept, words in table.items() for word in words.split()}


_COLOUR: Final = _index(_COLOUR_WORDS)
_SHAPE: Final = _index(_SHAPE_WORDS)
_SIZE: Final = _index(_SIZE_WORDS)
_SPEED: Final = _index(_SPEED_WORDS)
_MOTION: Final = _index(_MOTION_WORDS)
_GROUND_NOUN: Final = _index(_GROUND_ONLY)
_MOVING: Final = frozenset(_MOVING_WORDS.split())
_GROUND: Final = frozenset(_GROUND_WORDS.split())

_ROUND_TRIP: Final = re.compile(r"\b(?:in|around in) (?:a |an )?(?:small |big |large )?circles?\b")
_TO_GROUND_COLOUR: Final = {
    "orange": "sunset",
    "cyan": "blue",
}  # backgrounds that do not exist, nearest instead
_TO_OBJECT_COLOUR: Final = {"black": "purple", "grey": "white"}


def read(text: str) -> Scene:
    """Free text → the scene it asks for. Never raises."""
    lowered = _ROUND_TRIP.sub("orbiting", text[:4000].lower())
    words = re.findall(r"[a-z]+", lowered)[:MAX_WORDS]
    colour, background = _colours(words)
    fields = {"shape": _first(words, _SHAPE), "size": _first(words, _SIZE), "speed": _first(words, _SPEED)}
    fields |= {"motion": _motion(words), "background": background}
    fields["colour"] = colour or ("blue" if background == "white" else None)
    return Scene(**{name: value for name, value in fields.items() if value is not None})


def _first(words: Sequence[str], table: dict[str, str]) -> str | None:
    return next((table[word] for word in words if word in table), None)


def _motion(words: Sequence[str]) -> str | None:
    """A named way of moving wins over a direction: "bouncing up and down" bounces."""
    named = [_MOTION[word] for word in words if word in _MOTION]
    for concept in (*named, None):
        if concept in ("bounce", "orbit", "spin"):
            return concept
    if named:
        return named[0]
    return "right" if any(word in _MOVING for word in words) else None


def _colours(words: Sequence[str]) -> tuple[str | None, str | None]:
    """(Object colour, background), None where the text does not say."""
    colour: str | None = None
    background: str | None = None
    on_ground = False
    for position, word in enumerate(words):
        if word in _PREPOSITIONS or word in _GROUND:
            on_ground = True
        elif word in _SHAPE or word in _MOTION:
            on_ground = False
        elif word in _GROUND_NOUN:
            background = background or _GROUND_NOUN[word]
        elif word in _COLOUR:
            if _is_ground(words, position, on_ground):
                named = _TO_GROUND_COLOUR.get(_COLOUR[word], _COLOUR[word])
                background = background or named
            else:
                colour = colour or _TO_OBJECT_COLOUR.get(_COLOUR[word], _COLOUR[word])
    return colour, background


def _is_ground(words: Sequence[str], position: int, on_ground: bool) -> bool:
    """Does the colour at this position paint the background?"""
    for word in words[position + 1 :]:
        if word in _SHAPE or word in _SIZE:
            return False
        if word in _GROUND or word in _GROUND_NOUN:
            return True
        if word not in _SKIPPED and word not in _COLOUR:
            break
    return on_ground


def describe(scene: Scene, pick: Callable[[Sequence[str]], str]) -> str:
    """A caption that `read` maps back to this scene. `pick` chooses among wordings (e.g. random.choice)."""
    colour, shape = pick(_words(_COLOUR_WORDS, scene.colour)), pick(_words(_SHAPE_WORDS, scene.shape))
    thing = f"{colour} {shape}"
    if scene.size == "small" or pick(("", "large")):
        thing = f"{pick(_words(_SIZE_WORDS, scene.size))} {thing}"
    moving = _moving(scene, pick)
    ground = _ground(scene.background, pick)
    return pick(
        (
            f"a {thing} {moving} on {ground}",
            f"{thing}, {moving}, {ground}",
            f"on {ground} a {thing} is {moving}",
            f"{ground} with a {thing} {moving}",
        )
    )


def _words(table: dict[str, str], concept: str) -> tuple[str, ...]:
    return tuple(table[concept].split())


def _moving(scene: Scene, pick: Callable[[Sequence[str]], str]) -> str:
    if scene.motion in ("left", "right", "up", "down"):
        words = f"{pick(('drifting', 'moving', 'flying'))} {scene.motion}"
    else:
        words = pick([word for word in _words(_MOTION_WORDS, scene.motion) if word.endswith("ing")])
    if scene.speed == "normal":
        return words
    return f"{words} {pick(_words(_SPEED_WORDS, scene.speed))}"


def _ground(background: str, pick: Callable[[Sequence[str]], str]) -> str:
    assert background in BACKGROUNDS
    if background in _GROUND_ONLY and background not in COLOURS:
        return f"a {pick(_words(_GROUND_ONLY, background))} {pick(('background', 'backdrop'))}"
    return f"a {pick(_words(_COLOUR_WORDS, background))} {pick(('background', 'backdrop', 'wall'))}"
