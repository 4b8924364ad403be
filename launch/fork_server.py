"""Starts the engines of this machine as forks of a process that has imported what they need.

Imports take an engine four fifths of its start. The fork server does them once; each agent (launch/agent.py)
is a fork of it, and each rank a fork of its agent. What they share is in memory once, too.

A request is one packet: JSON with its `number`, and `arguments` and `environment` of the agent; with it come
descriptors of the agent's log and of a pipe. The answer has the number, and the `pid` or the `error`. The
agent begins when the launcher, which knows it then, writes a byte to the pipe: none runs that nobody watches.

An agent becomes a child of the launcher: it is forked by a fork that ends at once, and the launcher adopts
orphans. So no engine that runs depends on the fork server.

    python -m launch.fork_server, with the socket as its standard input
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
_TRIES: Final = 2
_LIMIT_S: Final = 60.0
"""Of its imports and a fork."""


class ForkServer:
    """The launcher's end. Belongs to its main thread, in a process that adopts orphans."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self._environment, self._log = environment, log
        self._server: _Server | None = None
        self._turn = asyncio.Lock()

    def begin(self) -> None:
        """Start it, unless it runs: it is ready sooner then. Raises OSError."""
        if self._server is None or self._server.is_over:
            self._server = _Server(self._environment, self._log)

    async def start(self, spec: ProcessSpec) -> Child:
        """Start an engine's agent, see `launch.engine_job.Start`. Raises OSError."""
        assert tuple(spec.command[: len(AGENT)]) == AGENT, "it can do nothing else"
        request = {"arguments": spec.command[len(AGENT) :], "environment": dict(spec.environment)}
        async with self._turn:
            for _ in range(_TRIES):
                self.begin()
                assert self._server is not None
                try:
                    async with asyncio.timeout(_LIMIT_S):
                        return await self._server.ask(request, spec.log)
                except (ConnectionError, TimeoutError):  # it has ended, or hangs: another one may not
                    self.kill()
        raise OSError(f"the fork server has ended, see {self._log}")

    async def stop(self) -> None:
        """End it; what it has started goes on."""
        self.kill()
        if self._server is not None:
            await self._server.ended()

    def kill(self) -> None:
        """The same, without waiting for the end."""
        if self._server is not None:
            self._server.kill()


class _Server:
    """One process, from its start to its end. Raises OSError.

    Every answer is heard: an agent whose start was given up meanwhile ends by itself, and must be collected.
    """

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self._socket, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            for end in (self._socket, its):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MAX_PACKET_BYTES)
            self._socket.setblocking(False)
            self._process = spawn(_COMMAND, environment=environment, log=log, stdin=its.fileno())
        self._number = 0
        """Of the last request."""
        self._asked: dict[int, asyncio.Future[Child]] = {}
        """Requests that somebody waits for."""
        self._hearing = asyncio.create_task(self._hear(), name="fork server")
        self._is_killed = False

    @property
    def is_over(self) -> bool:
        """Is it of no use any more?"""
        return self._is_killed or self._hearing.done()

    async def ask(self, request: Mapping[str, Any], log_path: Path) -> Child:
        """The agent. Raises OSError, of these ConnectionError if the process has ended."""
        self._number = number = self._number + 1
        answer: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        packet = json.dumps({"number": number, **request}).encode()
        try:
            with log_path.open("ab") as log, _pipe() as (waits, go):
                socket.send_fds(self._socket, [packet], [log.fileno(), waits])
                child = await answer
                os.write(go, b"1")
                return child
        finally:
            del self._asked[number]

    def kill(self) -> None:
        self._is_killed = True
        self._process.send(signal.SIGKILL)

    async def ended(self) -> None:
        """Wait for it."""
        await self._process.exited
        await self._hearing

    async def _hear(self) -> None:
        with self._socket, contextlib.suppress(ConnectionError):
            while packet := await asyncio.get_running_loop().sock_recv(self._socket, _MAX_PACKET_BYTES):
                self._take(json.loads(packet))
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(ConnectionError())

    def _take(self, answer: Mapping[str, Any]) -> None:
        child = Child(answer["pid"]) if "pid" in answer else None
        asked = self._asked.get(answer["number"])
        if asked is None or asked.done():
            return
        if child is not None:
            asked.set_result(child)
        else:
            asked.set_exception(OSError(f"the fork server can't: {answer['error']}"))


@contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    """Its end to read and its end to write."""
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


def serve(requests: socket.socket, launcher: int) -> int:
    """Until the launcher closes its end."""
    from launch import agent  # the imports

    def become_agent(request: Mapping[str, Any], log: int, waits: int) -> int:
        die_with(launcher)
        if not os.read(waits, 1):
            return 0  # nobody knows of us: the launcher has given up, or never heard the answer
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
        packet, descriptors, _, _ = socket.recv_fds(requests, _MAX_PACKET_BYTES, 2)
        if not packet:
            return 0
        request = json.loads(packet)
        answer: dict[str, Any] = {"number": request["number"]}
        try:
            answer["pid"] = _fork_orphan(partial(become_agent, request, *descriptors))
        except OSError as exc:
            answer["error"] = exc.strerror
        for descriptor in descriptors:
            os.close(descriptor)
        requests.send(json.dumps(answer).encode())


def _fork_orphan(work: Callable[[], int]) -> int:
    """Fork, by a fork that ends at once; `work` begins when somebody has adopted it. Raises OSError."""
    with _pipe() as (reader, writer):

        def between() -> int:
            ended = select.poll()
            ended.register(os.pidfd_open(os.getpid()), select.POLLIN)

            def adopted() -> int:
                ended.poll()
                return work()

            os.write(writer, fork(adopted).to_bytes(4))
            return 0

        os.waitpid(fork(between), 0)
        os.set_blocking(reader, False)  # it may hold nothing
        return int.from_bytes(os.read(reader, 4))


if __name__ == "__main__":
    sys.exit(serve(socket.socket(fileno=sys.stdin.fileno()), os.getppid()))
