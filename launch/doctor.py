"""`turboserve doctor`: is everything here that a cluster needs, and what to do where it is not."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Final

from launch import redis_server
from launch.config import UpConfig
from launch.gpus import visible_gpus
from scheduler.address import RedisAddress, parse_address

__all__ = ["Problem", "check_redis_config", "check_redis_version", "run"]

_MIN_REDIS: Final = (6, 2)
_PROBE_TIMEOUT_S: Final = 5.0
_REDIS_SETTINGS: Final = ("appendonly", "maxmemory", "maxmemory-policy")


class Problem(Exception):
    """A check failed. `str()` says what is wrong and how to put it right."""


def run(config: UpConfig) -> int:
    """Make every check and print its result. Returns 0, or 1 when one failed."""
    checks: dict[str, Callable[[UpConfig], str]] = {
        "python": _check_python,
        "redis": _check_redis,
        "encoder": _check_encoder,
        "model": _check_model,
        "device": _check_device,
        "port": _check_port,
    }
    num_problems = 0
    for name, check in checks.items():
        try:
            print(f"ok    {name:8} {check(config)}")
        except Problem as exc:
            num_problems += 1
            print(f"FAIL  {name:8} {exc}")
    return 1 if num_problems else 0


def _check_python(_: UpConfig) -> str:
    return f"{sys.version.split()[0]} at {sys.executable}"


def _check_redis(config: UpConfig) -> str:
    if config.redis is not None:
        return _check_running_redis(config.redis)
    try:
        server = redis_server.find_server()
    except redis_server.RedisMissing as exc:
        raise Problem(str(exc)) from exc
    try:
        shown = subprocess.run(
            [str(server), "--version"], capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as exc:
        raise Problem(f"{server} can't be run ({exc}): install another Redis server") from exc
    found = re.search(r"v=([\d.]+)", shown)
    return f"{check_redis_version(found[1] if found else '0')} at {server}"


def _check_running_redis(url: str) -> str:
    from scheduler.store.errors import StoreUnavailable

    try:
        address = parse_address(url)
    except ValueError as exc:
        raise Problem(str(exc)) from exc
    if address.password and address.hosts and not address.is_tls and not _is_local(address):
        raise Problem("the Redis password crosses the network in clear: use rediss:// (TLS)")
    try:
        version, settings = asyncio.run(_ask_redis(url))
    except (StoreUnavailable, ValueError) as exc:
        raise Problem(f"the Redis given with --redis can't be used: {exc}{_advice(address, exc)}") from exc
    version = check_redis_version(version)
    how = " over TLS" if address.is_tls else ""
    found = f" found by sentinels of {address.service!r}" if address.service else ""
    if settings is None:
        return f"{version}{how}{found}; its user may not read the configuration: check appendonly yourself"
    check_redis_config(settings)
    return f"{version}{how}{found}, appendonly, keeps all keys"


async def _ask_redis(url: str) -> tuple[str, dict[str, str] | None]:
    """Version, and the settings that matter; None: the user of the URL may not see them."""
    from redis.asyncio import Redis
    from redis.exceptions import NoPermissionError

    from scheduler.store.connection import mapped_errors
    from scheduler.store.pools import make_pool

    client: Any = Redis(connection_pool=make_pool(url, max_connections=1, decode_responses=True, protocol=2))
    try:
        async with mapped_errors(_PROBE_TIMEOUT_S):
            version = str((await client.info("server"))["redis_version"])
            try:
                found = {name: await client.config_get(name) for name in _REDIS_SETTINGS}
            except NoPermissionError:
                return version, None
        return version, {name: values.get(name, "") for name, values in found.items()}
    finally:
        await client.aclose()
        await client.connection_pool.disconnect()


def _is_local(address: RedisAddress) -> bool:
    return all(host in ("localhost", "127.0.0.1", "::1") for host, _ in address.hosts)


def _advice(address: RedisAddress, exc: Exception) -> str:
    """What to do about the troubles that everybody has once."""
    text = str(exc)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return "; name the authority that signed its certificate: rediss://…?ssl_ca_certs=FILE"
    if "WRONGPASS" in text or "invalid username-password" in text:
        return "; check user and password in the URL (percent-encoded)"
    if "uthentication required" in text:
        return "; put user and password into the URL: redis://user:password@host"
    if "lacks a permission" in text:
        return "; docs/deploy.md shows the ACL rule that is needed"
    if address.service:
        return f"; do the sentinels know a service {address.service!r}?"
    return ""


def check_redis_version(version: str) -> str:
    """The version, if it is new enough. Raises Problem."""
    if tuple(int(part) for part in version.split(".")[:2]) < _MIN_REDIS:
        raise Problem(f"Redis {version} is too old: 6.2 or newer is needed")
    return version


def check_redis_config(settings: dict[str, str]) -> None:
    """Would this server keep what it is given? Raises Problem."""
    if settings["appendonly"] != "yes":
        raise Problem("Redis forgets at a restart: run `redis-cli config set appendonly yes`, and keep it so")
    if settings["maxmemory"] != "0" and settings["maxmemory-policy"] != "noeviction":
        raise Problem(
            f"Redis drops keys when its memory is full (maxmemory-policy {settings['maxmemory-policy']}): "
            "run `redis-cli config set maxmemory-policy noeviction`, and keep it so"
        )


def _check_encoder(_: UpConfig) -> str:
    import av
    import numpy as np

    from engine.encoder import SessionEncoder

    try:
        encoder = SessionEncoder(width=96, height=96, fps=16)
        num_bytes = sum(len(part.payload) for part in encoder.encode(np.zeros((4, 96, 96, 3), np.uint8)))
    except (av.FFmpegError, ValueError) as exc:
        raise Problem(
            f"H.264 can't be encoded ({exc}): reinstall av with `pip install --force-reinstall av`"
        ) from exc
    return f"H.264, PyAV {av.__version__} ({num_bytes} bytes for 4 black frames)"


def _check_model(_: UpConfig) -> str:
    import torch

    from engine.models.registry import load_model

    try:
        info = load_model("shapes", device=torch.device("cpu"))
    except ValueError as exc:
        raise Problem(f"{exc}; reinstall turboserve, its package carries them") from exc
    return f"shapes loads ({type(info).__name__})"


def _check_device(config: UpConfig) -> str:
    gpus = visible_gpus(os.environ)
    if config.device == "cpu":
        return f"cpu, {len(os.sched_getaffinity(0))} cores (GPUs here: {len(gpus)})"
    import torch

    if not gpus:
        raise Problem("device cuda: no NVIDIA GPU here (no /dev/nvidia0): use --device cpu")
    if not torch.cuda.is_available():
        raise Problem(f"device cuda: torch {torch.__version__} can't use the GPU: install a CUDA build of it")
    return f"cuda, {len(gpus)} GPUs"


def _check_port(config: UpConfig) -> str:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as exc:
            raise Problem(
                f"port {config.port} on {config.host} can't be used ({exc.strerror}): "
                "choose another with --port"
            ) from exc
    return f"{config.port} on {config.host} is free"
