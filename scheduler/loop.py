"""The control loop: hold the lease, read what changed, plan, apply. Any number may run; one leads."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from scheduler.apply import apply
from scheduler.config import SchedulerConfig
from scheduler.feed import Delta, Feed
from scheduler.keys import MAX_DECISIONS
from scheduler.lease import Lease
from scheduler.messages import DesiredEngine, EngineId, EngineState
from scheduler.policy.base import Changes, Memory, decode_memory, encode_memory
from scheduler.policy.fleet import fleet
from scheduler.policy.moves import special_moves
from scheduler.policy.registry import find_policy
from scheduler.policy.upkeep import find_lost_gateways, release_wait_ms, settling_ms
from scheduler.store import (
    EventsLost,
    PlacementRefused,
    StaleTerm,
    Store,
    StoreError,
    StoreUnavailable,
    draw_id,
)

log = logging.getLogger("scheduler")

RETRY_S = 0.3
"""Between attempts to reach Redis, and of a standby to lead as a share of the ttl."""
TERM = "in term "
"""Before what a leader did in a term that ended before it could say so."""
LATE_S = 0.5
"""A single read that returns this much later than asked counts as a break in the reach of Redis."""


class Scheduler:
    """One scheduler process. `run` until told to stop; call `step` alone only in tests."""

    def __init__(
        self, store: Store, config: SchedulerConfig, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._config = config
        self._clock = clock
        self._policy = find_policy(config.policy)
        self._name = config.scheduler_id or draw_id("c", 4)
        self._most_engines = config.max_engines or config.engines
        self._lease = Lease(config.lease_ttl_ms)
        self._feed = Feed(store, self._between_reads)
        self._memory = Memory()
        self._published: tuple[str, int, int, int] | None = None
        self._reachable_ms: int | None = None
        """Redis time since which Redis was reached without a break; None: not known to be."""
        self._broken_s: float | None = None
        """When the break that may be over began, by the own clock."""
        self._breaks: list[tuple[int, int]] = []
        """See Changes."""
        self._untold: list[str] = []
        """What was done and is not in the decisions stream: the lease ended, or Redis was away, before."""
        self._read_s = 0.0
        """When the newest read of the feed was done, or is due, by the own clock."""
        self._tick_s = 0.0
        self._resync_s = 0.0
        self._settles_s: float | None = None
        """Redis lost its data: until then, by the own clock, engines say what they have, and nothing is
        decided."""
        self._prepared_term: int | None = None
        """Term for which memory and view were read."""
        self._offset_ms: float | None = None
        """Redis time less the own clock, at the last tick."""

    async def run(self, stop: asyncio.Event) -> None:
        """Lead or stand by until `stop` is set; then give the lease back."""
        failing = False
        while not stop.is_set():
            try:
                is_leading = await self.step()
                failing = False
            except StoreUnavailable as exc:
                self._reachable_ms = None
                if self._broken_s is None:
                    self._broken_s = min(self._read_s, self._clock())
                self._resync_s = 0.0  # it may come back older, with events that fit in behind those read
                if not failing:
                    log.warning("%s; engines keep running, placement waits", exc)
                failing, is_leading = True, False
            if not is_leading:
                with suppress(TimeoutError):
                    wait_s = RETRY_S if failing else RETRY_S * self._config.lease_ttl_ms / 1000
                    await asyncio.wait_for(stop.wait(), wait_s)
        if self._lease.term is not None:
            with suppress(StoreError):
                await self._store.release_lease(self._name, self._lease.term)

    async def step(self) -> bool:
        """One cycle as leader, or one attempt to lead. False: another leads. Raises StoreUnavailable."""
        is_leading = await self._hold_lease()
        self._read_s = self._clock()
        if not is_leading:
            self._broken_s = None  # whoever leads knows of it
            return False
        try:
            if self._prepared_term != self._lease.term:
                await self._take_over()
            delta = await self._follow()
            if await self._is_settled():
                await self._plan_and_apply(delta)
        except StaleTerm as exc:
            log.warning("%s", exc)
            self._lease.lose()
        except EventsLost as exc:
            log.warning("%s", exc)
            await self._start_over()
        return True

    # --- lease

    async def _start_over(self) -> None:
        """Redis lost data, perhaps under the term in force: whoever leads next hears engines first."""
        term, seen = self._lease.term, self._prepared_term
        await self._store.report_loss(self._lease.newest_term if seen is None else seen)
        if term is not None:
            await self._store.release_lease(self._name, term)  # no effect if it is not there any more
        self._feed.forget()
        self._lease.lose()

    async def _hold_lease(self) -> bool:
        """Acquire or renew as needed. False: another leads."""
        if self._lease.is_held(self._clock()) and await self._renew_lease():
            return True
        asked_s = self._clock()
        term = await self._store.acquire_lease(
            self._name, self._config.lease_ttl_ms, floor=self._lease.newest_term
        )
        if term is None:
            return False
        self._lease.grant(term, asked_s)
        return True

    async def _renew_lease(self) -> bool:
        """If that is due. False: it is lost."""
        asked_s, term = self._clock(), self._lease.term
        assert term is not None
        if not self._lease.is_renew_due(asked_s):
            return True
        if await self._store.renew_lease(self._name, term, self._config.lease_ttl_ms):
            self._lease.grant(term, asked_s)
            return True
        log.warning("lost the lease of term %d", term)
        self._lease.lose()
        return False

    async def _between_reads(self) -> None:
        """While the feed reads, however much that is: stay the leader, and see whether Redis answers.

        Raises:
            StaleTerm: the lease is lost, what was read is for nothing.
        """
        now_s = self._clock()
        if now_s - self._read_s > LATE_S:
            # Redis hung, or this process did: silence of engines in that time means nothing.
            self._broken_s = self._read_s if self._broken_s is None else self._broken_s
            self._reach_again(await self._store.now_ms())
        self._read_s = now_s
        if not await self._renew_lease():
            raise StaleTerm("another may lead: stopped reading")

    def _reach_again(self, now_ms: int) -> None:
        """Redis is reached since now_ms."""
        if self._broken_s is not None:
            self._breaks.append((now_ms, round((self._clock() - self._broken_s) * 1000)))
        self._reachable_ms, self._broken_s = now_ms, None

    async def _may_act(self) -> bool:
        """Asked before each action. However many there are, the lease is renewed meanwhile."""
        return await self._renew_lease() and self._lease.is_held(self._clock())

    async def _take_over(self) -> None:
        """Read what a new leader must know. Repeated until it succeeds."""
        memory = await self._store.load_memory()
        if memory is not None:  # else nobody has led, or Redis lost what this process still knows
            self._memory = decode_memory(memory)
        await self._feed.rebuild()
        self._published = None
        # A new leader has not watched the engines: each gets the time after an outage to be heard.
        self._reach_again(self._feed.view.read_ms)
        self._resync_s = self._clock() + self._config.resync_s
        view = self._feed.view
        log.info(
            "%s leads, term %d: %d engines, %d sessions",
            self._name,
            self._lease.term,
            len(view.engines),
            len(view.sessions),
        )
        self._settles_s = None
        if not await self._store.is_settled():
            self._settles_s = self._clock() + settling_ms(self._config) / 1000
            log.warning(
                "Redis is new or lost its data: engines have %d ms to say what they have",
                settling_ms(self._config),
            )
        self._prepared_term = self._lease.term

    async def _is_settled(self) -> bool:
        """May this leader decide? Not before engines that outlived a loss of data could say what they have:
        a set of engines without them would have them stopped."""
        if self._settles_s is None:
            return True
        assert self._lease.term is not None
        if self._clock() < self._settles_s:
            return False
        await self._want_who_is_here(self._lease.term)
        await self._feed.rebuild()
        await self._store.mark_settled(self._lease.term)
        self._settles_s = None
        view = self._feed.view
        log.info("%d engines and %d sessions are here", len(view.engines), len(view.sessions))
        return True

    async def _want_who_is_here(self, term: int) -> None:
        """What was wanted is forgotten: engines that are here stay until a plan gives them up. It takes one
        that drains and is not wanted for one that was told to end."""
        engines = [e for e in await self._store.list_engines() if e.state is not EngineState.GONE]
        _, desired = await self._store.read_desired()
        if engines and not desired:
            here = [DesiredEngine(id=engine.id, model=engine.model_name) for engine in engines]
            with suppress(PlacementRefused):  # one more has come: the plan is about to see to it
                await self._store.write_desired(term, here)

    # --- read

    async def _follow(self) -> Delta:
        """Wait for events until the next tick; at a tick also read heartbeats."""
        started_s = self._clock()
        wait_s = max(0.0, self._tick_s - started_s)
        self._read_s = started_s + wait_s
        delta = await self._feed.follow(round(wait_s * 1000))
        now_s = self._clock()
        if now_s >= self._resync_s:
            self._resync_s = now_s + self._config.resync_s
            await self._feed.rebuild()
        if now_s >= self._tick_s:
            self._tick_s = now_s + self._config.tick_ms / 1000
            await self._feed.refresh()
            self._check_clocks()
        await self._between_reads()
        if self._reachable_ms is None:
            self._reach_again(await self._store.now_ms())
        return delta

    def _check_clocks(self) -> None:
        """Redis time was set: ages of heartbeats across the step mean nothing."""
        offset_ms = self._feed.view.read_ms - self._clock() * 1000
        if self._offset_ms is not None and abs(offset_ms - self._offset_ms) > LATE_S * 1000:
            moved_ms = round(offset_ms - self._offset_ms)
            log.warning("Redis time moved by %d ms against this clock", moved_ms)
            self._reachable_ms = None
            if moved_ms > 0:
                self._breaks.append((self._feed.view.read_ms, moved_ms))
        self._offset_ms = offset_ms

    # --- plan, apply

    async def _plan_and_apply(self, delta: Delta) -> None:
        term, reachable_ms = self._lease.term, self._reachable_ms
        assert term is not None and reachable_ms is not None
        view = self._feed.view
        staying = ~view.engines["drain_ordered"] & ~view.is_state(EngineState.DRAINING)
        config = self._config
        room = max(0, self._most_engines - int(staying.sum()))
        if config.provisioner == "static":  # the budget is what is there
            room, num_engines = 0, int(staying.sum())
            config = replace(config, engines=num_engines, max_engines=num_engines)
        asked_ms = view.keep(fleet).asked_ms
        self._breaks = [(until_ms, took_ms) for until_ms, took_ms in self._breaks if until_ms > asked_ms]
        changes = Changes(
            gone=delta.gone,
            released=delta.released,
            fresh_ids=tuple(EngineId(draw_id("e", 4)) for _ in range(room)),
            reachable_ms=reachable_ms,
            breaks=tuple(self._breaks),
            arrivals=delta.arrivals,
            ages_ms=delta.ages_ms,
            starts_ms=delta.starts_ms,
        )
        now_ms = await self._store.now_ms()
        actions, memory = self._policy.plan(view, changes, self._memory, now_ms, config)
        if memory != self._memory:
            await self._store.save_memory(term, encode_memory(memory))
            self._memory = memory
        await self._publish(term, config.engines, now_ms)
        lost = find_lost_gateways(self._feed.waiting.values(), self._feed.heard, view.read_ms, reachable_ms)
        special = special_moves(self._feed.special.values(), now_ms)
        untold = self._untold
        try:
            todo = (*lost, *special, *actions)
            await apply(self._store, todo, term=term, may_act=self._may_act, untold=untold)
        finally:  # the next leader's term, if it is ours, will not be the one that this was done in
            untold[:] = [text if text.startswith(TERM) else f"{TERM}{term}: {text}" for text in untold]
            del untold[:-MAX_DECISIONS]

    async def _publish(self, term: int, engines: int, now_ms: int) -> None:
        interval_ms = release_wait_ms(self._feed.view, self._memory, now_ms)
        budget = max(engines, len(self._feed.view.desired))
        start_ms = round(self._memory.start_ms, -2)
        published = (self._policy.name, budget, interval_ms, int(start_ms))
        if published != self._published:
            await self._store.publish_cluster(
                term,
                policy=self._policy.name,
                budget=budget,
                release_interval_ms=interval_ms,
                start_ms=int(start_ms),
                retain_s=self._config.retain_s,
            )
            self._published = published


async def serve(config: SchedulerConfig) -> None:
    """Run one scheduler until SIGTERM or SIGINT. Raises ServerTooOld, ValueError."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    store = await _connect(config, stop)
    if store is None:
        return
    try:
        await Scheduler(store, config).run(stop)
    finally:
        await store.close()


async def _connect(config: SchedulerConfig, stop: asyncio.Event) -> Store | None:
    failing = False
    while not stop.is_set():
        try:
            return await Store.connect(config.redis, cluster=config.cluster)
        except StoreUnavailable as exc:
            if not failing:
                log.warning("%s; trying again every %g s", exc, RETRY_S)
            failing = True
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), RETRY_S)
    return None


def run(config: SchedulerConfig) -> None:
    """Blocks until SIGTERM or SIGINT."""
    asyncio.run(serve(config))
