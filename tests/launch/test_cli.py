"""The command line: which commands there are, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from launch import cli
from launch.config import ClientConfig
from launch.loadtest.config import CompareConfig, LoadtestConfig
from launch.settings import Value, build, catalogue
from launch.supervisor import StartError


class Recorder:
    """In the place of a command's work: takes down what it was given."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.values: Mapping[str, Value] = {}
        self._failure = failure

    def __call__(self, values: Mapping[str, Value]) -> int:
        self.values = values
        if self._failure is not None:
            raise self._failure
        return 0


def replaced(name: str, run: Recorder) -> dict[str, cli.Command]:
    return {name: replace(cli.COMMANDS[name], run=run, help="")}


def run(name: str, *arguments: str, failure: Exception | None = None) -> tuple[int, Mapping[str, Value]]:
    """Parse and run one command, its work replaced; the exit status and the values it got."""
    recorder = Recorder(failure)
    status = cli.main([name, *arguments], commands=dict(cli.COMMANDS) | replaced(name, recorder))
    return status, recorder.values


def test_contract_of_up() -> None:
    """Every flag of the stated command line is there."""
    flags = "--engines 3 --device cpu --port 9 --dir D --policy P --model M --redis R --max-engines 4"
    status, values = run("up", *flags.split(), *"--capacity 5 --threads 6".split())
    assert status == 0
    assert {name: value.value for name, value in values.items()} == {
        "engines": 3,
        "device": "cpu",
        "port": 9,
        "dir": "D",
        "policy": "P",
        "model": "M",
        "redis": "R",
        "max_engines": 4,
        "capacity": 5,
        "threads": 6,
    }


def test_contract_of_client() -> None:
    """A prompt, and -o for the file."""
    arguments = ("a red ball", "--url", "http://h:1", "--seconds", "2.5", "--seed", "7", "-o", "x.mp4")
    status, values = run("client", *arguments)
    assert status == 0
    config = build(ClientConfig, values)
    assert config == ClientConfig(prompt="a red ball", url="http://h:1", seconds=2.5, seed=7, output="x.mp4")


def test_contract_of_loadtest() -> None:
    """Every flag of the stated command line is there, and objectives."""
    flags = "--url http://h:1 --trace T --time-scale 2 --json J --html H --max-p99-ms 400 --no-gaps"
    status, values = run("loadtest", *flags.split())
    assert status == 0
    config = build(LoadtestConfig, values)
    assert config == LoadtestConfig(
        url="http://h:1", trace="T", time_scale=2.0, json="J", html="H", max_p99_ms=400.0, gaps=False
    )


def test_contract_of_compare() -> None:
    """Two files, in their order."""
    status, values = run("compare", "a.json", "b.json", "--html", "c.html")
    assert status == 0
    assert build(CompareConfig, values) == CompareConfig(before="a.json", after="b.json", html="c.html")


def test_one_file_serves_all_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of other commands are left out, flags win, secrets come from anywhere but the command line."""
    path = tmp_path / "c.toml"
    path.write_text('port = 1\ncapacity = 2\nlink_secret = "s"\nredis = "unix:///r"\n')
    monkeypatch.setenv("TURBOSERVE_CONFIG", str(path))
    monkeypatch.setenv("TURBOSERVE_CAPACITY", "3")
    status, values = run("engine", "--threads", "4")
    assert status == 0
    assert {name: value.value for name, value in values.items()} == {
        "capacity": 3,
        "link_secret": "s",
        "redis": "unix:///r",
        "threads": 4,
    }


def test_secrets_are_no_flags(capsys: pytest.CaptureFixture[str]) -> None:
    """Everybody on the machine can read a command line."""
    with pytest.raises(SystemExit):
        run("gateway", "--link-secret", "s")
    assert "unrecognized arguments" in capsys.readouterr().err


def test_failures_are_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    """Status 1 for what could not start, 2 for a bad setting; never a traceback."""
    assert run("up", failure=StartError("it is broken"))[0] == 1
    assert run("up", "--port", "x")[0] == 2
    assert capsys.readouterr().err.splitlines() == [
        "turboserve up: it is broken",
        "turboserve up: flag --port: port must be an integer, not 'x'",
    ]


def test_who_stops_reading_ends_it_quietly() -> None:
    """As `head`: no traceback, and the status that the shell gives for it."""
    program = (
        "from dataclasses import replace; from launch.cli import COMMANDS, main\n"
        "told = replace(COMMANDS['status'], run=lambda values: print('x') or 0)\n"
        "raise SystemExit(main(['status'], commands={**COMMANDS, 'status': told}))"
    )
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_other_broken_pipes_are_errors() -> None:
    """Ours is read."""
    with pytest.raises(BrokenPipeError):
        run("status", failure=BrokenPipeError())


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("up", "--redis"),
        ("up", "--checkpoints"),
        ("gateway", "--redis"),
        ("engine", "--redis"),
        ("engine", "--checkpoints"),
    ],
)
def test_bad_redis_urls_are_found_before_anything_starts(
    command: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a sentence that says where the URL was given, and does not repeat it."""
    assert cli.main([command, flag, "redis://me:secret@h:99999"]) == 2
    said = capsys.readouterr().err
    assert f"flag {flag}: redis must name its hosts" in said and "secret" not in said


def test_help_needs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Each command explains each of its settings."""
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit) as caught:
            cli.main([name, "--help"])
        assert caught.value.code == 0
    assert "--queue-limit" in capsys.readouterr().out


def test_settings_fit_together() -> None:
    """Names shared by several roles mean the same; every setting says what it is."""
    configs = dict.fromkeys(config for command in cli.COMMANDS.values() for config in command.configs)
    assert [setting.name for setting in catalogue(*configs).values() if not setting.help] == []


def test_ctrl_c_is_no_error_while_it_is_imported() -> None:
    """No traceback, and the status that Ctrl-C has later."""
    program = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # whoever runs the tests may ignore it
        "class Interrupt:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'launch.cli': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from launch.__main__ import main\n"
        "raise SystemExit(main())"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (130, b"")
