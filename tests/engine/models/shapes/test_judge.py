"""The judge names what is drawn, and can fail."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from engine.models.shapes.codec import to_uint8
from engine.models.shapes.concepts import (
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    MOTIONS,
    SHAPES,
    SPEEDS,
    Scene,
    scene_ids,
)
from engine.models.shapes.drawing import draw
from engine.models.shapes.judge import Observation, observe, score
from engine.models.shapes.world import simulate

BASE = Scene(colour="red", shape="square", motion="left", background="blue")


def _seen(scene: Scene, seed: int = 2) -> Observation:
    ids = torch.tensor([[scene_ids(scene)] * 5])
    return observe(to_uint8(draw(simulate(ids, torch.Generator().manual_seed(seed)))[0][0])[12:])


def _assert_named(scene: Scene) -> None:
    seen = _seen(scene)
    expected = {field.name: getattr(scene, field.name) for field in fields(Scene)}
    if scene.motion == "rest":
        expected["speed"] = None
    assert {name: getattr(seen, name) for name in expected} == expected


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("motion", MOTIONS)
def test_motions_are_named(motion: str, count: str) -> None:
    """Every motion of one, two and three objects is recognised as itself."""
    _assert_named(replace(BASE, motion=motion, count=count))


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("motion", ["bounce", "up", "orbit", "spin", "pulse"])
def test_speeds_are_named(motion: str, speed: str) -> None:
    """Slow, normal and fast of every motion that has a speed."""
    _assert_named(replace(BASE, motion=motion, speed=speed))


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_and_sizes_are_named(shape: str, size: str) -> None:
    """Each shape, in both sizes."""
    _assert_named(replace(BASE, shape=shape, size=size))


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_backgrounds_are_named(background: str) -> None:
    """Each background is told from all others."""
    _assert_named(replace(BASE, colour="cyan", background=background))


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_are_named(colour: str) -> None:
    """Each colour is told from all others."""
    _assert_named(replace(BASE, colour=colour, background="black"))


def test_a_turning_circle_looks_at_rest() -> None:
    """What no picture could show is not held against the model."""
    scene = replace(BASE, shape="ring", motion="spin")
    assert all(score(_seen(scene), scene).values())


def test_wrong_scenes_fail() -> None:
    """Each attribute that differs is told, and only those."""
    seen = _seen(BASE)
    other = Scene(
        colour="orange", shape="star", size="small", motion="up", speed="fast", background="grid", count="two"
    )
    assert not any(score(seen, other).values())
    assert score(seen, replace(BASE, colour="orange")) == score(seen, BASE) | {"colour": False}


def test_an_empty_picture_shows_nothing() -> None:
    """No object: the background is known, the rest is not."""
    ground = torch.full((36, 96, 96, 3), 8, dtype=torch.uint8)
    assert observe(ground) == Observation(background="black", count=None)


def test_noise_is_no_background() -> None:
    """A picture far from all backgrounds has none."""
    noise = torch.randint(0, 255, (12, 96, 96, 3), generator=torch.Generator().manual_seed(0))
    assert observe(noise.to(torch.uint8)).background is None
