"""The chunk flow of one session at one gateway: who owns it, what was subscribed, what goes to the
client. Pure.

Everything that decides whether a chunk part is relayed lives here. The client gets each complete chunk
once and in order: parts of another epoch than the subscribed one, and chunks before `next_seq`, are
dropped; after every subscription the chunk at `next_seq` comes again from part 0.

    WAITING      nobody generates for us (queued, or the owner has not opened the session yet)
    CONNECTING   an owner is known, its link is not up
    SUBSCRIBING  Subscribe was sent
    FLOWING      Subscribed was received
"""

from __future__ import annotations

import logging
from enum import Enum

from gateway.protocol import Gap
from gateway.rungs import RungFilter
from scheduler.messages import REPLAY_CHUNKS, ChunkPart, EngineId, Rung, SessionId, Subscribe, Subscribed

logger = logging.getLogger("gateway.flow")

MAX_RESUBSCRIBES = 3
"""Without a relayed part in between; what an engine still skips then is a gap."""


class FlowState(Enum):
    WAITING = "waiting"
    CONNECTING = "connecting"
    SUBSCRIBING = "subscribing"
    FLOWING = "flowing"


FLOW_TRANSITIONS: dict[FlowState, frozenset[FlowState]] = {
    FlowState.WAITING: frozenset({FlowState.WAITING, FlowState.CONNECTING}),
    FlowState.CONNECTING: frozenset({FlowState.WAITING, FlowState.CONNECTING, FlowState.SUBSCRIBING}),
    FlowState.SUBSCRIBING: frozenset(FlowState),
    FlowState.FLOWING: frozenset({FlowState.WAITING, FlowState.CONNECTING, FlowState.SUBSCRIBING}),
}


class PartVerdict(Enum):
    """What to do with a chunk part."""

    RELAY = "relay"
    DROP = "drop"
    RESUBSCRIBE = "resubscribe"
    """The engine skipped something: ask again from next_seq."""
    SKIP = "skip"
    """It does so whenever it is asked: go on with this part."""


