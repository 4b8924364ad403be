"""A session as the I/O side of its engine knows it: its subscriber, player, life and newest chunks."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, assert_never

from engine.compute_messages import PartMade
from engine.credit import Player
from engine.lifecycle import Life
from engine.link import Link
from engine.recovery import Opening, Past
from engine.replay import Replay
from engine.steering import MAX_PENDING_INPUTS, LogEntry, split_log
from scheduler.messages import (
    MAX_REMEMBERED_IDS,
    REPLAY_CHUNKS,
    ChooseRungs,
    Closed,
    LinkReply,
    LinkRequest,
    Residence,
    Rung,
    SessionId,
    SessionRecord,
    SessionState,
    StateChanged,
    Unwatch,
    Watch,
)
from scheduler.store import AppliedRecord, CheckpointPointer
from scheduler.store.values import SessionProgress

__all__ = ["MAX_UNPUBLISHED_CHUNKS", "Hosted", "Kept", "LogTail", "Place"]

MAX_UNPUBLISHED_CHUNKS = 256
"""What an earlier owner may have sent beyond what Redis knows of: it goes on while Redis is away, and for a
recorder it makes chunks as fast as it can. They are made again, and not sent, before the first that is."""


@dataclass(slots=True, kw_only=True)
class LogTail:
    """How far the input log was read."""

    position: str
    """Id of the newest entry read."""
    num_pending: int = 0
    """Inputs read that no chunk was made with yet."""

    @property
    def is_full(self) -> bool:
        """The log is not read on before some of them are applied."""
        return self.num_pending >= MAX_PENDING_INPUTS


@dataclass(slots=True, kw_only=True)
class Kept:
    """What Redis holds of a session besides its record, kept here in case that Redis loses it."""

    inputs: list[LogEntry] = field(default_factory=list)
    """The log after the newest written checkpoint, as far as it was read."""
    applied: deque[AppliedRecord] = field(default_factory=lambda: deque(maxlen=MAX_REMEMBERED_IDS))
    """The newest, in log order."""
    checkpoint: tuple[CheckpointPointer, bytes] | None = None
    """The newest written one."""
    is_checkpoint_lost: bool = False
    """Redis may not have it: the log there may have less than a rebuild needs."""

    @property
    def lost_checkpoint(self) -> tuple[CheckpointPointer, bytes] | None:
        """What must be written again."""
        return self.checkpoint if self.is_checkpoint_lost else None

    def refill(self, past: Past) -> None:
        """What Redis says, and what has come since it was asked."""
        last = past.log[-1].entry if past.log else "0-0"
        self.inputs = [*past.log, *split_log(self.inputs, last)[1]]
        known = {record.entry for record in past.applied}
        newer = [record for record in self.applied if record.entry not in known]
        self.applied.clear()
        self.applied.extend([*past.applied, *newer])
        if past.pointer is not None and past.data is not None:
            self.written(past.pointer, past.data)

    def written(self, pointer: CheckpointPointer, data: bytes) -> None:
        """A checkpoint is in its place: what is in it is not needed in the log."""
        if self.checkpoint is not None and _age(pointer) < _age(self.checkpoint[0]):
            return  # a newer one was written meanwhile
        self.checkpoint, self.is_checkpoint_lost = (pointer, data), False
        self.inputs = list(split_log(self.inputs, pointer.last_applied)[1])


def _age(pointer: CheckpointPointer) -> tuple[int, int]:
    return pointer.epoch, pointer.seq


class Place(NamedTuple):
    """A place in a session's stream."""

    seq: int
    frame: int
    """Pixel frames of all chunks before `seq`."""


