"""Denoising steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from engine.models.shapes.model import TINY, ShapesModel
from engine.noise import gaussian
from engine.sampler import denoise, initial_latents, sigmas_for

SPEC = replace(ShapesModel.random(0, config=TINY).spec, sigmas=(1.0, 0.5), first_sigmas=(1.0, 0.8, 0.4))
CPU = torch.device("cpu")
SHAPE = (SPEC.chunk_latent_frames, *SPEC.latent_shape)


def test_the_first_chunk_has_its_own_schedule() -> None:
    """Index 0 takes first_sigmas, every later one sigmas."""
    assert sigmas_for(SPEC, 0) == (1.0, 0.8, 0.4)
    assert sigmas_for(SPEC, 1) == sigmas_for(SPEC, 99) == (1.0, 0.5)


def test_a_step_goes_to_x0_and_back_with_fresh_noise() -> None:
    """x_next = (1 − σ')·(x − σ·v) + σ'·ε(seed, index, step + 1)."""
    x = initial_latents(SPEC, seed=3, index=2, device=CPU)
    velocity = torch.full(SHAPE, 0.25)
    noise = gaussian(SHAPE, seed=3, index=2, step=1)
    expected = 0.5 * (gaussian(SHAPE, seed=3, index=2, step=0) - 0.25) + 0.5 * noise
    stepped = denoise(SPEC, x, velocity, seed=3, index=2, step=0)
    assert np.allclose(stepped.numpy(), expected, atol=1e-6)


def test_the_last_step_gives_x0_without_noise() -> None:
    """x0 = x − σ·v."""
    x, velocity = torch.ones(SHAPE), torch.full(SHAPE, 2.0)
    assert torch.equal(denoise(SPEC, x, velocity, seed=3, index=2, step=1), torch.zeros(SHAPE))


def test_a_perfect_model_gives_its_picture_from_any_noise() -> None:
    """If the velocity always leads to x0, the chunk is x0."""
    x0 = torch.linspace(-1, 1, int(np.prod(SHAPE))).reshape(SHAPE)
    x = initial_latents(SPEC, seed=9, index=0, device=CPU)
    for step, sigma in enumerate(SPEC.first_sigmas):
        x = denoise(SPEC, x, (x - x0) / sigma, seed=9, index=0, step=step)
    assert torch.allclose(x, x0, atol=1e-5)
