"""`turboserve up` as a whole: what it refuses, what it leaves, what `run.json` says."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from launch import cli, up
from launch.run_file import DirectoryLock
from tests.cluster import SCALE, Cluster, command_of, descendants, is_running, wait_for
from tests.scheduler.store.test_pools import guarded_server


def turboserve(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    command = [sys.executable, "-m", "launch", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60 * SCALE, check=False, env=os.environ | environment
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--engines", "none"], "flag --engines: engines must be an integer, not 'none'"),
        (["--engines", "0"], "engines must be between 1 and 256, got 0"),
        (["--engines", "3", "--max-engines", "2"], "max_engines must be between engines (3) and 256, got 2"),
        (["--device", "tpu"], "device must be cpu or cuda, got 'tpu'"),
        (["--port", "70000"], "port must be between 1 and 65535, got 70000"),
        (["--policy", "best"], "policy 'best' does not exist; available: fixed, "),
        (["--model", "none"], "model 'none' does not exist; available: "),
        (["--capacity", "0"], "capacity must be at least 1, got 0"),
        (["--threads", "0"], "threads must be at least 1, got 0"),
        (["--redis", "localhost"], "redis must be a URL"),
        (["--host", "0.0.0.0"], "there is no authentication"),
        (["--config", "/none.toml"], "cannot read the configuration file /none.toml"),
    ],
)
def test_bad_value_stops_it(
    tmp_path: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2, one sentence that names the setting, nothing touched."""
    assert cli.main(["up", "--dir", str(tmp_path / "run"), *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert sentence in said
    assert not (tmp_path / "run").exists()


def test_cuda_without_gpu_is_refused(tmp_path: Path) -> None:
    """Instead of engines that fail one after another."""
    ended = turboserve("up", "--dir", str(tmp_path / "run"), "--device", "cuda", CUDA_VISIBLE_DEVICES="")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "no NVIDIA GPU" in ended.stderr


def test_taken_port_is_refused(tmp_path: Path) -> None:
    """Before anything starts, naming the port and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ended = turboserve("up", "--dir", str(tmp_path / "run"), "--port", str(port))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"port {port} on 127.0.0.1 can't be used" in ended.stderr
    assert "--port" in ended.stderr


@pytest.mark.cluster
def test_taken_folder_is_refused(cluster: Cluster) -> None:
    """A second cluster in the same folder would overwrite the first one's files."""
    ended = turboserve("up", "--dir", str(cluster.dir), "--port", "1")
    assert ended.returncode == 1
    assert f"another cluster runs in {cluster.dir}" in ended.stderr
    assert cluster.run_json()["url"] == cluster.url


def test_unreachable_redis_is_refused(tmp_path: Path, unused_port: int) -> None:
    """The sentence comes from the store; run.json does not stay."""
    directory = tmp_path / "run"
    ended = turboserve(
        "up", "--dir", str(directory), "--port", str(unused_port), "--redis", f"unix://{tmp_path}/none"
    )
    assert ended.returncode == 1
    assert "Redis can't be reached" in ended.stderr
    assert not (directory / "run.json").exists()


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_redis_that_refuses_is_a_sentence(tmp_path: Path, unused_port: int) -> None:
    """It lets us in, and denies us what we need."""
    with guarded_server(tmp_path) as port:
        url = f"redis://turbo:p%40ss@127.0.0.1:{port}"
        wait_for("the server", lambda: is_listening(port))
        ended = turboserve(
            *("up", "--dir", str(tmp_path / "run"), "--port", str(unused_port)),
            *("--redis", url, "--cluster", "other"),
        )
    assert ended.returncode == 1, ended.stderr
    slow = "turboserve up: Redis can't be reached: no answer in time"  # of a machine that is busy
    assert ended.stderr.startswith(("turboserve up: the Redis user of the URL lacks a permission", slow))
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("name", ["logs.previous", "run.json", "logs"])
def test_a_folder_that_cannot_be_made_ours_is_a_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody else's remains are in it, or it is full; whoever comes next is not locked out."""
    directory = tmp_path / "run"
    (directory / "logs").mkdir(parents=True)
    (directory / "logs.previous").mkdir()
    (directory / "logs.previous" / "old.log").touch()
    monkeypatch.setattr("shutil.rmtree", lambda path, ignore_errors: None)  # it may not
    if name == "logs":
        monkeypatch.setattr(Path, "rename", lambda path, target: None)
    elif name == "run.json":
        (directory / "run.json").mkdir()
    assert cli.main(["up", "--dir", str(directory)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"turboserve up: the folder {directory} can't be used: ")
    assert said.endswith(f"({directory}/{name})\n")
    DirectoryLock(directory).release()


def test_a_disk_that_is_all_but_full_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is started, whose log would not tell why it failed."""
    monkeypatch.setattr(up, "_MIN_DISK_BYTES", 2**62)
    assert cli.main(["up", "--dir", str(tmp_path / "run")]) == 1
    assert re.search(r"run can't be used: only \d+ KiB are free there\n$", capsys.readouterr().err)
    DirectoryLock(tmp_path / "run").release()


def test_a_disk_without_room_is_a_sentence(
    tmp_path: Path, unused_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is started where not even `run.json` fits."""

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("json.dump", fail)
    assert cli.main(["up", "--dir", str(tmp_path / "run"), "--port", str(unused_port)]) == 1
    assert capsys.readouterr().err.endswith("run can't be used: No space left on device\n")


def test_engines_that_cannot_start_end_it(tmp_path: Path, unused_port: int) -> None:
    """After two in a row it gives up, showing why, and leaves nothing."""
    directory = tmp_path / "run"
    ended = turboserve(
        *("up", "--dir", str(directory), "--port", str(unused_port)),
        *("--engines", "1", "--weights", str(tmp_path / "none.safetensors")),
    )
    assert ended.returncode == 1
    assert "none.safetensors" in ended.stdout
    assert "torch" not in ended.stdout
    assert "2 engines in a row ended before they were ready" in ended.stderr
    assert not (directory / "run.json").exists()


@pytest.mark.cluster
def test_run_json_names_every_process(cluster: Cluster) -> None:
    """Each name is there once, and its process is what the name says."""
    content = cluster.run_json()
    names = sorted(process["name"] for process in content["processes"])
    assert content["url"] == cluster.url
    assert names == sorted(
        [*(f"engine-{id}" for id in cluster.engines()), "gateway-0", "redis", "scheduler-0"]
    )
    for name, pid in cluster.pids("").items():
        line = command_of(pid)
        assert name.partition("-")[0] in line
        assert ("launch.agent" in line) is False


@pytest.mark.cluster
def test_redis_is_as_promised(cluster: Cluster) -> None:
    """Append-only, no eviction, no TCP port."""
    import redis

    client = redis.Redis.from_url(cluster.run_json()["redis"], decode_responses=True)
    settings = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "port": "0"}
    assert {name: client.config_get(name)[name] for name in settings} == settings
    client.close()


@pytest.mark.cluster
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_in_order(number: signal.Signals, small_cluster: Cluster) -> None:
    """Status 0, every process gone, run.json gone, the URL printed once."""
    ready = f"TurboServe is ready: {small_cluster.url}"
    wait_for("the line that says it is ready", lambda: ready in small_cluster.printed())
    below = descendants(small_cluster.process.pid)
    assert len(below) >= 5
    assert small_cluster.stop(number) == 0
    assert not any(is_running(pid) for pid in below)
    assert not (small_cluster.dir / "run.json").exists()
    assert small_cluster.printed().count(ready) == 1


@pytest.mark.cluster
def test_killed_it_leaves_nothing(small_cluster: Cluster) -> None:
    """kill -9 of `up` itself: the kernel ends its children, and theirs end with them."""
    below = descendants(small_cluster.process.pid)
    small_cluster.process.kill()
    small_cluster.process.wait()
    wait_for("the end of all its processes", lambda: not any(is_running(pid) for pid in below))


@pytest.mark.cluster
def test_a_terminal_that_is_closed_ends_it_in_order(tmp_path: Path, unused_port: int) -> None:
    """What it would say can't be written anywhere; it stops everything all the same, with status 0."""
    ours, its = os.openpty()
    command = [sys.executable, "-m", "launch", "up", "--engines", "1", "--port", str(unused_port)]
    process = subprocess.Popen(
        [*command, "--dir", str(tmp_path / "run")],
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(its)
    printed = b""
    while b"TurboServe is ready" not in printed:
        printed += os.read(ours, 1 << 16)
    below = descendants(process.pid)
    os.close(ours)
    assert process.wait(timeout=30 * SCALE) == 0
    assert not any(is_running(pid) for pid in below)
    assert not (tmp_path / "run" / "run.json").exists()
