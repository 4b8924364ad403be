"""Which way a session moves: with its K/V, or as a checkpoint from which the target rebuilds. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["LinkCost", "Sizes", "is_rebuild_cheaper"]

SMOOTHING = 0.5
"""Weight of a new observation."""
MAX_PRECOPY_SHARE = 0.5
"""Of a migration's time limit: a pre-copy that takes more goes by checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkCost:
    """A message of n bytes takes alpha_ms + n / bytes_per_ms until the other side has it in place."""

    alpha_ms: float
    bytes_per_ms: float

    def ms(self, num_bytes: float) -> float:
        return self.alpha_ms + num_bytes / self.bytes_per_ms

    def observed(self, num_bytes: int, ms: float) -> LinkCost:
        """After a message took so long."""
        rate = num_bytes / max(ms - self.alpha_ms, 1e-3)
        rate = (1 - SMOOTHING) * self.bytes_per_ms + SMOOTHING * rate
        return replace(self, bytes_per_ms=max(rate, 1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Bytes of a session's parts."""

    slab: int
    """K/V still to be sent, frozen or not."""
    dirty: int
    """K/V that can be sent only when frozen."""
    rest: int
    """What both ways send when frozen: latents, decoder state, replay window."""


def is_rebuild_cheaper(sizes: Sizes, link: LinkCost, *, rebuild_ms: float, limit_ms: float) -> bool:
    """Does the session rest for less if the target rebuilds it, or is the link too slow to pre-copy?"""
    precopy_ms = link.ms(max(0, sizes.slab - sizes.dirty))
    if precopy_ms > MAX_PRECOPY_SHARE * limit_ms:
        return True
    return link.ms(sizes.rest) + rebuild_ms < link.ms(sizes.rest + sizes.dirty)
