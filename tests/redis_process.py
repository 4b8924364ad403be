"""A Redis server for tests, started as `turboserve up` starts it."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

from launch.redis_server import RedisFiles, command


class RedisProcess:
    """A server that a test may kill and start again; its data stays."""

    def __init__(self, server: Path, files: RedisFiles) -> None:
        self._command = command(server, files)
        self._files = files
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it answers, its data loaded."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        while not self._answers():
            assert self._process.poll() is None, "redis-server did not start"

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None, "not started"
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(1)
                probe.connect(str(self._files.socket))
                probe.sendall(b"PING\r\n")
                return probe.recv(16).startswith(b"+PONG")
        except OSError:
            return False
