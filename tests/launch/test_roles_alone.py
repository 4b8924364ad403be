"""Each role started by its own command, with a Redis of one's own: the way to several machines."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from launch import cli, engine_cmd
from tests.cluster import SCALE, descendants, free_port, is_ready, is_running, wait_for
from tests.viewer import watching

pytestmark = pytest.mark.cluster


@contextmanager
def role(name: str, *arguments: str, log: Path, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """A `turboserve` command that runs, its settings in the environment."""
    environment = os.environ | {f"TURBOSERVE_{key.upper()}": value for key, value in settings.items()}
    with log.open("wb") as output:
        command = [sys.executable, "-m", "launch", name, *arguments]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def test_roles_make_a_cluster(redis_url: str, tmp_path: Path) -> None:
    """Scheduler, gateway and engine find each other, who comes first waits; each ends in order when asked to.
    The Redis is new: which engines are wanted is said only when any that outlived a loss could speak."""
    settings = {"redis": redis_url, "cluster": "alone", "link_secret": "hush", "capacity": "1"}
    port = free_port()
    with ExitStack() as stack:
        scheduler, gateway = (
            stack.enter_context(role(name, *arguments, log=tmp_path / name, **settings))
            for name, arguments in (("scheduler", ["--engines", "1"]), ("gateway", ["--port", str(port)]))
        )
        # A machine that stands still may take longer to start it than an engine waits for it.
        wait_for("a leader", lambda: "engines have" in (tmp_path / "scheduler").read_text(), 60 * SCALE)
        engine = stack.enter_context(role("engine", log=tmp_path / "engine", **settings))
        wait_for("a ready engine", lambda: "serves shapes" in (tmp_path / "engine").read_text(), 60 * SCALE)
        wait_for("a gateway that knows it", lambda: is_ready(port), 20 * SCALE)
        async with watching(f"http://127.0.0.1:{port}") as viewer:
            await viewer.take(2)
        below = descendants(engine.pid)
        for process in (engine, gateway, scheduler):
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30 * SCALE) == 0
        assert not any(is_running(pid) for pid in below)


def test_an_engine_that_nobody_wants_says_so(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a scheduler that asks for one there is nothing to start, once it had time to."""
    for name, value in {"REDIS": redis_url, "CLUSTER": "nobody", "LINK_SECRET": "hush"}.items():
        monkeypatch.setenv(f"TURBOSERVE_{name}", value)
    monkeypatch.setattr(engine_cmd, "_SCHEDULER_WAIT_S", 0.1)
    assert cli.main(["engine"]) == 1
    assert "has no scheduler" in capsys.readouterr().err


def test_an_engine_that_is_told_to_end_while_it_starts_ends_in_order(redis_url: str, tmp_path: Path) -> None:
    """Its agent has no ranks yet, or no rank that could do more than die."""
    settings = {"redis": redis_url, "cluster": "early", "link_secret": "hush", "engine_id": "e_0000000a"}
    log = tmp_path / "log"
    with role("engine", log=log, **settings) as engine:
        wait_for("the start", lambda: "starts (pid" in log.read_text(), 60 * SCALE)
        engine.send_signal(signal.SIGTERM)
        assert engine.wait(timeout=30 * SCALE) == 0


def test_a_killed_engine_command_leaves_nothing(redis_url: str, tmp_path: Path) -> None:
    """kill -9 of `turboserve engine` ends the torchrun agent and its rank."""
    settings = {"redis": redis_url, "cluster": "killed", "link_secret": "hush", "capacity": "1"}
    settings["engine_id"] = "e_0000000a"
    log = tmp_path / "log"
    with role("engine", log=log, **settings) as engine:
        wait_for("a ready engine", lambda: "serves shapes" in log.read_text(), 60 * SCALE)
        below = descendants(engine.pid)
        assert len(below) == 2
        engine.kill()
        wait_for("the end of the job", lambda: not any(is_running(pid) for pid in below))


def test_an_engine_may_write_to_a_socket(redis_url: str, tmp_path: Path) -> None:
    """Its standard error is one under systemd; how it ended is told there as well. It leaves no files."""
    settings = {"redis": redis_url, "cluster": "socket", "link_secret": "hush", "engine_id": "e_0000000b"}
    settings["weights"] = "/none.safetensors"
    environment = os.environ | {f"TURBOSERVE_{key.upper()}": value for key, value in settings.items()}
    environment["TMPDIR"] = str(tmp_path)
    ours, its = socket.socketpair()
    command = [sys.executable, "-m", "launch", "engine"]
    with ours, subprocess.Popen(command, env=environment, stdout=its, stderr=its) as engine:
        its.close()
        written = b"".join(iter(lambda: ours.recv(1 << 16), b""))
        assert engine.wait(timeout=30 * SCALE) == 1
    assert b"/none.safetensors" in written
    assert written.endswith(b"turboserve engine: e_0000000b exited with status 2\n")
    assert not os.listdir(tmp_path)


def test_an_engine_without_a_temporary_folder_says_so(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where the disk is full."""
    settings = {"REDIS": redis_url, "CLUSTER": "full", "LINK_SECRET": "hush", "ENGINE_ID": "e_0000000c"}
    for name, value in settings.items():
        monkeypatch.setenv(f"TURBOSERVE_{name}", value)

    def fail(*arguments: object, **options: object) -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.mkdtemp", fail)
    assert cli.main(["engine"]) == 1
    assert "needs a folder for temporary files: No usable temporary" in capsys.readouterr().err
