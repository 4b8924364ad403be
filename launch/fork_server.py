"""Starts the engines of this machine as forks of a process that has imported what they need.

Imports take an engine four fifths of its start. The fork server does them once; each agent (launch/agent.py)
is a fork of it, and each rank a fork of its agent. What they share is in memory once, too.

A request is one packet: JSON with `arguments` and `environment` of the agent, and its log as a descriptor.
The answer has its `pid`, or the `error`. An agent becomes a child of the launcher: it is forked by a fork
that ends at once, and the launcher adopts orphans. So no engine that runs depends on the fork server.

    python -m launch.fork_server, with the socket as its standard input
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from setproctitle import setproctitle

from launch.processes import Child, die_with, fork, spawn
from launch.roles import AGENT
from launch.supervisor import ProcessSpec

__all__ = ["ForkServer"]

_COMMAND: Final = (sys.executable, "-m", "launch.fork_server")
_MAX_PACKET_BYTES: Final = 1 << 20


class ForkServer:
    """The launcher's end. Belongs to its main thread, in a process that adopts orphans."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self._environment, self._log = environment, log
        self._process: Child | None = None
        self._socket: socket.socket | None = None
        self._turn = asyncio.Lock()

    def begin(self) -> None:
        """Start it, unless it runs: it is ready sooner then. Raises OSError."""
        if self._socket is not None and self._process is not None and not self._process.exited.done():
            return
        self._close()
        self._socket, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            for end in (self._socket, its):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MAX_PACKET_BYTES)
            self._socket.setblocking(False)
            self._process = spawn(_COMMAND, environment=self._environment, log=self._log, stdin=its.fileno())

    async def start(self, spec: ProcessSpec) -> Child:
        """Start an engine's agent, see `launch.engine_job.Start`. Raises OSError."""
        assert tuple(spec.command[: len(AGENT)]) == AGENT, "it can do nothing else"
        request = {"arguments": spec.command[len(AGENT) :], "environment": dict(spec.environment)}
        async with self._turn:
            self.begin()
            with spec.log.open("ab") as log:
                return Child(await self._ask(json.dumps(request).encode(), log.fileno()))

    async def stop(self) -> None:
        """End it; what it has started goes on."""
        self.kill()
        self._close()
        if self._process is not None:
            await self._process.exited

    def kill(self) -> None:
        """The same, without waiting for the end."""
        if self._process is not None:
            self._process.send(signal.SIGKILL)

    async def _ask(self, request: bytes, log: int) -> int:
        assert self._socket is not None
        answer = b""
        try:
            socket.send_fds(self._socket, [request], [log])
            answer = await asyncio.get_running_loop().sock_recv(self._socket, _MAX_PACKET_BYTES)
        except ConnectionError:
            pass
        finally:
            if not answer:  # nor may a later request get the answer to this one
                self._close()
        if not answer:
            raise OSError(f"the fork server has ended, see {self._log}")
        match json.loads(answer):
            case {"pid": int(pid)}:
                return pid
            case other:
                raise OSError(f"the fork server can't: {other['error']}")

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def serve(requests: socket.socket, launcher: int) -> int:
    """Until the launcher closes its end."""
    from launch import agent  # the imports

    def become_agent(request: Mapping[str, Any], log: int) -> int:
        die_with(launcher)
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # it was `requests`
        for output in (1, 2):
            os.dup2(log, output)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        setproctitle(" ".join((*AGENT, *request["arguments"])))  # it needs the environment as it was
        os.environ.clear()
        os.environ.update(request["environment"])
        return agent.run(request["arguments"])

    while True:
        packet, logs, _, _ = socket.recv_fds(requests, _MAX_PACKET_BYTES, 1)
        if not packet:
            return 0
        try:
            answer: dict[str, Any] = {"pid": _fork_orphan(partial(become_agent, json.loads(packet), logs[0]))}
        except OSError as exc:
            answer = {"error": exc.strerror}
        for log in logs:
            os.close(log)
        requests.send(json.dumps(answer).encode())


def _fork_orphan(work: Callable[[], int]) -> int:
    """Fork, by a fork that ends at once; `work` begins when somebody has adopted it. Raises OSError."""
    reader, writer = os.pipe()

    def between() -> int:
        ended = select.poll()
        ended.register(os.pidfd_open(os.getpid()), select.POLLIN)

        def adopted() -> int:
            ended.poll()
            return work()

        os.write(writer, fork(adopted).to_bytes(4))
        return 0

    try:
        os.waitpid(fork(between), 0)
        os.set_blocking(reader, False)  # it may hold nothing
        return int.from_bytes(os.read(reader, 4))
    finally:
        os.close(reader)
        os.close(writer)


if __name__ == "__main__":
    sys.exit(serve(socket.socket(fileno=sys.stdin.fileno()), os.getppid()))
