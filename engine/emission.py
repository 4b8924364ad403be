"""From encoded parts to the subscriber: numbering, the replay window, what was applied, latency.

One task per session takes its parts in order. It waits, within a limit, until the inputs that a chunk shows
are recorded, before that chunk leaves.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from engine.compute_messages import PartMade
from engine.credit import delivered, unplayed_ms
from engine.hosted import Hosted
from engine.models.base import ModelSpec
from engine.replay import ReplayChunk
from scheduler.messages import Applied, ChunkPart, Rung, Stats, encode_json, frame_media
from scheduler.store import AppliedRecord

__all__ = ["Emitter", "RecentLatency"]

RECENT_CHUNKS = 32
"""Chunks whose latency makes the engine's mean."""
WORST_OF_MS = 10_000.0
"""The worst is of the chunks of so long: twice what lies between two looks of who shows it."""

Record = Callable[[Hosted, Sequence[AppliedRecord]], Awaitable[None]]
"""Record inputs before the chunk that shows them; returns after a bounded wait at the latest."""


class RecentLatency:
    """Of the engine's chunks, all sessions together, in ms; 0 before the first."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._mean: deque[float] = deque(maxlen=RECENT_CHUNKS)
        self._worst: deque[tuple[float, float]] = deque()
        """(when, ms), each more than all that came later."""

    def add(self, latency_ms: float) -> None:
        """One more chunk."""
        self._mean.append(latency_ms)
        while self._worst and self._worst[-1][1] <= latency_ms:
            self._worst.pop()
        self._worst.append((self._clock(), latency_ms))

    @property
    def mean_ms(self) -> float:
        """Of RECENT_CHUNKS."""
        return sum(self._mean) / len(self._mean) if self._mean else 0.0

    @property
    def worst_ms(self) -> float:
        """Of the chunks of the last WORST_OF_MS."""
        while self._worst and self._worst[0][0] < self._clock() - WORST_OF_MS:
            self._worst.popleft()
        return self._worst[0][1] if self._worst else 0.0


class Emitter:
    """Belongs to the event loop."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        clock: Callable[[], float],
        record: Record,
        refresh: Callable[[Hosted], None],
        first_made: Callable[[], None],
        fatal: Callable[[BaseException], None],
    ) -> None:
        """`refresh` is called when a session's flow control changed, `first_made` when its first chunk here
        is complete, `fatal` when a task ends by an error.
        """
        self._spec, self._clock, self._record = spec, clock, record
        self._refresh, self._first_made, self._fatal = refresh, first_made, fatal
        self.latency = RecentLatency(clock)

    def slack_ms(self, hosted: Hosted) -> int:
        """Media time that the session's player still holds."""
        return int(unplayed_ms(hosted.player, made_ms=hosted.replay.end_ms, now_ms=self._clock()))

    def media_ms(self, frame: int) -> float:
        """Media position of a pixel frame."""
        return frame * 1000.0 / self._spec.fps

    def start(self, hosted: Hosted) -> None:
        """Emit the session's parts until `hosted.emitter` is cancelled."""
        hosted.emitter = asyncio.create_task(self._emit(hosted), name=f"emit {hosted.id}")
        hosted.emitter.add_done_callback(self._check)

    async def _emit(self, hosted: Hosted) -> None:
        while True:
            made = await hosted.parts.get()
            if made.encoded.part == 0 and made.encoded.rung is not Rung.FULL:  # LOW comes before it
                await self._begin_chunk(hosted, made)
            self._emit_part(hosted, made)
            hosted.parts.task_done()

    def _check(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:  # a bug of ours; a session that silently stops would be worse
            self._fatal(error)

    async def _begin_chunk(self, hosted: Hosted, made: PartMade) -> None:
        records = [
            AppliedRecord(entry=item.entry, id=item.id, rev=item.rev, seq=made.seq) for item in made.applied
        ]
        if records:
            await self._record(hosted, records)
        applied = tuple(
            Applied(session=hosted.id, epoch=hosted.epoch, rev=item.rev, seq=made.seq, id=item.id)
            for item in made.applied
        )
        hosted.replay.begin(
            start_ms=self.media_ms(made.chunk_frame),
            end_ms=self.media_ms(made.chunk_frame + made.chunk_frames),
            applied=applied,
        )
        if made.seq >= hosted.start_seq:
            for message in applied:
                hosted.say(message)

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
            pts_ms=self.media_ms(made.frame),
            duration_ms=self.media_ms(encoded.frames),
            codec=hosted.record.codec,
            rev=made.rev,
            gen_ms=round(made.gen_ms, 2) if last else None,
            rung=encoded.rung,
        )
        data = frame_media(encode_json(header), encoded.payload)
        if encoded.rung is not Rung.LOW:  # that is a copy
            self._note_part(hosted, made, header, data)
        last = last and encoded.rung is not Rung.LOW
        if hosted.link is not None and made.seq >= hosted.start_seq:
            chunk = hosted.replay.since(made.seq)[0]
            hosted.link.send_media(data, self.on_delivered(hosted, chunk, made) if last else None)
            viewers = hosted.watchers - {hosted.link}
        else:
            viewers = hosted.watchers
            if last:  # nobody takes it now: it is done when it lies in the replay window
                hosted.handed_ms = self._clock()
        for link in viewers:
            link.send_media(data)
        if last:
            self._refresh(hosted)

    def _note_part(self, hosted: Hosted, made: PartMade, header: ChunkPart, data: bytes) -> None:
        """What follows from a part besides that it is sent. Whoever comes later gets it as the only one."""
        encoded = made.encoded
        if header.rung is not None:
            data = frame_media(encode_json(replace(header, rung=None)), encoded.payload)
        hosted.media_bytes += len(encoded.payload)
        hosted.replay.add(data, last=encoded.is_last)
        if encoded.is_last:
            self._finish_chunk(hosted, made)

    def _finish_chunk(self, hosted: Hosted, made: PartMade) -> None:
        hosted.player = replace(hosted.player, emitted_seq=made.seq + 1)
        hosted.rev = made.rev
        hosted.engine_ms += made.engine_ms
        hosted.next_frame = made.chunk_frame + made.chunk_frames
        if made.seq == hosted.record.next_seq:  # a recovery right after the first chunk must know of it
            self._first_made()

    def on_delivered(
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
        self.latency.add(latency_ms)
        hosted.say(
            Stats(
                session=hosted.id,
                epoch=hosted.epoch,
                seq=made.seq,
                latency_ms=round(latency_ms, 2),
                gen_ms=round(made.gen_ms, 2),
                slack_ms=float(self.slack_ms(hosted)),
                batch=round(made.batch, 2),
            )
        )
