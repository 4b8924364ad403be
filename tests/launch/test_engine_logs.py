"""How many logs of engines are kept."""

from __future__ import annotations

import os
from pathlib import Path

from launch.engine_logs import prune, torchrun_folder
from scheduler.messages import DesiredEngine, EngineId
from tests.launch.test_cluster import make_cluster

IDS = [EngineId(f"e_{n:08x}") for n in range(6)]


def write(logs: Path, engine: EngineId, at_s: int) -> None:
    """The log of an engine that wrote its last line then, and what torchrun keeps of it."""
    torchrun_folder(logs, f"engine-{engine}").mkdir(parents=True)
    log = logs / f"engine-{engine}.log"
    log.touch()
    os.utime(log, (at_s, at_s))


def kept(logs: Path) -> set[str]:
    """Engines with a log."""
    found = {path.stem.removeprefix("engine-") for path in logs.glob("engine-*.log")}
    assert found == {path.name.removeprefix("engine-") for path in (logs / "torchrun").iterdir()}
    return found


def test_the_newest_and_those_of_running_engines_stay(tmp_path: Path) -> None:
    """However old the latter are, and all that is no engine's."""
    for at_s, engine in enumerate(IDS):
        write(tmp_path, engine, at_s)
    (tmp_path / "gateway-0.log").touch()
    prune(tmp_path, [IDS[0]], kept=2)
    assert kept(tmp_path) == {IDS[0], IDS[4], IDS[5]}
    assert (tmp_path / "gateway-0.log").exists()


def test_each_start_of_an_engine_makes_room(tmp_path: Path) -> None:
    """A cluster that runs for weeks has had thousands."""
    logs = tmp_path / "logs"
    for n in range(120):
        write(logs, EngineId(f"e_{n:08x}"), n)
    make_cluster(tmp_path)._engine_spec(DesiredEngine(id=EngineId("e_f0000000"), model="shapes"))
    assert len(kept(logs)) == 100


def test_a_folder_that_is_not_there_is_no_trouble(tmp_path: Path) -> None:
    """Somebody moved it."""
    prune(tmp_path / "none", [])
