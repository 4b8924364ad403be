"""One engine as a torchrun job: its agent, its ranks, and that none of them outlives the others."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from engine.process import EXIT_FENCED, EXIT_OK
from launch.processes import Child, Watched, children_of, members_of, name_of, spawn
from launch.supervisor import ProcessSpec, describe_exit

__all__ = ["EngineEnd", "EngineJob", "Start", "start_program"]

_RANK_POLL_S: Final = 0.05
"""torchrun tells nobody when it has started its ranks, so we look."""
_RANK_NAME: Final = re.compile(r"engine (?P<rank>\d+)/(?P<ranks>\d+)")
"""See engine/__main__.py."""


SIGNALLED: Final = 128
"""What an agent adds to the number of the signal that killed its rank."""
_FROM_OUTSIDE: Final = frozenset(
    {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
)
"""Signals that no process gets by a fault of its own; SIGKILL also comes from a kernel out of memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEnd:
    """How an engine ended."""

    how: str
    """In words."""
    crashed: bool
    """By its own fault: nobody killed it, or its agent."""


Start = Callable[[ProcessSpec], Awaitable[Child]]
"""Starts an engine's agent in a session of its own. Raises OSError."""


async def start_program(spec: ProcessSpec) -> Child:
    """The usual `Start`."""
    return spawn(spec.command, environment=spec.environment, log=spec.log)


class EngineJob:
    """`run` it once; `send` reaches it from anywhere meanwhile."""

    def __init__(
        self,
        spec: ProcessSpec,
        *,
        start: Start = start_program,
        on_start: Callable[[int], None] = lambda pid: None,
        on_end: Callable[[int], None] = lambda pid: None,
    ) -> None:
        """`on_start` and `on_end` are called with the pid of rank 0, each at once when it happens."""
        self._spec, self._start = spec, start
        self._on_start = on_start
        self._on_end = on_end
        self._agent: Child | None = None
        self._ranks: dict[int, Watched] = {}
        self._num_ranks = 1
        """Known once one of them was found."""
        self._asked: Final[asyncio.Future[signal.Signals]] = asyncio.get_running_loop().create_future()
        """Before there was an agent."""

    async def run(self) -> EngineEnd:
        """Start the job and wait for its end. Nothing of it is left then."""
        starting = asyncio.ensure_future(self._start(self._spec))
        await asyncio.wait((starting, self._asked), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait((starting,))
        if starting.cancelled():
            return EngineEnd(how="was not wanted any more before it had started", crashed=False)
        try:
            agent = self._agent = starting.result()
        except OSError as exc:
            return EngineEnd(how=f"can't be started: {exc.strerror or exc}", crashed=False)
        if self._asked.done():
            agent.send(self._asked.result())
        looking = asyncio.create_task(self._find_ranks(agent))
        status = await asyncio.shield(agent.exited)
        looking.cancel()
        await asyncio.wait((looking,))
        await self._end_rest(agent)
        status = SIGNALLED - status if status > SIGNALLED else status  # of the rank, see launch/agent.py
        return EngineEnd(how=describe_exit(status), crashed=_is_own_fault(status))

    def send(self, number: signal.Signals) -> None:
        """Signal the ranks, whose end ends the agent; before there are any, or to kill, the agent.

        An agent whose ranks have ended is left alone: it is about to say how.
        """
        running = [rank for rank in self._ranks.values() if not rank.ended.done()]
        for rank in running:
            rank.send(number)
        if self._agent is None and not self._asked.done():
            self._asked.set_result(number)
        elif self._agent is not None and (not self._ranks or number is signal.SIGKILL):
            self._agent.send(number)

    async def _find_ranks(self, agent: Child) -> None:
        while len(self._ranks) < self._num_ranks:
            await asyncio.sleep(_RANK_POLL_S)
            for pid in children_of(agent.pid):
                if pid not in self._ranks and (name := _RANK_NAME.fullmatch(name_of(pid))):
                    self._num_ranks = int(name["ranks"])
                    self._meet(pid, is_first=name["rank"] == "0")

    def _meet(self, pid: int, *, is_first: bool) -> None:
        with contextlib.suppress(ProcessLookupError):
            watched = self._ranks[pid] = Watched(pid)
            if is_first:
                self._on_start(pid)
                watched.ended.add_done_callback(lambda _: self._on_end(pid))

    async def _end_rest(self, agent: Child) -> None:
        """After the agent's end: whatever it left behind is ours now, and must not go on."""
        for pid in members_of(agent.pid):
            if pid not in self._ranks:
                self._meet(pid, is_first=False)
        for rank in self._ranks.values():
            rank.send(signal.SIGKILL)
            await rank.ended
            rank.close()


def _is_own_fault(status: int) -> bool:
    return status not in (EXIT_OK, EXIT_FENCED) and -status not in _FROM_OUTSIDE
