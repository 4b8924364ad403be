"""Reading English."""

from __future__ import annotations

import random
import string

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
        ("orange triangle bouncing up and down quickly", Scene(colour="orange", shape="triangle",
        speed="fast")), ("a white star rising in the night sky", Scene(shape="star", motion="up",
        background="night")), ("on black a red box at rest", Scene(colour="red", shape="square",
        motion="rest")), ("a ball on white", Scene(colour="blue", background="white")),
        ("", Scene()),
        ("xyzzy 😀 42 — привет", Scene()),
    ],
)  # fmt: skip
def test_reads(text: str, scene: Scene) -> None:
    """Word order, synonyms, omissions and nonsense."""
    assert read(text) == scene


@given(SCENES, st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_captions_read_back(scene: Scene, rng: random.Random) -> None:
    """Whatever wording a scene is given, reading finds the scene."""
    assert read(describe(scene, rng.choice)) == scene


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
