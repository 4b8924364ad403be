"""The ranks of one engine: what they exchange inside a pass, and how they agree between two.

A model of k ranks is replicated; each pass is split. Outside self-attention a rank computes its share of the
tokens, all heads of them; inside, its share of the heads, over all tokens (two exchanges per layer). So the
KV pool of a rank holds its heads only. Everything else about a session is the same on every rank.

Rank 0 alone hears of the outside world. Between two passes all ranks meet in one small all-reduce: it says
whether anybody failed, what time it is, and how many bytes of news rank 0 broadcasts next. From equal news
every rank makes the same plan. Whoever fails inside a pass still takes part in its exchanges, so that nobody
waits for him: from memory that was set aside at start-up.

A rank that dies or hangs shows as RanksLost on the others, within the timeout; then the engine must exit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from typing import Protocol, TypeVar

import torch
from torch import Tensor, distributed

from engine.models.base import ModelSpec, TokenExchange

__all__ = ["Alone", "Meeting", "RankGroup", "Ranks", "RanksLost", "Verdict", "check_split", "leave"]

T = TypeVar("T")


class RanksLost(RuntimeError):
    """A rank is gone, or has not taken part in time."""


class Verdict(IntEnum):
    """How a pass ended, the worst of all ranks."""

    DONE = 0
    FAILED = 1
    NO_MEMORY = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """What all ranks know after they have met."""

    verdict: Verdict
    now_ms: float
    """On rank 0's clock."""
    news: bytes
    """What rank 0 had to tell; the same object as it gave on rank 0."""


class Ranks(Protocol):
    """All ranks call everything here in the same order."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def meet(self, verdict: Verdict, *, now_ms: float = 0.0, news: bytes = b"") -> Meeting:
        """Agree; `now_ms` and `news` count on rank 0 only. Raises RanksLost."""

    def prepare(self, spec: ModelSpec, dtype: torch.dtype, *, largest: int) -> None:
        """Say what is split, and set memory aside for the exchanges of a failed pass with `largest` rows."""

    def start_serving(self) -> None:
        """From here on no rank waits longer for another than the timeout of serving. Raises RanksLost."""

    def begin_pass(self, frames: int) -> TokenExchange | None:
        """The exchange of one pass over so many latent frames, of all rows together; None for one rank."""

    def end_pass(self) -> None:
        """Take part in what is left of the pass's exchanges. Raises RanksLost."""

    def smallest(self, number: int) -> int:
        """Of all ranks. Raises RanksLost."""


class Alone:
    """One rank: agrees with itself."""

    rank, size = 0, 1

    def meet(self, verdict: Verdict, *, now_ms: float = 0.0, news: bytes = b"") -> Meeting:
        return Meeting(verdict=verdict, now_ms=now_ms, news=news)

    def prepare(self, spec: ModelSpec, dtype: torch.dtype, *, largest: int) -> None:
        pass

    def start_serving(self) -> None:
        pass

    def begin_pass(self, frames: int) -> TokenExchange | None:
        return None

    def end_pass(self) -> None:
        pass

    def smallest(self, number: int) -> int:
        return number


def check_split(spec: ModelSpec, ranks: int) -> None:
    """Raises ValueError: the model cannot be split among so many ranks."""
    for name, number in (("heads", spec.heads), ("tokens per frame", spec.tokens_per_frame)):
        if number % ranks:
            raise ValueError(f"{spec.name} has {number} {name}, which {ranks} ranks cannot share evenly")


