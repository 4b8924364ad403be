"""Which GPUs this machine has, without importing torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Final

from launch.quarantine import Quarantine
from scheduler.messages import EngineId

__all__ = ["GpuShares", "least_used", "visible_gpus", "why_no_gpu"]

_DEVICES: Final = Path("/dev")


def visible_gpus(environment: Mapping[str, str], devices: Path = _DEVICES) -> tuple[str, ...]:
    """Names as CUDA_VISIBLE_DEVICES takes them; that variable limits them if it is set: to those before the
    first that can't be one, as -1, which many write for none."""
    limited = environment.get("CUDA_VISIBLE_DEVICES")
    if limited is not None:
        names = (name.strip() for name in limited.split(","))
        return tuple(takewhile(lambda name: not name.startswith("-"), filter(None, names)))
    num_gpus = len(list(devices.glob("nvidia[0-9]*")))
    return tuple(str(index) for index in range(num_gpus))


def why_no_gpu(environment: Mapping[str, str]) -> str:
    """In parentheses, behind a sentence that says that none is visible."""
    limited = environment.get("CUDA_VISIBLE_DEVICES")
    return "(no /dev/nvidia0)" if limited is None else f"(CUDA_VISIBLE_DEVICES is {limited!r})"


def least_used(
    gpus: Sequence[str], in_use: Iterable[str], count: int = 1, avoid: Collection[str] = ()
) -> tuple[str, ...]:
    """The GPUs with the fewest engines on them, the first of equals; those to avoid last."""
    engines_on = Counter(in_use)
    return tuple(sorted(gpus, key=lambda gpu: (gpu in avoid, engines_on[gpu]))[:count])


class GpuShares:
    """Which engine has which GPUs. Times are seconds of one monotonic clock."""

    def __init__(self, gpus: Sequence[str]) -> None:
        self._gpus = gpus
        self._given: dict[EngineId, tuple[str, ...]] = {}
        self._quarantine = Quarantine()

    def give(
        self, engine: EngineId, count: int, now_s: float, *, here: Collection[EngineId]
    ) -> tuple[str, ...]:
        """GPUs for a new engine. `here`: engines that have a process; all others gave theirs back."""
        self._given = {id: gpus for id, gpus in self._given.items() if id in here}
        in_use = (gpu for gpus in self._given.values() for gpu in gpus)
        gpus = least_used(self._gpus, in_use, count, self._quarantine.avoided(now_s))
        self._given[engine] = gpus
        return gpus

    def note_death(self, engine: EngineId, now_s: float) -> tuple[str, ...]:
        """An engine died young; it has its GPUs until its process is gone. Returns GPUs that are avoided from
        now on."""
        gpus = self._given.get(engine, ())
        return tuple(gpu for gpu in gpus if self._quarantine.note_death(gpu, now_s))
