"""The shipped weights show what is asked for, streamed through the ring of KV frames."""

from __future__ import annotations

import functools

import pytest
import torch

from engine.models.base import CausalVideoModel
from engine.models.registry import load_model
from engine.models.shapes.captions import read
from engine.models.shapes.judge import judge
from engine.models.shapes.rollout import stream

RED, GREEN = "a red ball bouncing on a blue background", "a green star spinning on a black background"


@functools.cache
def _model() -> CausalVideoModel:
    return load_model("shapes", device=torch.device("cpu"))


@functools.cache
def _video() -> torch.Tensor:
    """Six chunks past the window of the first prompt, then four of another."""
    return stream(_model(), [RED] * 6 + [GREEN] * 4, seed=1)[0]


@pytest.mark.parametrize(("prompt", "first", "last"), [(RED, 1, 6), (GREEN, 8, 10)], ids=["start", "change"])
def test_prompt_is_followed(prompt: str, first: int, last: int) -> None:
    """Background, colour and size are right from the start and after a change of prompt."""
    found = judge(_video()[first * 12 : last * 12], read(prompt))
    assert found["background"] and found["colour"] and found["area"], found


def test_the_object_bounces() -> None:
    """The ball goes up and down in its column."""
    assert judge(_video()[12:72], read(RED))["motion"]


def test_seeds_differ_and_repeat() -> None:
    """A seed gives the same video again; another seed another one."""
    once, again, other = (stream(_model(), [RED], seed)[0].float() for seed in (3, 3, 4))
    assert torch.equal(once, again)
    assert (once - other).abs().mean() > 1
