"""Schedules of the published checkpoints, and sizes against the published ones."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import pytest

from engine.models.wan.config import CAUSAL_FORCING_FRAMEWISE, CAUSVID, LONGLIVE, SELF_FORCING, TINY
from engine.models.wan.model import empty_decoder, empty_dit
from engine.models.wan.taehv import memory_shapes
from engine.models.wan.vae import WanVaeDecoder


def test_noise_levels_are_the_trained_ones() -> None:
    """Shift 5 and 8 of the same list, and CausVid's own levels."""
    assert SELF_FORCING.sigmas(is_first=False) == pytest.approx((1.0, 0.9375, 0.83333, 0.625), abs=1e-5)
    shifted = replace(SELF_FORCING, shift=8.0).sigmas(is_first=True)
    assert shifted == pytest.approx((1.0, 0.96, 0.88889, 0.72727), abs=1e-5)
    assert CAUSVID.sigmas(is_first=False) == (1.0, 0.757, 0.522)
    assert len(CAUSAL_FORCING_FRAMEWISE.sigmas(is_first=True)) == 4
    assert len(CAUSAL_FORCING_FRAMEWISE.sigmas(is_first=False)) == 2
    assert (LONGLIVE.dit.window_frames, LONGLIVE.sink_frames) == (12, 3)


def test_sizes_are_the_published_ones() -> None:
    """Parameters of transformer and decoders, elements of the decoders' states, at 480×832."""
    assert sum(p.numel() for p in empty_dit(SELF_FORCING).parameters()) == 1_418_996_800
    small, vae = (
        empty_decoder(SELF_FORCING),
        empty_decoder(replace(TINY, decoder="wan_vae", decoder_width=96)),
    )
    assert isinstance(vae, WanVaeDecoder)
    assert sum(p.numel() for p in small.parameters()) == 9_844_611
    assert sum(p.numel() for p in vae.parameters()) == 73_295_603
    assert 2 * sum(map(prod, memory_shapes(64, 60, 104))) == 67_092_480  # bytes in half precision
    shapes = vae.state_shapes(60, 104)
    assert len(shapes) == 32 and sum(map(prod, shapes)) == 944_286_720


@pytest.mark.parametrize(
    "change",
    [
        *({"shift": 0.5}, {"context_noise": 1000}, {"first_steps": ()}, {"steps": (500, 500)}),
        *({"sink_frames": 2}, {"sink_frames": 12}, {"sink_frames": -3}, {"sink_reach": 9}),
        {"dit": replace(TINY.dit, window_frames=0), "sink_frames": 0},
    ],
)
def test_bad_config_is_refused(change: dict[str, Any]) -> None:
    """With the model's name in the message: an engine could not be told of it."""
    with pytest.raises(ValueError, match="wan-tiny"):
        replace(TINY, **change)
