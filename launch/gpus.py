"""Which GPUs this machine has, without importing torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

__all__ = ["least_used", "visible_gpus"]

_DEVICES: Final = Path("/dev")


def visible_gpus(environment: Mapping[str, str], devices: Path = _DEVICES) -> tuple[str, ...]:
    """Names as CUDA_VISIBLE_DEVICES takes them; that variable limits them if it is set."""
    limited = environment.get("CUDA_VISIBLE_DEVICES")
    if limited is not None:
        return tuple(name.strip() for name in limited.split(",") if name.strip())
    num_gpus = len(list(devices.glob("nvidia[0-9]*")))
    return tuple(str(index) for index in range(num_gpus))


def least_used(
    gpus: Sequence[str], in_use: Iterable[str], count: int = 1, avoid: Collection[str] = ()
) -> tuple[str, ...]:
    """The GPUs with the fewest engines on them, the first of equals; those to avoid last."""
    engines_on = Counter(in_use)
    return tuple(sorted(gpus, key=lambda gpu: (gpu in avoid, engines_on[gpu]))[:count])
