"""`turboserve engine`: one engine in the foreground, on a machine of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from engine.config import EngineConfig
from launch.engine_job import EngineEnd, EngineJob
from launch.processes import Child, adopt_orphans, spawn
from launch.roles import engine_command, engine_environment
from launch.store import connect
from launch.supervisor import ProcessSpec, StartError
from scheduler.messages import EngineId
from scheduler.store import Store, StoreError, draw_id

__all__ = ["run"]

_STOP_TIMEOUT_S: Final = 10.0
_SCHEDULER_WAIT_S: Final = 10.0
"""One that starts now, on a busy machine and an empty Redis, has said by then what it wants."""
_OUTPUT: Final = Path("/dev/stderr")
"""In words, see `_start`."""


async def run(config: EngineConfig, *, claim: bool) -> int:
    """Run the engine until it ends or is told to; with `claim`, under an id that the scheduler wants.

    Returns 0 after SIGINT, SIGTERM (also before it is ready) or an order of the scheduler, 1 when it failed.

    Raises:
        StartError: no Redis can be used, or no engine is wanted.
    """
    store = await connect(config.redis, cluster=config.cluster)
    try:
        try:
            with _folder() as logs:
                config = await _claim(store, config) if claim else config
                end, is_asked = await _run_job(config, logs)
            with contextlib.suppress(StoreError):  # missing heartbeats tell it as well, only later
                await store.report_exit(EngineId(config.engine_id), end.how, crashed=end.crashed)
        finally:
            await store.close()
    except StoreError as exc:
        raise StartError(str(exc)) from exc
    if end.how == "exited with status 0" or (is_asked and not end.crashed):
        return 0
    print(f"turboserve engine: {config.engine_id} {end.how}", file=sys.stderr)
    return 1


async def _claim(store: Store, config: EngineConfig) -> EngineConfig:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_SCHEDULER_WAIT_S):
            await _first_desired(store)
    engine = await store.claim_engine(draw_id("p", 8))
    term, desired = await store.read_desired()
    for wanted in desired:
        if wanted.id == engine:
            return replace(config, engine_id=wanted.id, model=wanted.model)
    if term == 0:
        raise StartError(f"cluster {config.cluster!r} has no scheduler: start one with turboserve scheduler")
    raise StartError(
        f"cluster {config.cluster!r} wants no more engines: give its scheduler a larger --engines"
    )


async def _first_desired(store: Store) -> None:
    """Wait until a scheduler wrote what it wants: it may just be starting too."""
    after = await store.last_event_id()
    while (await store.read_desired())[0] == 0:
        events = await store.read_events(after, block_ms=1000)
        after = events[-1][0] if events else after


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """For what torchrun keeps of ranks, and would leave among temporary files for ever. Raises StartError."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="turboserve-engine-", ignore_cleanup_errors=True)
    except OSError as exc:
        raise StartError(f"torchrun needs a folder for temporary files: {exc.strerror or exc}") from exc
    with folder as name:
        yield Path(name)


async def _run_job(config: EngineConfig, logs: Path) -> tuple[EngineEnd, bool]:
    """The job from start to end; the first signal asks it to end, a second one or time ends it.

    Returns also whether it was asked to.
    """
    adopt_orphans()
    spec = ProcessSpec(
        name=f"engine-{config.engine_id}",
        command=engine_command(ranks=config.ranks, log_dir=logs),
        log=_OUTPUT,
        environment=engine_environment(config, threads=config.threads),
    )
    job, loop, is_asked = EngineJob(spec, start=_start), asyncio.get_running_loop(), False

    def end() -> None:
        nonlocal is_asked
        is_asked = True
        job.send(signal.SIGTERM)
        loop.call_later(_STOP_TIMEOUT_S, job.send, signal.SIGKILL)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, job.send, signal.SIGKILL)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    print(f"engine {config.engine_id} starts (pid {os.getpid()})", flush=True)
    return await job.run(), is_asked


async def _start(spec: ProcessSpec) -> Child:
    return spawn(spec.command, environment=spec.environment, log=None)