class RankGroup:
    """The ranks of this torchrun job. The default process group must exist; for one thread at a time."""

    def __init__(self, *, device: torch.device, timeout_s: float) -> None:
        """To be called by all ranks together; `timeout_s` is that of serving, until then the default group's
        counts. Raises RanksLost."""
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self._device = device
        timeout = timedelta(seconds=timeout_s)
        self._serving = _lost_as(lambda: distributed.new_group(backend="gloo", timeout=timeout))
        self._meetings, self._tensors = distributed.group.WORLD, self._serving
        if device.type == "cuda":
            self._tensors = _lost_as(lambda: distributed.new_group(backend="nccl", timeout=timeout))
        self._spec: ModelSpec | None = None
        self._left: list[int] = []
        self._scratch = torch.empty(0, device=device)

    def prepare(self, spec: ModelSpec, dtype: torch.dtype, *, largest: int) -> None:
        """See Ranks."""
        self._spec = spec
        frames = max(largest * spec.chunk_latent_frames, spec.window_frames)  # as many as are written again
        most = max(self._schedule(frames))
        self._scratch = torch.zeros(2 * most, dtype=dtype, device=self._device)

    def start_serving(self) -> None:
        """See Ranks."""
        self.meet(Verdict.DONE)  # with the patience of start-up
        self._meetings = self._serving

    def meet(self, verdict: Verdict, *, now_ms: float = 0.0, news: bytes = b"") -> Meeting:
        """See Ranks."""
        first = self.rank == 0
        card = torch.zeros(len(Verdict) + 2, dtype=torch.float64)
        card[verdict] = 1.0
        if first:
            card[-2], card[-1] = now_ms, len(news)
        _lost_as(lambda: distributed.all_reduce(card, group=self._meetings))
        *counts, now, length = card.tolist()
        if length:
            news = self._broadcast(news if first else bytes(int(length)))
        worst = max(kind for kind in Verdict if counts[kind])
        return Meeting(verdict=worst, now_ms=now, news=news)

    def _broadcast(self, news: bytes) -> bytes:
        data = torch.frombuffer(bytearray(news), dtype=torch.uint8)
        _lost_as(lambda: distributed.broadcast(data, src=0, group=self._meetings))
        return news if self.rank == 0 else data.numpy().tobytes()

    def smallest(self, number: int) -> int:
        """See Ranks."""
        smallest = torch.tensor(number)
        operation = distributed.ReduceOp.MIN
        _lost_as(lambda: distributed.all_reduce(smallest, op=operation, group=self._meetings))
        return int(smallest)

    def begin_pass(self, frames: int) -> TokenExchange | None:
        """See Ranks."""
        assert not self._left, "the pass before was not ended"
        self._left = self._schedule(frames)
        return self

    def end_pass(self) -> None:
        """See Ranks."""
        while self._left:
            size = self._left[0]
            sent, received = self._scratch[:size], self._scratch[-size:]
            self._exchange(received, sent)

    # --- TokenExchange ---------------------------------------------------------------------------------

    def gather(self, x: Tensor) -> Tensor:
        """See TokenExchange."""
        sent = x[None].expand(self.size, *x.shape).contiguous()  # the same for everybody
        received = torch.empty_like(sent)
        self._exchange(received, sent)
        return received.movedim(0, 2).flatten(2, 3)

    def own(self, x: Tensor) -> Tensor:
        """See TokenExchange."""
        return x.chunk(self.size, 2)[self.rank]

    def to_heads(self, x: Tensor) -> Tensor:
        """See TokenExchange."""
        sent = x.unflatten(4, (self.size, -1)).movedim(4, 0).contiguous()  # [k, P, B, F, N/k, H/k, D]
        received = torch.empty_like(sent)
        self._exchange(received, sent)
        return received.movedim(0, 3).flatten(3, 4)

    def to_tokens(self, x: Tensor) -> Tensor:
        """See TokenExchange."""
        sent = x.unflatten(2, (self.size, -1)).movedim(2, 0).contiguous()  # [k, B, F, N/k, H/k, D]
        received = torch.empty_like(sent)
        self._exchange(received, sent)
        return received.movedim(0, 3).flatten(3, 4)

    def _exchange(self, received: Tensor, sent: Tensor) -> None:
        expected = self._left.pop(0)
        assert sent.numel() == expected, f"an exchange of {sent.numel()} elements, planned were {expected}"
        _lost_as(lambda: distributed.all_to_all_single(received.view(-1), sent.view(-1), group=self._tensors))

    def _schedule(self, frames: int) -> list[int]:
        """Elements that each exchange of a pass sends, in order."""
        spec = self._spec
        assert spec is not None, "prepare comes first"
        tokens = frames * spec.tokens_per_frame // self.size
        qkv = 3 * tokens * spec.heads * spec.head_dim
        latents = frames * math.prod(spec.latent_shape)
        return [*(size for _ in range(spec.layers) for size in (qkv, qkv // 3)), latents]


def _lost_as(collective: Callable[[], T]) -> T:
    """Whatever goes wrong in a collective means that the ranks are not together any more."""
    try:
        return collective()
    except (RuntimeError, ValueError) as exc:
        raise RanksLost(f"a collective operation failed: {exc}") from exc


def leave() -> None:
    """End the process groups; peers may be gone already."""
    with suppress(RuntimeError, ValueError):
        distributed.destroy_process_group()
