"""Reading English."""

from __future__ import annotations

import random
import string
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.models.shapes.captions import MAX_WORDS, describe, read
from engine.models.shapes.concepts import SLOTS, Scene

SCENES = st.builds(
    lambda values: Scene(**dict(zip(Scene.__slots__, values, strict=True))),
    st.tuples(*(st.sampled_from(slot) for slot in SLOTS)),
)


@pytest.mark.parametrize(
    ("text", "scene"),
    [
        ("a red ball bouncing on a blue background", Scene(colour="red", background="blue")),
        ("a green star spinning on a black background", Scene(colour="green", shape="star", motion="spin")),
        ("Blue background with a RED ball", Scene(colour="red", background="blue")),
        ("the background is grey, and a tiny cyan ring drifts left slowly",
         Scene(colour="cyan", shape="ring", size="small", motion="left", speed="slow", background="grey")),
        ("a yellow square moving in a circle", Scene(colour="yellow", shape="square", motion="orbit")),
        ("a purple circle", Scene(colour="purple")),
        ("orange triangle bouncing up and down quickly",
         Scene(colour="orange", shape="triangle", speed="fast")),
        ("a white star rising in the night sky", Scene(shape="star", motion="up", background="night")),
        ("on black a red box at rest", Scene(colour="red", shape="square", motion="rest")),
        ("a ball on white", Scene(colour="blue", background="white")),
        ("two small green stars orbiting",
         Scene(colour="green", shape="star", size="small", motion="orbit", count="two")),
        ("three pulsing circles on a grid", Scene(motion="pulse", background="grid", count="three")),
        ("red boxes", Scene(colour="red", shape="square", count="two")),
        ("a red ball circles the middle", Scene(colour="red", motion="orbit")),
        ("a red ball under a night sky with stars", Scene(colour="red", background="night")),
        ("many big round yellow balloons", Scene(colour="yellow", count="three")),
        ("", Scene()),
        ("xyzzy 😀 42 — привет", Scene()),
    ],
)  # fmt: skip
def test_reads(text: str, scene: Scene) -> None:
    """Word order, synonyms, omissions and nonsense."""
    assert read(text) == scene


SHOWN = Scene(colour="red", shape="star", size="small", motion="orbit", speed="fast", count="two")


@pytest.mark.parametrize(
    ("text", "scene"),
    [
        ("make it night", replace(SHOWN, background="night")),
        ("slower", replace(SHOWN, speed="slow")),
        ("turn them blue", replace(SHOWN, colour="blue")),
        ("white background", replace(SHOWN, background="white")),
        ("three of them", replace(SHOWN, count="three")),
        ("a large ring", replace(SHOWN, shape="ring", size="large", count="one")),
        ("thanks!", SHOWN),
        ("make them cyan, sunset", replace(SHOWN, colour="cyan", background="sunset")),
        ("Cyan. Night.", replace(SHOWN, colour="cyan", background="night")),
        ("sunset, cyan", replace(SHOWN, colour="cyan", background="sunset")),
        ("on a grid, yellow, faster", replace(SHOWN, colour="yellow", background="grid")),
        ("make it a deep, dark blue background", replace(SHOWN, background="blue")),
        ("on a deep, dark blue", replace(SHOWN, background="blue")),
        ("green; on blue", replace(SHOWN, colour="green", background="blue")),
        ("blue sky", replace(SHOWN, background="blue")),
    ],
)
def test_what_a_prompt_leaves_out_stays(text: str, scene: Scene) -> None:
    """A prompt edits the scene that is shown."""
    assert read(text, SHOWN) == scene


@given(SCENES, SCENES, st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_captions_read_back(scene: Scene, shown: Scene, rng: random.Random) -> None:
    """Whatever wording a scene is given, reading finds it: said in full, or as an edit of another."""
    assert read(describe(scene, rng.choice), shown) == scene
    assert read(describe(scene, rng.choice, shown), shown) == scene
    assert read(describe(scene, rng.choice, scene), scene) == scene


@given(st.text(max_size=300))
@settings(deadline=None)
def test_any_text_is_accepted(text: str) -> None:
    """No text raises."""
    read(text)


@given(st.lists(st.text(string.ascii_lowercase, min_size=1), max_size=8).map(" ".join))
@settings(deadline=None)
def test_unknown_words_change_nothing(words: str) -> None:
    """Words in quotes of nonsense letters before a caption leave its scene alone."""
    nonsense = " ".join(f"q{word}x" for word in words.split())
    assert read(f"{nonsense} a red star on a green background") == Scene(
        colour="red", shape="star", background="green"
    )


def test_reading_is_bounded() -> None:
    """Words past the limit are not read."""
    assert read("pad " * MAX_WORDS + "red star") == Scene()
