"""`DIR/run.json`: which processes make up the cluster right now. Other programs read it at any time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from pathlib import Path
from typing import Final

__all__ = ["DirectoryLock", "DirectoryTaken", "RunFile"]

log = logging.getLogger("launch.run_file")


class DirectoryTaken(Exception):
    """Another `turboserve up` runs in this directory."""


class DirectoryLock:
    """Held by the one cluster of a directory until its process ends, however it ends.

    Raises:
        DirectoryTaken: somebody else holds it.
    """

    def __init__(self, directory: Path) -> None:
        self._file = (directory / "lock").open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            self._file.close()
            raise DirectoryTaken(str(directory)) from exc

    def release(self) -> None:
        """Let the next one in."""
        self._file.close()


class RunFile:
    """Keeps the file true: each change replaces it by an atomic rename. Where that fails, which is logged, it
    is true again after the next change: no process ends because a disk is full for a while.

    Raises:
        OSError: of the constructor, the file can't be written.
    """

    def __init__(self, path: Path, *, url: str, redis: str) -> None:
        self._path: Final = path
        self._url = url
        self._redis = redis
        self._processes: dict[str, int] = {}
        self._write()

    def add(self, name: str, pid: int) -> None:
        """A process runs under this name now."""
        self._processes[name] = pid
        self._try_write()

    def remove(self, name: str, pid: int) -> None:
        """The process ended. No effect when another one has the name already."""
        if self._processes.get(name) == pid:
            del self._processes[name]
            self._try_write()

    def delete(self) -> None:
        """Nothing runs any more."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as exc:
            log.warning("%s can't be removed: %s", self._path, exc.strerror or exc)

    def _try_write(self) -> None:
        try:
            self._write()
        except OSError as exc:
            log.warning("%s can't be written: %s", self._path, exc.strerror or exc)

    def _write(self) -> None:
        processes = [{"name": name, "pid": pid} for name, pid in sorted(self._processes.items())]
        content = {"url": self._url, "redis": self._redis, "processes": processes}
        fresh = self._path.with_suffix(".json.new")
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump(content, file, indent=1)
            fresh.replace(self._path)
        except OSError:
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise
