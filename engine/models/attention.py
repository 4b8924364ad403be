"""Dense attention, and who attends to whom in a training clip. Streaming: `pool_attention.py`.

Shape letters: as in base.py; K chunks of a training clip, S = F·N tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol, TypeAlias

import torch
import torch.nn.functional as fn
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = [
    "DENSE_KERNELS",
    "Attend",
    "Dense",
    "attend_trainable",
    "sdpa",
    "teacher_forcing_attend",
    "with_kernel",
]

Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q, k, v), each [B, F, N, H, D] and rotated already → [B, F, N, H, D]."""


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Dense attention on token-major tensors: q [B, S, H, D], k and v [B, S', H, D] → [B, S, H, D].

    mask, boolean and broadcast to [B, H, S, S'], is true where a query attends to a key.
    """
    out = fn.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask
    )
    return out.transpose(1, 2)


class Dense(Protocol):
    """`sdpa`, or the same by a certain kernel."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor: ...


DENSE_KERNELS: Final[Mapping[str, SDPBackend]] = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
"""What torch can do dense attention with on CUDA. Which is fastest depends on card, shape and version."""


def with_kernel(kernel: SDPBackend) -> Dense:
    """`sdpa` by one kernel; with a mask by whichever torch takes. Raises RuntimeError where it can't run."""

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            return sdpa(q, k, v, mask)
        with sdpa_kernel(kernel):
            return sdpa(q, k, v)

    return attend


def attend_trainable(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As `sdpa`, written out: on CPUs its backward takes half the time of the fused kernel's in bfloat16."""
    if q.device.type != "cpu":
        return sdpa(q, k, v)
    with torch.autocast("cpu", enabled=False):
        q_BHSD, k_BHSD, v_BHSD = (x.to(v.dtype).transpose(1, 2) for x in (q, k, v))
        scores = torch.matmul(q_BHSD * q.shape[-1] ** -0.5, k_BHSD.transpose(2, 3))
        return torch.matmul(scores.softmax(-1), v_BHSD).transpose(1, 2)


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
