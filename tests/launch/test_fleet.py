"""Engines as torchrun jobs: a small agent stands in for torchrun, everything else is real."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from launch.engine_job import EngineEnd
from launch.fleet import Fleet
from launch.processes import adopt_orphans, children_of
from launch.run_file import RunFile
from launch.supervisor import ProcessSpec
from scheduler.messages import DesiredEngine, EngineId
from tests.cluster import is_running, parent_of, until

# Like launch/agent.py: starts one rank in a group of its own, ends when it ends, passes its failure on.
AGENT = """
import subprocess, sys
program = "from engine.process import take_name; take_name('engine 0/1')\\n" + {rank!r}
rank = subprocess.Popen([sys.executable, "-c", program], process_group=0)
status = rank.wait()
sys.exit(128 - status if status < 0 else status)
"""
RANK = "import signal, sys; signal.signal(15, lambda *_: sys.exit(0)); signal.pause()"
A, B, C, D = (DesiredEngine(id=EngineId(f"e_0000000{n}"), model="m") for n in "abcd")


class Stage:
    """A fleet in a folder."""

    def __init__(self, folder: Path, rank: str = RANK, starts_at_once: int = 2) -> None:
        self.folder, self.rank = folder, rank
        self.exits: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.crashes: list[bool] = []
        self.deaths: list[EngineId] = []
        self.lines: list[str] = []
        self.run_json = folder / "run.json"
        self.fleet = Fleet(
            self.spec,
            run_file=RunFile(self.run_json, url="u", redis="r"),
            report=self.lines.append,
            on_exit=self.note_end,
            stop_timeout_s=30,
            starts_at_once=starts_at_once,
            on_death=self.deaths.append,
        )

    def note_end(self, engine: EngineId, end: EngineEnd) -> None:
        self.crashes.append(end.crashed)
        self.exits.put_nowait((engine, end.how))

    def spec(self, wanted: DesiredEngine) -> ProcessSpec:
        return ProcessSpec(
            name=f"engine-{wanted.id}",
            command=[sys.executable, "-c", AGENT.format(rank=self.rank)],
            log=self.folder / f"{wanted.id}.log",
            environment=os.environ,
        )

    def pids(self) -> dict[str, int]:
        processes = json.loads(self.run_json.read_text())["processes"]
        return {process["name"]: process["pid"] for process in processes}

    async def pids_of(self, *engines: DesiredEngine) -> list[int]:
        """Rank pids, as soon as `run.json` holds exactly these engines."""
        names = [f"engine-{engine.id}" for engine in engines]
        await until(lambda: sorted(self.pids()) == names)
        return [self.pids()[name] for name in names]


@asynccontextmanager
async def staged(folder: Path, rank: str = RANK, starts_at_once: int = 2) -> AsyncIterator[Stage]:
    adopt_orphans()
    stage = Stage(folder, rank, starts_at_once)
    try:
        yield stage
    finally:
        await stage.fleet.stop()


async def test_the_wanted_engines_run(tmp_path: Path) -> None:
    """Each in `run.json` with the pid of its rank 0, which is a child of the agent; dropped ones end."""
    async with staged(tmp_path) as stage:
        stage.fleet.reconcile([A, B])
        pid_a, pid_b = await stage.pids_of(A, B)
        assert parent_of(parent_of(pid_a)) == os.getpid()
        stage.fleet.reconcile([B])
        assert await stage.pids_of(B) == [pid_b]
    assert stage.pids() == {}
    assert not is_running(pid_a) and not is_running(pid_b)
    assert stage.exits.empty()


async def test_a_dead_engine_is_reported_and_not_started_again(tmp_path: Path) -> None:
    """An id is used once; the scheduler must ask for another."""
    async with staged(tmp_path) as stage:
        stage.fleet.reconcile([A, B])
        pid_a, pid_b = await stage.pids_of(A, B)
        os.kill(pid_a, 9)
        assert await stage.exits.get() == (A.id, "was killed by SIGKILL")
        stage.fleet.reconcile([A, B])
        assert await stage.pids_of(B) == [pid_b]


async def test_engines_start_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one when one is ready, has ended, or is not wanted any more before it has begun."""
    monkeypatch.setattr("launch.fleet.TURN_S", 600.0)
    async with staged(tmp_path, starts_at_once=1) as stage:
        stage.fleet.reconcile([A, B, C])
        (first,) = await stage.pids_of(A)
        await stage.fleet.mark_ready(A.id)
        assert (await stage.pids_of(A, B))[0] == first
        stage.fleet.reconcile([A, B])
        await until(lambda: list(stage.fleet.owned()) == [A.id, B.id])
        stage.fleet.reconcile([A, B, D])
        os.kill(stage.pids()[f"engine-{B.id}"], 9)
        assert await stage.exits.get() == (B.id, "was killed by SIGKILL")
        await stage.pids_of(A, D)
        assert not (tmp_path / f"{C.id}.log").exists()


