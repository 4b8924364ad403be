"""Command lines and environments of the roles."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch.roles import engine_command, engine_environment, role_command, role_environment


@dataclass(frozen=True, kw_only=True)
class Config:
    link_secret: str = "hush"
    name: str | None = None
    names: tuple[str, ...] = ("a",)


def test_configuration_travels_in_one_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields that are None are left out; no other setting of ours leaks into the role."""
    monkeypatch.setenv("TURBOSERVE_PORT", "1")
    monkeypatch.setenv("HOME", "/h")
    environment = role_environment("gateway", Config())
    assert json.loads(environment["TURBOSERVE_GATEWAY_CONFIG"]) == {"link_secret": "hush", "names": ["a"]}
    assert "TURBOSERVE_PORT" not in environment
    assert environment["HOME"] == "/h"


def test_the_users_folder_is_not_searched(tmp_path: Path) -> None:
    """A file there that is called like a module of ours, or of Python, changes nothing."""
    for name in ("queue", "gateway"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    environment = role_environment("gateway", Config())
    ended = subprocess.run(
        role_command("gateway"), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert "unknown settings" in ended.stderr  # ours, and it got our configuration


def test_secrets_are_never_on_a_command_line() -> None:
    """Command lines are public on a machine."""
    assert "hush" not in " ".join(role_command("gateway") + engine_command(ranks=1))


def test_engines_are_torchrun_jobs() -> None:
    """As the design says: elastic agent, no restarts, any free port for the rendezvous."""
    line = " ".join(engine_command(ranks=2))
    for part in (
        "launch.agent",
        "--nproc-per-node=2",
        "--max-restarts=0",
        "--rdzv-backend=c10d",
        "localhost:0",
    ):
        assert part in line
    assert line.endswith("-m engine")


def test_an_engine_sees_its_gpus_only() -> None:
    """On a machine with GPUs each rank gets one."""
    environment = engine_environment(Config(), threads=3, gpus=("1", "4"))
    assert environment["CUDA_VISIBLE_DEVICES"] == "1,4"
    assert environment["OMP_NUM_THREADS"] == "3"


def test_a_lost_answer_of_dns_costs_an_engine_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not five: who set the resolver's options themselves keeps them."""
    monkeypatch.delenv("RES_OPTIONS", raising=False)
    assert "timeout:1" in engine_environment(Config(), threads=1)["RES_OPTIONS"]
    monkeypatch.setenv("RES_OPTIONS", "timeout:3")
    assert engine_environment(Config(), threads=1)["RES_OPTIONS"] == "timeout:3"
