"""The checks of `turboserve doctor`."""

from __future__ import annotations

import socket
from dataclasses import fields
from pathlib import Path

import pytest

from launch import doctor, doctor_machine
from launch.cli import COMMANDS
from launch.config import CheckedModel, UpConfig
from launch.doctor import check_redis_config, check_redis_version
from launch.doctor_machine import check_machine, check_nccl, check_port
from launch.doctor_problem import Problem
from tests.cluster import wait_for
from tests.scheduler.store.test_pools import guarded_server, server

KEEPS = {"appendonly": "yes", "maxmemory": "0", "maxmemory-policy": "noeviction"}


def test_a_sound_machine_passes(unused_port: int, redis_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every check runs for real, once with the wheel's Redis and once with a running one."""
    assert doctor.run(UpConfig(port=unused_port)) == 0
    assert doctor.run(UpConfig(port=unused_port, redis=redis_url)) == 0
    lines = capsys.readouterr().out.splitlines()
    names = ("python", "machine", "redis", "codecs", "device", "nccl", "model", "memory", "port")
    assert tuple(line.split()[1] for line in lines[:9]) == names
    assert {line.split()[0] for line in lines} <= {"ok", "note"}


def test_each_problem_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A taken port and an unreachable Redis: status 1, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert doctor.run(UpConfig(port=port, redis=f"unix://{tmp_path}/none")) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert "--redis can't be used" in failed[0]
    assert f"port {port}" in failed[1]
    assert len(failed) == 2


def test_a_model_without_room_is_a_problem(unused_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    """More host memory for idle sessions than there is; and a capacity beyond what fits is a note."""
    assert doctor.run(UpConfig(port=unused_port), CheckedModel(offload_mib=10**9)) == 1
    assert "no session fits; lower --offload-mib" in capsys.readouterr().out
    assert doctor.run(UpConfig(port=unused_port), CheckedModel(capacity=10**9, offload_mib=0)) == 0
    assert "less than --capacity 1000000000" in capsys.readouterr().out


def test_it_takes_every_setting_of_up() -> None:
    """So that the same line with another word checks what a cluster would get."""
    assert settings_of("doctor") == settings_of("up") > {"ranks", "policy", "checkpoints", "recordings"}


def settings_of(command: str) -> set[str]:
    known = COMMANDS[command]
    return {field.name for config in known.configs for field in fields(config)} - known.without


def test_an_unknown_model_is_a_problem(unused_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Its memory can't be known either."""
    assert doctor.run(UpConfig(port=unused_port), CheckedModel(model="none")) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert [line.split()[1] for line in failed] == ["model", "memory"]
    assert "unknown model 'none'" in failed[0] and "turboserve model list" in failed[0]


def test_the_folder_needs_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its nearest parent is; a folder without room is a problem."""
    config = UpConfig(dir=str(tmp_path / "a" / "b"))
    monkeypatch.setattr(doctor_machine, "_MIN_DISK_BYTES", 2**62)
    with pytest.raises(Problem, match=f"MiB are free at {tmp_path}, where Redis"):
        check_machine(config)


def test_engines_on_cpus_use_gloo() -> None:
    assert check_nccl(UpConfig(device="cpu")).startswith("gloo")


def test_redis_versions() -> None:
    """6.2 is enough, 6.0 is not."""
    assert check_redis_version("6.2.14") == "6.2.14"
    assert check_redis_version("7.0.0") == "7.0.0"
    with pytest.raises(Problem, match=r"Redis 6\.0\.16 is too old"):
        check_redis_version("6.0.16")


def test_redis_that_forgets_or_drops_is_a_problem() -> None:
    """Both would lose sessions silently."""
    check_redis_config(KEEPS)
    check_redis_config(KEEPS | {"maxmemory-policy": "allkeys-lru"})  # no limit: it never drops
    with pytest.raises(Problem, match="appendonly"):
        check_redis_config(KEEPS | {"appendonly": "no"})
    with pytest.raises(Problem, match="noeviction"):
        check_redis_config(KEEPS | {"maxmemory": "1000", "maxmemory-policy": "allkeys-lru"})


def test_a_password_in_clear_is_a_problem(unused_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Found before it is sent, and not repeated."""
    assert doctor.run(UpConfig(port=unused_port, redis="redis://me:secret@192.0.2.1")) == 1
    printed = capsys.readouterr().out
    assert "use rediss://" in printed and "secret" not in printed


def test_a_wrong_redis_url_is_a_problem(unused_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A sentence, not a traceback."""
    assert doctor.run(UpConfig(port=unused_port, redis="http://me:secret@h")) == 1
    printed = capsys.readouterr().out
    assert "redis must be a URL" in printed and "secret" not in printed


def test_ways_in_are_judged(unused_port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An ACL user with the rights that are needed passes; a wrong password and none are told apart."""

    def judged(user: str) -> str:
        doctor.run(UpConfig(port=unused_port, redis=f"redis://{user}127.0.0.1:{port}"))
        return capsys.readouterr().out.splitlines()[2]

    with guarded_server(tmp_path) as port:
        wait_for("an answer", lambda: "refused" not in judged(""))
        assert judged("turbo:p%40ss@").startswith("ok ")
        assert "check appendonly yourself" in judged("turbo:p%40ss@")
        assert judged("turbo:wrong@").endswith("check user and password in the URL (percent-encoded)")
        assert "put user and password into the URL" in judged("")


def test_a_redis_without_config_is_a_redis(tmp_path: Path) -> None:
    """As hosted ones are: what it can't say is to be checked by hand."""
    with server(tmp_path / "hosted", 'rename-command CONFIG ""') as (port, _):
        config = UpConfig(redis=f"redis://127.0.0.1:{port}")
        wait_for("an answer", lambda: "check appendonly yourself" in judged_redis(config))


def judged_redis(config: UpConfig) -> str:
    try:
        return doctor._check_redis(config)
    except Problem as exc:
        return str(exc)


def test_a_port_of_ipv6(unused_port: int) -> None:
    """On which `up` would listen."""
    assert check_port(UpConfig(host="::1", port=unused_port)).endswith("on ::1 is free")
    with socket.create_server(("::1", unused_port), family=socket.AF_INET6) as listening:
        assert listening.fileno() > 0
        with pytest.raises(Problem, match="on ::1 can't be used"):
            check_port(UpConfig(host="::1", port=unused_port))
