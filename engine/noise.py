"""Counter-based Gaussian noise on the host. Pure: one (seed, index, step) gives the same numbers anywhere.

Philox turns a key and a counter into integers whose stream numpy keeps stable across versions; the transform
to normals is our own, in float64, rounded once to float32. So neither batch composition nor device nor a move
to another process changes a session's noise. Not guaranteed: the last bit on a libm that rounds otherwise.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["gaussian"]

_DOMAIN = 0x7475_7262_6F73_6572
"""Second half of the Philox key: keeps this use apart from any other of the same seed."""
_TWO_32 = float(2**32)


def gaussian(shape: tuple[int, ...], *, seed: int, index: int, step: int) -> npt.NDArray[np.float32]:
    """Standard normal float32 of `shape` for denoising step `step` of chunk `index` since start or reset.

    Step 0 is the chunk's initial noise, step k + 1 the fresh noise added after step k.
    seed, index and step are in 0 .. 2**63 - 1.
    """
    count = math.prod(shape)
    # Word 0 of the counter advances within one draw; words 1 and 2 name the draw.
    generator = np.random.Philox(key=[seed, _DOMAIN], counter=[0, step, index, 0])
    raw = generator.random_raw((count + 1) // 2)
    radius = np.sqrt(-2.0 * np.log(((raw >> np.uint64(32)).astype(np.float64) + 1.0) / _TWO_32))
    angle = (raw & np.uint64(0xFFFF_FFFF)).astype(np.float64) * (2.0 * math.pi / _TWO_32)
    normals = np.empty((raw.size, 2))
    normals[:, 0] = radius * np.cos(angle)
    normals[:, 1] = radius * np.sin(angle)
    return normals.reshape(-1)[:count].astype(np.float32).reshape(shape)
