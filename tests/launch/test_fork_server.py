"""The fork server: engines' agents as forks, each a child of the launcher."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from launch.engine_job import EngineJob
from launch.fork_server import ForkServer
from launch.processes import Child, adopt_orphans, children_of
from launch.roles import AGENT, engine_command
from launch.supervisor import ProcessSpec
from tests.cluster import command_of, is_running, killed_parent, parent_of, until, wait_for

WAITS = "import os, signal; print('rank', os.getpid(), flush=True); signal.pause()"


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[ForkServer]:
    adopt_orphans()
    server = ForkServer(os.environ, tmp_path / "fork-server.log")
    yield server
    await server.stop()


def spec(folder: Path, program: str, name: str = "engine", ranks: int = 1, **variables: str) -> ProcessSpec:
    """An engine whose ranks run `program`."""
    script = folder / f"{name}.py"
    script.write_text(program)
    return ProcessSpec(
        name=name,
        command=[*engine_command(ranks=ranks)[:-2], str(script), "more"],
        log=folder / f"{name}.log",
        environment=os.environ | variables,
    )


def signal_server(server: ForkServer, number: signal.Signals) -> None:
    """Begin it, unless it runs, and send it that."""
    server.begin()
    assert server._server is not None
    server._server._process.send(number)


async def test_ranks_run_with_the_environment_and_log_of_their_engine(
    server: ForkServer, tmp_path: Path
) -> None:
    """And what torchrun adds, arguments, modules that need no import, and nothing of the fork server's."""
    program = (
        "import os, sys\n"
        "print(os.environ['MINE'], os.environ['RANK'], os.environ['WORLD_SIZE'], sys.argv[1:], __name__)\n"
        "print('torch' in sys.modules, 'engine.engine' in sys.modules, sys.stdin.read() == '')\n"
    )
    agent = await server.start(spec(tmp_path, program, MINE="a b"))
    assert await agent.exited == 0
    lines = (tmp_path / "engine.log").read_text().splitlines()
    assert lines[-2:] == ["a b 0 1 ['more'] __main__", "True True True"]


async def test_processes_are_called_what_torchrun_would_start(server: ForkServer, tmp_path: Path) -> None:
    """By `ps`, and by whoever looks for them."""
    engine = spec(tmp_path, WAITS)
    agent = await server.start(engine)
    await until(lambda: "rank" in (tmp_path / "engine.log").read_text())
    (rank,) = children_of(agent.pid)
    assert command_of(agent.pid) == " ".join(engine.command)
    assert command_of(rank) == f"{sys.executable} -u {tmp_path / 'engine.py'} more"
    agent.send(signal.SIGTERM)
    await agent.exited


FORBIDDING = """
import torch

def forbidden(*_):
    raise AssertionError("a process that is forked has asked for GPUs")

torch.cuda.is_available = torch.cuda.device_count = torch.cuda.init = torch.cuda._lazy_init = forbidden
from launch import agent
"""


def test_imports_leave_gpus_to_ranks() -> None:
    """A fork of a process that has asked for them can't use them."""
    subprocess.run([sys.executable, "-c", FORBIDDING], check=True)


HAS_GPUS = """
import sys, torch
from launch import agent
torch.cuda.is_available = lambda: True
sys.exit(agent.run(sys.argv[1:]))
"""
RANK_OF_GPUS = """
import os, signal, sys
print("torch" in sys.modules, os.getsid(0) == os.getsid(os.getppid()), flush=True)
signal.pause()
"""


async def test_where_there_are_gpus_ranks_are_programs_of_their_own(tmp_path: Path) -> None:
    """torchrun has asked for them. The rank is found and ended like any other."""
    adopt_orphans()
    engine = spec(tmp_path, RANK_OF_GPUS)
    command = [sys.executable, "-c", HAS_GPUS, *engine.command[len(AGENT) :]]
    job = EngineJob(replace(engine, command=command))
    (tmp_path / "engine.log").touch()
    running = asyncio.create_task(job.run())
    await until(lambda: "False True" in (tmp_path / "engine.log").read_text())
    (agent,) = (pid for pid in children_of(os.getpid()) if str(tmp_path) in command_of(pid))
    (rank,) = children_of(agent)
    os.kill(agent, signal.SIGKILL)
    await running
    assert not is_running(rank)


async def test_the_agent_is_a_child_of_the_launcher(server: ForkServer, tmp_path: Path) -> None:
    """In a session of its own. The fork server may end meanwhile: nothing that runs notices, and the next
    engine gets another."""
    agent = await server.start(spec(tmp_path, WAITS))
    assert parent_of(agent.pid) == os.getpid()
    await until(lambda: os.getsid(agent.pid) == agent.pid)
    signal_server(server, signal.SIGKILL)
    await until(lambda: "rank" in (tmp_path / "engine.log").read_text())
    other = await server.start(spec(tmp_path, "print('here')", "other"))
    assert await other.exited == 0
    assert "here" in (tmp_path / "other.log").read_text()
    assert is_running(agent.pid)
    agent.send(signal.SIGTERM)
    assert await agent.exited != 0


