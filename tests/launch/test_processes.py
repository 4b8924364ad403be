"""Child processes and `/proc`."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.processes import Child, Watched, children_of, fork, members_of, name_of, spawn
from tests.cluster import is_running, killed_parent, until, wait_for

SLEEP = (sys.executable, "-c", "import signal; signal.pause()")
DEAF = "import signal; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"


def start(tmp_path: Path, *command: str, **environment: str) -> Child:
    return spawn(command, environment=environment, log=tmp_path / "log")


async def test_exit_status_is_reported(tmp_path: Path) -> None:
    """`exited` completes with what the program returned."""
    child = start(tmp_path, sys.executable, "-c", "raise SystemExit(7)")
    assert await child.exited == 7


async def test_output_goes_to_the_log(tmp_path: Path) -> None:
    """Both streams, appended to what is there."""
    (tmp_path / "log").write_text("before\n")
    await start(tmp_path, sys.executable, "-c", "import sys; print('out'); sys.exit('err')").exited
    assert sorted((tmp_path / "log").read_text().splitlines()) == ["before", "err", "out"]


async def test_without_a_log_it_writes_to_our_standard_error() -> None:
    """Also to a socket, as under systemd, which nobody can open by a name."""
    ours, its = socket.socketpair()
    with ours, its:
        kept = os.dup(2)
        os.dup2(its.fileno(), 2)
        try:
            command = (sys.executable, "-c", "import sys; print('out', flush=True); sys.exit('err')")
            child = spawn(command, environment={}, log=None)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        await child.exited
        assert ours.recv(100) == b"out\nerr\n"


async def test_stop_asks_first(tmp_path: Path) -> None:
    """SIGTERM ends a process that listens to it."""
    assert await start(tmp_path, *SLEEP).stop(30) == -signal.SIGTERM


async def test_stop_insists(tmp_path: Path) -> None:
    """A process that ignores SIGTERM is killed when its time is over."""
    child = start(tmp_path, sys.executable, "-c", DEAF)
    await until(lambda: "deaf" in (tmp_path / "log").read_text())
    assert await child.stop(0.01) == -signal.SIGKILL


async def test_missing_program_is_an_error(tmp_path: Path) -> None:
    """The caller learns it at once."""
    with pytest.raises(FileNotFoundError):
        start(tmp_path, str(tmp_path / "none"))


def test_children_die_with_a_killed_parent(tmp_path: Path) -> None:
    """kill -9 of the parent leaves no child: the kernel ends it."""
    program = (
        "import asyncio, sys; from pathlib import Path; from launch.processes import spawn\n"
        "async def main():\n"
        f"    command, log = [sys.executable, '-c', {DEAF!r}], Path({str(tmp_path / 'log')!r})\n"
        "    child = spawn(command, environment={}, log=log)\n"
        "    print(child.pid, flush=True)\n"
        "    await child.exited\n"
        "asyncio.run(main())"
    )
    (child,) = killed_parent(program)
    wait_for("the child's end", lambda: not is_running(child))


async def test_children_are_found_by_parent_session_and_name(tmp_path: Path) -> None:
    """Those of a child of ours too: they are members of its session."""
    child = start(tmp_path, "/bin/sh", "-c", "sleep 1000 & wait")
    await until(lambda: len(members_of(child.pid)) == 2)
    assert child.pid in children_of(os.getpid())
    first, second = sorted(members_of(child.pid), key=lambda pid: pid != child.pid)
    assert (first, children_of(child.pid)) == (child.pid, [second])
    await until(lambda: name_of(second) == "sleep")
    await child.stop(30)
    os.kill(second, signal.SIGKILL)
    wait_for("its end", lambda: not is_running(second))
    assert name_of(child.pid) == ""


@pytest.mark.parametrize(
    ("work", "status"),
    [
        pytest.param(lambda: 7, 7, id="returns"),
        pytest.param(lambda: sys.exit(), 0, id="exits"),
        pytest.param(lambda: sys.exit(3), 3, id="exits with a status"),
        pytest.param(lambda: sys.exit("why"), 1, id="exits with a sentence"),
        pytest.param(lambda: 1 // 0, 1, id="raises"),
        pytest.param(lambda: os.kill(os.getpid(), signal.SIGKILL), -signal.SIGKILL, id="is killed"),
    ],
)
async def test_a_fork_ends_as_a_program_would(work: Callable[[], int], status: int) -> None:
    """It never returns into the stack that was forked."""
    assert await Child(fork(work)).exited == status


async def test_a_fork_does_not_handle_signals_as_we_do() -> None:
    """It ends of those that ask for it."""

    def fail(*_: object) -> None:
        raise RuntimeError("a handler of the process that was forked")

    before = signal.signal(signal.SIGTERM, fail)
    try:
        child = Child(fork(lambda: signal.pause() or 0))
        child.send(signal.SIGTERM)
        assert await child.exited == -signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_watched_process_may_be_anybodys() -> None:
    """The end of a process is seen without being its parent, and late signals hit nobody."""
    shell = await asyncio.create_subprocess_exec(
        "sh", "-c", "sleep 1000 & echo $!; wait", stdout=asyncio.subprocess.PIPE
    )
    assert shell.stdout is not None
    watched = Watched(int(await shell.stdout.readline()))
    watched.send(signal.SIGKILL)
    await watched.ended
    watched.send(signal.SIGKILL)
    watched.close()
    await shell.wait()


async def test_watching_nothing_is_an_error(tmp_path: Path) -> None:
    """A pid that no process has."""
    child = start(tmp_path, sys.executable, "-c", "")
    await child.exited
    with pytest.raises(ProcessLookupError):
        Watched(child.pid)
