"""All migrations of one engine, as source and as target, between the host, the compute thread and Redis."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import Protocol

from engine.compute_messages import Command, MigrationEvent, MoveShare, Reserved, Thaw
from engine.cost_table import CostTable
from engine.handover import Arrival, HostFacts
from engine.host import Host
from engine.hosted import Hosted
from engine.incoming import Incoming
from engine.kv_pool import SlabPool
from engine.link import Link
from engine.migration_cost import FIRST_LINK, MoveCost
from engine.models.base import CausalVideoModel
from engine.outgoing import CalledOff, Outgoing, Timing
from engine.pairs import Pairs
from scheduler.messages import (
    CancelMigration,
    EngineId,
    MigrateSession,
    ReceiveSession,
    ReleaseSession,
    Residence,
    SessionId,
    SessionRecord,
    Subscribe,
)
from scheduler.store import PlacementRefused, StaleEpoch, StoreUnavailable

__all__ = ["MigrationLedger", "Migrations"]

_log = logging.getLogger("turboserve.engine.migrations")


class MigrationLedger(Protocol):
    """What migrations need of Redis."""

    async def ping(self) -> None:
        """Raises StoreUnavailable."""

    async def record_of(self, session: SessionId) -> SessionRecord | None:
        """Raises StoreUnavailable."""

    async def flush_applied(self, hosted: Hosted) -> None:
        """Record what is not recorded. Raises StoreUnavailable."""

    async def commit_migration(self, hosted: Hosted, migration_id: str, residence: Residence) -> int:
        """The new epoch; repeats until Redis answers. What was made here counts as used from then on.

        Raises StaleEpoch, PlacementRefused.
        """

    async def abort_migration(self, session: SessionId, epoch: int, migration_id: str) -> None:
        """Repeats until Redis answers. No effect if it is over, or the session another engine's."""

    async def disowned(self, hosted: Hosted) -> None:
        """Drop the session and say who has it."""

    def reopen(self, session: SessionId, epoch: int) -> None:
        """Open a session that this engine owns but does not have."""


