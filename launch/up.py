"""`turboserve up`: a whole cluster on one machine, from nothing to a URL, until it is told to stop."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from launch import redis_server
from launch.cluster import Cluster, Plan
from launch.console import Console
from launch.gpus import visible_gpus, why_no_gpu
from launch.ports import PortRefused, try_port
from launch.processes import adopt_orphans
from launch.role_configs import build_roles
from launch.run_file import DirectoryLock, DirectoryTaken, RunFile
from launch.settings import SettingsError, Value
from launch.supervisor import StartError
from scheduler.address import mask_password

__all__ = ["run"]

_MIN_DISK_BYTES: Final = 16 * 2**20
"""For logs and Redis to begin with; `doctor` asks for more."""


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
        redis_server.clean_up(plan.directory)
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
        raise _unusable(directory, exc) from exc
    try:
        (directory / "run.json").unlink(missing_ok=True)
        logs, previous = directory / "logs", directory / "logs.previous"
        if logs.exists():
            shutil.rmtree(previous, ignore_errors=True)
            logs.rename(previous)
        logs.mkdir()
        _check_room(directory)
    except OSError as exc:
        lock.release()
        raise _unusable(directory, exc) from exc
    return lock


def _check_room(directory: Path) -> None:
    """On a full disk the first process that fails could not even say why. Raises OSError."""
    disk = shutil.disk_usage(directory)
    if disk.total and disk.free < _MIN_DISK_BYTES:
        raise OSError(errno.ENOSPC, f"only {disk.free // 1024} KiB are free there")


def _unusable(directory: Path, exc: OSError) -> StartError:
    """Its disk is full, or something in it is somebody else's."""
    what = exc.filename2 or exc.filename
    where = f" ({what})" if what not in (None, str(directory)) else ""
    return StartError(f"the folder {directory} can't be used: {exc.strerror}{where}")


def _check_port(host: str, port: int) -> None:
    """Refuse a port that the gateway could not listen on, before anything starts."""
    try:
        try_port(host, port)
    except PortRefused as exc:
        raise StartError(str(exc)) from exc


def _make_plan(values: Mapping[str, Value]) -> Plan:
    config, gateway, scheduler, engine = build_roles(values)
    gpus = visible_gpus(os.environ) if config.device == "cuda" else ()
    if config.device == "cuda" and not gpus:
        raise SettingsError(f"device is cuda, but this machine shows no NVIDIA GPU {why_no_gpu(os.environ)}")
    if gpus and engine.ranks > len(gpus):
        raise SettingsError(f"ranks is {engine.ranks}, but this machine shows {len(gpus)} GPUs")
    return Plan(
        config=config,
        directory=Path(config.dir).absolute(),
        redis_command=None,
        redis_folder=None,
        gpus=gpus,
        gateway=gateway,
        scheduler=scheduler,
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
    try:
        run_file = RunFile(plan.directory / "run.json", url=url, redis=mask_password(plan.gateway.redis))
    except OSError as exc:
        raise _unusable(plan.directory, exc) from exc
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
