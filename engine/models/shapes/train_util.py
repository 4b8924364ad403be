"""What both training programs share: the time budget, the learning-rate curve, checkpoints."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.models.shapes.model import ShapesConfig

__all__ = ["Job", "MuonAdam", "Peers", "Progress", "autocast", "ease", "load_checkpoint", "save_checkpoint"]

_CHECKPOINT_S = 300.0
_LINE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one stage of training is to do."""

    config: ShapesConfig
    out: Path
    """Folder of checkpoints, clips, weights and sheets."""
    minutes: float
    """Wall time to spend."""
    device: torch.device
    seed: int = 0
    batch: int = 8
    """Clips per step and process."""


class Progress:
    """Counts steps against a budget of wall time and prints a line now and then."""

    def __init__(self, name: str, minutes: float) -> None:
        self.steps = 0
        self._name = name
        self._budget_s = minutes * 60
        self._begin = self._line = self._checkpoint = time.monotonic()
        self._means: dict[str, Tensor | float] = {}

    def fraction(self) -> float:
        """Share of the budget that is spent, 0…1."""
        return min(1.0, (time.monotonic() - self._begin) / self._budget_s)

    def is_done(self) -> bool:
        """Has the budget run out?"""
        return self.fraction() >= 1.0

    def update(self, **values: Tensor | float) -> None:
        """Count one step; running means of `values`, numbers or tensors of one, go on the line.

        A tensor is read for the line only: a GPU need not be waited for at every step.
        """
        self.steps += 1
        for key, value in values.items():
            self._means[key] = 0.98 * self._means.get(key, value) + 0.02 * value
        now = time.monotonic()
        if now - self._line >= _LINE_S and Peers().rank == 0:
            self._line = now
            rest = "  ".join(f"{key} {float(value):.4f}" for key, value in self._means.items())
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


class MuonAdam:
    """Muon for matrices and convolution kernels (as matrices, one row per output), AdamW for others.

    Both take one learning rate. On these small networks Muon needs about a fifth of AdamW's steps.
    """

    def __init__(
        self, kernels: Iterable[nn.Parameter], others: Iterable[nn.Parameter], *, weight_decay: float
    ) -> None:
        self._kernels = [(p, nn.Parameter(_as_matrix(p.data))) for p in kernels]
        for kernel, matrix in self._kernels:
            assert kernel.data_ptr() == matrix.data_ptr(), "the matrix must share the kernel's memory"
        self._others = list(others)
        matrices = [matrix for _, matrix in self._kernels]
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(self._others, betas=(0.9, 0.98), weight_decay=0.0),
        ]

    def set_lr(self, lr: float) -> None:
        """For the next steps."""
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = lr

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for kernel, matrix in self._kernels:
            kernel.grad = matrix.grad = None
        for other in self._others:
            other.grad = None

    def step(self) -> None:
        """One update from the parameters' gradients."""
        for kernel, matrix in self._kernels:
            matrix.grad = None if kernel.grad is None else _as_matrix(kernel.grad).contiguous()
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, object]:
        """What `load_state_dict` takes."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from a saved state of the same parameters."""
        for part, saved in zip(self._parts, state["parts"], strict=True):  # type: ignore[call-overload]
            part.load_state_dict(saved)


def _as_matrix(kernel: Tensor) -> Tensor:
    """A view [outputs, inputs · …] of a kernel; convolutions lie channels-last."""
    return (kernel.permute(0, 2, 3, 1) if kernel.ndim == 4 else kernel).flatten(1)


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


class Peers:
    """The processes that train one model together: one under plain python, several under torchrun.

    On a shared CPU, processes of one thread each lose far less to other programs than one process of many
    threads, whose every operation waits for its slowest thread.
    """

    def __init__(self) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        if self.count > 1 and not dist.is_initialized():
            dist.init_process_group("gloo")

    def agree(self, value: float) -> float:
        """The first process's value, on all of them."""
        shared = torch.tensor([value], dtype=torch.float64)
        if self.count > 1:
            dist.broadcast(shared, src=0)
        return float(shared.item())

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace every gradient by its mean over the processes."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.count == 1:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.count
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))
