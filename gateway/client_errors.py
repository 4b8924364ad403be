"""What can go wrong for a user of the Python client.

ClientError
├── ServerError       the server refused something: `.code`, `.retry_after_ms`, `str()` is its sentence
├── ConnectionLost    no connection could be made (again) in time
├── SessionEnded      the session is over and not by our own stop: `.close_code`
│   └── TakenOver     another connection attached to the session
└── BadServer         the server broke the protocol
"""

from __future__ import annotations

__all__ = ["BadServer", "ClientError", "ConnectionLost", "ServerError", "SessionEnded", "TakenOver"]


class ClientError(Exception):
    """Base of everything that the client raises about the server or the connection."""


class ServerError(ClientError):
    """The server answered `error`."""

    def __init__(self, code: str, message: str, retry_after_ms: int | None = None) -> None:
        super().__init__(message or code)
        self.code = code
        self.retry_after_ms = retry_after_ms


class ConnectionLost(ClientError):
    """The server could not be reached for as long as the client was told to try."""


class SessionEnded(ClientError):
    """The session is over. `close_code`: the WebSocket close code, None where a `closed` message said it."""

    def __init__(self, reason: str, close_code: int | None = None) -> None:
        super().__init__(reason)
        self.close_code = close_code


class TakenOver(SessionEnded):
    """Another connection has attached to the session; this one must not connect again by itself."""


class BadServer(ClientError):
    """The server sent something that the protocol does not allow."""
