"""Flow control: when may the next chunk of a session start, and when does its player run dry? Pure.

The playhead advances at rate 1 between acks, up to what was delivered. A chunk may start when the unplayed
media, not counting it, is less than max(lead_ms, one chunk). Before the first ack the playhead starts at the
first delivery. Times are milliseconds on one monotonic clock, media positions milliseconds of `pts`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

__all__ = [
    "Player",
    "acknowledged",
    "delivered",
    "dry_ms",
    "full_since_ms",
    "start_ms",
    "subscribed",
    "unplayed_ms",
]

MAX_UNACKED_CHUNKS = 8
"""What a client gets that never acks, and at least what one gets that stops."""
MAX_UNENCODED_CHUNKS = 2
"""Chunks of a session between the compute thread and the link: keeps the encoder's queue bounded."""
MAX_UNDELIVERED_CHUNKS = 14
"""Chunks nobody has taken yet; below the replay window, so that none is lost before its first subscriber."""
FIRST_CHUNK_MS = 500.0
"""A player that has nothing yet gets its chunk within this time, as far as planning goes."""
STILL_MS = 1.0
"""A playhead that acks move by no more stands still: a player that rounds what it tells."""
ALWAYS = -math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Player:
    """What is known of the player of one session."""

    lead_ms: float
    chunk_ms: float
    """Media time of a full chunk."""
    anchor_media_ms: float = 0.0
    """Playhead at `anchor_ms`, or where it will start."""
    anchor_ms: float | None = None
    """None: nothing was delivered to this subscriber yet."""
    delivered_media_ms: float = 0.0
    delivered_seq: int = 0
    """First chunk not delivered."""
    emitted_seq: int = 0
    """First chunk not encoded."""
    acked_seq: int = 0
    """First chunk not acknowledged; at subscription, the first one asked for."""
    has_acked: bool = False
    still_ms: float | None = None
    """Since when no ack told of progress, and nothing was delivered; None: not acked since a delivery."""

    def playhead_ms(self, now_ms: float) -> float:
        """Media position of the playhead."""
        if self.anchor_ms is None:
            return self.anchor_media_ms
        return min(self.delivered_media_ms, self.anchor_media_ms + max(0.0, now_ms - self.anchor_ms))

    @property
    def limit_ms(self) -> float:
        return max(self.lead_ms, self.chunk_ms)

    @property
    def max_unacked(self) -> int:
        """Chunks that may be ahead of the newest ack."""
        if not self.has_acked:
            return MAX_UNACKED_CHUNKS
        return max(MAX_UNACKED_CHUNKS, math.ceil(self.limit_ms / self.chunk_ms) + 2)


def subscribed(player: Player, *, seq: int, media_ms: float) -> Player:
    """A new subscriber that asks for chunks from `seq`, which starts at `media_ms`."""
    return replace(
        player,
        anchor_media_ms=media_ms,
        anchor_ms=None,
        delivered_media_ms=media_ms,
        delivered_seq=seq,
        acked_seq=seq,
        has_acked=False,
        still_ms=None,
    )


def delivered(player: Player, *, seq: int, end_media_ms: float, now_ms: float) -> Player:
    """Chunk `seq` went out completely. A player that had run dry goes on from here."""
    if seq < player.delivered_seq:
        return player
    return replace(
        player,
        anchor_media_ms=player.playhead_ms(now_ms),
        anchor_ms=now_ms,
        delivered_media_ms=max(end_media_ms, player.delivered_media_ms),
        delivered_seq=seq + 1,
        still_ms=None,
    )


def acknowledged(player: Player, *, seq: int, end_media_ms: float, buffer_ms: float, now_ms: float) -> Player:
    """The client holds everything up to chunk `seq`, `buffer_ms` of it unplayed.

    An ack of what was not delivered to it, or older than a former ack, changes nothing.
    """
    if seq >= player.delivered_seq or seq + 1 < player.acked_seq:
        return player
    playhead = min(max(end_media_ms - max(buffer_ms, 0.0), 0.0), player.delivered_media_ms)
    if player.anchor_ms is not None and playhead >= player.delivered_media_ms <= player.playhead_ms(now_ms):
        return replace(player, acked_seq=seq + 1, has_acked=True)  # it was dry and is: keep since when
    started = player.anchor_ms is not None or seq >= player.acked_seq
    is_still = player.still_ms is not None and playhead <= player.anchor_media_ms + STILL_MS
    return replace(
        player,
        anchor_media_ms=playhead if started else player.anchor_media_ms,
        anchor_ms=now_ms if started else None,
        acked_seq=seq + 1,
        has_acked=True,
        still_ms=player.still_ms if is_still else now_ms,
    )


def unplayed_ms(player: Player, *, made_ms: float, now_ms: float) -> float:
    """Media between the playhead and `made_ms`, the end of all made chunks."""
    return max(0.0, made_ms - player.playhead_ms(now_ms))


def start_ms(player: Player, *, next_seq: int, made_ms: float) -> float | None:
    """Since or from when the chunk `next_seq` may start; None: not before something is delivered or acked.

    Args:
        made_ms: media end of the chunks made before it.
    """
    too_far = (
        next_seq - player.emitted_seq >= MAX_UNENCODED_CHUNKS
        or next_seq - player.delivered_seq >= MAX_UNDELIVERED_CHUNKS
        or next_seq - player.acked_seq >= player.max_unacked
    )
    if too_far:
        return None
    wanted_media_ms = made_ms - player.limit_ms
    if player.anchor_ms is None:
        return ALWAYS if player.anchor_media_ms > wanted_media_ms else None
    if player.anchor_media_ms > wanted_media_ms:
        return player.anchor_ms
    if player.delivered_media_ms <= wanted_media_ms:
        return None
    # One millisecond beyond: unplayed media must be less than the limit, not equal.
    return player.anchor_ms + (wanted_media_ms - player.anchor_media_ms) + 1.0


def full_since_ms(
    player: Player, *, next_seq: int, made_ms: float, now_ms: float, before_ms: float | None
) -> float | None:
    """Since when the player takes no more chunks: it acks none, or its playhead stands while it holds enough.

    Args:
        before_ms: the answer of before.
    """
    start = start_ms(player, next_seq=next_seq, made_ms=made_ms)
    if start is None:
        return before_ms if before_ms is not None else now_ms
    return player.still_ms if start > now_ms else None


def dry_ms(player: Player, *, made_ms: float, due_ms: float, now_ms: float) -> float:
    """When the player has, or had, shown all made chunks: the deadline of the next one, due since `due_ms`.

    A player that is dry keeps the moment at which it ran dry, so who waits longest is first. A player that is
    dry by its own will (a recorder: it acks with nothing unplayed) gets no more than its rate before others:
    its deadline is not before the chunk's due time plus the chunk's own length.
    """
    if player.anchor_ms is None:
        return due_ms + FIRST_CHUNK_MS + unplayed_ms(player, made_ms=made_ms, now_ms=now_ms)
    dry = player.anchor_ms + made_ms - player.anchor_media_ms
    return max(dry, due_ms + player.chunk_ms)
