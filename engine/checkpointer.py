"""Writes checkpoints, beside everything else: the compute thread only lends its tensors.

A checkpoint is kept once the client has every chunk before it, so that whoever rebuilds the session can make
the chunk that the client lacks. Of one session only the newest such checkpoint waits to be written: when
writing is slow, or its place is out of reach, older ones are dropped.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable

from engine.compute_messages import CheckpointMade
from engine.credit import MAX_UNDELIVERED_CHUNKS
from engine.state_format import describe, pack
from scheduler.messages import SessionId
from scheduler.store import CheckpointPointer, CheckpointRefused, StaleEpoch, StoreUnavailable

__all__ = ["Checkpointer"]

_log = logging.getLogger("turboserve.engine.checkpointer")

MAX_UNACKNOWLEDGED = MAX_UNDELIVERED_CHUNKS + 2
"""Checkpoints of a session that wait for an acknowledgement; beyond it the oldest is dropped."""
RETRY_S = 1.0
REST_S = 30.0
"""After a refusal none is made of the session for so long: one that is too large costs as much as another."""

Write = Callable[[SessionId, CheckpointPointer, bytes], Awaitable[None]]


class Checkpointer:
    """Belongs to the event loop. `run` must be running for anything to be written."""

    def __init__(
        self,
        write: Write,
        *,
        on_stale: Callable[[SessionId, int], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_stale` is called with (session, epoch) that turned out not to be owned here any more; `clock`
        gives monotonic seconds, on any thread."""
        self._write, self._on_stale, self._clock = write, on_stale, clock
        self._waiting: dict[SessionId, deque[CheckpointMade]] = {}
        self._due: dict[SessionId, CheckpointMade] = {}
        """Acknowledged, not written; in the order in which sessions came."""
        self._work = asyncio.Event()
        self._refused_s: dict[SessionId, float] = {}
        """Session → when its newest refusal was. Told about in the log once."""

    @property
    def num_held(self) -> int:
        """Checkpoints that are not written."""
        return len(self._due) + sum(map(len, self._waiting.values()))

    def takes(self, session: SessionId) -> bool:
        """Is a checkpoint of the session worth making just now? Any thread."""
        refused_s = self._refused_s.get(session)
        return refused_s is None or self._clock() - refused_s >= REST_S

    def offer(self, made: CheckpointMade) -> None:
        """See `engine.host.Checkpoints`."""
        waiting = self._waiting.setdefault(made.session, deque(maxlen=MAX_UNACKNOWLEDGED))
        if waiting and waiting[-1].epoch != made.epoch:
            waiting.clear()
        waiting.append(made)

    def acknowledge(self, session: SessionId, epoch: int, seq: int) -> None:
        """See `engine.host.Checkpoints`."""
        waiting = self._waiting.get(session, deque())
        newest = None
        while waiting and waiting[0].epoch == epoch and waiting[0].seq <= seq:
            newest = waiting.popleft()
        if newest is not None:
            self._due[session] = newest
            self._work.set()

    def forget(self, session: SessionId) -> None:
        """See `engine.host.Checkpoints`."""
        self._waiting.pop(session, None)
        self._due.pop(session, None)
        self._refused_s.pop(session, None)

    async def run(self) -> None:
        """Write what is due, one after the other. Runs until cancelled."""
        while True:
            await self._work.wait()
            self._work.clear()
            while self._due:
                session = next(iter(self._due))
                made = self._due.pop(session)
                try:
                    await self._keep(made)
                except StoreUnavailable as exc:
                    _log.warning("checkpoints wait: %s", exc)
                    self._due.setdefault(session, made)
                    await asyncio.sleep(RETRY_S)

    async def _keep(self, made: CheckpointMade) -> None:
        scalars = made.state.header.scalars
        assert scalars is not None
        data = await asyncio.to_thread(_packed, made)
        pointer = CheckpointPointer(
            epoch=made.epoch,
            seq=made.seq,
            last_applied=scalars.last_applied,
            text=scalars.text,
            seed=scalars.seed,
            rev=scalars.rev,
            size=len(data),
        )
        try:
            await self._write(made.session, pointer, data)
        except StaleEpoch:
            await self._on_stale(made.session, made.epoch)
        except CheckpointRefused as exc:
            if made.session not in self._refused_s:
                _log.error("session %s goes on without a checkpoint: %s", made.session, exc)
            self._refused_s[made.session] = self._clock()


def _packed(made: CheckpointMade) -> bytes:
    host = {name: tensor.cpu() for name, tensor in made.state.buffers.items()}
    return pack(describe(made.state.header, host, checked=True))
