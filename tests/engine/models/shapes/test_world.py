"""The drawn world moves as its prompts say, and stays bounded."""

from __future__ import annotations

import pytest
import torch

from engine.models.shapes.codec import to_uint8
from engine.models.shapes.concepts import BACKGROUNDS, MOTIONS, SHAPES, SLOTS, Scene, scene_ids
from engine.models.shapes.judge import judge
from engine.models.shapes.world import CHUNK_FRAMES, SIDE, render, sample_scenes, simulate


def _drawn(scene: Scene, chunks: int = 4) -> torch.Tensor:
    ids = torch.tensor([[scene_ids(scene)] * chunks])
    return to_uint8(render(simulate(ids, torch.Generator().manual_seed(2)))[0][0])


@pytest.mark.parametrize("motion", MOTIONS)
def test_motions_pass_the_judge(motion: str) -> None:
    """Each motion is recognised as itself and as no other kind."""
    rgb = _drawn(Scene(colour="red", shape="square", motion=motion, background="blue"))
    assert all(judge(rgb, Scene(colour="red", shape="square", motion=motion, background="blue")).values())
    wrong = [
        other
        for other in MOTIONS
        if other != motion
        and judge(rgb, Scene(colour="red", shape="square", motion=other, background="blue"))["motion"]
    ]
    assert wrong == []


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_told_apart(shape: str) -> None:
    """The judge names the drawn shape."""
    scene = Scene(colour="yellow", shape=shape, motion="left", background="black")
    assert judge(_drawn(scene), scene)["shape"]


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_wrong_backgrounds_are_seen(background: str) -> None:
    """The judge rejects every other background."""
    rgb = _drawn(Scene(colour="cyan", background=background), chunks=2)
    accepted = [b for b in BACKGROUNDS if judge(rgb, Scene(colour="cyan", background=b))["background"]]
    assert accepted == [background]


def test_wrong_colour_is_seen() -> None:
    """The judge can fail on colour."""
    assert not judge(_drawn(Scene(colour="red")), Scene(colour="orange"))["colour"]


def test_prompt_change_carries_the_object_on() -> None:
    """Where prompts change the object jumps no further than it moves."""
    generator = torch.Generator().manual_seed(0)
    track = simulate(sample_scenes(64, 8, generator, switch_chance=1.0), generator)
    for values in (track.x, track.y):
        step = torch.diff(values, dim=1)
        step = (step + SIDE / 2) % SIDE - SIDE / 2
        assert step.abs().max() < 24


def test_scenes_change_only_at_chunks() -> None:
    """Every chunk has one prompt within its slots, and the chance of a change is as asked for."""
    ids = sample_scenes(200, 6, torch.Generator().manual_seed(0), switch_chance=0.0)
    assert ids.shape == (200, 6, len(SLOTS)) and (ids == ids[:, :1]).all()
    for position, slot in enumerate(SLOTS):
        assert set(ids[..., position].unique().tolist()) == set(range(len(slot)))


def test_picture_is_in_range() -> None:
    """RGB and coverage lie in [0, 1]; the object is always in the picture."""
    generator = torch.Generator().manual_seed(1)
    rgb, mask = render(simulate(sample_scenes(16, 3, generator), generator))
    assert rgb.shape == (16, 3 * CHUNK_FRAMES, 3, SIDE, SIDE)
    assert rgb.min() >= 0 and rgb.max() <= 1
    assert (mask.sum(dim=(2, 3, 4)) > 60).all()
