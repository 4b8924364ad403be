"""One engine: the event loop for I/O, one compute thread, the encoder pool. DESIGN.md section 6.5.

Only rank 0 speaks with Redis and with gateways.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import torch
import uvloop

from engine.compute import ComputeLoop
from engine.compute_messages import ComputeDied, ComputeEvent
from engine.config import EngineConfig
from engine.control import MAX_BACKOFF_S, Control
from engine.costs import engine_costs
from engine.encoder import EncoderPool, Encoding, probe_hardware
from engine.host import Host
from engine.link import LinkServer
from engine.loading import Loaded, load, make_host_pool, monotonic_ms
from engine.memory import slot_bytes
from engine.migrations import Migrations
from engine.models.base import ModelSpec
from engine.offload import HostPool
from engine.pairs import Pairs
from engine.process import EXIT_FAILED, EXIT_FENCED, EXIT_OK
from engine.progress import Progress
from engine.ranks import Alone, Ranks
from scheduler.messages import EngineId, ModelInfo
from scheduler.store import EngineGone, Store, StoreUnavailable, open_checkpoints

__all__ = ["EXIT_FAILED", "EXIT_FENCED", "EXIT_OK", "model_info", "run"]

_log = logging.getLogger("turboserve.engine")

STORE_PATIENCE_S = 30.0
"""How long Redis may be out of reach at start-up."""
DRAIN_LIMIT_S = 5.0
"""At an orderly end, what is made must be handed to the links within this time."""


EndEngine = Callable[[int], bool]
"""Ends the engine with an exit status. False: it ends already, with that of the first call."""


def run(config: EngineConfig, ranks: Ranks | None = None) -> int:
    """Rank 0: serve until SIGTERM, SIGINT, the scheduler's order, or an error. Returns the exit status."""
    torch.set_num_threads(config.threads)
    return uvloop.run(_serve(config, ranks or Alone()))


def model_info(spec: ModelSpec) -> ModelInfo:
    """What other processes learn about the model."""
    return ModelInfo(
        name=spec.name,
        weights_hash=spec.weights_hash,
        state_version=spec.state_version,
        width=spec.width,
        height=spec.height,
        fps=spec.fps,
        chunk_frames=spec.chunk_frames,
        controls=spec.action_dim > 0,
    )


def choose_encoding(config: EngineConfig, spec: ModelSpec) -> Encoding:
    """How this engine encodes. Tries hardware out, where it may be used. Blocks."""
    if config.device == "cpu" or not config.hardware_encoders:
        return Encoding(crf=config.crf)
    found = probe_hardware(width=spec.width, height=spec.height, fps=spec.fps, crf=config.crf)
    _log.info("hardware encoders: %s", ", ".join(sorted(found)) or "none")
    return Encoding(crf=config.crf, hardware=found)


async def _serve(config: EngineConfig, ranks: Ranks) -> int:
    outcome: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def end(status: int) -> bool:
        if outcome.done():
            return False
        outcome.set_result(status)
        return True

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end, EXIT_OK)
    store = await _connect(config, outcome)
    if store is None:
        return outcome.result()
    progress = Progress(monotonic_ms)
    checkpoints = open_checkpoints(store, config.checkpoints, ttl_s=config.checkpoint_ttl_s)
    control = Control(store, config, progress, checkpoints=checkpoints, stop=lambda: end(EXIT_OK))
    tasks = [_supervised(control.beat(), "beat", end)]
    try:
        loading = asyncio.create_task(asyncio.to_thread(load, config, ranks))
        either: set[asyncio.Future[Any]] = {loading, outcome}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loaded = loading.result()
            encoding = await asyncio.to_thread(choose_encoding, config, loaded.model.spec)
            host_pool = await asyncio.to_thread(make_host_pool, config, loaded, ranks)
            progress.rest()
            engine = Engine(config, control, loaded, host_pool, encoding, progress, end, ranks)
            return await engine.serve(tasks, outcome)
        return outcome.result()
    except EngineGone as exc:
        _log.error("%s", exc)
        return EXIT_FENCED
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await control.close()
        await store.close()


