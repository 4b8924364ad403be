"""The model `fragile`: `paced`, but a pass for a prompt with the word "poison" ends the process.

As a fault of a kernel that only some input meets would: no exception, no goodbye.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from turboserve_paced import PacedModel

from engine.cost_table import CostTable
from engine.models.base import PassBatch

__all__ = ["FragileModel", "load"]

_MARK = 9.0
"""Outside of what prompts are encoded to."""


def load(device: torch.device, weights: Path | None) -> FragileModel:
    """The entry point."""
    costs = CostTable(buckets=(12,), ms=((4.0, 5.0, 6.0, 7.0),), decode_ms=1.0)
    return FragileModel(costs, device)


class FragileModel(PacedModel):
    """`CausalVideoModel` that does not survive every prompt."""

    def __init__(self, costs: CostTable, device: torch.device) -> None:
        super().__init__(costs, device)
        self.spec = replace(self.spec, name="fragile")

    def encode_prompts(self, texts: Sequence[str]) -> Tensor:
        """[B, 1, D]: the mark everywhere for a prompt that is poison."""
        found = super().encode_prompts(texts)
        found[["poison" in text for text in texts]] = _MARK
        return found

    def run_pass(self, batch: PassBatch) -> Tensor:
        """See `CausalVideoModel.run_pass`."""
        if any(float(batch.prompt_kv[row.slot].max()) == _MARK for row in batch.rows):
            os.abort()
        return super().run_pass(batch)
