"""Flow-matching steps of one chunk: x = (1 − σ)·x0 + σ·ε, the model predicts the velocity.

Each step goes to x0 and back to the next, lower noise level with fresh noise. After the last step the clean
pass (σ = 0) runs on x0 and writes the K/V that later chunks attend to.

Shape letters: F latent frames of a chunk, C latent channels, h, w latent size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.models.base import ModelSpec
from engine.models.upload import upload
from engine.noise import gaussian

__all__ = ["denoise", "initial_latents", "sigmas_for"]


def sigmas_for(spec: ModelSpec, index: int) -> tuple[float, ...]:
    """Noise levels of chunk `index` since start or reset."""
    return spec.first_sigmas if index == 0 else spec.sigmas


def initial_latents(spec: ModelSpec, *, seed: int, index: int, device: torch.device) -> Tensor:
    """[F, C, h, w] float32: the noise that chunk `index` starts from."""
    return _noise(spec, seed=seed, index=index, step=0, device=device)


def denoise(spec: ModelSpec, x: Tensor, velocity: Tensor, *, seed: int, index: int, step: int) -> Tensor:
    """Latents [F, C, h, w] after denoising step `step`: noisy ones for the next step, x0 after the last."""
    sigmas = sigmas_for(spec, index)
    x0 = x - sigmas[step] * velocity
    if step + 1 == len(sigmas):
        return x0
    sigma = sigmas[step + 1]
    return (1.0 - sigma) * x0 + sigma * _noise(spec, seed=seed, index=index, step=step + 1, device=x.device)


def _noise(spec: ModelSpec, *, seed: int, index: int, step: int, device: torch.device) -> Tensor:
    shape = (spec.chunk_latent_frames, *spec.latent_shape)
    return upload(torch.from_numpy(gaussian(shape, seed=seed, index=index, step=step)), device)