@dataclass(slots=True, kw_only=True)
class Hosted:
    """One session here. It belongs to the event loop."""

    record: SessionRecord
    """As read at opening; what may change since has a field of its own."""
    controller_epoch: int
    player: Player
    life: Life
    replay: Replay
    log: LogTail
    next_frame: int
    rev: int
    has_past: bool = False
    """Were chunks made by an earlier owner?"""
    opening: Opening | None = None
    """What the compute thread will be given; None: it has the session, or its past must be read first."""
    goes_on: Place | None = None
    """First chunk that is not made; None until a subscriber has said which one it lacks."""
    at_compute: bool = False
    """Does the compute thread have its state, in a slot or in host memory?"""
    residence: Residence = Residence.RESIDENT
    """Where its state is as far as Redis counts it: RESIDENT means that a slot is its own."""
    asking: bool = False
    """Was a slot asked for, and not granted yet?"""
    loading: bool = False
    """Is its past being read?"""
    link: Link | None = None
    watchers: set[Link] = field(default_factory=set)
    """Links of gateways that have viewers of it."""
    chosen: dict[Link, tuple[Rung, ...]] = field(default_factory=dict)
    """What these links' clients watch it at; those of others at FULL."""
    subscription: int = 0
    """Grows by one at each Subscribe, so that what was sent for an older one no longer counts."""
    start_seq: int = 0
    """First chunk that the subscriber wants."""
    active: bool = True
    reason: str = ""
    active_since_ms: float
    next_look_ms: float | None = None
    """When its life must be judged again."""
    handed_ms: float = 0.0
    """When its newest chunk was handed over completely."""
    unrecorded: list[AppliedRecord] = field(default_factory=list)
    """Applied inputs that Redis does not know of yet; grows only while Redis is out of reach, when no new
    inputs arrive, so it is bounded by the pending ones."""
    kept: Kept = field(default_factory=Kept)
    engine_ms: float = 0.0
    """Compute time of what was made here."""
    media_bytes: int = 0
    """Made here."""
    published: SessionProgress | None = None
    """What Redis was told last, without what changes all the time."""
    moving: bool = False
    """Is it being migrated? Then its state stays where it is."""
    held: list[tuple[Link, LinkRequest]] | None = None
    """Pauses, resumes and stops that wait for commit or abort; None: they take effect at once."""
    parts: asyncio.Queue[PartMade] = field(default_factory=asyncio.Queue)
    """Encoded, not emitted. Bounded by MAX_UNENCODED_CHUNKS: no chunk starts while two are here."""
    emitter: asyncio.Task[None] | None = None

    def say(self, message: LinkReply) -> None:
        """Tell the subscriber, if there is one."""
        if self.link is not None:
            self.link.send(message)

    def announce(self, message: LinkReply) -> None:
        """Tell the subscriber and the viewers' gateways."""
        self._announcement(message)()

    def farewell(self, reason: str) -> Callable[[], None]:
        """Tells those who listen now, also when it is not here any more, that it is closed."""
        return self._announcement(Closed(session=self.id, epoch=self.epoch, reason=reason))

    def _announcement(self, message: LinkReply) -> Callable[[], None]:
        links = [link for link in (self.link, *(self.watchers - {self.link})) if link is not None]

        def tell() -> None:
            for link in links:
                link.send(message)

        return tell

    def receive_viewing(self, link: Link, request: Watch | Unwatch | ChooseRungs) -> None:
        """A gateway says whether it has viewers, or at what its clients watch."""
        match request:
            case Watch(epoch=self.epoch):
                self.watchers.add(link)
                self.chosen.pop(link, None)
                link.send(
                    StateChanged(session=self.id, epoch=self.epoch, state=self.state, reason=self.reason)
                )
            case Watch():
                pass  # the gateway is about to hear of this owner, and asks again
            case Unwatch():
                self.watchers.discard(link)
            case ChooseRungs(rungs=rungs):
                if link is self.link or link in self.watchers:
                    self.chosen[link] = rungs
            case _:
                assert_never(request)

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """What it must be encoded at: FULL where nobody watches."""
        if not self.chosen:
            return (Rung.FULL,)
        links = self.watchers | ({self.link} if self.link is not None else set())
        wanted = {rung for link in links for rung in self.chosen.get(link) or (Rung.FULL,)} or {Rung.FULL}
        return tuple(rung for rung in Rung if rung in wanted)

    def progress(self, slack_ms: int) -> SessionProgress:
        """What Redis is told of it."""
        return SessionProgress(
            session=self.id,
            epoch=self.epoch,
            active=self.active,
            next_seq=self.replay.next_seq,
            next_frame=self.next_frame,
            rev=self.rev,
            slack_ms=slack_ms,
            residence=self.residence,
            engine_ms=round(self.engine_ms),
            media_bytes=self.media_bytes,
            asks_slot=self.asking,
        )

    def news(self) -> SessionProgress:
        """To compare with `published`: what follows the chunks is not news by itself."""
        return replace(self.progress(0), engine_ms=0, media_bytes=0)

    @property
    def is_recovered(self) -> bool:
        """Were chunks made by an earlier owner, and none here?"""
        return self.has_past and self.opening is not None and self.replay.oldest_seq == self.replay.next_seq

    @property
    def subscribable(self) -> tuple[int, int]:
        """Lowest and highest next_seq that can be served."""
        known = self.record.next_seq
        if self.opening is not None:  # it was written when the client had every chunk before it
            known = max(known, self.opening.earliest_seq)
        # An earlier owner may have sent more than it last published; the gateway waits until we are there.
        earlier = known + MAX_UNPUBLISHED_CHUNKS if self.is_recovered or self.epoch > 1 else 0
        return 0, max(self.replay.next_seq, earlier)

    @property
    def first_makeable(self) -> int:
        """Of a recovered session: chunks before this one are not made again."""
        earliest = 0 if self.opening is None else self.opening.earliest_seq
        return max(earliest, self.record.next_seq - REPLAY_CHUNKS)

    @property
    def id(self) -> SessionId:
        return self.record.id

    @property
    def epoch(self) -> int:
        return self.record.epoch

    @property
    def state(self) -> SessionState:
        return SessionState.ACTIVE if self.active else SessionState.IDLE
