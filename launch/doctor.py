"""`turboserve doctor`: is everything here that a cluster needs, and what to do where it is not."""

from __future__ import annotations

import asyncio
import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from launch import redis_server
from launch.config import CheckedModel, UpConfig
from launch.doctor_machine import (
    check_device,
    check_machine,
    check_nccl,
    check_port,
    check_room,
    check_tls,
    trouble_explained,
)
from launch.doctor_problem import Advice, Problem
from scheduler.address import RedisAddress, parse_address

if TYPE_CHECKING:
    from engine.models.base import CausalVideoModel

__all__ = ["check_redis_config", "check_redis_version", "run"]

_ROLES: Final = ("launch.cluster", "scheduler.loop", "gateway.server", "engine.engine")
_MIN_REDIS: Final = (6, 2)
_MIN_REDIS_MIB: Final = 512
_PROBE_TIMEOUT_S: Final = 5.0
_REDIS_SETTINGS: Final = ("appendonly", "maxmemory", "maxmemory-policy")


def run(config: UpConfig, chosen: CheckedModel | None = None, *, tls: tuple[str, str] | None = None) -> int:
    """Make every check and print its result. Returns 0, or 1 when one failed.

    tls: the gateway's certificate and key, where it has them.
    """
    num_problems = 0
    for name, check in _checks(config, chosen or CheckedModel(), tls).items():
        word, text = _judge(check)
        num_problems += word == "FAIL"
        print(f"{word:5} {name:8} {text}", flush=True)
    return 1 if num_problems else 0


def _judge(check: Callable[[], str]) -> tuple[str, str]:
    """Its line but for its name."""
    try:
        return "ok", check()
    except Advice as exc:
        return "note", str(exc)
    except Problem as exc:
        return "FAIL", str(exc)
    except Exception as exc:  # a library that is broken, or missing; the next check may still tell something
        return "FAIL", f"can't be checked, {type(exc).__name__}: {exc}"


def _checks(
    config: UpConfig, chosen: CheckedModel, tls: tuple[str, str] | None
) -> dict[str, Callable[[], str]]:
    """In the order in which they are made; the model is loaded once."""
    load = cache(partial(_load_model, config, chosen))
    checks: dict[str, Callable[[], str]] = {
        "python": _check_python,
        "machine": partial(check_machine, config),
        "redis": partial(_check_redis, config),
        "codecs": _check_codecs,
        "device": partial(check_device, config, chosen.ranks),
        "nccl": partial(check_nccl, config),
        "model": lambda: f"{chosen.model} loads ({type(load()).__name__})",
        "memory": lambda: check_room(config, chosen, load()),
        "port": partial(check_port, config),
    }
    return checks if tls is None else checks | {"tls": partial(check_tls, *tls)}


def _check_python() -> str:
    """With the libraries that each role loads."""
    for module in _ROLES:
        try:
            importlib.import_module(module)
        except Exception as exc:  # whatever a library that does not fit raises
            raise Problem(f"{module} can't be loaded ({exc}): install turboserve again") from exc
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
        return f"{version}{how}{found}; its configuration may not be read: check appendonly yourself"
    check_redis_config(settings)
    limit = int(settings["maxmemory"]) // 2**20
    if 0 < limit < _MIN_REDIS_MIB:
        raise Advice(
            f"Redis may use {limit} MiB, of which checkpoints alone take up to 256: "
            f"raise maxmemory to {_MIN_REDIS_MIB} MiB, or keep them elsewhere with --checkpoints"
        )
    room = f"up to {limit} MiB" if limit else "without a limit of memory"
    return f"{version}{how}{found}, appendonly, keeps all keys, {room}"


async def _ask_redis(url: str) -> tuple[str, dict[str, str] | None]:
    """Version, and the settings that matter; None: nobody may see them, or not the user of the URL."""
    from redis.asyncio import Redis
    from redis.exceptions import NoPermissionError, ResponseError

    from scheduler.store.connection import mapped_errors
    from scheduler.store.pools import make_pool

    client: Any = Redis(connection_pool=make_pool(url, max_connections=1, decode_responses=True, protocol=2))
    try:
        async with mapped_errors(_PROBE_TIMEOUT_S):
            version = str((await client.info("server"))["redis_version"])
            try:
                found = {name: await client.config_get(name) for name in _REDIS_SETTINGS}
            except ResponseError as exc:
                if isinstance(exc, NoPermissionError) or "unknown command" in str(exc):
                    return version, None
                raise
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


def _check_codecs() -> str:
    """Each is tried with a few frames; H.264 must work, which every client takes."""
    import av
    import numpy as np

    from engine.codecs import CODECS, H264
    from engine.encoder import SessionEncoder, probe_hardware
    from engine.encoder_child import EncoderLost

    failed: dict[str, Exception] = {}
    for codec in CODECS:
        try:
            encoder = SessionEncoder(width=96, height=96, fps=16, codec=codec)
            list(encoder.encode(np.zeros((4, 96, 96, 3), np.uint8)))
            encoder.close()
        except (av.FFmpegError, EncoderLost, OSError, ValueError) as exc:
            failed[codec] = exc
    again = "reinstall av with `pip install --force-reinstall av`"
    if H264 in failed:
        raise Problem(f"H.264 can't be encoded ({failed[H264]}): {again}")
    if failed:
        raise Advice(f"{', '.join(failed)} can't be encoded, clients get H.264 instead: {again}")
    hardware = probe_hardware(width=832, height=480, fps=16, crf=23)
    by = f"by hardware: {', '.join(sorted(hardware))}" if hardware else "no hardware encoder"
    return f"{', '.join(CODECS)}, {by}, PyAV {av.__version__}"


def _load_model(config: UpConfig, chosen: CheckedModel) -> CausalVideoModel:
    """On the CPU where there is no GPU, so that its weights are checked all the same. Raises Problem."""
    import torch

    from engine.models.registry import load_model

    device = "cuda" if config.device == "cuda" and torch.cuda.is_available() else "cpu"
    weights = Path(chosen.weights) if chosen.weights is not None else None
    try:
        with trouble_explained(f"{chosen.model} can't be loaded", device):
            return load_model(chosen.model, device=torch.device(device), weights=weights)
    except ValueError as exc:
        advice = "reinstall turboserve, its package carries them"
        if weights is not None or chosen.model != "shapes":
            advice = "`turboserve model list` shows what is here, `model add` brings one in"
        raise Problem(f"{exc}; {advice}") from exc