class Flow:
    """See the module's docstring."""

    def __init__(
        self,
        *,
        session: SessionId,
        controller_epoch: int,
        next_seq: int,
        next_frame: int | None,
        fps: int,
        kept_seq: int = 0,
    ) -> None:
        """`kept_seq`: no chunk before it is kept anywhere, and no owner can be asked for one."""
        self.session = session
        self.controller_epoch = controller_epoch
        self.state = FlowState.WAITING
        self.engine: EngineId | None = None
        self.epoch = 0
        self.next_seq = next_seq
        """First chunk that was not relayed completely."""
        self._kept_seq = kept_seq
        self._reach_seq: int | None = None
        self._next_part = 0
        self._next_frame = next_frame
        self._chunk_frames = 0
        self._fps = fps
        self._resubscribes = 0
        self._filter = RungFilter()

    def is_flowing(self) -> bool:
        return self.state is FlowState.FLOWING

    def is_waiting(self) -> bool:
        return self.state is FlowState.WAITING

    def receive_owner(self, engine: EngineId | None, epoch: int, *, opened: bool) -> bool:
        """Learn who owns the session since `epoch`. Returns whether there is an owner to follow now.

        Older epochs are ignored. After True: follow `engine`. When `is_waiting()` became true: follow nobody.
        """
        if epoch < self.epoch or (epoch == self.epoch and not self.is_waiting()):
            return False
        if epoch > self.epoch and not self.is_waiting():
            self._move(FlowState.WAITING)
        self.epoch = epoch
        self.engine = engine
        if engine is None or not opened:
            return False
        self._move(FlowState.CONNECTING)
        return True

    def receive_link_up(self) -> Subscribe | None:
        """The followed link works. Returns the subscription to send, None if none is due."""
        if self.state is not FlowState.CONNECTING:
            return None
        return self._subscribe()

    def receive_link_down(self) -> None:
        """The followed link broke; it will come up again, or another owner will be named."""
        if not self.is_waiting():
            self._move(FlowState.CONNECTING)

    def receive_record(self, next_seq: int) -> None:
        """An owner refused to go on at ours, because the record, which says this, is too far behind: it is
        asked for the last chunk that it can be, and makes those between again, for nobody."""
        self._reach_seq = next_seq + REPLAY_CHUNKS

    def is_made_again(self, part: ChunkPart) -> bool:
        """Does this part end a chunk that the client has, on the way to one that it lacks?"""
        is_here = self.is_flowing() and part.epoch == self.epoch
        return is_here and part.seq < self.next_seq and part.part + 1 == part.parts

    def receive_refused(self) -> None:
        """The engine does not own the session (any more): wait for news of another owner, or of this one."""
        self._move(FlowState.WAITING)

    def receive_subscribed(self, reply: Subscribed) -> tuple[bool, Gap | None]:
        """(is it the answer to our subscription?, chunks that the client will never get)."""
        if self.state is not FlowState.SUBSCRIBING or reply.epoch != self.epoch:
            return False, None
        self._move(FlowState.FLOWING)
        if reply.start_seq <= self.next_seq:
            return True, None
        return True, self._give_up(reply.start_seq)

    def receive_part(self, part: ChunkPart, rung: Rung = Rung.FULL) -> PartVerdict:
        """Decide about one part and remember what was relayed. `rung`: what the client should get."""
        if not self.is_flowing() or part.epoch != self.epoch or part.seq < self.next_seq:
            return PartVerdict.DROP
        if not self._filter.takes(part, rung):
            return PartVerdict.DROP
        if part.seq != self.next_seq or part.part not in (0, self._next_part):
            return self._count_skip(part)
        self._resubscribes, self._reach_seq = 0, None
        self._chunk_frames = part.frames + (self._chunk_frames if part.part else 0)
        self._next_part = part.part + 1
        if self._next_part >= part.parts:
            self._complete(part)
        return PartVerdict.RELAY

    def skip_to(self, part: ChunkPart) -> Gap:
        """After SKIP: give up what lies before this part, which is then received again."""
        return self._give_up(part.seq)

    def resubscribe(self) -> Subscribe:
        """Ask the same owner again from next_seq."""
        return self._subscribe()

    def _subscribe(self) -> Subscribe:
        self._move(FlowState.SUBSCRIBING)
        self._next_part = 0
        next_seq = self.next_seq if self._reach_seq is None else min(self.next_seq, self._reach_seq)
        return Subscribe(
            session=self.session,
            epoch=self.epoch,
            controller_epoch=self.controller_epoch,
            next_seq=max(next_seq, self._kept_seq),
            next_frame=self._next_frame if next_seq == self.next_seq else None,
        )

    def _give_up(self, next_seq: int) -> Gap:
        gap = Gap(from_seq=self.next_seq, to_seq=next_seq - 1)
        self.next_seq, self._next_part, self._next_frame = next_seq, 0, None
        return gap

    def _count_skip(self, part: ChunkPart) -> PartVerdict:
        if self._resubscribes >= MAX_RESUBSCRIBES:
            is_begin = part.part == 0 and part.seq > self.next_seq
            return PartVerdict.SKIP if is_begin else PartVerdict.DROP
        self._resubscribes += 1
        wanted = (self.next_seq, self._next_part)
        logger.warning("%s: engine sent part %s, wanted %s", self.session, (part.seq, part.part), wanted)
        return PartVerdict.RESUBSCRIBE

    def _complete(self, part: ChunkPart) -> None:
        if self._next_frame is not None:
            self._next_frame += self._chunk_frames
        else:  # pts is computed from the frame index, so it tells the index
            self._next_frame = round((part.pts_ms + part.duration_ms) * self._fps / 1000)
        self.next_seq += 1
        self._next_part = 0

    def _move(self, state: FlowState) -> None:
        assert state in FLOW_TRANSITIONS[self.state], f"{self.state} -> {state}"
        if state is not self.state:
            logger.debug("%s: flow %s -> %s", self.session, self.state.value, state.value)
        self.state = state
