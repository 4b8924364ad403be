"""Who gets a session's video at the lower rung: clients that keep falling behind. Pure.

A client falls to LOW after FALL_MS of video that reached it too late, and rises again after some time in
which all came in time. Each rise is a try: who falls again soon after it rests twice as long before the
next. All is counted in media time, so a pause counts for nothing.

The rungs differ in bitrate only and each chunk begins with a key frame, so no client needs to know.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from scheduler.messages import ChunkPart, Rung

__all__ = ["RungFilter", "RungMeter", "Standing", "judge"]

FALL_MS = 3_000.0
"""Of video that came too late, less what came in time: then the client falls."""
FIRST_REST_MS, MAX_REST_MS = 20_000.0, 640_000.0
"""Of video that came in time without a break: then it rises."""
STEADY_MS = 60_000.0
"""Who falls sooner after a rise has risen too early."""
LATE_SHARE = 0.75
"""A chunk that is not acknowledged after so much of its own length is late. Less than 1: a client that is
sent the next one as soon as the playhead allows has been sent this one about its length ago."""
MAX_SENT = 32
"""Chunks on their way that are remembered; there are half as many at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How one client has kept up."""

    rung: Rung = Rung.FULL
    late_ms: float = 0.0
    """At FULL: what came too late, less what came in time."""
    calm_ms: float = STEADY_MS
    """At FULL: since it rose. At LOW: what came in time without a break."""
    rest_ms: float = FIRST_REST_MS
    """At LOW: how much of that it takes to rise."""


def judge(standing: Standing, *, is_late: bool, chunk_ms: float) -> Standing:
    """After one more chunk of `chunk_ms`, before which the client had, or had not, got its others in time."""
    if standing.rung is Rung.LOW:
        calm_ms = 0.0 if is_late else standing.calm_ms + chunk_ms
        if calm_ms < standing.rest_ms:
            return replace(standing, calm_ms=calm_ms)
        return Standing(calm_ms=0.0, rest_ms=standing.rest_ms)
    if not is_late and standing.late_ms == 0.0 and standing.calm_ms >= STEADY_MS:
        return standing  # as with nearly every chunk of all
    late_ms = max(0.0, standing.late_ms + (chunk_ms if is_late else -chunk_ms))
    calm_ms = standing.calm_ms + chunk_ms
    if late_ms < FALL_MS:
        return replace(standing, late_ms=late_ms, calm_ms=calm_ms)
    rest_ms = FIRST_REST_MS if calm_ms >= STEADY_MS else min(2 * standing.rest_ms, MAX_REST_MS)
    return Standing(rung=Rung.LOW, calm_ms=0.0, rest_ms=rest_ms)


class RungMeter:
    """Which rung one client should get, from what is seen of it. Times in milliseconds of any one clock."""

    def __init__(self, *, can_fall: bool = True) -> None:
        self._can_fall = can_fall
        self._standing = Standing()
        self._sent: deque[tuple[int, float]] = deque(maxlen=MAX_SENT)
        """(seq, when) of chunks that were sent and not acknowledged."""
        self._dry_ms: float | None = None
        """When its player, by its newest ack, would have shown all it had; None: it has never told of any
        video that it holds, as a recorder, which nothing is too late for."""
        self._offered_seq = -1

    @property
    def rung(self) -> Rung:
        return self._standing.rung

    def receive_sent(self, seq: int, chunk_ms: float, now_ms: float) -> None:
        """The last part of a chunk was sent to a client that acknowledges chunks.

        It is late when an earlier one has not arrived, and its player has less than a chunk to show: one that
        is far away but well supplied is not, nor one whose engine is slow.
        """
        if self._dry_ms is not None:
            is_waiting = bool(self._sent) and now_ms - self._sent[0][1] >= LATE_SHARE * chunk_ms
            self._judge(is_waiting and self._dry_ms < now_ms + chunk_ms, chunk_ms)
        self._sent.append((seq, now_ms))

    def receive_ack(self, seq: int, buffer_ms: float, now_ms: float) -> None:
        """Its client's `ack`."""
        while self._sent and self._sent[0][0] <= seq:
            self._sent.popleft()
        if buffer_ms > 0 or self._dry_ms is not None:
            self._dry_ms = now_ms + max(0.0, buffer_ms)

    def receive_offered(self, seq: int, chunk_ms: float, queued_bytes: int) -> None:
        """A chunk came for a viewer, who acknowledges nothing; so much of what came before waits for it."""
        if seq > self._offered_seq:  # else another part of it, or the same at another rung
            self._offered_seq = seq
            self._judge(queued_bytes > 0, chunk_ms)

    def _judge(self, is_late: bool, chunk_ms: float) -> None:
        if self._can_fall:
            self._standing = judge(self._standing, is_late=is_late, chunk_ms=chunk_ms)


class RungFilter:
    """Picks one client's parts where a chunk comes at both rungs: all of a chunk at the same."""

    def __init__(self) -> None:
        self._seq = -1
        self._rung = Rung.FULL
        """At which the client gets chunk `_seq`."""

    def takes(self, part: ChunkPart, wanted: Rung) -> bool:
        """Is this part for the client? What it wants counts at the first part of a chunk."""
        if part.rung is None:
            if part.part == 0:  # a chunk that is sent again: should the rest come at both, it is its FULL one
                self._seq, self._rung = part.seq, Rung.FULL
            return True
        if part.seq != self._seq:
            self._seq, self._rung = part.seq, wanted
        return part.rung is self._rung
