"""How many sessions fit: from memory measured after warm-up, with a stated margin."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import torch

from engine.models.base import CausalVideoModel

__all__ = ["CPU_MARGIN", "CUDA_MARGIN", "MemoryMeter", "Room", "make_meter", "slot_bytes"]

CUDA_MARGIN: Final = 0.1
"""Share of a GPU's memory that stays free: fragmentation, communication buffers, late libraries."""
CPU_MARGIN: Final = 0.5
"""Share of the free host memory left to others: neighbours measure at the same time and see the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Memory as it is without any pool."""

    free_bytes: int
    workspace_bytes: int
    """What the largest pass took for itself at its peak."""
    margin_bytes: int

    def num_slots(self, bytes_per_slot: int) -> int:
        """Slots that fit beside the workspace and the margin."""
        return max(0, self.free_bytes - self.workspace_bytes - self.margin_bytes) // bytes_per_slot


class MemoryMeter(Protocol):
    """Measures the peak of what runs between `begin` and `room`."""

    def begin(self) -> None:
        """The pools for the measurement are there; passes follow."""

    def room(self, pool_bytes: int) -> Room:
        """What there would be without these pools, which are still there."""


class _CudaMeter:
    def __init__(self, device: torch.device) -> None:
        self._device = device

    def begin(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)

    def room(self, pool_bytes: int) -> Room:
        torch.cuda.synchronize(self._device)
        at_rest = torch.cuda.memory_allocated(self._device)
        workspace = torch.cuda.max_memory_allocated(self._device) - at_rest
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self._device)
        return Room(
            free_bytes=free + pool_bytes,
            workspace_bytes=workspace,
            margin_bytes=math.ceil(CUDA_MARGIN * total),
        )


class _CpuMeter:
    """Resident size and its peak, as Linux counts them; without these, a workspace of nothing."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def begin(self) -> None:
        with (self._root / "proc/self/clear_refs").open("w") as file:
            file.write("5")  # the peak starts again from here

    def room(self, pool_bytes: int) -> Room:
        status = self._table("proc/self/status")
        free = int(min(self._table("proc/meminfo")["MemAvailable"], self._left_in_cgroup()))
        return Room(
            free_bytes=free,  # pools are zeros that nobody touched: hardly any of them is resident yet
            workspace_bytes=max(0, status["VmHWM"] - status["VmRSS"]),
            margin_bytes=math.ceil(CPU_MARGIN * free),
        )

    def _table(self, path: str) -> dict[str, int]:
        """Lines such as "VmHWM:  123 kB", in bytes."""
        lines = (line.split() for line in (self._root / path).read_text().splitlines())
        return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1] == "kB"}

    def _left_in_cgroup(self) -> float:
        folder = self._root / "sys/fs/cgroup"
        try:
            limit = (folder / "memory.max").read_text().strip()
            used = int((folder / "memory.current").read_text())
        except OSError:
            return math.inf
        return math.inf if limit == "max" else max(0, int(limit) - used)


def make_meter(device: torch.device) -> MemoryMeter:
    """The meter for a device."""
    return _CudaMeter(device) if device.type == "cuda" else _CpuMeter()


def slot_bytes(model: CausalVideoModel, *, ranks: int = 1) -> int:
    """Bytes that a session takes in the pools of one rank."""
    spec = model.spec
    kv, prompt = math.prod(spec.kv_slab_shape) // ranks, math.prod(spec.prompt_kv_shape)
    element = torch.empty((), dtype=model.dtype).element_size()
    decoder = model.initial_decoder_state()
    return (kv + prompt) * element + decoder.numel() * decoder.element_size()
