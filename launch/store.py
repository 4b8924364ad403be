"""The way into the cluster's Redis for commands."""

from __future__ import annotations

from launch.supervisor import StartError
from scheduler.store import Store, StoreError

__all__ = ["connect"]


async def connect(url: str, *, cluster: str) -> Store:
    """Raises StartError: no Redis answers there or it can't be used, or a file that it names is missing."""
    try:
        return await Store.connect(url, cluster=cluster)
    except (StoreError, ValueError) as exc:
        raise StartError(str(exc)) from exc