@pytest.mark.parametrize(
    ("program", "how", "crashed"),
    [
        pytest.param("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL", False, id="killed"),
        pytest.param("import os; os.kill(os.getpid(), 11)", "was killed by SIGSEGV", True, id="fault"),
        pytest.param("1 / 0", "exited with status 1", True, id="exception"),
        pytest.param("raise SystemExit(5)", "exited with status 5", True, id="a status"),
        pytest.param("pass", "exited with status 0", False, id="in order"),
    ],
)
async def test_how_a_rank_ends_is_known(
    server: ForkServer, tmp_path: Path, program: str, how: str, crashed: bool
) -> None:
    """As if torchrun had started a program."""
    end = await EngineJob(spec(tmp_path, program), start=server.start).run()
    assert (end.how, end.crashed) == (how, crashed)


async def test_a_signal_before_there_is_an_agent_counts(server: ForkServer, tmp_path: Path) -> None:
    """The fork server takes its time at its start."""
    job = EngineJob(spec(tmp_path, WAITS), start=server.start)
    running = asyncio.create_task(job.run())
    await asyncio.sleep(0)
    job.send(signal.SIGTERM)
    assert (await running).how == "was not wanted any more before it had started"
    # What was asked for is answered, late, and runs nothing.
    other = await server.start(spec(tmp_path, "print('here')", "other"))
    assert await other.exited == 0
    assert "here" in (tmp_path / "other.log").read_text()
    assert (tmp_path / "engine.log").read_text() == ""


async def test_an_agent_whose_start_was_given_up_is_collected(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it ends by itself, as nobody begins it, whether or not another engine starts."""
    agents: list[Child] = []

    class Noted(Child):
        def __init__(self, pid: int) -> None:
            super().__init__(pid)
            agents.append(self)

    monkeypatch.setattr("launch.fork_server.Child", Noted)
    signal_server(server, signal.SIGSTOP)  # or its answer might come first
    starting = asyncio.create_task(server.start(spec(tmp_path, WAITS)))
    await until(lambda: (tmp_path / "engine.log").exists())
    starting.cancel()
    await asyncio.wait((starting,))
    signal_server(server, signal.SIGCONT)
    await until(lambda: bool(agents))
    assert await agents[0].exited == 0
    assert agents[0].pid not in children_of(os.getpid())
    assert (tmp_path / "engine.log").read_text() == ""


async def test_a_fork_server_that_hangs_keeps_nobody_from_ending(server: ForkServer, tmp_path: Path) -> None:
    """An engine that waits for it can be given up; so can the fork server."""
    signal_server(server, signal.SIGSTOP)
    job = EngineJob(spec(tmp_path, WAITS), start=server.start)
    running = asyncio.create_task(job.run())
    await until(lambda: (tmp_path / "engine.log").exists())
    job.send(signal.SIGKILL)
    assert not (await running).crashed


async def test_one_that_dies_while_it_is_asked_is_replaced(server: ForkServer, tmp_path: Path) -> None:
    """The start that waits for it does not notice."""
    signal_server(server, signal.SIGSTOP)  # or its answer might come first
    starting = asyncio.create_task(server.start(spec(tmp_path, "print('here')")))
    await until(lambda: (tmp_path / "engine.log").exists())
    signal_server(server, signal.SIGKILL)
    assert await (await starting).exited == 0
    assert "here" in (tmp_path / "engine.log").read_text()


async def test_a_fork_server_that_cannot_run_is_an_error(tmp_path: Path) -> None:
    """The engine can't be started, and it is said where to look."""
    adopt_orphans()
    log = tmp_path / "fork-server.log"
    broken = tmp_path / "broken"
    (broken / "torch").mkdir(parents=True)
    (broken / "torch" / "__init__.py").write_text("raise SystemExit('torch is broken')")
    server = ForkServer(os.environ | {"PYTHONPATH": str(broken)}, log)
    end = await EngineJob(spec(tmp_path, WAITS), start=server.start).run()
    assert end.how == f"can't be started: the fork server has ended, see {log}"
    assert "torch is broken" in log.read_text()
    await server.stop()


def test_engines_die_with_a_killed_launcher(tmp_path: Path) -> None:
    """kill -9 of it leaves no fork server, no agent and no rank: the kernel ends them."""
    program = (
        "import asyncio, os; from pathlib import Path; from launch.processes import *\n"
        "from launch.fork_server import ForkServer; from tests.launch.test_fork_server import WAITS, spec\n"
        "async def main():\n"
        "    adopt_orphans()\n"
        f"    folder = Path({str(tmp_path)!r})\n"
        "    server = ForkServer(os.environ, folder / 'log')\n"
        "    agent = await server.start(spec(folder, WAITS))\n"
        "    while not (ranks := children_of(agent.pid)):\n"
        "        await asyncio.sleep(0.05)\n"
        "    print(*children_of(os.getpid()), *ranks, flush=True)\n"
        "    await agent.exited\n"
        "asyncio.run(main())"
    )
    started = killed_parent(program)
    assert len(started) == 3
    wait_for("their ends", lambda: not any(is_running(pid) for pid in started))
