"""The processes of `up`, with stand-ins."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from launch.cluster import Cluster
from launch.console import Console
from launch.run_file import RunFile
from launch.settings import Value
from launch.supervisor import Service
from launch.up import _make_plan


class Part:
    """A service, perhaps one whose end fails."""

    def __init__(self, error: OSError | None = None) -> None:
        self._error, self.is_stopped = error, False

    async def stop(self, timeout_s: float) -> None:
        if self._error is not None:
            raise self._error
        self.is_stopped = True


def make_cluster(folder: Path) -> Cluster:
    """One that has started nothing."""
    plan = _make_plan({"dir": Value(value=str(folder), source="test")})
    run_file = RunFile(folder / "run.json", url="u", redis="r")
    return Cluster(plan, run_file=run_file, console=Console(), url="u")


async def test_what_cannot_be_stopped_leaves_nothing_else_behind(tmp_path: Path) -> None:
    """The rest is stopped all the same, Redis as the last."""
    cluster = make_cluster(tmp_path)
    parts = {"scheduler-0": Part(OSError("no")), "gateway-0": Part(), "redis": Part()}
    cluster._services.update({name: cast(Service, part) for name, part in parts.items()})
    await cluster.stop()
    assert [name for name, part in parts.items() if part.is_stopped] == ["gateway-0", "redis"]
