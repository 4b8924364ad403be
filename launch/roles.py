"""How each role's process is started: its command line, and its configuration in one environment variable."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from launch.settings import ENVIRONMENT_PREFIX

__all__ = ["AGENT", "engine_command", "engine_environment", "role_command", "role_environment"]

CONFIG_VARIABLES: Final[Mapping[str, str]] = {
    role: f"{ENVIRONMENT_PREFIX}{role.upper()}_CONFIG" for role in ("gateway", "scheduler", "engine")
}

AGENT: Final = (sys.executable, "-m", "launch.agent")
"""Before the arguments of torchrun."""


def role_command(role: str) -> list[str]:
    """A gateway or a scheduler: one Python process."""
    return [sys.executable, "-m", role]


def role_environment(role: str, config: Any) -> dict[str, str]:
    """Our environment without our own settings, plus this role's configuration.

    Secrets are in there: other users can't read a process's environment, but can read its command line.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(ENVIRONMENT_PREFIX)}
    fields = {name: value for name, value in asdict(config).items() if value is not None}
    python = {
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",  # a queue.py or a folder called engine where the user stands is not ours
    }
    return inherited | python | {CONFIG_VARIABLES[role]: json.dumps(fields)}


def engine_command(*, ranks: int, log_dir: Path | None = None) -> list[str]:
    """One engine: a torchrun job that never restarts its ranks."""
    command = [
        *AGENT,
        *("--nnodes=1", f"--nproc-per-node={ranks}", "--max-restarts=0"),
        *("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"),
    ]
    if log_dir is not None:
        command.append(f"--log-dir={log_dir}")
    return [*command, "-m", "engine"]


def engine_environment(config: Any, *, threads: int, gpus: Sequence[str] = ()) -> dict[str, str]:
    """The environment of an engine's torchrun agent, which its ranks inherit: one GPU for each, if any."""
    # torch asks DNS for the name of each address that it connects to; a lost answer costs 5 s by default.
    patience = {"RES_OPTIONS": os.environ.get("RES_OPTIONS", "timeout:1 attempts:2")}
    environment = role_environment("engine", config) | patience | {"OMP_NUM_THREADS": str(threads)}
    return environment | {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else environment
