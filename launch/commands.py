"""What each `turboserve` command does. Heavy imports stay inside: `--help` and errors must be instant."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Mapping

from launch.config import (
    ClientConfig,
    EngineStartConfig,
    ProfileConfig,
    ProvisionerConfig,
    StatusConfig,
    TokenConfig,
)
from launch.loadtest.config import CompareConfig, LoadtestConfig
from launch.roles import role_command, role_environment
from launch.settings import SettingsError, Value, build
from launch.supervisor import StartError
from scheduler.address import is_redis_url, parse_address

__all__ = [
    "run_client",
    "run_compare",
    "run_doctor",
    "run_engine",
    "run_gateway",
    "run_loadtest",
    "run_profile",
    "run_provisioner",
    "run_scheduler",
    "run_status",
    "run_token",
    "run_up",
]

Values = Mapping[str, Value]
_TO_BE_CLAIMED = "e_00000000"


def run_up(values: Values) -> int:
    """A whole cluster on this machine."""
    from launch import up
    from launch.console import Console

    _check_policy(values)
    _check_model(values)
    _check_urls(values)
    return up.run(values, Console())


def run_gateway(values: Values) -> int:
    """One gateway, in this process."""
    from gateway.config import GatewayConfig

    _check_urls(values)
    config = build(GatewayConfig, values)
    return _become(role_command("gateway"), role_environment("gateway", config))


def run_scheduler(values: Values) -> int:
    """One scheduler, in this process."""
    from scheduler.config import SchedulerConfig

    _check_policy(values)
    config = build(SchedulerConfig, values)
    return _become(role_command("scheduler"), role_environment("scheduler", config))


def run_engine(values: Values) -> int:
    """One engine, as a torchrun job of this process; without an id, one that the scheduler wants.

    With the static provisioner, under a new one.
    """
    from engine.config import EngineConfig
    from launch import engine_cmd
    from scheduler.store import draw_id

    _check_model(values)
    _check_urls(values)
    is_static = build(EngineStartConfig, values).provisioner == "static"
    claim = "engine_id" not in values and not is_static
    own = draw_id("e", 4) if is_static and "engine_id" not in values else None
    config = build(EngineConfig, values, engine_id=_TO_BE_CLAIMED if claim else own)
    return asyncio.run(engine_cmd.run(config, claim=claim))


def run_provisioner(values: Values) -> int:
    """A cluster's engines as pods, until told to stop; they go on without us."""
    config = build(ProvisionerConfig, values)
    try:
        from launch import provision_cmd
    except ImportError as exc:
        raise StartError(
            f"the Kubernetes client is not installed ({exc}): pip install 'turboserve[kubernetes]'"
        ) from exc
    return asyncio.run(provision_cmd.run(config))


def run_client(values: Values) -> int:
    """One session, recorded to a file."""
    from launch import client_cmd

    return asyncio.run(client_cmd.run(build(ClientConfig, values)))


def run_loadtest(values: Values) -> int:
    """Real clients against a running cluster, judged."""
    config = build(LoadtestConfig, values)
    from launch.loadtest import run

    return asyncio.run(run.run(config))


def run_compare(values: Values) -> int:
    """Two results side by side."""
    config = build(CompareConfig, values)
    from launch.loadtest import compare_cmd

    return compare_cmd.run(config)


def run_profile(values: Values) -> int:
    """What a model costs on a device, to a file."""
    config = build(ProfileConfig, values)
    _check_model(values)
    from launch import profile_cmd

    return profile_cmd.run(config)


def run_status(values: Values) -> int:
    """What the cluster does now, as tables."""
    from launch import status

    return asyncio.run(status.run(build(StatusConfig, values)))


def run_token(values: Values) -> int:
    """A token, alone on a line."""
    print(build(TokenConfig, values).sign(time.time()))
    return 0


def run_doctor(values: Values) -> int:
    """Is everything here that a cluster needs? Settings that `up` would refuse are refused."""
    from launch import doctor
    from launch.config import CheckedModel
    from launch.role_configs import build_roles

    _check_policy(values)
    _check_urls(values)
    config, gateway, *_ = build_roles(values)
    tls = (gateway.tls_cert, gateway.tls_key) if gateway.tls_cert and gateway.tls_key else None
    return doctor.run(config, build(CheckedModel, values), tls=tls)


def _become(command: list[str], environment: dict[str, str]) -> int:
    """Replace this process, so that signals and the exit status are the role's own."""
    sys.stdout.flush()
    os.execve(command[0], command, environment)


def _check_policy(values: Values) -> None:
    if "policy" not in values:
        return
    from scheduler.policy.registry import find_policy

    _check_choice(values, "policy", find_policy)


def _check_model(values: Values) -> None:
    if values.get("model", Value("shapes", "")).value == "shapes":
        return  # the default needs no second of importing torch
    from engine.models.registry import model_names

    def find(name: str) -> None:
        if name not in (names := model_names()):
            raise ValueError(f"model {name!r} does not exist; available: {', '.join(names)}")

    _check_choice(values, "model", find)


def _check_urls(values: Values) -> None:
    _check_choice(values, "redis", parse_address)
    _check_choice(values, "checkpoints", lambda where: is_redis_url(where) and parse_address(where))


def _check_choice(values: Values, name: str, find: Callable[[str], object]) -> None:
    chosen = values.get(name)
    if chosen is None:
        return
    try:
        find(str(chosen.value))
    except ValueError as exc:
        raise SettingsError(f"{chosen.source}: {exc}") from exc
