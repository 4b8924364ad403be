"""A tiny model with random weights and pools for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from engine.models.base import PassBatch, PassRow
from engine.models.shapes.model import TINY, ShapesModel

SLOTS = 4

# Two threads on a busy two-core machine wait for each other at every small operation.
torch.set_num_threads(1)


class Pools:
    """KV and prompt pools of a few slots, filled with noise so that a read of a wrong place shows."""

    def __init__(self, model: ShapesModel, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.model = model
        self.kv = torch.randn(SLOTS, *model.spec.kv_slab_shape, generator=generator)
        self.prompt_kv = torch.randn(SLOTS, *model.spec.prompt_kv_shape, generator=generator)

    def run(self, rows: Sequence[PassRow], x: Tensor, sigma: Tensor) -> Tensor:
        """One pass over these rows."""
        batch = PassBatch(
            rows=tuple(rows),
            x=x,
            sigma=sigma,
            kv=self.kv,
            prompt_kv=self.prompt_kv,
            actions=torch.zeros(*x.shape[:2], self.model.spec.action_dim),
        )
        return self.model.run_pass(batch)


@pytest.fixture(scope="session")
def tiny() -> ShapesModel:
    """Random weights; holds no state, so all tests share it."""
    return ShapesModel.random(0, config=TINY)


@pytest.fixture
def make_pools(tiny: ShapesModel) -> Callable[[], Pools]:
    """Pools with equal contents at every call."""
    return lambda: Pools(tiny)