async def test_a_turn_ends_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that loads for minutes does not keep others from it."""
    monkeypatch.setattr("launch.fleet.TURN_S", 0.1)
    async with staged(tmp_path, starts_at_once=1) as stage:
        stage.fleet.reconcile([A, B])
        await stage.pids_of(A, B)


async def test_run_json_is_true_before_the_agent_knows(tmp_path: Path) -> None:
    """A rank that died is out of the file although its agent still runs."""
    async with staged(tmp_path) as stage:
        stage.fleet.reconcile([A])
        (rank,) = await stage.pids_of(A)
        agent = parent_of(rank)
        os.kill(agent, 19)  # stopped: it can't notice
        os.kill(rank, 9)
        assert await stage.pids_of() == []
        os.kill(agent, 18)


async def test_a_killed_agent_leaves_no_orphan(tmp_path: Path) -> None:
    """Its rank is ended and collected, even one that set no death signal of its own."""
    async with staged(tmp_path) as stage:
        stage.fleet.reconcile([A])
        (rank,) = await stage.pids_of(A)
        os.kill(parent_of(rank), 9)
        assert await stage.exits.get() == (A.id, "was killed by SIGKILL")
        assert stage.crashes == [False]
        assert not is_running(rank) and rank not in children_of(os.getpid())
        assert stage.pids() == {}


@pytest.mark.parametrize(
    ("rank", "crashed", "is_death"),
    [
        pytest.param("import os; os.kill(os.getpid(), 9)", False, True, id="killed"),
        pytest.param("import os; os.kill(os.getpid(), 11)", True, True, id="fault"),
        pytest.param("1 / 0", True, True, id="exception"),
        pytest.param("pass", False, False, id="in order"),
    ],
)
async def test_a_crash_is_told_from_a_kill(tmp_path: Path, rank: str, crashed: bool, is_death: bool) -> None:
    """By how the rank ended. Either is held against its GPU, an end in order is not."""
    async with staged(tmp_path, rank) as stage:
        stage.fleet.reconcile([A])
        await stage.exits.get()
        assert stage.crashes == [crashed]
        stage.fleet.mark_lost(A.id)
        assert stage.deaths == ([A.id] if is_death else [])


async def test_a_start_that_was_given_up_is_a_death(tmp_path: Path) -> None:
    """Though its process, which hangs, ends only because it is told to; once."""
    async with staged(tmp_path) as stage:
        stage.fleet.reconcile([A, B])
        await stage.pids_of(A, B)
        stage.fleet.mark_lost(A.id)
        stage.fleet.reconcile([B])
        assert stage.deaths == [A.id]
        (rank,) = await stage.pids_of(B)
        os.kill(rank, 9)
        await stage.exits.get()
        assert stage.deaths == [A.id, B.id]


async def test_who_dies_long_after_it_got_ready_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its GPU. The minute is over at once here."""
    monkeypatch.setattr("launch.quarantine._YOUNG_S", 0.0)
    async with staged(tmp_path) as stage:
        stage.fleet.reconcile([A])
        await stage.pids_of(A)
        await stage.fleet.mark_ready(A.id)
        stage.fleet.mark_lost(A.id)
        assert stage.deaths == []


async def test_a_crash_is_told_though_the_engine_is_not_wanted_any_more(tmp_path: Path) -> None:
    """Its silence was noticed first: who crashed it must be known all the same."""
    async with staged(tmp_path, RANK.replace("sys.exit(0)", "1 / 0")) as stage:
        stage.fleet.reconcile([A])
        (rank,) = await stage.pids_of(A)
        await until(lambda: is_caught(rank, 15))
        stage.fleet.reconcile([])
        assert await stage.exits.get() == (A.id, "exited with status 1")
        assert stage.crashes == [True]


def is_caught(pid: int, number: int) -> bool:
    """Has the process a handler for the signal?"""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (caught,) = (line.split()[1] for line in lines if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (number - 1) & 1)


async def test_failures_in_a_row_are_counted_and_delay_the_next(tmp_path: Path) -> None:
    """Engines that end before they are ready; the end of the log is shown."""
    async with staged(tmp_path, "raise SystemExit('no weights')") as stage:
        stage.fleet.reconcile([A])
        await stage.exits.get()
        assert stage.fleet.failures == 1
        assert "no weights" in stage.lines[-1]
        stage.fleet.reconcile([B])
        await stage.exits.get()
        assert stage.fleet.failures == 2


async def test_a_ready_engine_forgives_failures(tmp_path: Path) -> None:
    """Readiness comes from the events; it is announced to those who wait."""
    async with staged(tmp_path) as stage:
        stage.fleet.reconcile([A])
        (rank,) = await stage.pids_of(A)
        async with stage.fleet.changed:
            marking = asyncio.create_task(stage.fleet.mark_ready(A.id))
            await stage.fleet.changed.wait_for(lambda: stage.fleet.num_ready == 1)
        await marking
        os.kill(rank, 9)
        await stage.exits.get()
        assert (stage.fleet.num_ready, stage.fleet.failures) == (0, 0)


async def test_an_engine_dropped_before_its_start_never_starts(tmp_path: Path) -> None:
    """Also one that waits out a pause after failures."""
    async with staged(tmp_path, "raise SystemExit(1)") as stage:
        stage.fleet.reconcile([A])
        await stage.exits.get()
        stage.fleet.reconcile([B])
        stage.fleet.reconcile([])
        await stage.fleet.stop()
        assert not (tmp_path / f"{B.id}.log").exists()
