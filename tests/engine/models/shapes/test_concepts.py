"""Concept sets and tokens."""

from __future__ import annotations

import pytest

from engine.models.shapes.concepts import SLOTS, TEXT_LEN, VOCAB_SIZE, Scene, scene_ids, scene_tokens


def test_every_concept_has_its_own_token() -> None:
    """Tokens of different slots never coincide and stay within the vocabulary."""
    seen = set()
    for position, slot in enumerate(SLOTS):
        for index in range(len(slot)):
            ids = [0] * len(SLOTS)
            ids[position] = index
            seen.add(scene_tokens(tuple(ids))[position])
    assert seen == set(range(1, VOCAB_SIZE))


def test_tokens_fill_the_prompt() -> None:
    """Unused slots hold the empty token."""
    tokens = scene_tokens(scene_ids(Scene()))
    assert len(tokens) == TEXT_LEN and set(tokens[len(SLOTS) :]) == {0}


def test_scene_refuses_an_unknown_concept() -> None:
    """The message lists what is known."""
    with pytest.raises(ValueError, match="'mauve', known here: red"):
        Scene(colour="mauve")
