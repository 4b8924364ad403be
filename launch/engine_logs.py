"""The logs of engines in a cluster's folder: one for each id, of which a long run has many."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Final

from scheduler.messages import EngineId

__all__ = ["KEPT", "prune", "torchrun_folder"]

KEPT: Final = 100
"""So many of engines that ended stay, the newest."""


def torchrun_folder(logs: Path, name: str) -> Path:
    """What torchrun keeps of the failed ranks of an engine, by its name in `run.json`."""
    return logs / "torchrun" / name


def prune(logs: Path, running: Collection[EngineId], *, kept: int = KEPT) -> None:
    """Remove the logs of engines that do not run, but for the newest ones. What can't be removed stays."""
    names = {f"engine-{engine}" for engine in running}
    ended = [path for path in logs.glob("engine-*.log") if path.stem not in names]
    for path in sorted(ended, key=_changed_s, reverse=True)[kept:]:
        shutil.rmtree(torchrun_folder(logs, path.stem), ignore_errors=True)
        with contextlib.suppress(OSError):
            path.unlink()


def _changed_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
