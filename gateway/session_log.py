"""What the log says about the sessions of one connection: how each began and ended, and how itself did.

A line each at INFO, with the session's id, and none for chunks, acks or prompts. Nothing that a client chose
is in it but an id that has the form of one. A connection that had no session is told at DEBUG.
"""

from __future__ import annotations

import logging

from gateway.protocol import CloseCode
from scheduler.messages import SessionId

__all__ = ["MAX_LINES", "SessionLog"]

logger = logging.getLogger("gateway.session")

MAX_LINES = 100
"""Of sessions that begin and end on one connection; the end of the connection is told all the same."""


class SessionLog:
    """Of one connection."""

    def __init__(self) -> None:
        self._session: SessionId | None = None
        """The last one."""
        self._num_lines = 0
        self._is_closed = False

    def begin(self, session: SessionId, how: str) -> None:
        """By `start`, `attach` or `watch`."""
        self._session = session
        self._tell(f"{session}: {how}")

    def end(self, reason: str) -> None:
        """Of the session; the connection may go on with another."""
        self._tell(f"{self._session}: end: {reason}")

    def close(self, session: SessionId | None, code: int, reason: str) -> None:
        """We close the connection, which has this session, or asked for it."""
        self._session = session or self._session
        self._is_closed = True
        how = "take-over" if code == CloseCode.TAKEN_OVER else "close"
        self._tell_last(f"{how}, code {int(code)}: {reason}")

    def lose(self, why_aborted: str | None, code: int) -> None:
        """Nothing more comes: we have aborted the connection, or the client closed it with this code."""
        if why_aborted is not None:
            logger.info("%s: abort: %s", self._session or "no session", why_aborted)
        elif not self._is_closed:
            self._tell_last(f"close, code {code}")

    def _tell(self, text: str) -> None:
        self._num_lines += 1
        if self._num_lines <= MAX_LINES:
            logger.info("%s%s", text, ", further ones are not told" if self._num_lines == MAX_LINES else "")

    def _tell_last(self, text: str) -> None:
        if self._session is not None:
            logger.info("%s: %s", self._session, text)
        else:
            logger.debug("no session: %s", text)
