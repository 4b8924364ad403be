"""A thread for calls that block, whose results the event loop may stop waiting for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

__all__ = ["HelperThread"]

T = TypeVar("T")


class HelperThread:
    """Runs calls in order. A daemon: a call that hangs does not keep the process alive."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    async def call(self, function: Callable[[], T], *, limit_s: float) -> T:
        """The result of `function`; raises what it raises, and TimeoutError when it takes longer.

        A result that comes later is discarded.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._calls.put((function, future))
        async with asyncio.timeout(limit_s):
            return await future

    def close(self) -> None:
        """End after the calls that were made."""
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            function, future = call
            if future.done():  # nobody waits any more
                continue
            try:
                result, error = function(), None
            except BaseException as exc:
                result, error = None, exc
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(_finish, future, result, error)


def _finish(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
