"""What can go wrong at the store. Pure.

StoreError
├── StoreUnavailable     Redis can't be reached, is loading, or did not answer in time: try again
│   └── CheckpointsUnavailable  only where the bytes of checkpoints lie can't be used just now
├── StaleEpoch           the writer is no longer the session's owner: drop that session
├── StaleTerm            the writer is no longer the leader: stop acting
├── StaleController      a newer connection controls the session
├── EngineGone           this engine was declared gone: it must exit
│   └── EngineUnknown    Redis has no record of this engine: it lost data, or the id was never registered
├── NoSuchEngine         an order names an engine that does not exist (any more)
├── NoSuchSession        no record, or the resume token is wrong (not told apart on purpose)
├── SessionIsClosed      `.reason` says why
├── QueueFull            `.retry_after_ms` says when to try again
├── QuotaReached         the subject has as many sessions as it may
├── BeyondGenerated      an attach names a chunk that is far from being generated
├── InputLogFull         the session's input log holds MAX_INPUT_LOG entries
├── PlacementRefused     the world moved on since the plan was made: plan again
├── CheckpointRefused    the checkpoint is too large, or there is no room for it: go on without
├── EventsTrimmed        events after the given id are lost to this reader: read everything again
│   └── EventsLost       and Redis lost the event of that id itself: its data was restored or lost
└── ServerTooOld         the Redis server is older than 6.2
"""

from __future__ import annotations


class StoreError(Exception):
    """Base of the tree above. `str()` is a sentence a person can act on."""


class StoreUnavailable(StoreError):
    """Redis can't be reached, is loading its data, or did not answer in time. The write may have happened."""


class CheckpointsUnavailable(StoreUnavailable):
    """The second Redis or the directory of checkpoints can't be used just now; the control Redis answers."""


class StaleEpoch(StoreError):
    """The writer does not own the session (any more). Nothing was written."""


class StaleTerm(StoreError):
    """The writer does not hold the leader lease (any more). Nothing was written."""


class StaleController(StoreError):
    """A newer connection controls the session. Nothing was written."""


class EngineGone(StoreError):
    """The engine was declared gone and its sessions have other owners: it must exit."""


class EngineUnknown(EngineGone):
    """Redis has no record of the engine: exit, or register again if it was registered before."""


class NoSuchEngine(StoreError):
    """No engine of that id exists (any more)."""


class NoSuchSession(StoreError):
    """No session of that id exists, or the resume token does not fit."""


class SessionIsClosed(StoreError):
    """The session was closed."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the session is closed: {reason}")
        self.reason = reason


class QueueFull(StoreError):
    """The queue of the model is as long as the gateway allows, or the subject has its share of it."""

    def __init__(self, retry_after_ms: int = 0) -> None:
        super().__init__(f"the queue is full, try again in {retry_after_ms / 1000:.0f} s")
        self.retry_after_ms = retry_after_ms


class QuotaReached(StoreError):
    """The subject has as many sessions as it may have at once."""


class InputLogFull(StoreError):
    """The session's input log is full: inputs are refused until it is trimmed."""


class BeyondGenerated(StoreError):
    """An attach wants to go on from a chunk far beyond the newest one; who controls the session keeps it."""


class PlacementRefused(StoreError):
    """A placement no longer fits: the session, its epoch or the engine changed since the plan was made."""


class CheckpointRefused(StoreError):
    """A checkpoint is larger than the control Redis takes, or all of them together are."""


class EventsTrimmed(StoreError):
    """The reader fell behind the bounded events stream, or Redis came back older: read everything again."""


class EventsLost(EventsTrimmed):
    """An event that was read is not there, though the stream was not trimmed: Redis came back older, or
    empty. What else was written since is gone as well. Read everything again; who decides must hear engines.
    """


class ServerTooOld(StoreError):
    """The Redis server is older than 6.2."""
