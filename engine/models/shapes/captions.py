"""English ↔ scenes: a small, bounded reading of free text, and captions of a scene in many wordings. Pure.

Reading never fails: words that mean nothing here are skipped, and what is left out stays as it was in the
scene that is shown, or has a default. A colour belongs to the background if a background word follows it, or
a preposition such as "on" or "against" stands before it with no shape after it; every other colour is the
objects'. A comma or a full stop separates: "cyan, sunset" paints the objects and the background.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from engine.models.shapes.concepts import BACKGROUNDS, COLOURS, Scene

__all__ = ["MAX_WORDS", "describe", "read"]

MAX_WORDS: Final = 64
"""Words and breaks of a prompt that are read; the rest is ignored."""

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
    "circle": "circle ball disc disk sphere dot round orb bubble balloon",
    "square": "square box cube block rectangle tile",
    "triangle": "triangle triangular pyramid arrow",
    "star": "star starfish",
    "ring": "ring donut doughnut hoop torus",
}
_ADJECTIVES: Final = frozenset("round triangular square".split())
"""Shape words that may stand before a noun; "square" may be one too."""
_SIZE_WORDS: Final = {
    "small": "small tiny little mini smaller",
    "large": "large big huge giant larger bigger",
}
_SPEED_WORDS: Final = {
    "slow": "slow slowly gently lazily calmly slower",
    "normal": "steadily normal",
    "fast": "fast quickly quick rapidly rapid swiftly faster",
}
_MOTION_WORDS: Final = {
    "bounce": "bouncing bounce bounces jump jumps jumping hop hops hopping bouncy",
    "orbit": "orbiting orbit orbits circling revolve revolves revolving loops looping",
    "spin": "spinning spin spins rotate rotates rotating twirl twirls twirling turning whirling",
    "pulse": "pulsing pulse pulses pulsating throbbing breathing beating",
    "rest": "resting rest rests still static stationary motionless standing sitting stops frozen unmoving",
    "left": "left leftward leftwards",
    "right": "right rightward rightwards",
    "up": "up upward upwards rising rises ascending climbing",
    "down": "down downward downwards falling falls sinking dropping descending",
}
_MOVING_WORDS: Final = (
    "move moves moving drift drifts drifting fly flies flying slide slides sliding glide glides gliding"
)
_COUNT_WORDS: Final = {
    "one": "one single lone 1",
    "two": "two pair couple both twin 2",
    "three": "three trio triple 3 several some few many four five six 4 5 6",
}
_GROUND_WORDS: Final = "background backdrop backgrounds wall ground canvas field screen"
_GROUND_ONLY: Final = {
    "night": "night starry starlit space",
    "sunset": "sunset gradient dusk",
    "grid": "grid mesh lattice",
    "blue": "sky",
    "green": "grass meadow",
}
_JOINING: Final = frozenset("with of and".split())
_PREPOSITIONS: Final = frozenset("on against over before behind upon across".split())
_BREAK: Final = ","
_SKIPPED: Final = frozenset("plain solid dark bright light deep pale flat very colored coloured".split())


def _plural(word: str) -> str:
    return word + ("es" if word.endswith("x") else "s")


def _index(table: dict[str, str]) -> dict[str, str]:
    return {word: concept for concept, words in table.items() for word in words.split()}


_COLOUR: Final = _index(_COLOUR_WORDS)
_SINGULAR: Final = _index(_SHAPE_WORDS)
_NOUNS: Final = frozenset(_SINGULAR) - (_ADJECTIVES - {"square"})
_PLURAL: Final = {_plural(word): _SINGULAR[word] for word in _NOUNS}
_SHAPE: Final = _SINGULAR | _PLURAL
_SIZE: Final = _index(_SIZE_WORDS)
_SPEED: Final = _index(_SPEED_WORDS)
_MOTION: Final = _index(_MOTION_WORDS)
_COUNT: Final = _index(_COUNT_WORDS)
_GROUND_NOUN: Final = _index(_GROUND_ONLY)
_MOVING: Final = frozenset(_MOVING_WORDS.split())
_GROUND: Final = frozenset(_GROUND_WORDS.split())

_ROUND_TRIP: Final = re.compile(r"\b(?:in|around in) (?:a |an )?(?:small |big |large )?circles?\b")
_TO_GROUND_COLOUR: Final = {
    "orange": "sunset",
    "cyan": "blue",
}  # backgrounds that do not exist, nearest instead
_TO_OBJECT_COLOUR: Final = {"black": "purple", "grey": "white"}


def read(text: str, shown: Scene | None = None) -> Scene:
    """Free text → the scene it asks for; what it leaves out is taken from `shown`. Never raises."""
    words = _words(text)
    colour, background = _colours(words)
    fields = {
        "shape": _first(words, _SHAPE),
        "size": _first(words, _SIZE),
        "speed": _first(words, _SPEED),
        "motion": _motion(words),
        "background": background,
        "count": _count(words),
    }
    if shown is None and background == "white":
        colour = colour or "blue"  # the default would not be seen
    fields["colour"] = colour
    given = {name: value for name, value in fields.items() if value is not None}
    return replace(Scene() if shown is None else shown, **given)


def _words(text: str) -> list[str]:
    """The words and breaks that are read, freed of two words that mean something else in their place."""
    lowered = _ROUND_TRIP.sub("orbiting", text[:4000].lower())
    words: list[str] = []
    for word in re.findall(r"[a-z]+|[0-9]+|[,;.]+", lowered)[:MAX_WORDS]:
        if not word.isalnum():
            word = _BREAK
        if word == "circles" and any(earlier in _SHAPE for earlier in words):
            word = "orbiting"  # "a ball circles", not "two circles"
        if word == "stars" and words and words[-1] in _JOINING and "night" in map(_GROUND_NOUN.get, words):
            continue  # "night with stars"
        words.append(word)
    return words


def _first(words: Sequence[str], table: dict[str, str]) -> str | None:
    return next((table[word] for word in words if word in table), None)


def _count(words: Sequence[str]) -> str | None:
    """A number, else what the noun says: one "star", two "stars"."""
    number = _first(words, _COUNT)
    if number is not None:
        return number
    for word in words:
        if word in _PLURAL:
            return "two"
        if word in _NOUNS:
            return "one"
    return None


def _motion(words: Sequence[str]) -> str | None:
    """A named way of moving wins over a direction: "bouncing up and down" bounces."""
    named = [_MOTION[word] for word in words if word in _MOTION]
    for concept in named:
        if concept in ("bounce", "orbit", "spin", "pulse"):
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
        elif word in _SHAPE or word in _MOTION or (word == _BREAK and background is not None):
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


def describe(scene: Scene, pick: Callable[[Sequence[str]], str], shown: Scene | None = None) -> str:
    """A caption that `read(caption, shown)` maps back to this scene, for any `shown`.

    `pick` chooses among wordings (e.g. random.choice). What equals `shown` may be left out; without it
    everything is said.
    """
    things = _things(scene, pick, shown)
    moving = _moving(scene, pick, shown)
    if shown is not None and shown.background == scene.background and pick(("", "said")) == "":
        return f"{things} {moving}".strip()
    ground = _ground(scene.background, pick)
    if not moving:
        return pick((f"{things} on {ground}", f"{things}, {ground}", f"{ground} with {things}"))
    return pick(
        (
            f"{things} {moving} on {ground}",
            f"{things}, {moving}, {ground}",
            f"on {ground} {things} {moving}",
            f"{ground} with {things} {moving}",
        )
    )


def _things(scene: Scene, pick: Callable[[Sequence[str]], str], shown: Scene | None) -> str:
    """How many, how large, which colour, which shape."""
    noun = pick([word for word in _SHAPE_WORDS[scene.shape].split() if word in _NOUNS])
    colour = pick(_COLOUR_WORDS[scene.colour].split())
    large = "" if shown is not None and shown.size == scene.size and pick(("", "said")) == "" else scene.size
    size = f"{pick(_SIZE_WORDS[large].split()[:4])} " if large else ""
    if scene.count == "one":
        article = "an" if (size or colour)[0] in "aeiou" else "a"
        return f"{pick((article, 'one', 'a single'))} {size}{colour} {noun}"
    number = pick({"two": ("two", "a pair of"), "three": ("three", "a trio of")}[scene.count])
    return f"{number} {size}{colour} {_plural(noun)}"


def _moving(scene: Scene, pick: Callable[[Sequence[str]], str], shown: Scene | None) -> str:
    same_speed = shown is not None and shown.speed == scene.speed
    speed = "" if same_speed and pick(("", "said")) == "" else pick(_SPEED_WORDS[scene.speed].split()[1:3])
    if scene.speed == "normal" and speed:
        speed = "steadily"
    if shown is not None and shown.motion == scene.motion and pick(("", "said")) == "":
        return speed
    if scene.motion in ("left", "right", "up", "down"):
        words = f"{pick(('drifting', 'moving', 'flying'))} {scene.motion}"
    else:
        words = pick([word for word in _MOTION_WORDS[scene.motion].split() if word.endswith("ing")])
    return f"{words} {speed}".strip()


def _ground(background: str, pick: Callable[[Sequence[str]], str]) -> str:
    assert background in BACKGROUNDS
    if background in _GROUND_ONLY and background not in COLOURS:
        return f"a {pick(_GROUND_ONLY[background].split())} {pick(('background', 'backdrop'))}"
    return f"a {pick(_COLOUR_WORDS[background].split())} {pick(('background', 'backdrop', 'wall'))}"
