"""The scheduler's orders to this engine, obeyed in turn.

Opening a session may have to wait, for Redis or for where the checkpoints lie. What is ordered about that
session meanwhile waits for it, and nothing else does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Protocol, assert_never

from engine.host import Host
from engine.migrations import Migrations
from scheduler.messages import (
    ActivateSession,
    CancelMigration,
    CloseSession,
    Drain,
    EngineCommand,
    MigrateSession,
    OpenSession,
    ReceiveSession,
    ReleaseSession,
    SessionId,
    StopEngine,
    SuspendSession,
)

__all__ = ["Orders", "SessionOrder"]

_log = logging.getLogger("turboserve.engine.orders")

SessionOrder = (
    OpenSession
    | ReleaseSession
    | CloseSession
    | SuspendSession
    | ActivateSession
    | MigrateSession
    | ReceiveSession
    | CancelMigration
)


class Engine(Protocol):
    """Whom they are given to."""

    host: Host
    migrations: Migrations | None

    async def open(self, command: OpenSession) -> None:
        """Open the session if it is still ours; as long as that takes."""

    def run_errand(self, work: Coroutine[None, None, None], name: str) -> None:
        """See that it is done."""


class Orders:
    """Belongs to the event loop."""

    def __init__(self, side: Engine, *, stop: Callable[[], object]) -> None:
        self._side, self._stop = side, stop
        self._waiting: dict[SessionId, list[SessionOrder]] = {}
        """Of the sessions that are being opened: the order for it, and what comes after."""

    def obey(self, command: EngineCommand) -> None:
        """Returns at once."""
        match command:
            case Drain():
                _log.info("draining: no new sessions come, the present ones will be moved")
            case StopEngine():
                self._stop()
            case _:
                self._obey(command)

    def _obey(self, command: SessionOrder) -> None:
        waiting, host = self._waiting.get(command.session), self._side.host
        if waiting is not None:
            if not (isinstance(command, OpenSession) and command in waiting):
                waiting.append(command)
            return
        match command:
            case OpenSession(session=session):
                self._waiting[session] = [command]
                self._side.run_errand(self._open(command), f"open {session}")
            case ReleaseSession():
                host.release(command)
            case CloseSession(session=session, reason=reason):
                host.close(session, reason)
            case SuspendSession(session=session, epoch=epoch):
                host.suspend(session, epoch)
            case ActivateSession(session=session, epoch=epoch):
                host.admit(session, epoch)
            case MigrateSession() | ReceiveSession() | CancelMigration():
                if self._side.migrations is not None:  # without them no address is published
                    _migrate(self._side.migrations, command)
            case _:
                assert_never(command)

    async def _open(self, command: OpenSession) -> None:
        await self._side.open(command)
        _, *following = self._waiting.pop(command.session)
        for order in following:
            self._obey(order)


def _migrate(migrations: Migrations, command: MigrateSession | ReceiveSession | CancelMigration) -> None:
    match command:
        case MigrateSession():
            migrations.migrate(command)
        case ReceiveSession():
            migrations.receive(command)
        case CancelMigration():
            migrations.cancel(command)
        case _:
            assert_never(command)
