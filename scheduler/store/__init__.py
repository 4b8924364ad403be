"""The cluster's shared records in Redis: one Lua script per atomic operation, every write fenced.

    store = await Store.connect("unix:///run/redis.sock?db=0", cluster="main")

One Store per process. Methods come by role: `reader`, `gateway`, `engine`, `leader`, `provisioner`.
"""

from __future__ import annotations

from typing import Self

from scheduler.store.checkpoints import Checkpoints, open_checkpoints
from scheduler.store.connection import Connection
from scheduler.store.engine import EngineStore
from scheduler.store.errors import (
    BeyondGenerated,
    CheckpointRefused,
    CheckpointsUnavailable,
    EngineGone,
    EngineUnknown,
    EventsLost,
    EventsTrimmed,
    InputLogFull,
    NoSuchEngine,
    NoSuchSession,
    PlacementRefused,
    QueueFull,
    QuotaReached,
    ServerTooOld,
    SessionIsClosed,
    StaleController,
    StaleEpoch,
    StaleTerm,
    StoreError,
    StoreUnavailable,
)
from scheduler.store.gateway import GatewayStore
from scheduler.store.leader import LeaderStore
from scheduler.store.provisioner import ProvisionerStore
from scheduler.store.reader import START, draw_id
from scheduler.store.values import (
    AppliedRecord,
    CheckpointPointer,
    ClusterInfo,
    InputReceipt,
    QueuedCopy,
    SessionCopy,
    SessionProgress,
)

__all__ = [
    "START",
    "AppliedRecord",
    "BeyondGenerated",
    "CheckpointPointer",
    "CheckpointRefused",
    "Checkpoints",
    "CheckpointsUnavailable",
    "ClusterInfo",
    "EngineGone",
    "EngineUnknown",
    "EventsLost",
    "EventsTrimmed",
    "InputLogFull",
    "InputReceipt",
    "NoSuchEngine",
    "NoSuchSession",
    "PlacementRefused",
    "QueueFull",
    "QueuedCopy",
    "QuotaReached",
    "ServerTooOld",
    "SessionCopy",
    "SessionIsClosed",
    "SessionProgress",
    "StaleController",
    "StaleEpoch",
    "StaleTerm",
    "Store",
    "StoreError",
    "StoreUnavailable",
    "draw_id",
    "open_checkpoints",
]


class Store(GatewayStore, EngineStore, LeaderStore, ProvisionerStore):
    """All roles' methods over one pair of connection pools."""

    @classmethod
    async def connect(cls, url: str, *, cluster: str = "main") -> Self:
        """Open a store. url: as `scheduler/address.py` says.

        Raises:
            StoreUnavailable: no server answers there.
            ServerTooOld: it is older than 6.2.
            ValueError: the url, a file that it names, or the cluster's name can't be used.
        """
        connection = Connection(url, cluster)
        try:
            await connection.open()
        except BaseException:
            await connection.close()
            raise
        return cls(connection)

    async def close(self) -> None:
        """Close every connection; blocking reads in flight end with StoreUnavailable."""
        await self._redis.close()
