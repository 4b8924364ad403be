"""Errors of the gateway's own code that it survives: none of them is silent, and none fills the log.

One client, one message or one task is at fault, and many others need the process. So it goes on, and each
error is counted (`turboserve_gateway_faults_total`); of each kind the log has one traceback, then a line a
minute.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Concatenate, Final, ParamSpec, Protocol, TypeVar

logger = logging.getLogger("gateway.faults")

TOLD_EVERY_S: Final = 60.0
MAX_KINDS: Final = 256
"""Remembered; one more makes the log begin anew with all of them."""

P = ParamSpec("P")


class Faults:
    """One per gateway."""

    def __init__(self, count: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        """count: called with `where` of each. clock: seconds."""
        self._count = count
        self._clock = clock
        self._told_s: dict[tuple[str, str], float] = {}

    def note(self, where: str, what: str, exc: BaseException) -> None:
        """An error was caught. where: of a few words; what: a sentence without its end, for people."""
        self._count(where)
        kind, now_s = (where, _origin(exc)), self._clock()
        told_s = self._told_s.get(kind)
        if told_s is None:
            logger.error("%s: %r", what, exc, exc_info=exc)
        elif now_s - told_s >= TOLD_EVERY_S:
            logger.error("%s: %r, as before at %s", what, exc, kind[1])
        else:
            return
        if len(self._told_s) >= MAX_KINDS:
            self._told_s.clear()
        self._told_s[kind] = now_s


def _origin(exc: BaseException) -> str:
    """The line that raised it, and its type."""
    at = exc.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    line = f"{at.tb_frame.f_code.co_filename}:{at.tb_lineno}" if at is not None else "?"
    return f"{line} {type(exc).__name__}"


class Fragile(Protocol):
    """Somebody whose methods are `survived`."""

    def receive_fault(self, exc: Exception) -> None:
        """One of them raised: nothing of its state can be relied on any more. Must not raise."""


F = TypeVar("F", bound=Fragile)


def survived(method: Callable[Concatenate[F, P], None]) -> Callable[Concatenate[F, P], None]:
    """Makes a method that who calls it need not guard against: an error ends in `receive_fault`."""

    @functools.wraps(method)
    def call(self: F, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as exc:
            self.receive_fault(exc)

    return call
