"""Slab pools: one slot per resident session for its KV cache, prompt K/V and decoder state."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.models.base import CausalVideoModel

__all__ = ["PoolFull", "SlabPool"]


class PoolFull(Exception):
    """Every slot is held."""


class SlabPool:
    """Fixed number of slots, allocated once at start-up. Not thread-safe: the compute thread owns it."""

    def __init__(self, model: CausalVideoModel, *, slots: int, ranks: int = 1) -> None:
        """With several ranks, each holds the K/V of its share of the heads; all else is on every rank."""
        spec = model.spec
        *dims, heads, head_dim = spec.kv_slab_shape
        self._model = model
        self.num_slots = slots
        self.kv = torch.zeros(
            (slots, *dims, heads // ranks, head_dim), dtype=model.dtype, device=model.device
        )
        """[slots, L, 2, W, N, H / ranks, D]"""
        self.prompt_kv = torch.zeros((slots, *spec.prompt_kv_shape), dtype=model.dtype, device=model.device)
        """[slots, L, 2, T, H, D]"""
        state = model.initial_decoder_state()
        self.decoder = torch.zeros((slots, *state.shape), dtype=state.dtype, device=model.device)
        """[slots, decoder_state_numel]"""
        self._free = list(range(slots - 1, -1, -1))
        self._held: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self) -> int:
        """A slot with zeroed KV and a fresh decoder state.

        Raises:
            PoolFull: no slot is free.
        """
        if not self._free:
            raise PoolFull(f"all {self.num_slots} slots are held")
        slot = self._free.pop()
        self._held.add(slot)
        self.clear(slot)
        self.prompt_kv[slot].zero_()
        return slot

    def clear(self, slot: int) -> None:
        """Forget the past of the slot's session; its prompt stays.

        Zeros, not stale numbers: attention masks what is not valid, but a NaN would leak through a mask.
        """
        self.kv[slot].zero_()
        self.decoder[slot].copy_(self._model.initial_decoder_state())

    def free(self, slot: int) -> None:
        self._held.remove(slot)
        self._free.append(slot)

    def check_integrity(self) -> None:
        """Assert that every slot is either free or held, and only once."""
        free = set(self._free)
        assert len(free) == len(self._free), f"slots freed twice: {sorted(self._free)}"
        assert not free & self._held, f"slots free and held: {sorted(free & self._held)}"
        assert len(free) + len(self._held) == self.num_slots, "slots lost"

    def prompt_slot(self, slot: int) -> Tensor:
        """View [L, 2, T, H, D] of a slot's prompt K/V."""
        return self.prompt_kv[slot]
