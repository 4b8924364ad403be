"""Stream a model without an engine, same passes, ring and sampler: for samples, the judge and tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.models.base import CausalVideoModel, PassBatch, PassRow
from engine.ring import num_valid, write_slots

__all__ = ["Rollout", "stream"]


class Rollout:
    """One session's state; `next_chunk` makes the next chunk's clean latents."""

    def __init__(self, model: CausalVideoModel, noise: Callable[[], Tensor]) -> None:
        """`noise()` returns standard normal [F, C, h, w], a new one at each call."""
        spec = model.spec
        self._model, self._noise = model, noise
        self._actions: Tensor | None = None
        if spec.action_dim:
            self._actions = torch.zeros(spec.chunk_latent_frames, spec.action_dim, device=model.device)
        self._kv = torch.zeros(1, *spec.kv_slab_shape, dtype=model.dtype, device=model.device)
        self._prompt_kv = torch.zeros(1, *spec.prompt_kv_shape, dtype=model.dtype, device=model.device)
        self._chunk = 0

    def set_prompt(self, text: str) -> None:
        """Holds from the next chunk on."""
        self.set_embeds(self._model.encode_prompts([text]))

    def set_embeds(self, embeds: Tensor) -> None:
        """Prompt embeddings [1, T, E], perhaps blended, hold from the next chunk on."""
        self._prompt_kv[:] = self._model.prompt_kv(embeds)

    def push(self, action: Sequence[float]) -> None:
        """Holds this action [A] from the next chunk on."""
        assert self._actions is not None, "the model takes no control input"
        self._actions[:] = torch.tensor(action)

    def next_chunk(self) -> Tensor:
        """Denoise one chunk, write its clean K/V, return its latents [F, C, h, w]."""
        spec = self._model.spec
        sigmas = spec.first_sigmas if self._chunk == 0 else spec.sigmas
        x0 = torch.zeros(())
        for sigma in sigmas:
            noisy = (1 - sigma) * x0 + sigma * self._noise()
            x0 = noisy - sigma * self._pass(noisy, sigma)
        self._pass(x0, 0.0)
        self._chunk += 1
        return x0

    def _pass(self, x: Tensor, sigma: float) -> Tensor:
        spec = self._model.spec
        span, window = spec.chunk_latent_frames, spec.window_frames
        row = PassRow(
            slot=0,
            frame_start=self._chunk * span,
            write=write_slots(self._chunk, chunk=span, window=window, sink=spec.sink_frames),
            num_valid=num_valid(self._chunk, chunk=span, window=window),
        )
        level = torch.full((1, span), sigma, device=self._model.device)
        batch = PassBatch(
            rows=(row,),
            x=x[None],
            sigma=level,
            kv=self._kv,
            prompt_kv=self._prompt_kv,
            actions=None if self._actions is None else self._actions[None],
        )
        return self._model.run_pass(batch)[0]


@torch.inference_mode()
def stream(
    model: CausalVideoModel,
    prompts: Sequence[str],
    seed: int,
    pushes: Sequence[Sequence[float]] | None = None,
) -> tuple[Tensor, Tensor]:
    """One chunk per prompt, pushed by one action [A] per chunk.

    Returns RGB uint8 [frames, height, width, 3] and latents [chunks · F, C, h, w].
    """
    spec = model.spec
    generator = torch.Generator().manual_seed(seed)
    size = (spec.chunk_latent_frames, *spec.latent_shape)
    rollout = Rollout(model, lambda: torch.randn(size, generator=generator).to(model.device))
    state = model.initial_decoder_state()
    frames, latents = [], []
    for index, prompt in enumerate(prompts):
        if index == 0 or prompt != prompts[index - 1]:
            rollout.set_prompt(prompt)
        if pushes is not None:
            rollout.push(pushes[index])
        latents.append(rollout.next_chunk())
        rgb, state = model.decode(latents[-1], state)
        frames.append(rgb)
    return torch.cat(frames), torch.cat(latents)
