"""The shipped weights show what is asked for, streamed through the ring of KV frames."""

from __future__ import annotations

import functools

import pytest
import torch

from engine.models.base import CausalVideoModel
from engine.models.registry import load_model
from engine.models.shapes.captions import read
from engine.models.shapes.judge import observe, score
from engine.models.shapes.rollout import stream

RED, GREEN = "a red ball bouncing on a blue background", "a green star resting on a black background"


@functools.cache
def _model() -> CausalVideoModel:
    return load_model("shapes", device=torch.device("cpu"))


@functools.cache
def _video() -> torch.Tensor:
    """Six chunks past the window of the first prompt, then four of another."""
    return stream(_model(), [RED] * 6 + [GREEN] * 4, seed=1)[0]


@pytest.mark.parametrize(("prompt", "first", "last"), [(RED, 1, 6), (GREEN, 8, 10)], ids=["start", "change"])
def test_prompt_is_followed(prompt: str, first: int, last: int) -> None:
    """What is seen is what was asked for, from the start and after a change of prompt."""
    found = score(observe(_video()[first * 12 : last * 12]), read(prompt))
    assert all(found[name] for name in ("background", "colour", "count", "size", "motion")), found


def test_an_edit_changes_what_it_names() -> None:
    """The background changes, the object stays."""
    shown = _model().combine_prompts(RED, "make it night")
    video = stream(_model(), [RED] * 3 + [shown] * 4, seed=2)[0]
    seen = observe(video[4 * 12 :])
    assert (seen.background, seen.colour, seen.count) == ("night", "red", "one")


def test_an_arrow_key_moves_the_object() -> None:
    """Held for a chunk, the right arrow takes the object to the right of where it would be."""
    prompts, still = ["a red ball resting on a black background"] * 3, (0.0, 0.0)
    right = _model().encode_control(["ArrowRight"], {})
    free, pushed = (
        stream(_model(), prompts, 4, [still, still, last])[0][-1].float() for last in (still, right)
    )
    columns = torch.arange(96.0)
    centres = [
        float((frame[..., 0].sum(0) * columns).sum() / frame[..., 0].sum()) for frame in (free, pushed)
    ]
    assert centres[1] - centres[0] > 6


def test_seeds_differ_and_repeat() -> None:
    """A seed gives the same video again; another seed another one."""
    once, again, other = (stream(_model(), [RED], seed)[0].float() for seed in (3, 3, 4))
    assert torch.equal(once, again)
    assert (once - other).abs().mean() > 1
