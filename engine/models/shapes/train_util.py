"""What both training programs share: the time budget, the learning-rate curve, checkpoints."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import nn

__all__ = ["Progress", "autocast", "ease", "load_checkpoint", "save_checkpoint"]

_CHECKPOINT_S = 300.0
_LINE_S = 10.0


class Progress:
    """Counts steps against a budget of wall time and prints a line now and then."""

    def __init__(self, name: str, minutes: float) -> None:
        self.steps = 0
        self._name = name
        self._budget_s = minutes * 60
        self._begin = self._line = self._checkpoint = time.monotonic()
        self._means: dict[str, float] = {}

    def fraction(self) -> float:
        """Share of the budget that is spent, 0…1."""
        return min(1.0, (time.monotonic() - self._begin) / self._budget_s)

    def is_done(self) -> bool:
        """Has the budget run out?"""
        return self.fraction() >= 1.0

    def update(self, **values: float) -> None:
        """Count one step; running means of `values` go on the line."""
        self.steps += 1
        for key, value in values.items():
            self._means[key] = 0.98 * self._means.get(key, value) + 0.02 * value
        now = time.monotonic()
        if now - self._line >= _LINE_S:
            self._line = now
            rest = "  ".join(f"{key} {value:.4f}" for key, value in self._means.items())
            speed = (now - self._begin) / self.steps
            print(
                f"{self._name} {self.fraction():6.1%}  step {self.steps}  {speed:.3f} s/step  {rest}",
                flush=True,
            )

    def is_checkpoint_due(self) -> bool:
        """True once every five minutes."""
        due = time.monotonic() - self._checkpoint >= _CHECKPOINT_S
        if due:
            self._checkpoint = time.monotonic()
        return due


def ease(fraction: float, step: int, warmup: int, floor: float = 0.02) -> float:
    """Learning-rate factor: linear warm-up over `warmup` steps, cosine to `floor` over the time budget."""
    cosine = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * fraction))
    return min(1.0, (step + 1) / warmup) * cosine


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 matmuls and convolutions on this device."""
    return torch.autocast(device.type, dtype=torch.bfloat16)


def save_checkpoint(path: Path, module: nn.Module) -> None:
    """Write a module's tensors, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(module.state_dict(), partial)
    partial.replace(path)


def load_checkpoint(path: Path, module: nn.Module) -> bool:
    """Load a module's tensors if the file exists."""
    if path.exists():
        module.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
        return True
    return False
