"""What the engine reads from and writes to Redis; nothing of it is in the way of a chunk for long.

While Redis is out of reach, sessions keep streaming and what must be written waits; afterwards everything is
written again and Redis decides by epoch what still counts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress

from engine.checkpointer import Checkpointer
from engine.config import EngineConfig
from engine.costs import are_close
from engine.endings import Endings
from engine.host import Host
from engine.hosted import Hosted
from engine.migrations import Migrations
from engine.orders import Orders
from engine.ownership import Ownership
from engine.past import read_past
from engine.progress import Progress
from engine.recovery import Past
from engine.steering import LogEntry
from scheduler.messages import (
    EngineCosts,
    EngineId,
    EngineState,
    ModelInfo,
    OpenSession,
    Phase,
    Residence,
    SessionId,
    SessionRecord,
)
from scheduler.store import (
    START,
    AppliedRecord,
    CheckpointPointer,
    Checkpoints,
    CheckpointsUnavailable,
    EngineUnknown,
    StaleEpoch,
    Store,
    StoreUnavailable,
)

__all__ = ["Control"]

_log = logging.getLogger("turboserve.engine.control")

BLOCK_MS = 5_000
"""Longest wait of one blocking read."""
MIN_BACKOFF_S = 0.1
MAX_BACKOFF_S = 2.0


class Control:
    """The engine's tasks that speak with Redis, and the host's `Ledger`.

    Set `host` before the first task runs. Each task runs until cancelled; EngineGone ends it with that error.
    """

    host: Host
    migrations: Migrations | None = None
    """None: this engine takes no part in them."""
    costs: Callable[[], EngineCosts] | None = None
    """What passes cost now; None before that was measured."""
    state_bytes: int = 0
    """What a migration of a session sends."""

    def __init__(
        self,
        store: Store,
        config: EngineConfig,
        progress: Progress,
        *,
        checkpoints: Checkpoints,
        stop: Callable[[], object],
    ) -> None:
        """`stop` is called when the scheduler wants this engine to end."""
        self._checkpoints = checkpoints
        self.checkpointer = Checkpointer(self.write_checkpoint, on_stale=self._stale)
        self._errands: set[asyncio.Task[None]] = set()
        self._is_mending = False
        self._store, self._config, self._progress = store, config, progress
        self.engine = EngineId(config.engine_id)
        self._ownership = Ownership(store, self)
        self._orders = Orders(self, stop=stop)
        self._capacity = 0
        """Slots of this engine, once it is registered."""
        self.registration: Callable[[], Awaitable[None]] | None = None
        """Makes this engine known; None before it has been."""
        self._online = True
        self._changed = asyncio.Event()
        self._residences = asyncio.Lock()
        """Redis hears of a residence and of a wish for a slot in the order in which they were true: what is
        published late would take back a slot that was granted meanwhile."""
        self._logs_changed = asyncio.Event()
        self._published_costs: EngineCosts | None = None
        self.endings = Endings(store, self.engine)

    # --- Ledger ----------------------------------------------------------------------------------------

    async def record_applied(self, hosted: Hosted, entries: Sequence[AppliedRecord]) -> None:
        """Record applied inputs; waits at most record_wait_ms, then they follow when Redis answers again."""
        hosted.unrecorded.extend(entries)
        hosted.kept.applied.extend(entries)
        if not self._online:
            return
        try:
            async with asyncio.timeout(self._config.record_wait_ms / 1000.0):
                await self._flush_applied(hosted)
        except (TimeoutError, StoreUnavailable) as exc:
            self._went_offline(exc)

    def ended(self, hosted: Hosted, reason: str, tell: Callable[[], None] | None = None) -> None:
        """Have the session's record closed; then `tell`, or when Redis does not answer in record_wait_ms."""
        is_closed = self.endings.add(hosted.progress(0), reason)
        self._changed.set()
        if tell is not None:
            self.run_errand(self._tell_end(is_closed, tell), f"tell of the end of {hosted.id}")

    async def _tell_end(self, is_closed: asyncio.Event, tell: Callable[[], None]) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._config.record_wait_ms / 1000.0 if self._online else 0.0):
                await is_closed.wait()
        tell()

    def changed(self) -> None:
        """Publish soon."""
        self._changed.set()

    def log_wanted(self) -> None:
        """Start the blocking read again with the present set of sessions."""
        self._logs_changed.set()

    def ask_slot(self, hosted: Hosted) -> None:
        """Ask Redis for a slot; the host is told when it is granted, at once or by the leader later."""

        async def ask() -> None:
            if self.host.sessions.get(hosted.id) is not hosted or not hosted.asking:
                return  # while Redis was away it has got one, or wants none any more
            try:
                async with self._residences:
                    if await self._is_granted(hosted):
                        self.host.admit(hosted.id, hosted.epoch)
                    else:
                        self.changed()  # the leader sees an active session without a slot
            except StaleEpoch:
                await self._ownership.disowned(hosted)

        self.run_errand(self._insist(ask), f"ask a slot for {hosted.id}")

    async def _is_granted(self, hosted: Hosted) -> bool:
        try:
            return await self._store.admit_session(self.engine, hosted.id, hosted.epoch)
        except StoreUnavailable as exc:
            if not self._has_free_slot():
                raise  # or Redis would hear of more than there are, and the leader find no other
            self._went_offline(exc)
            return True  # nobody can give the slot to others meanwhile

    def _has_free_slot(self) -> bool:
        arriving = self.migrations.num_slots_held if self.migrations is not None else 0
        held = (Residence.RESIDENT, Residence.LEAVING)
        taken = sum(hosted.residence in held for hosted in self.host.sessions.values())
        return arriving + taken < self._capacity

    def load(self, hosted: Hosted) -> None:
        """Read the past of a session whose state the compute thread gave up."""

        async def load() -> None:
            if hosted.unrecorded:  # else they would be read as inputs that no chunk was made with
                await self._flush_applied(hosted)
            record = await self._store.get_session(hosted.id)
            if record is None or record.epoch != hosted.epoch or record.phase is not Phase.PLACED:
                await self._ownership.disowned(hosted)
                record = await self._store.get_session(hosted.id)  # Redis may only have lost it
            if record is not None and record.epoch == hosted.epoch and record.phase is Phase.PLACED:
                self.host.load(hosted, await self._past_of(record))

        self.run_errand(self._insist(load), f"load {hosted.id}")

    def adopted(self, hosted: Hosted) -> None:
        """Learn what Redis holds of a session that came with its state."""

        async def learn() -> None:
            record = await self._store.get_session(hosted.id)
            if record is not None and record.epoch == hosted.epoch:
                hosted.kept.refill(await self._past_of(record))

        self.run_errand(self._insist(learn), f"learn {hosted.id}")

    def run_errand(self, work: Coroutine[None, None, None], name: str) -> None:
        """Do it beside everything else; an error in it ends the engine."""
        task = asyncio.create_task(work, name=name)
        self._errands.add(task)

        def check(task: asyncio.Task[None]) -> None:
            self._errands.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                self.host.fail(error)

        task.add_done_callback(check)

    async def close(self) -> None:
        """End what was begun for sessions."""
        if self.migrations is not None:
            await self.migrations.close()
        for task in list(self._errands):
            task.cancel()
        await asyncio.gather(*self._errands, return_exceptions=True)
        await self._checkpoints.close()

    # --- MigrationLedger -------------------------------------------------------------------------------

    async def ping(self) -> None:
        """See `MigrationLedger`."""
        await self._store.now_ms()

    async def record_of(self, session: SessionId) -> SessionRecord | None:
        """See `MigrationLedger`."""
        return await self._store.get_session(session)

    async def flush_applied(self, hosted: Hosted) -> None:
        """See `MigrationLedger`."""
        await self._flush_applied(hosted)

    async def commit_migration(self, hosted: Hosted, migration_id: str, residence: Residence) -> int:
        """See `MigrationLedger`."""
        epochs: list[int] = []

        async def commit() -> None:
            epochs.append(
                await self._store.commit_migration(
                    self.engine,
                    hosted.id,
                    hosted.epoch,
                    migration_id=migration_id,
                    residence=residence,
                    engine_ms=round(hosted.engine_ms),
                    media_bytes=hosted.media_bytes,
                )
            )

        await self._insist(commit)
        return epochs[-1]

    async def abort_migration(self, session: SessionId, epoch: int, migration_id: str) -> None:
        """See `MigrationLedger`."""

        async def abort() -> None:
            with suppress(StaleEpoch):
                await self._store.abort_migration(self.engine, session, epoch, migration_id=migration_id)

        await self._insist(abort)

    async def disowned(self, hosted: Hosted) -> None:
        """See `MigrationLedger`."""
        await self._insist(lambda: self._ownership.disowned(hosted))

    def reopen(self, session: SessionId, epoch: int) -> None:
        """See `MigrationLedger`."""
        self._orders.obey(OpenSession(session=session, epoch=epoch))

    # --- parts of the above ----------------------------------------------------------------------------

    async def write_checkpoint(self, session: SessionId, pointer: CheckpointPointer, data: bytes) -> None:
        """Put it in its place, and keep a copy in case that Redis loses it."""
        await self._checkpoints.write(self.engine, session, pointer, data)
        if (hosted := self.host.sessions.get(session)) is not None:
            hosted.kept.written(pointer, data)

    async def _stale(self, session: SessionId, epoch: int) -> None:
        hosted = self.host.sessions.get(session)
        if hosted is not None and hosted.epoch == epoch:
            await self._ownership.disowned(hosted)

    # --- registration ----------------------------------------------------------------------------------

    async def register(self, url: str, model: ModelInfo, *, capacity: int, transfer: str = "") -> None:
        """Announce the engine; returns once Redis knows it.

        Raises:
            EngineGone: it isn't wanted any more.
        """

        async def register() -> None:
            await self._store.register_engine(
                self.engine, url=url, model=model, capacity=capacity, transfer=transfer
            )

        await self._insist(register)
        self.registration, self._capacity = register, capacity

    async def deregister(self) -> None:
        """Say that the engine ends; gives up when Redis is out of reach, then its heartbeats just stop."""
        try:
            await self._flush()
            await self._store.remove_engine(self.engine)
        except (StoreUnavailable, TimeoutError) as exc:
            _log.warning("Redis does not learn that this engine ends: %s", exc)

    # --- tasks -----------------------------------------------------------------------------------------

    async def beat(self) -> None:
        """Heartbeats, also during start-up."""
        while True:
            try:
                await self._beat_once()
                if not self._online:
                    await self._came_back()
                self.endings.forget()
            except StoreUnavailable as exc:
                self._went_offline(exc)
            await asyncio.sleep(self._config.heartbeat_ms / 1000.0)

    async def read_commands(self) -> None:
        """Hand the scheduler's orders on as they come."""
        position, backoff_s = START, MIN_BACKOFF_S
        while True:
            try:
                commands = await self._store.read_commands(self.engine, position, block_ms=BLOCK_MS)
                backoff_s = MIN_BACKOFF_S
            except StoreUnavailable as exc:
                self._went_offline(exc)
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
                continue
            for id, command in commands:
                self._orders.obey(command)
                position = id

    async def read_inputs(self) -> None:
        """Follow the input logs of all sessions here with one blocking read."""
        backoff_s = MIN_BACKOFF_S
        while True:
            self._logs_changed.clear()
            after = {h.id: h.log.position for h in self.host.sessions.values() if not h.log.is_full}
            if not after:
                await self._logs_changed.wait()
                continue
            try:
                await self._read_inputs_once(after)
                backoff_s = MIN_BACKOFF_S
            except StoreUnavailable as exc:
                self._went_offline(exc)
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    async def publish(self) -> None:
        """Keep the session records up to date: at once when activity changes, else every publish_ms."""
        while True:
            try:
                await self._flush()
            except StoreUnavailable as exc:
                self._went_offline(exc)
                await asyncio.sleep(MAX_BACKOFF_S)
            try:
                async with asyncio.timeout(self._config.publish_ms / 1000.0):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()

    # --- parts of the above ----------------------------------------------------------------------------

    async def _beat_once(self) -> None:
        left_ms, costs = self._progress.left_ms(self._config.heartbeat_ms), self._costs_to_publish()
        latency = self.host.latency if self.registration else None  # it loads: there is no host
        try:
            state = await self._store.heartbeat_engine(
                self.engine,
                load=self._progress.load(),
                chunk_ms=latency.mean_ms if latency else 0.0,
                worst_ms=latency.worst_ms if latency else 0.0,
                phase=self._progress.stamp.phase,
                deadline_ms=None if left_ms is None else int(left_ms),
                costs=costs,
            )
            self._published_costs = costs or self._published_costs
        except EngineUnknown:
            state = EngineState.STARTING
        # Before registration: still loading, or no scheduler asked for it. Later: Redis lost its newest data.
        if state is EngineState.STARTING and self.registration is not None:
            _log.warning("Redis does not know that this engine is ready: registering again")
            await self.registration()
            await self._came_back()

    def _costs_to_publish(self) -> EngineCosts | None:
        """The costs, if they differ from what was published by more than a share that matters."""
        if self.costs is None or self.registration is None:
            return None
        costs, known = self.costs(), self._published_costs
        return None if known is not None and are_close(costs, known) else costs

    async def _came_back(self) -> None:
        """Redis may have lost its last second: say everything again, and let it decide what still counts."""
        self._published_costs = None
        for hosted in list(self.host.sessions.values()) if self.registration else ():
            await self._announce(hosted)
            hosted.published = None
        if self.migrations is not None:
            await self.migrations.recheck()
        if self.registration:
            self.endings.recall()
            await self._take_up()
        self._online = True
        self._changed.set()

    async def _take_up(self) -> None:
        """Open what this engine owns and does not have: Redis lost that it was taken from it, or closed."""
        for session in await self._store.placed_sessions(self.engine):
            if session in self.host.sessions:
                continue
            record = await self._store.get_session(session)
            if record is not None and not self.endings.includes(session, record.epoch):
                self.reopen(session, record.epoch)  # if it is placed here as yet

    def _has(self, command: OpenSession) -> bool:
        """Is it open? Redis lost the placement and made it again, or it has come by another one since."""
        hosted = self.host.sessions.get(command.session)
        return hosted is not None and hosted.epoch >= command.epoch

    async def open(self, command: OpenSession) -> None:
        """See `orders.Engine`."""
        if self.migrations is not None and self.migrations.own(command.session, command.epoch):
            return

        async def take() -> None:
            record = await self._store.get_session(command.session)
            owned = (
                record is not None
                and record.phase is Phase.PLACED
                and record.engine == self.engine
                and record.epoch == command.epoch
            )
            if record is None or not owned:
                _log.info("%s has moved on since the order to open it", command.session)
                return
            if self._has(command):
                return
            past = await self._past_of(record)
            if self._has(command):
                return
            hosted = self.host.sessions.get(command.session)
            if hosted is not None:
                self.host.lose(command.session)  # a former ownership
            self.host.open(past)
            self._logs_changed.set()

        await self._insist(take)
        hosted = self.host.sessions.get(command.session)
        if hosted is not None:
            await self._insist(lambda: self._announce(hosted))

    async def _past_of(self, record: SessionRecord) -> Past:
        return await read_past(record, self._store, self._checkpoints, can_use=self.host.can_use)

    async def _announce(self, hosted: Hosted) -> None:
        try:
            await self._store.announce_session(
                self.engine, hosted.id, hosted.epoch, state_bytes=self.state_bytes
            )
        except StaleEpoch:
            await self._ownership.disowned(hosted)

    async def _read_inputs_once(self, after: dict[SessionId, str]) -> None:
        read = asyncio.create_task(self._store.read_inputs(after, block_ms=BLOCK_MS))
        changed = asyncio.create_task(self._logs_changed.wait())
        try:
            await asyncio.wait({read, changed}, return_when=asyncio.FIRST_COMPLETED)
            if not read.done():
                return
            for session, page in read.result().items():
                self._take_inputs(session, after[session], page)
        finally:
            for task in (read, changed):
                task.cancel()
            await asyncio.gather(read, changed, return_exceptions=True)

    def _take_inputs(self, session: SessionId, after: str, page: Sequence[tuple[str, object]]) -> None:
        hosted = self.host.sessions.get(session)
        if hosted is None or hosted.log.position != after or not page:
            return  # dropped or opened again meanwhile
        entries = [LogEntry(entry=id, message=message) for id, message in page]  # type: ignore[arg-type]
        hosted.log.position = entries[-1].entry
        self.host.feed(hosted, entries)

    async def _flush(self) -> None:
        """Write everything that Redis does not know yet."""
        await self.endings.flush()
        for hosted in list(self.host.sessions.values()):
            if hosted.unrecorded:
                await self._flush_applied(hosted)
        await self._flush_progress()
        if not self._is_mending and self._unmended():
            self._is_mending = True
            self.run_errand(self._mend(), "write lost checkpoints again")

    def _unmended(self) -> list[Hosted]:
        return [hosted for hosted in self.host.sessions.values() if hosted.kept.lost_checkpoint]

    async def _mend(self) -> None:
        """Write what checkpoints Redis has lost; where their place is out of reach, one try at a time."""
        try:
            while lost := self._unmended():
                try:
                    for hosted in lost:
                        await self._ownership.mend(hosted)
                except StoreUnavailable as exc:
                    _log.warning("%d sessions have no checkpoint as yet: %s", len(lost), exc)
                if self._unmended():
                    await asyncio.sleep(MAX_BACKOFF_S)
        finally:
            self._is_mending = False

    async def _flush_applied(self, hosted: Hosted) -> None:
        entries = list(hosted.unrecorded)
        try:
            await self._store.record_applied(self.engine, hosted.id, hosted.epoch, entries)
        except StaleEpoch:
            await self._ownership.disowned(hosted)
            return
        hosted.unrecorded = [entry for entry in hosted.unrecorded if entry not in entries]

    async def _flush_progress(self) -> None:
        async with self._residences:
            told = [(h, facts) for h in self.host.sessions.values() if (facts := h.news()) != h.published]
            for hosted, facts in told:
                hosted.published = facts  # unless it is unsaid while this is on its way
            news = [hosted for hosted, _ in told]
            progress = [hosted.progress(self.host.slack_ms(hosted)) for hosted in news]
            try:
                stale = set(await self._store.publish_sessions(self.engine, progress))
            except BaseException:
                for hosted in news:
                    hosted.published = None
                raise
        for hosted in news:
            if hosted.id in stale:
                await self._ownership.disowned(hosted)

    async def _insist(self, action: Callable[[], Awaitable[None]]) -> None:
        """Do it, again and again while Redis is out of reach. Only for what may be repeated."""
        backoff_s = MIN_BACKOFF_S
        while True:
            try:
                await action()
                return
            except StoreUnavailable as exc:
                self._went_offline(exc)
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    def _went_offline(self, exc: Exception) -> None:
        if isinstance(exc, CheckpointsUnavailable):  # the control Redis answers
            _log.warning("checkpoints are out of reach: %s", exc)
            return
        if self._online:
            _log.warning("Redis is out of reach, sessions keep streaming: %s", exc)
        self._online = False
