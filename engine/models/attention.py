"""Who attends to whom: over the engine's KV pools when streaming, over a whole clip when training.

The streaming functions loop over the rows of a batch on exact slices of the pools: no mask, no padding, no
copy of cached K/V, no device value read by the host. The GEMMs around them run on the concatenated batch.

Shape letters: as in base.py; K chunks of a training clip, S = F·N tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as fn
from torch import Tensor

from engine.models.base import PassBatch, PassRow

__all__ = ["Attend", "attend_pool", "attend_prompts", "attend_trainable", "teacher_forcing_attend"]

Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q, k, v), each [B, F, N, H, D] and rotated already → [B, F, N, H, D]."""


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Dense attention on token-major tensors: q [B, S, H, D], k and v [B, S', H, D] → [B, S, H, D]."""
    out = fn.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def attend_trainable(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As `_sdpa`, written out: on CPUs its backward takes half the time of the fused kernel's in bfloat16."""
    if q.device.type != "cpu":
        return _sdpa(q, k, v)
    with torch.autocast("cpu", enabled=False):
        q_BHSD, k_BHSD, v_BHSD = (x.to(v.dtype).transpose(1, 2) for x in (q, k, v))
        scores = torch.matmul(q_BHSD * q.shape[-1] ** -0.5, k_BHSD.transpose(2, 3))
        return torch.matmul(scores.softmax(-1), v_BHSD).transpose(1, 2)


def attend_pool(batch: PassBatch, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Store the rows' K/V in their ring frames, then let each row attend to its valid ring frames."""
    out = torch.empty_like(q)
    for index, row in enumerate(batch.rows):
        slab = batch.kv[row.slot, layer]  # [2, W, N, H, D]
        _store(slab[0], row, k[index])
        _store(slab[1], row, v[index])
        seen = slab[:, : row.num_valid].flatten(1, 2)  # a view
        attended = _sdpa(q[index].flatten(0, 1)[None], seen[0][None], seen[1][None])
        out[index] = attended[0].unflatten(0, q.shape[1:3])
    return out


def _store(ring: Tensor, row: PassRow, value: Tensor) -> None:
    """Write value [F, N, H, D] to the ring frames of the row; one copy where they are neighbours."""
    first, count = row.write[0], len(row.write)
    if row.write == tuple(range(first, first + count)):
        ring[first : first + count].copy_(value)
        return
    for frame, position in enumerate(row.write):
        ring[position].copy_(value[frame])


def attend_prompts(batch: PassBatch, layer: int, q: Tensor) -> Tensor:
    """Let each row q [B, F, N, H, D] attend to its own prompt K/V."""
    out = torch.empty_like(q)
    for index, row in enumerate(batch.rows):
        k, v = batch.prompt_kv[row.slot, layer]
        attended = _sdpa(q[index].flatten(0, 1)[None], k[None], v[None])
        out[index] = attended[0].unflatten(0, q.shape[1:3])
    return out


def teacher_forcing_attend(
    chunks: Sequence[tuple[int, bool]], chunk_frames: int, window_chunks: int
) -> Attend:
    """Attention of a training clip laid out as chunks of (chunk index, is clean), clean ones first.

    Every chunk attends to itself and to the clean chunks before it that are still in the window: what the
    KV ring holds at that point of a stream.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q_BKSHD, k_BKSHD, v_BKSHD = (x.unflatten(1, (-1, chunk_frames)).flatten(2, 3) for x in (q, k, v))
        out = []
        for position, (chunk, _) in enumerate(chunks):
            seen = [
                other
                for other, (index, is_clean) in enumerate(chunks)
                if is_clean and chunk - window_chunks < index < chunk
            ]
            seen.append(position)
            keys = torch.cat([k_BKSHD[:, i] for i in seen], dim=1)
            values = torch.cat([v_BKSHD[:, i] for i in seen], dim=1)
            out.append(attend_trainable(q_BKSHD[:, position], keys, values))
        return torch.stack(out, dim=1).reshape(q.shape)

    return attend
