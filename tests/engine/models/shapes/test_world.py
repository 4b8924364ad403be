"""The drawn world moves as its prompts say, stays bounded, and can be pushed."""

from __future__ import annotations

import pytest
import torch

from engine.models.shapes.concepts import SLOTS, Scene, scene_ids
from engine.models.shapes.drawing import draw
from engine.models.shapes.world import (
    CHUNK_FRAMES,
    PUSH,
    SIDE,
    sample_actions,
    sample_scenes,
    simulate,
)


def test_prompt_change_carries_the_objects_on() -> None:
    """Where prompts change and keys push, what moves on goes no further than objects move."""
    generator = torch.Generator().manual_seed(0)
    ids = sample_scenes(64, 8, generator, switch_chance=1.0)
    ids[:, :, 6] = 0  # one object: others come and go
    track = simulate(ids, generator, sample_actions(64, 24, generator))
    for values in (track.x[..., 0], track.y[..., 0]):
        step = torch.diff(values, dim=1)
        step = (step + SIDE / 2) % SIDE - SIDE / 2
        assert step.abs().max() < 24


def test_scenes_change_only_at_chunks() -> None:
    """Every chunk has one prompt within its slots, and the chance of a change is as asked for."""
    ids = sample_scenes(200, 6, torch.Generator().manual_seed(0), switch_chance=0.0)
    assert ids.shape == (200, 6, len(SLOTS)) and (ids == ids[:, :1]).all()
    for position, slot in enumerate(SLOTS):
        assert set(ids[..., position].unique().tolist()) == set(range(len(slot)))


@pytest.mark.parametrize("side", [96, 128])
def test_picture_is_in_range(side: int) -> None:
    """RGB and coverage lie in [0, 1] at any size; the objects are always in the picture."""
    generator = torch.Generator().manual_seed(1)
    rgb, mask = draw(simulate(sample_scenes(16, 3, generator), generator), side=side)
    assert rgb.shape == (16, 3 * CHUNK_FRAMES, 3, side, side)
    assert rgb.min() >= 0 and rgb.max() <= 1
    assert (mask.sum(dim=(2, 3, 4)) > 60).all()


def test_equal_objects_have_equal_states() -> None:
    """Turning a formation by its own symmetry moves no object: a picture tells the whole state."""
    scene = Scene(motion="orbit", count="three")
    track = simulate(torch.tensor([[scene_ids(scene)] * 4]), torch.Generator().manual_seed(0))
    at = torch.stack([track.x, track.y])
    dx, dy = at - at.mean(dim=-1, keepdim=True)
    angles = torch.atan2(dy, dx).sort(dim=-1).values
    torch.testing.assert_close(torch.diff(angles), torch.full((1, 48, 2), 2 * torch.pi / 3))


@pytest.mark.parametrize(("push", "axis"), [((1.0, 0.0), "x"), ((0.0, -0.5), "y")])
def test_keys_push_the_group(push: tuple[float, float], axis: str) -> None:
    """A group at rest moves the pushed way at the stated pace and nowhere else."""
    ids = torch.tensor([[scene_ids(Scene(motion="rest"))]])
    actions = torch.tensor(push).expand(1, 3, 2)
    free, pushed = (simulate(ids, torch.Generator().manual_seed(3), a) for a in (None, actions))
    for name, value in (("x", push[0]), ("y", push[1])):
        moved = (getattr(pushed, name) - getattr(free, name))[0, 3, 0]  # before the pull back begins
        assert moved == pytest.approx(4 * PUSH * value, abs=0.5), axis


def test_pushes_are_held_and_bounded() -> None:
    """Most of the time nobody presses; what is pressed lies in [−1, 1] and lasts."""
    actions = sample_actions(500, 24, torch.Generator().manual_seed(0))
    assert actions.abs().max() <= 1
    pressed = (actions != 0).any(dim=-1).float()
    assert 0.1 < pressed.mean() < 0.4
    kept = (torch.diff(actions, dim=1) == 0).all(dim=-1)
    assert kept.float().mean() > 0.8
