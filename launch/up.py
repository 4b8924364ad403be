"""`turboserve up`: a whole cluster on one machine, from nothing to a URL, until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from engine.config import EngineConfig
from gateway.config import GatewayConfig
from launch import redis_server
from launch.cluster import Cluster, Plan
from launch.config import UpConfig
from launch.console import Console
from launch.gpus import visible_gpus
from launch.ports import try_port
from launch.processes import adopt_orphans
from launch.run_file import DirectoryLock, DirectoryTaken, RunFile
from launch.settings import SettingsError, Value, build
from launch.supervisor import StartError
from scheduler.address import mask_password
from scheduler.config import SchedulerConfig

__all__ = ["run"]

_ANY_ENGINE = "e_00000000"
_NO_REDIS_YET = "unix:///not-started"


def run(values: Mapping[str, Value], console: Console) -> int:
    """Bring the cluster up, and take it down at SIGINT, SIGTERM or SIGHUP. Returns the exit status.

    Raises:
        SettingsError: a value can't be used; nothing was started.
        StartError: something can't be started; everything has been stopped again.
    """
    plan = _make_plan(values)
    lock = _claim(plan.directory)
    try:
        _check_port(plan.config.host, plan.config.port)
        return asyncio.run(_serve(_with_redis(plan), console))
    finally:
        lock.release()


def _claim(directory: Path) -> DirectoryLock:
    """Make the folder ours, without traces of an earlier cluster but its logs."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = DirectoryLock(directory)
    except DirectoryTaken as exc:
        raise StartError(
            f"another cluster runs in {directory}: stop it, or choose another folder with --dir"
        ) from exc
    except OSError as exc:
        raise StartError(f"the folder {directory} can't be used: {exc.strerror}") from exc
    (directory / "run.json").unlink(missing_ok=True)
    logs, previous = directory / "logs", directory / "logs.previous"
    if logs.exists():
        shutil.rmtree(previous, ignore_errors=True)
        logs.rename(previous)
    logs.mkdir()
    return lock


def _check_port(host: str, port: int) -> None:
    """Refuse a port that the gateway could not listen on, before anything starts."""
    try:
        try_port(host, port)
    except OSError as exc:
        raise StartError(
            f"port {port} on {host} can't be used ({exc.strerror}): stop what listens there, "
            "or choose another with --port"
        ) from exc


def _make_plan(values: Mapping[str, Value]) -> Plan:
    """Check every role's settings, so that a bad one stops us before anything is touched."""
    config = build(UpConfig, values)
    gpus = visible_gpus(os.environ) if config.device == "cuda" else ()
    if config.device == "cuda" and not gpus:
        raise SettingsError("device is cuda, but this machine shows no NVIDIA GPU (no /dev/nvidia0)")
    secret = None if "link_secret" in values else secrets.token_urlsafe(32)
    redis = config.redis or _NO_REDIS_YET
    engine = build(EngineConfig, values, engine_id=_ANY_ENGINE, redis=redis, link_secret=secret)
    if gpus and engine.ranks > len(gpus):
        raise SettingsError(f"ranks is {engine.ranks}, but this machine shows {len(gpus)} GPUs")
    directory = Path(config.dir).absolute()
    recordings = None if "recordings" in values else str(directory / "recordings")
    return Plan(
        config=config,
        directory=directory,
        redis_command=None,
        redis_folder=None,
        gpus=gpus,
        gateway=build(GatewayConfig, values, redis=redis, link_secret=secret, recordings=recordings),
        scheduler=build(SchedulerConfig, values, redis=redis),
        engine=engine,
    )


def _with_redis(plan: Plan) -> Plan:
    """The same plan, with a Redis of its own if the user has named none."""
    if plan.config.redis is not None:
        return plan
    try:
        server = redis_server.find_server()
        files = redis_server.prepare(plan.directory)
    except (redis_server.RedisMissing, OSError) as exc:
        raise StartError(str(exc)) from exc
    return replace(
        plan,
        redis_command=redis_server.command(server, files),
        redis_folder=files.data,
        gateway=replace(plan.gateway, redis=files.url),
        scheduler=replace(plan.scheduler, redis=files.url),
        engine=replace(plan.engine, redis=files.url),
    )


@dataclass(slots=True)
class _Signals:
    """The first signal asks for an orderly end, the second for an immediate one."""

    cluster: Cluster
    asked: asyncio.Event

    def receive(self) -> None:
        if self.asked.is_set():
            self.cluster.kill()
        self.asked.set()


async def _serve(plan: Plan, console: Console) -> int:
    adopt_orphans()
    scheme = "https" if plan.gateway.tls_cert is not None else "http"
    url = url_of(plan.config.host, plan.config.port, scheme)
    run_file = RunFile(plan.directory / "run.json", url=url, redis=mask_password(plan.gateway.redis))
    cluster = Cluster(plan, run_file=run_file, console=console, url=url)
    signals = _Signals(cluster, asyncio.Event())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            asyncio.get_running_loop().add_signal_handler(number, signals.receive)
    stop = asyncio.create_task(signals.asked.wait(), name="stop")
    running = asyncio.create_task(cluster.run(), name="cluster")
    try:
        await asyncio.wait((stop, running), return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
    finally:
        console.step("stopping")
        await _cancel(running)
        await cluster.stop()
        run_file.delete()
        console.step("stopped")
    return 0


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))


def url_of(host: str, port: int, scheme: str = "http") -> str:
    """Where a browser on this machine finds a gateway that listens there."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"{scheme}://{reachable}:{port}"
