"""The sessions of this engine, between the links, the compute thread and the ledger in Redis.

Everything here runs on the event loop and none of it waits, but for one thing: a session's emitter waits,
within a limit, until the inputs that a chunk shows are recorded, before that chunk leaves.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, assert_never

from engine.compute_messages import (
    Command,
    ComputeDied,
    ComputeEvent,
    Drop,
    Feed,
    InputsTaken,
    Open,
    PartMade,
    SessionFailed,
    Wish,
)
from engine.credit import Player, acknowledged, delivered, start_ms, subscribed, unplayed_ms
from engine.encoder import CODEC
from engine.hosted import Hosted, LogTail, Opening
from engine.lifecycle import Life, LifeLimits, judge
from engine.link import Link
from engine.models.base import ModelSpec
from engine.replay import Replay, ReplayChunk
from engine.steering import Combine, LogEntry, restore, split_log
from scheduler.messages import (
    REPLAY_CHUNKS,
    Accepted,
    Applied,
    ChunkPart,
    Closed,
    ControlInput,
    Credit,
    ErrorCode,
    LinkRequest,
    MessageId,
    Moved,
    Pause,
    Refused,
    ReleaseSession,
    Resume,
    SessionId,
    SessionRecord,
    StateChanged,
    Stats,
    Stop,
    Subscribe,
    Subscribed,
    Superseded,
    Unsubscribe,
    encode_json,
    frame_media,
)
from scheduler.store import AppliedRecord

__all__ = ["Compute", "Host", "Ledger"]

_log = logging.getLogger("turboserve.engine.host")

RECENT_CHUNKS = 32
"""Chunks whose latency makes the engine's mean."""


class Compute(Protocol):
    """The side of the compute loop that other threads use."""

    def submit(self, command: Command) -> None:
        """Hand over a command."""

    def wish(self, session: SessionId, epoch: int, wish: Wish) -> None:
        """Replace what is wanted of a session."""


class Ledger(Protocol):
    """What the host has written to Redis."""

    async def record_applied(self, hosted: Hosted, entries: Sequence[AppliedRecord]) -> None:
        """Record inputs before the chunk that shows them; returns after a bounded wait at the latest."""

    def ended(self, hosted: Hosted, reason: str) -> None:
        """The engine closed a session that it owns."""

    def changed(self) -> None:
        """Some session became active or idle, or made its first chunk."""

    def log_wanted(self) -> None:
        """The set of input logs to read changed."""


