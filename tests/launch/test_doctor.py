"""The checks of `turboserve doctor`."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from engine.memory import Room, slot_bytes
from engine.models.registry import MODELS
from engine.models.shapes.model import TINY, ShapesModel
from launch import cli, doctor, doctor_machine
from launch.cli import COMMANDS
from launch.config import CheckedModel, UpConfig
from launch.doctor import check_redis_config, check_redis_version
from launch.doctor_machine import (
    check_device,
    check_machine,
    check_nccl,
    check_port,
    check_room,
    check_tls,
    room_of_a_rank,
    trouble_explained,
)
from launch.doctor_problem import Advice, Problem
from tests.cluster import SCALE, wait_for
from tests.gateway.gateway_fixtures import make_certificate
from tests.launch.test_up import turboserve
from tests.scheduler.store.test_pools import guarded_server, server

CHECKS = ("python", "machine", "redis", "codecs", "device", "nccl", "model", "memory", "port")
TINY_MODEL = ShapesModel.random(0, config=TINY)
SLOT_BYTES = slot_bytes(TINY_MODEL)
KEEPS = {"appendonly": "yes", "maxmemory": "0", "maxmemory-policy": "noeviction"}


def test_a_sound_machine_passes(unused_port: int, redis_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every check runs for real, once with the wheel's Redis and once with a running one."""
    assert doctor.run(UpConfig(port=unused_port)) == 0
    assert doctor.run(UpConfig(port=unused_port, redis=redis_url)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert tuple(line.split()[1] for line in lines[:9]) == CHECKS
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


def test_the_folder_must_be_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in its place, and one where we may not write, which root may anywhere."""
    (tmp_path / "file").touch()
    with pytest.raises(Problem, match=f"{tmp_path}/file is no folder that you may write to"):
        check_machine(UpConfig(dir=str(tmp_path / "file")))
    monkeypatch.setattr(doctor_machine.os, "access", lambda path, mode: False)
    with pytest.raises(Problem, match=f"{tmp_path} is no folder that you may write to: choose another"):
        check_machine(UpConfig(dir=str(tmp_path / "a" / "b")))


def test_an_old_kernel_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Children are held by descriptors."""

    def fail(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", fail)
    with pytest.raises(Problem, match=r"Linux .* \(Function not implemented\): 5\.4 or newer is needed"):
        check_machine(UpConfig(dir=str(tmp_path)))


def test_the_cores_are_those_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large machine it may have little."""
    monkeypatch.setattr(doctor_machine, "usable_cores", lambda: 0.5)
    assert re.match(r"cpu, 0\.5 of \d+ cores \(the limit of a cgroup\)", check_device(UpConfig(), 1))
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    assert check_machine(UpConfig(dir=str(tmp_path))).startswith("0.5 of ")


def test_a_check_that_breaks_is_a_problem_and_the_next_is_made(
    unused_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with a library that does not fit."""
    monkeypatch.setitem(sys.modules, "av", None)
    assert doctor.run(UpConfig(port=unused_port)) == 1
    lines = capsys.readouterr().out.splitlines()
    (failed,) = (line for line in lines if line.startswith("FAIL"))
    assert failed.startswith("FAIL  codecs   can't be checked, ModuleNotFoundError: import of av halted")
    assert lines[-1].split()[:2] == ["ok", "port"]


@pytest.mark.parametrize("library", ["h11", "numpy", "redis", "torch", "uvloop"])
def test_a_library_that_does_not_load_is_a_problem(library: str, unused_port: int) -> None:
    """Whichever it is, none of them ends the doctor."""
    program = (
        "import sys\n"
        "sys.modules[sys.argv[1]] = None\n"
        "from launch.__main__ import main\n"
        "sys.argv[1:] = ['doctor', '--port', sys.argv[2]]\n"
        "raise SystemExit(main())"
    )
    command = [sys.executable, "-c", program, library, str(unused_port)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60 * SCALE, check=False)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    lines = ended.stdout.splitlines()
    assert tuple(line.split()[1] for line in lines) == CHECKS
    assert lines[0].startswith("FAIL  python ") and "can't be loaded" in lines[0] and library in lines[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--host", "0.0.0.0"], "there is no authentication"),
        (["--policy", "best"], "policy 'best' does not exist"),
        (["--crf", "99"], "crf must be between 0 and 51"),
        (["--tls-cert", "c.pem"], "tls_cert and tls_key must be set together"),
    ],
)
def test_what_up_refuses_it_refuses(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the same status and sentence."""
    assert cli.main(["doctor", *arguments]) == 2
    assert sentence in capsys.readouterr().err


async def test_certificates_are_looked_at(tmp_path: Path) -> None:
    """A file that is not there, and one that is not what it should be."""
    cert, key = map(str, await make_certificate(tmp_path))
    assert check_tls(cert, key) == f"{cert} and its key can be used"
    (tmp_path / "empty.pem").touch()
    for wrong in ("empty.pem", "none.pem"):
        with pytest.raises(Problem, match=f"{wrong} and .* can't be used .*--tls-cert needs a PEM file"):
            check_tls(str(tmp_path / wrong), key)


def test_those_that_are_asked_for_are_a_line(unused_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The last one."""
    arguments = ["--port", str(unused_port), "--tls-cert", "none.pem", "--tls-key", "none.key"]
    assert cli.main(["doctor", *arguments]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("FAIL  tls      none.pem and none.key can't")


def test_engines_on_cpus_use_gloo() -> None:
    assert check_nccl(UpConfig(device="cpu")).startswith("gloo")


def test_cuda_without_a_gpu_fails_its_checks_and_no_others(unused_port: int) -> None:
    """As a user runs it: a sentence for each, and everything after them is still looked at."""
    ended = turboserve("doctor", "--device", "cuda", "--port", str(unused_port), CUDA_VISIBLE_DEVICES="")
    found = {line.split()[1]: line for line in ended.stdout.splitlines()}
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr and tuple(found) == CHECKS
    assert found["device"].startswith("FAIL") and found["device"].endswith("use --device cpu")
    assert found["memory"].startswith("FAIL") and found["memory"].endswith("see device")
    assert found["model"].startswith("ok") and found["port"].startswith("ok")


def test_a_model_that_is_too_large_is_a_problem(
    unused_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No machine has an exbibyte, and torch says so."""

    def load(device: torch.device, weights: Path | None) -> ShapesModel:
        torch.empty(2**60, dtype=torch.uint8, device=device)
        return TINY_MODEL

    monkeypatch.setitem(MODELS, "huge", load)
    assert doctor.run(UpConfig(port=unused_port), CheckedModel(model="huge")) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = {line.split()[1]: line for line in lines if line.startswith("FAIL")}
    assert tuple(failed) == ("model", "memory")
    for line in failed.values():
        assert "huge can't be loaded (" in line and line.endswith("use a machine with more memory")
    assert lines[-1].split()[:2] == ["ok", "port"]


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), "use a larger one"),
        (RuntimeError("CUDA error: no kernel image is available\nCompile with"), "new enough for this torch"),
        (RuntimeError(), "new enough for this torch"),
    ],
)
def test_what_cuda_says_is_a_problem(error: Exception, advice: str) -> None:
    """Its first line, and what to do."""
    with pytest.raises(Problem, match=advice) as found, trouble_explained("it can't be loaded", "cuda"):
        raise error
    assert str(found.value).startswith("it can't be loaded (") and "\n" not in str(found.value)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them, for what only asks torch."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H100")


@pytest.mark.usefixtures("gpus")
def test_gpus_are_counted() -> None:
    """Enough, shared, too few for one engine."""
    assert check_device(UpConfig(device="cuda", engines=2), 1) == "cuda, 2 GPUs (NVIDIA H100)"
    assert check_device(UpConfig(device="cuda", engines=1), 2) == "cuda, 2 GPUs (NVIDIA H100)"
    with pytest.raises(Advice, match="4 ranks share 2 GPUs"):
        check_device(UpConfig(device="cuda", engines=2), 2)
    with pytest.raises(Advice, match="3 ranks share 2 GPUs"):
        check_device(UpConfig(device="cuda", engines=1, max_engines=3), 1)
    with pytest.raises(Problem, match="an engine of 3 ranks needs 3 GPUs, here are 2: lower --ranks"):
        check_device(UpConfig(device="cuda", engines=1), 3)


@pytest.mark.usefixtures("gpus")
def test_gpus_that_torch_can_not_use_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that does not answer; a build for CPUs; one for a newer driver; no GPU, or a hidden one."""

    def fail(index: int) -> str:
        raise RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable")

    monkeypatch.setattr(torch.cuda, "get_device_name", fail)
    with pytest.raises(Problem, match=r"busy or unavailable\): does nvidia-smi show it"):
        check_device(UpConfig(device="cuda"), 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(Problem, match="can't use the GPU: install a CUDA build"):
        check_device(UpConfig(device="cuda"), 1)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(Problem, match=r"can't use the GPU: .* is its driver new enough for CUDA 13\.0\?"):
        check_device(UpConfig(device="cuda"), 1)
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        with pytest.raises(Problem, match=f"no NVIDIA GPU here .CUDA_VISIBLE_DEVICES is '{hidden}'"):
            check_device(UpConfig(device="cuda"), 1)


def test_engines_on_gpus_use_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has to be there, and shared memory for it."""
    config = UpConfig(device="cuda")
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with pytest.raises(Problem, match="no NCCL.*install a CUDA build"):
        check_nccl(config)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr("torch.cuda.nccl.version", lambda: (2, 28, 9))
    monkeypatch.setattr(doctor_machine, "_MIN_SHARED_BYTES", 2**62)
    with pytest.raises(Advice, match="docker run --shm-size=1g"):
        check_nccl(config)
    monkeypatch.setattr(doctor_machine, "_MIN_SHARED_BYTES", 0)
    assert check_nccl(config) == "NCCL 2.28.9"


class Meter:
    """Of a GPU with so much left, a tenth of it its margin."""

    def __init__(self, left_bytes: int) -> None:
        self._left_bytes = left_bytes

    def begin(self) -> None:
        """Nothing is measured."""

    def room(self, pool_bytes: int) -> Room:
        margin = self._left_bytes // 9
        return Room(free_bytes=self._left_bytes + margin, workspace_bytes=0, margin_bytes=margin)


def measure(monkeypatch: pytest.MonkeyPatch, left_bytes: Sequence[int], *, model_bytes: int) -> None:
    """Let GPUs have so much left beside a model on the first."""
    monkeypatch.setattr("engine.memory.make_meter", lambda device: Meter(left_bytes[device.index]))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: [model_bytes][device])


@pytest.mark.usefixtures("gpus")
def test_the_fullest_gpu_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the first, on which the model was loaded."""
    measure(monkeypatch, (9 * SLOT_BYTES, 5 * SLOT_BYTES), model_bytes=2 * SLOT_BYTES)
    two = UpConfig(device="cuda", engines=2)
    with pytest.raises(Advice, match="3 fit in an engine, less than --capacity 4"):
        check_room(two, CheckedModel(capacity=4), TINY_MODEL)
    assert "3 wanted in each of 2 engines" in check_room(two, CheckedModel(capacity=3), TINY_MODEL)
    one = UpConfig(device="cuda", engines=1)
    assert "9 wanted in each of 1 engines" in check_room(one, CheckedModel(capacity=9), TINY_MODEL)
    measure(monkeypatch, (9 * SLOT_BYTES, SLOT_BYTES), model_bytes=2 * SLOT_BYTES)
    with pytest.raises(Problem, match="no session fits; end what else uses the GPU"):
        check_room(two, CheckedModel(capacity=1), TINY_MODEL)


@pytest.mark.usefixtures("gpus")
def test_a_rank_holds_its_share_of_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs that have room for three sessions each hold more of them together."""
    measure(monkeypatch, (3 * SLOT_BYTES, 3 * SLOT_BYTES), model_bytes=0)
    config = UpConfig(device="cuda", engines=1)
    of_a_rank = 3 * SLOT_BYTES // slot_bytes(TINY_MODEL, ranks=2)
    assert of_a_rank > 3
    with pytest.raises(Advice, match=f"{of_a_rank} fit in an engine"):
        check_room(config, CheckedModel(ranks=2, capacity=of_a_rank + 1), TINY_MODEL)


@pytest.mark.usefixtures("gpus")
def test_a_gpu_that_is_full_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a context fits beside what others hold."""

    def fail(device: torch.device) -> Meter:
        raise torch.OutOfMemoryError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    monkeypatch.setattr("engine.memory.make_meter", fail)
    with pytest.raises(Problem, match=r"can't be looked at \(CUDA error: out of memory\): end what else"):
        check_room(UpConfig(device="cuda"), CheckedModel(), TINY_MODEL)


def test_ranks_that_share_a_gpu_share_its_memory() -> None:
    """Each with a model of its own, one of which is there."""
    assert room_of_a_rank([100], num_ranks=1, model_bytes=10) == 100
    assert room_of_a_rank([100], num_ranks=2, model_bytes=10) == 45
    assert room_of_a_rank([100, 100, 5], num_ranks=2, model_bytes=10) == 90
    assert room_of_a_rank([100, 200], num_ranks=3, model_bytes=10) == 45
    assert room_of_a_rank([100, 80], num_ranks=4, model_bytes=10) == 30
    assert room_of_a_rank([100, 5], num_ranks=2, model_bytes=10) == -5


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
