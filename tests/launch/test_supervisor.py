"""Services that must always run, with small programs in the place of the real ones."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from launch.run_file import RunFile
from launch.supervisor import ProcessSpec, Service, StartError, describe_exit, log_tail
from tests.cluster import until

WAIT = "import signal; signal.pause()"


class Stage:
    """A service in a folder, and what it said."""

    def __init__(self, folder: Path, program: str) -> None:
        self.run_json = folder / "run.json"
        self.lines: asyncio.Queue[str] = asyncio.Queue()
        self.times: list[float] = []
        """When each was said."""
        spec = ProcessSpec(
            name="thing-0",
            command=[sys.executable, "-c", program],
            log=folder / "thing-0.log",
            environment=dict(os.environ),
        )
        run_file = RunFile(self.run_json, url="u", redis="r")
        self.service = Service(spec, run_file=run_file, report=self._note)

    def _note(self, line: str) -> None:
        self.times.append(asyncio.get_running_loop().time())
        self.lines.put_nowait(line)

    def pids(self) -> list[int]:
        return [process["pid"] for process in json.loads(self.run_json.read_text())["processes"]]


def probe_that(result: Callable[[], None]) -> Callable[[], Awaitable[None]]:
    async def probe() -> None:
        result()

    return probe


async def never() -> None:
    await asyncio.Event().wait()


async def test_a_killed_process_is_started_again(tmp_path: Path) -> None:
    """It comes back under its name with another pid, and the end is reported."""
    stage = Stage(tmp_path, WAIT)
    child = stage.service.start()
    keeper = asyncio.create_task(stage.service.keep())
    os.kill(child.pid, 9)
    assert "thing-0 was killed by SIGKILL: starting it again" in await stage.lines.get()
    await until(lambda: bool(stage.pids()))
    assert stage.pids() != [child.pid]
    keeper.cancel()
    await stage.service.stop(30)
    assert stage.pids() == []


async def test_a_process_that_keeps_ending_is_not_spun(tmp_path: Path) -> None:
    """Pauses grow: the third start comes later after the second than the second after the first."""
    stage = Stage(tmp_path, "")
    stage.service.start()
    keeper = asyncio.create_task(stage.service.keep())
    for _ in range(3):
        await stage.lines.get()
    keeper.cancel()
    await stage.service.stop(30)
    first, second, third = stage.times[:3]
    assert second - first >= 0.25
    assert third - second >= 0.5


async def test_what_cannot_be_started_again_is_tried_again(tmp_path: Path) -> None:
    """As when a disk is full for a while: neither that nor `run.json` ends the keeper, or the stop."""
    folder = tmp_path / "run"
    folder.mkdir()
    stage = Stage(folder, WAIT)
    child = stage.service.start()
    keeper = asyncio.create_task(stage.service.keep())
    folder.rename(tmp_path / "away")
    os.kill(child.pid, 9)
    assert "was killed by SIGKILL: starting it again" in await stage.lines.get()
    assert "thing-0 can't be started: " in await stage.lines.get()
    folder.mkdir()
    await until(lambda: stage.run_json.exists() and bool(stage.pids()))
    assert stage.pids() != [child.pid]
    folder.rename(tmp_path / "away too")
    keeper.cancel()
    await stage.service.stop(30)


async def test_ready_when_the_probe_says_so(tmp_path: Path) -> None:
    """The process stays in `run.json`."""
    stage = Stage(tmp_path, WAIT)
    child = stage.service.start()
    await stage.service.wait_ready(probe_that(lambda: None), timeout_s=30)
    assert stage.pids() == [child.pid]
    await stage.service.stop(30)


async def test_a_process_that_ends_before_it_is_ready_fails_the_start(tmp_path: Path) -> None:
    """The error holds the status and the end of this run's log, not of an earlier one."""
    (tmp_path / "thing-0.log").write_text("an older run\n")
    stage = Stage(tmp_path, "print('no such table'); raise SystemExit(3)")
    stage.service.start()
    with pytest.raises(StartError) as caught:
        await stage.service.wait_ready(never, timeout_s=30)
    assert "thing-0 exited with status 3" in str(caught.value)
    assert "no such table" in str(caught.value)
    assert "older" not in str(caught.value)
    assert stage.pids() == []


async def test_a_process_that_never_gets_ready_fails_the_start(tmp_path: Path) -> None:
    """Waiting has an end."""
    stage = Stage(tmp_path, WAIT)
    stage.service.start()
    with pytest.raises(StartError, match=r"thing-0 is not ready after 0\.05 s"):
        await stage.service.wait_ready(never, timeout_s=0.05)
    await stage.service.stop(30)


async def test_a_missing_program_fails_the_start(tmp_path: Path) -> None:
    """The sentence names the program."""
    spec = ProcessSpec(name="x", command=["/none/such"], log=tmp_path / "log", environment={})
    run_file = RunFile(tmp_path / "run.json", url="u", redis="r")
    with pytest.raises(StartError, match="x can't be started: /none/such: No such file"):
        Service(spec, run_file=run_file, report=print).start()


@pytest.mark.parametrize(
    ("status", "words"),
    [(0, "exited with status 0"), (-9, "was killed by SIGKILL"), (-99, "was killed by signal 99")],
)
def test_exits_in_words(status: int, words: str) -> None:
    """Signals have names."""
    assert describe_exit(status) == words


def test_log_tail_is_short(tmp_path: Path) -> None:
    """Only the last lines, only from the given byte on."""
    log = tmp_path / "log"
    log.write_text("".join(f"line {i}\n" for i in range(5_000)))
    assert log_tail(log).splitlines()[1:] == [f"    line {i}" for i in range(4_988, 5_000)]
    assert log_tail(log, log.stat().st_size) == ""
    assert log_tail(tmp_path / "none") == ""
    assert log_tail(log, before="line 4995").splitlines()[-1] == "    line 4994"