class Host:
    """Receives from links and from the compute thread; see the module."""

    def __init__(
        self,
        spec: ModelSpec,
        compute: Compute,
        ledger: Ledger,
        *,
        limits: LifeLimits,
        clock: Callable[[], float],
        combine: Combine,
        fatal: Callable[[BaseException], None],
    ) -> None:
        """`combine` is the model's; `fatal` is called when the engine as a whole cannot go on."""
        self._spec, self._compute, self._ledger = spec, compute, ledger
        self._limits, self._clock, self._combine, self._fatal = limits, clock, combine, fatal
        self.sessions: dict[SessionId, Hosted] = {}
        self._recent_ms: deque[float] = deque(maxlen=RECENT_CHUNKS)
        self._looks_changed = asyncio.Event()

    @property
    def chunk_ms(self) -> float:
        """Mean latency of recent chunks; 0 before the first."""
        return sum(self._recent_ms) / len(self._recent_ms) if self._recent_ms else 0.0

    def slack_ms(self, hosted: Hosted) -> int:
        """Media time that the session's player still holds."""
        return int(unplayed_ms(hosted.player, made_ms=hosted.replay.end_ms, now_ms=self._clock()))

    # --- opening and ending ----------------------------------------------------------------------------

    def open(self, record: SessionRecord, log: Sequence[LogEntry]) -> Hosted:
        """Own a session from now on, given its record and its whole input log.

        A session that had chunks already waits for its first subscriber to learn where it goes on.
        """
        now = self._clock()
        before, after = split_log(log, record.last_applied)
        steering = restore(record.seed, before, self._combine)
        chunk_ms = self._spec.chunk_frames * 1000.0 / self._spec.fps
        hosted = Hosted(
            record=record,
            controller_epoch=record.controller_epoch,
            player=Player(lead_ms=record.lead_ms, chunk_ms=chunk_ms),
            life=Life(paused_ms=now if record.paused else None, left_ms=now),
            replay=Replay(),
            log=LogTail(position=log[-1].entry if log else "0-0"),
            next_frame=record.next_frame,
            rev=steering.rev,
            active_since_ms=now,
        )
        self.sessions[record.id] = hosted
        hosted.opening = Opening(steering=steering)
        self.feed(hosted, after)
        if record.next_seq == 0:
            self._start(hosted, seq=0, frame=0)
        hosted.emitter = asyncio.create_task(self._emit(hosted), name=f"emit {record.id}")
        hosted.emitter.add_done_callback(self._check_emitter)
        self._refresh(hosted)
        return hosted

    def feed(self, hosted: Hosted, entries: Sequence[LogEntry]) -> None:
        """New inputs of a session's log, in order."""
        wanted = tuple(entries)
        if self._spec.action_dim == 0:  # the model takes no control input: it changes nothing, it is not kept
            wanted = tuple(item for item in entries if not isinstance(item.message, ControlInput))
        hosted.log.num_pending += len(wanted)
        if hosted.opening is not None:
            hosted.held.extend(wanted)
        elif wanted:
            self._compute.submit(Feed(session=hosted.id, epoch=hosted.epoch, entries=wanted))

    def release(self, command: ReleaseSession) -> None:
        """Another engine owns the session: drop it and say where it is."""
        hosted = self.sessions.get(command.session)
        if hosted is not None and hosted.epoch < command.epoch:
            moved = Moved(
                session=command.session,
                epoch=command.epoch,
                engine=command.engine,
                next_seq=hosted.replay.next_seq,
            )
            self._say(hosted, moved)
            self._remove(hosted)

    def lose(self, session: SessionId) -> None:
        """The session is not owned here any more, and nobody knows where it is."""
        hosted = self.sessions.get(session)
        if hosted is not None:
            _log.warning("%s is no longer owned at epoch %d: dropped", session, hosted.epoch)
            next_seq = hosted.replay.next_seq
            self._say(hosted, Moved(session=session, epoch=hosted.epoch, engine=None, next_seq=next_seq))
            self._remove(hosted)

    def close(self, session: SessionId, reason: str) -> None:
        """The session's record is closed: drop it and say why."""
        hosted = self.sessions.get(session)
        if hosted is not None:
            self._say(hosted, Closed(session=session, epoch=hosted.epoch, reason=reason))
            self._remove(hosted)

    def _end(self, hosted: Hosted, reason: str) -> None:
        """Close a session by this engine's own decision."""
        self.close(hosted.id, reason)
        self._ledger.ended(hosted, reason)

    def _start(self, hosted: Hosted, *, seq: int, frame: int) -> None:
        """Give the session to the compute thread."""
        assert hosted.opening is not None
        media_ms = self._media_ms(frame)
        hosted.replay = Replay(next_seq=seq, start_ms=media_ms)
        hosted.next_frame = frame
        hosted.player = replace(subscribed(hosted.player, seq=seq, media_ms=media_ms), emitted_seq=seq)
        opening, hosted.opening = hosted.opening, None
        command = Open(
            session=hosted.id,
            epoch=hosted.epoch,
            steering=opening.steering,
            pending=tuple(hosted.held),
            seq=seq,
            frame=frame,
        )
        hosted.held.clear()
        self._compute.submit(command)

    def _remove(self, hosted: Hosted) -> None:
        del self.sessions[hosted.id]
        if hosted.emitter is not None:
            hosted.emitter.cancel()
        hosted.link = None
        self._compute.submit(Drop(session=hosted.id, epoch=hosted.epoch))
        self._ledger.log_wanted()

    # --- links -----------------------------------------------------------------------------------------

    def receive_request(self, link: Link, request: LinkRequest) -> None:
        """Act on a gateway's request; one of an older controller is ignored."""
        hosted = self.sessions.get(request.session)
        if hosted is None:
            self._refuse(link, request, 0, ErrorCode.NO_SUCH_SESSION, "the session is not on this engine")
            return
        if isinstance(request, Subscribe):
            self._subscribe(hosted, link, request)
            return
        if link is not hosted.link or request.controller_epoch != hosted.controller_epoch:
            return
        match request:
            case Unsubscribe():
                self._leave(hosted)
            case Credit(seq=seq, buffer_ms=buffer_ms):
                self._acknowledge(hosted, seq, buffer_ms)
            case Pause(id=id):
                self._pause(hosted, id)
            case Resume(id=id):
                self._resume(hosted, id)
            case Stop(id=id):
                self._accept(hosted, id)
                self._end(hosted, "stopped")
            case _:
                assert_never(request)

    def receive_link_lost(self, link: Link) -> None:
        """Its sessions have no subscriber until a gateway subscribes again."""
        for hosted in list(self.sessions.values()):
            if hosted.link is link:
                self._leave(hosted)

    def _subscribe(self, hosted: Hosted, link: Link, request: Subscribe) -> None:
        if request.epoch != hosted.epoch:
            self._refuse(link, request, hosted.epoch, ErrorCode.BAD_STATE, "the epoch is not this owner's")
            return
        if request.controller_epoch < hosted.controller_epoch:
            link.send(Superseded(session=hosted.id, controller_epoch=hosted.controller_epoch))
            return
        low, high = self._subscribable(hosted)
        if not low <= request.next_seq <= high:
            why = f"next_seq must be between {low} and {high}"
            self._refuse(link, request, hosted.epoch, ErrorCode.BAD_STATE, why)
            return
        if hosted.link is not None and request.controller_epoch > hosted.controller_epoch:
            hosted.link.send(Superseded(session=hosted.id, controller_epoch=request.controller_epoch))
        hosted.controller_epoch, hosted.link = request.controller_epoch, link
        hosted.subscription += 1
        hosted.life = replace(hosted.life, left_ms=None)
        if hosted.opening is not None:
            self._start(hosted, seq=request.next_seq, frame=self._frame_at(hosted, request))
        self._send_replay(hosted, link, request.next_seq)
        self._refresh(hosted)

    def _subscribable(self, hosted: Hosted) -> tuple[int, int]:
        """Lowest and highest next_seq that can be served."""
        known = hosted.record.next_seq
        if hosted.opening is not None:
            return max(0, known - REPLAY_CHUNKS), known + REPLAY_CHUNKS
        # An earlier owner may have sent more than it last published; the gateway waits until we are there.
        earlier = known + REPLAY_CHUNKS if hosted.epoch > 1 else 0
        return 0, max(hosted.replay.next_seq, earlier)

    def _frame_at(self, hosted: Hosted, request: Subscribe) -> int:
        if request.next_frame is not None:
            return max(0, request.next_frame)
        missing = request.next_seq - hosted.record.next_seq
        return max(0, hosted.record.next_frame + missing * self._spec.chunk_frames)

    def _send_replay(self, hosted: Hosted, link: Link, next_seq: int) -> None:
        replay = hosted.replay
        hosted.start_seq = max(next_seq, replay.oldest_seq)
        # Beyond what is made here (an earlier owner sent more): the player's media ends there, not here.
        ahead_ms = max(0, hosted.start_seq - replay.next_seq) * hosted.player.chunk_ms
        media_ms = replay.start_of_ms(hosted.start_seq) + ahead_ms
        hosted.player = subscribed(hosted.player, seq=hosted.start_seq, media_ms=media_ms)
        link.send(
            Subscribed(
                session=hosted.id,
                epoch=hosted.epoch,
                start_seq=hosted.start_seq,
                state=hosted.state,
                reason=hosted.reason,
            )
        )
        for chunk in replay.since(hosted.start_seq):
            for applied in chunk.applied:
                link.send(applied)
            for number, part in enumerate(chunk.parts, 1):
                last = chunk.complete and number == len(chunk.parts)
                link.send_media(part, self._on_delivered(hosted, chunk) if last else None)

    def _leave(self, hosted: Hosted) -> None:
        hosted.link = None
        hosted.life = replace(hosted.life, left_ms=self._clock())
        self._refresh(hosted)

    def _acknowledge(self, hosted: Hosted, seq: int, buffer_ms: float) -> None:
        hosted.player = acknowledged(
            hosted.player,
            seq=seq,
            end_media_ms=hosted.replay.end_of_ms(seq),
            buffer_ms=buffer_ms,
            now_ms=self._clock(),
        )
        self._refresh(hosted)

    def _pause(self, hosted: Hosted, id: MessageId | None) -> None:
        if hosted.life.paused_ms is None:
            hosted.life = replace(hosted.life, paused_ms=self._clock())
        self._accept(hosted, id)
        self._refresh(hosted)

    def _resume(self, hosted: Hosted, id: MessageId | None) -> None:
        hosted.life = replace(hosted.life, paused_ms=None)
        self._accept(hosted, id)
        self._refresh(hosted)

    def _accept(self, hosted: Hosted, id: MessageId | None) -> None:
        if id is not None:
            self._say(hosted, Accepted(session=hosted.id, id=id))

    def _refuse(self, link: Link, request: LinkRequest, epoch: int, code: ErrorCode, why: str) -> None:
        id = request.id if isinstance(request, Pause | Resume | Stop) else None
        link.send(Refused(session=request.session, epoch=epoch, code=code, message=why, id=id))

    def _say(
        self, hosted: Hosted, message: Moved | Closed | Accepted | Applied | StateChanged | Stats
    ) -> None:
        if hosted.link is not None:
            hosted.link.send(message)

    # --- life --------------------------------------------------------------------------------------------

    def _refresh(self, hosted: Hosted) -> None:
        """Judge the session's life again and tell the compute thread and the client what follows."""
        if self.sessions.get(hosted.id) is not hosted:
            return
        now = self._clock()
        hosted.life = replace(hosted.life, full_ms=self._full_since(hosted, now))
        verdict = judge(hosted.life, self._limits, now)
        hosted.next_look_ms = verdict.next_ms
        self._looks_changed.set()
        if verdict.close is not None:
            self._end(hosted, verdict.close)
            return
        if (verdict.active, verdict.reason) != (hosted.active, hosted.reason):
            self._change_state(hosted, active=verdict.active, reason=verdict.reason, now_ms=now)
        if hosted.opening is None:
            wish = Wish(running=hosted.active, since_ms=hosted.active_since_ms, player=hosted.player)
            self._compute.wish(hosted.id, hosted.epoch, wish)

    def _change_state(self, hosted: Hosted, *, active: bool, reason: str, now_ms: float) -> None:
        if active and not hosted.active:
            hosted.active_since_ms = now_ms
        hosted.active, hosted.reason = active, reason
        _log.info("%s is %s %s", hosted.id, hosted.state.value, reason)
        self._say(
            hosted,
            StateChanged(session=hosted.id, epoch=hosted.epoch, state=hosted.state, reason=reason),
        )
        self._ledger.changed()

    def _full_since(self, hosted: Hosted, now_ms: float) -> float | None:
        """Since when only an ack or a delivery could let the next chunk start."""
        if hosted.link is None or hosted.opening is not None:
            return None
        replay = hosted.replay
        if start_ms(hosted.player, next_seq=replay.next_seq, made_ms=replay.end_ms) is not None:
            return None
        return hosted.life.full_ms if hosted.life.full_ms is not None else now_ms

    async def watch(self) -> None:
        """Judge each session again when its time comes. Runs until cancelled."""
        while True:
            looks = [h.next_look_ms for h in self.sessions.values() if h.next_look_ms is not None]
            wait_s = max(0.0, min(looks) - self._clock()) / 1000.0 if looks else None
            try:
                async with asyncio.timeout(wait_s):
                    await self._looks_changed.wait()
            except TimeoutError:
                pass
            self._looks_changed.clear()
            now = self._clock()
            for hosted in list(self.sessions.values()):
                if hosted.next_look_ms is not None and hosted.next_look_ms <= now:
                    self._refresh(hosted)

    # --- chunks ------------------------------------------------------------------------------------------

    def receive_event(self, event: ComputeEvent) -> None:
        """What the compute thread and the encoders report; late news of a dropped session is ignored."""
        if isinstance(event, ComputeDied):
            self._fatal(event.error)
            return
        hosted = self.sessions.get(event.session)
        if hosted is None or hosted.epoch != event.epoch:
            return
        match event:
            case PartMade():
                hosted.parts.put_nowait(event)
            case InputsTaken(count=count):
                was_full = hosted.log.is_full
                hosted.log.num_pending -= count
                if was_full and not hosted.log.is_full:
                    self._ledger.log_wanted()
            case SessionFailed():
                self._end(hosted, "internal")
            case _:
                assert_never(event)

    async def drained(self) -> None:
        """Wait until every encoded part was emitted."""
        await asyncio.gather(*(hosted.parts.join() for hosted in list(self.sessions.values())))

    async def _emit(self, hosted: Hosted) -> None:
        """Emit the session's parts in order. Runs until cancelled."""
        while True:
            made = await hosted.parts.get()
            if made.encoded.part == 0:
                await self._begin_chunk(hosted, made)
            self._emit_part(hosted, made)
            hosted.parts.task_done()

    def _check_emitter(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:  # a bug of ours; a session that silently stops would be worse
            self._fatal(error)

    async def _begin_chunk(self, hosted: Hosted, made: PartMade) -> None:
        records = [
            AppliedRecord(entry=item.entry, id=item.id, rev=item.rev, seq=made.seq) for item in made.applied
        ]
        if records:
            await self._ledger.record_applied(hosted, records)
        applied = tuple(
            Applied(session=hosted.id, epoch=hosted.epoch, rev=item.rev, seq=made.seq, id=item.id)
            for item in made.applied
        )
        hosted.replay.begin(
            start_ms=self._media_ms(made.chunk_frame),
            end_ms=self._media_ms(made.chunk_frame + made.chunk_frames),
            applied=applied,
        )
        if made.seq >= hosted.start_seq:
            for message in applied:
                self._say(hosted, message)

    def _emit_part(self, hosted: Hosted, made: PartMade) -> None:
        encoded, last = made.encoded, made.encoded.is_last
        header = ChunkPart(
            session=hosted.id,
            epoch=hosted.epoch,
            seq=made.seq,
            part=encoded.part,
            parts=encoded.parts,
            key=encoded.part == 0,
            frames=encoded.frames,
            sizes=encoded.sizes,
            pts_ms=self._media_ms(made.frame),
            duration_ms=self._media_ms(encoded.frames),
            codec=CODEC,
            rev=made.rev,
            gen_ms=round(made.gen_ms, 2) if last else None,
        )
        data = frame_media(encode_json(header), encoded.payload)
        hosted.replay.add(data, last=last)
        if last:
            self._finish_chunk(hosted, made)
        if hosted.link is not None and made.seq >= hosted.start_seq:
            chunk = hosted.replay.since(made.seq)[0]
            hosted.link.send_media(data, self._on_delivered(hosted, chunk, made) if last else None)
        elif last:  # nobody takes it now: it is done when it lies in the replay window
            hosted.handed_ms = self._clock()
        if last:
            self._refresh(hosted)

    def _finish_chunk(self, hosted: Hosted, made: PartMade) -> None:
        hosted.player = replace(hosted.player, emitted_seq=made.seq + 1)
        hosted.rev = made.rev
        hosted.next_frame = made.chunk_frame + made.chunk_frames
        if made.seq == hosted.record.next_seq:  # a recovery right after the first chunk must know of it
            self._ledger.changed()

    def _on_delivered(
        self, hosted: Hosted, chunk: ReplayChunk, made: PartMade | None = None
    ) -> Callable[[], None]:
        """What to do when the last byte of a chunk is handed to the link; `made` unless it is a replay."""
        subscription = hosted.subscription

        def on_sent() -> None:
            if hosted.subscription != subscription or hosted.link is None:
                return
            now = self._clock()
            hosted.player = delivered(hosted.player, seq=chunk.seq, end_media_ms=chunk.end_ms, now_ms=now)
            if made is not None:
                self._measure(hosted, made, now)
            self._refresh(hosted)

        return on_sent

    def _measure(self, hosted: Hosted, made: PartMade, now_ms: float) -> None:
        latency_ms = now_ms - max(made.due_ms, hosted.handed_ms)
        hosted.handed_ms = now_ms
        self._recent_ms.append(latency_ms)
        self._say(
            hosted,
            Stats(
                session=hosted.id,
                epoch=hosted.epoch,
                seq=made.seq,
                latency_ms=round(latency_ms, 2),
                gen_ms=round(made.gen_ms, 2),
                slack_ms=float(self.slack_ms(hosted)),
                batch=round(made.batch, 2),
            ),
        )

    def _media_ms(self, frame: int) -> float:
        return frame * 1000.0 / self._spec.fps
