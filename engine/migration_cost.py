"""Which way a session moves: with its K/V, or as a checkpoint from which the target rebuilds. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["FIRST_LINK", "LinkCost", "MoveCost", "Sizes", "is_rebuild_cheaper"]

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


FIRST_LINK = LinkCost(alpha_ms=1.0, bytes_per_ms=1e6)
"""Until a migration has measured the link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveCost:
    """What migrations away from this engine have taken so far: a pause, and bytes over a link."""

    pause_ms: float
    """Boundary to commit."""
    link: LinkCost

    @staticmethod
    def after(known: MoveCost | None, pause_ms: float, link: LinkCost) -> MoveCost:
        """After one more migration."""
        if known is not None:
            pause_ms = (1 - SMOOTHING) * known.pause_ms + SMOOTHING * pause_ms
        return MoveCost(pause_ms=pause_ms, link=link)


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