class Engine:
    """The running parts, wired together."""

    def __init__(
        self,
        config: EngineConfig,
        control: Control,
        loaded: Loaded,
        host_pool: HostPool,
        encoding: Encoding,
        progress: Progress,
        end: EndEngine,
        ranks: Ranks,
    ) -> None:
        self._config, self._control, self._spec, self._end = config, control, loaded.model.spec, end
        self._capacity, self._ranks = loaded.pool.num_slots, ranks
        self._loop = asyncio.get_running_loop()
        self._encoders = EncoderPool(threads=config.encoder_threads)
        self._compute = ComputeLoop(
            loaded.model,
            loaded.pool,
            costs=loaded.costs,
            attention=loaded.attention,
            ranks=ranks,
            encoders=self._encoders,
            encoding=encoding,
            host=host_pool,
            checkpoint_every=config.checkpoint_every,
            takes_checkpoint=control.checkpointer.takes,
            progress=progress,
            clock=monotonic_ms,
            emit=self._emit,
        )
        self._host = Host(
            loaded.model.spec,
            self._compute,
            control,
            control.checkpointer,
            limits=config.life_limits,
            clock=monotonic_ms,
            combine=loaded.model.combine_prompts,
            fatal=self._fail,
        )
        control.host = self._host
        control.migrations = self._make_migrations(loaded)
        control.costs = lambda: engine_costs(
            *(self._compute.costs, self._spec),
            move=control.migrations.cost if control.migrations is not None else None,
        )
        control.state_bytes = slot_bytes(loaded.model)
        self._links = LinkServer(self._host, secret=config.link_secret)
        self._device = loaded.model.device
        self._thread = threading.Thread(target=self._run_compute, name="compute", daemon=True)
        self._rehearsed = asyncio.Event()

    def _make_migrations(self, loaded: Loaded) -> Migrations | None:
        """None: sessions of this engine move by checkpoint."""
        device = loaded.model.device
        if self._ranks.size > 1 and device.type != "cpu":
            return None  # each GPU would have two NCCL communicators at work, which may wait for each other
        engine = EngineId(self._config.engine_id)
        pairs = Pairs(engine, self._config.link_host, device)
        return Migrations(
            *(loaded.model, loaded.pool, pairs, self._host, self._control),
            engine=engine,
            ranks=self._ranks.size,
            submit=self._compute.submit,
            costs=lambda: self._compute.costs,
            clock=monotonic_ms,
        )

    async def serve(self, tasks: list[asyncio.Task[None]], outcome: asyncio.Future[int]) -> int:
        """Serve until `outcome` is known, then end in order. Adds its tasks to `tasks`."""
        await self._links.start(self._config.link_host, self._config.link_port)
        self._thread.start()
        tasks.append(_supervised(self._host.watch(), "watch", self._end))
        # Not awaited: registering waits for Redis, and a signal must end that too.
        tasks.append(_supervised(self._register(tasks), "register", self._end))
        status = await outcome
        await self._finish(status)
        return status

    async def _register(self, tasks: list[asyncio.Task[None]]) -> None:
        """Register once sessions would find everything ready, then follow what Redis says."""
        await self._rehearsed.wait()
        migrations = self._control.migrations
        await self._control.register(
            self._links.url,
            model_info(self._spec),
            capacity=self._capacity,
            transfer=migrations.address if migrations is not None else "",
        )
        _log.info("engine %s serves %s at %s", self._config.engine_id, self._spec.name, self._links.url)
        parts = {
            "commands": self._control.read_commands(),
            "inputs": self._control.read_inputs(),
            "publish": self._control.publish(),
            "checkpoint": self._control.checkpointer.run(),
        }
        tasks.extend(_supervised(work, name, self._end) for name, work in parts.items())

    async def _finish(self, status: int) -> None:
        """Let the chunks in work leave, say goodbye, close the links."""
        self._compute.stop()
        if status == EXIT_OK:
            _log.info("ending: the chunks in work are finished first")
            try:
                async with asyncio.timeout(DRAIN_LIMIT_S):
                    await self._join()
                    await asyncio.to_thread(self._encoders.close)
                    await self._host.drained()
                    await self._links.drained()
            except TimeoutError:
                _log.warning("not everything was handed to the gateways within %g s", DRAIN_LIMIT_S)
            await self._control.deregister()
        await self._links.close()
        with suppress(TimeoutError):
            await self._join()  # a thread inside a kernel while the interpreter ends would crash it

    async def _join(self) -> None:
        """Wait for the compute thread. Raises TimeoutError after DRAIN_LIMIT_S."""
        await asyncio.to_thread(self._thread.join, DRAIN_LIMIT_S)
        if self._thread.is_alive():
            raise TimeoutError
        await asyncio.to_thread(self._compute.close)

    def _run_compute(self) -> None:
        torch.set_num_threads(self._config.threads)  # counts per thread in some builds
        if self._device.type == "cuda" and self._device.index is not None:
            torch.cuda.set_device(self._device)  # a thread's own, too
        try:
            self._ranks.start_serving()
            self._compute.rehearse()
        except Exception as exc:  # a rank is lost, or a model raises where it did not when it was measured
            self._emit(ComputeDied(error=exc))
            return
        self._loop.call_soon_threadsafe(self._rehearsed.set)
        self._compute.run()

    def _emit(self, event: ComputeEvent) -> None:
        """From any thread to the event loop."""
        self._loop.call_soon_threadsafe(self._host.receive_event, event)

    def _fail(self, error: BaseException) -> None:
        _end_by(error, "the engine cannot go on", self._end)


async def _connect(config: EngineConfig, outcome: asyncio.Future[int]) -> Store | None:
    """Reach Redis within STORE_PATIENCE_S; None when told to end before. Raises StoreUnavailable."""
    give_up_ms = monotonic_ms() + STORE_PATIENCE_S * 1000.0
    while not outcome.done():
        try:
            return await Store.connect(config.redis, cluster=config.cluster)
        except StoreUnavailable as exc:
            if monotonic_ms() > give_up_ms:
                raise
            _log.warning("waiting for Redis: %s", exc)
        await asyncio.wait({outcome}, timeout=MAX_BACKOFF_S)
    return None


def _supervised(work: Coroutine[None, None, None], name: str, end: EndEngine) -> asyncio.Task[None]:
    """A task whose end by an error ends the engine."""

    def check(task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _end_by(error, f"task {name} failed", end)

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(check)
    return task


def _end_by(error: BaseException, what: str, end: EndEngine) -> None:
    """End the engine with the status that says why."""
    if isinstance(error, EngineGone):
        if end(EXIT_FENCED):  # not while it ends in order
            _log.error("this engine was declared gone: %s", error)
        return
    _log.critical(what, exc_info=error)
    end(EXIT_FAILED)