class Migrations:
    """Belongs to the event loop; the `SourceSide` and `TargetSide` of each migration."""

    def __init__(
        self,
        model: CausalVideoModel,
        pool: SlabPool,
        pairs: Pairs,
        host: Host,
        ledger: MigrationLedger,
        *,
        engine: EngineId,
        ranks: int = 1,
        submit: Callable[[Command], None],
        costs: Callable[[], CostTable],
        clock: Callable[[], float],
    ) -> None:
        self._model, self._pool, self._pairs = model, pool, pairs
        self._host, self._ledger, self._engine, self._ranks = host, ledger, engine, ranks
        self.submit, self._costs, self._clock = submit, costs, clock
        self._outgoing: dict[SessionId, Outgoing] = {}
        self._incoming: dict[SessionId, Incoming] = {}
        self._parked: dict[SessionId, list[tuple[Link, Subscribe]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.cost: MoveCost | None = None
        """Of those away from here, as measured; None before the first."""
        host.migration_event = self.receive_event
        host.park = self._park

    @property
    def address(self) -> str:
        """Where other engines' ranks meet those of this one, host:port."""
        return self._pairs.address

    @property
    def num_slots_held(self) -> int:
        """For sessions that are on their way here."""
        return sum(incoming.command.takes_slot for incoming in self._incoming.values())

    # --- from the scheduler --------------------------------------------------------------------------------

    def migrate(self, command: MigrateSession) -> None:
        """Move a session away."""
        hosted = self._host.sessions.get(command.session)
        if hosted is None or hosted.epoch != command.epoch or not hosted.at_compute or hosted.moving:
            _log.info("%s can't be migrated: its state is not here", command.session)
            abort = self._ledger.abort_migration(command.session, command.epoch, command.migration_id)
            self._start(abort, "abort")
            return
        hosted.moving = True
        self._share(command)
        outgoing = Outgoing(
            *(self._model, self._pool, self._pairs, self, hosted, command),
            ranks=self._ranks,
            link=FIRST_LINK if self.cost is None else self.cost.link,
            clock=self._clock,
        )
        self._outgoing[hosted.id] = outgoing
        self._start(self._send(outgoing, hosted, command), f"migrate {hosted.id}")

    def receive(self, command: ReceiveSession) -> None:
        """Expect a session."""
        known = self._incoming.get(command.session)
        if known is not None and known.command.migration_id == command.migration_id:
            return
        if known is not None:
            known.decide(is_ours=False)  # it was called off, and this is the next try
        self._share(command)
        incoming = Incoming(self._model, self._pool, self._pairs, self, command, ranks=self._ranks)
        self._incoming[command.session] = incoming
        self._start(self._take_in(incoming), f"receive {command.session}")

    def cancel(self, command: CancelMigration) -> None:
        """Source or target: it is off."""
        incoming = self._incoming.get(command.session)
        if incoming is not None and incoming.command.migration_id == command.migration_id:
            incoming.decide(is_ours=False)
        sending = self._outgoing.get(command.session)
        if sending is not None and sending.migration_id == command.migration_id:
            sending.call_off()
        hosted = self._host.sessions.get(command.session)
        if sending is None and incoming is None and hosted is None:
            self._ledger.reopen(command.session, command.epoch)  # Redis lost the commit

    def own(self, session: SessionId, epoch: int) -> bool:
        """Redis says that this engine owns the session since `epoch`. Is it one that came with its state?

        Not if that was called off: then the epoch is of an ownership that followed.
        """
        incoming = self._incoming.get(session)
        if incoming is None or incoming.epoch != epoch:
            return False
        incoming.decide(is_ours=True)
        return incoming.is_ours

    async def recheck(self) -> None:
        """Redis was away: what became of the sessions that came? Raises StoreUnavailable."""
        for session, incoming in list(self._incoming.items()):
            record = await self._ledger.record_of(session)
            flight = record.in_flight if record is not None else None
            if record is not None and (record.engine, record.epoch) == (self._engine, incoming.epoch):
                incoming.decide(is_ours=True)
            elif flight is None or flight.migration_id != incoming.command.migration_id:
                incoming.decide(is_ours=False)

    # --- from the compute thread and the links -------------------------------------------------------------

    def receive_event(self, event: MigrationEvent) -> None:
        """Hand it to the migration that asked; when there is none any more, undo it."""
        if isinstance(event, Reserved):
            for incoming in self._incoming.values():
                if incoming.command.migration_id == event.migration_id:
                    incoming.receive(event)
            return  # else it was dropped, and its Unreserve comes after the Reserve
        sending = self._outgoing.get(event.session)
        if sending is not None:
            sending.receive(event)

    def _park(self, link: Link, request: Subscribe) -> bool:
        """A gateway that has read of the commit may be faster than the source's word of it."""
        incoming = self._incoming.get(request.session)
        if incoming is None or request.epoch != incoming.epoch:
            return False
        self._parked.setdefault(request.session, []).append((link, request))
        return True

    # --- SourceSide, TargetSide --------------------------------------------------------------------------

    def rebuild_ms(self, chunks: int) -> float:
        """See `SourceSide`."""
        costs = self._costs()
        return chunks * costs.pass_ms(1, costs.buckets[-1])

    async def settled(self, hosted: Hosted) -> HostFacts:
        """See `SourceSide`."""
        await hosted.parts.join()
        if hosted.unrecorded:
            await self._ledger.flush_applied(hosted)
        if hosted.unrecorded or self._host.sessions.get(hosted.id) is not hosted:
            raise CalledOff("its applied inputs are not recorded, or it has ended")
        return self._host.facts(hosted)

    async def ping(self) -> None:
        """See `SourceSide`."""
        await self._ledger.ping()

    async def commit(self, hosted: Hosted, migration_id: str, residence: Residence) -> int:
        """See `SourceSide`."""
        return await self._ledger.commit_migration(hosted, migration_id, residence)

    async def record(self, command: ReceiveSession) -> SessionRecord | None:
        """See `TargetSide`."""
        return await self._ledger.record_of(command.session)

    def adopt(self, arrival: Arrival) -> None:
        """See `TargetSide`."""
        self._incoming.pop(arrival.record.id, None)
        self._host.adopt(arrival)
        _log.info("%s came with its state, epoch %d", arrival.record.id, arrival.state.epoch)
        self._unpark(arrival.record.id)

    # --- parts of the above --------------------------------------------------------------------------------

    async def _send(self, outgoing: Outgoing, hosted: Hosted, command: MigrateSession) -> None:
        try:
            epoch, timing = await outgoing.run()
        except StaleEpoch:
            outgoing.close()
            self._stay(hosted)
            await self._ledger.disowned(hosted)
        except asyncio.CancelledError:  # this engine ends
            outgoing.close()
            self._stay(hosted)
            raise
        except Exception as exc:
            is_expected = isinstance(exc, CalledOff | PlacementRefused | StoreUnavailable)
            if outgoing.is_committing and not is_expected:
                raise  # nobody knows whose it is
            why, fault = str(exc) or type(exc).__name__, None if is_expected else exc
            _log.warning("%s stays: %s", hosted.id, why, exc_info=fault)
            outgoing.close()
            self._stay(hosted)
            await self._ledger.abort_migration(hosted.id, hosted.epoch, command.migration_id)
        else:
            release = ReleaseSession(session=hosted.id, epoch=epoch, engine=command.engine)
            self._host.release(release)
            _log_timing(hosted.id, command, timing)
            self.cost = MoveCost.after(self.cost, timing.pause_ms, outgoing.link)
            await outgoing.tell_committed()
        finally:
            if self._outgoing.get(hosted.id) is outgoing:  # not the next try, which may be under way
                del self._outgoing[hosted.id]

    def _share(self, order: MigrateSession | ReceiveSession) -> None:
        """The other ranks take part from their next boundary on, until Thaw or Drop, Unreserve or Adopt."""
        if self._ranks > 1:
            self.submit(MoveShare(order=order, meeting=self._pairs.address))

    def _stay(self, hosted: Hosted) -> None:
        """The session goes on here."""
        self.submit(Thaw(session=hosted.id, epoch=hosted.epoch))
        if self._host.sessions.get(hosted.id) is hosted:
            self._host.unhold(hosted)

    async def _take_in(self, incoming: Incoming) -> None:
        session = incoming.command.session
        try:
            has_come = await incoming.run()
        finally:
            if self._incoming.get(session) is incoming:
                del self._incoming[session]
                self._unpark(session)
        if incoming.is_ours and not has_come:  # `own` has said that it would
            self._ledger.reopen(session, incoming.epoch)

    def _unpark(self, session: SessionId) -> None:
        for link, request in self._parked.pop(session, []):
            if not link.lost:
                self._host.receive_request(link, request)

    def _start(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)

        def check(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                self._host.fail(error)

        task.add_done_callback(check)
        return task

    async def close(self) -> None:
        """End what is under way; who hangs on it finds out by its limits."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._pairs.close()


def _log_timing(session: SessionId, command: MigrateSession, timing: Timing) -> None:
    figures = {
        name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(timing).items()
    }
    line = json.dumps({"session": session, "target": command.engine, **figures})
    _log.info("migrated %s", line)
