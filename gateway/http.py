"""HTTP as the gateway's routes see it: a request, a response, and who answers."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import parse_qsl

from gateway.websocket import Receiver
from scheduler.messages import ErrorCode

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request whose head and body are complete (the body is empty while `check` sees it)."""

    method: str
    target: str
    """As sent: path and query."""
    headers: Mapping[str, str]
    """Names in lower case; repeated ones joined with a comma."""
    body: bytes = b""
    peer: str = ""
    """Address of whoever holds the other end of the connection."""

    @property
    def path(self) -> str:
        """The path as sent, without query. Routes compare it as it is: no other spelling of one gets past a
        proxy that lets only some paths through."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> dict[str, str]:
        """Parameters behind the path, the last of each name."""
        try:
            query = self.target.partition("?")[2]
            return dict(parse_qsl(query, keep_blank_values=True, max_num_fields=16))
        except ValueError:
            return {}

    def header(self, name: str) -> str | None:
        return self.headers.get(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An answer. A body of unknown length comes from a generator; it is read as fast as the peer takes it."""

    status: int = 200
    body: bytes | AsyncGenerator[bytes, None] = b""
    content_type: str = TEXT
    headers: tuple[tuple[str, str], ...] = field(default=())
    length: int | None = None
    """Bytes that a generator yields, if known."""


class Application(Protocol):
    """What stands behind the listener."""

    def check(self, request: Request) -> Response | None:
        """Refuse a request by its head (Host, Origin, method, content type), or None to go on."""

    def respond(self, request: Request) -> Awaitable[Response]:
        """Answer a complete request."""

    def fail(self, request: Request, exc: Exception) -> Response:
        """What is answered where `respond` raised `exc`, which is told nobody else."""

    def accept(self, request: Request) -> Receiver | Response:
        """Who speaks on the WebSocket that this request asks for, or why not."""


def text_response(status: int, text: str, *headers: tuple[str, str]) -> Response:
    """A sentence as plain text."""
    return Response(status=status, body=f"{text}\n".encode(), headers=headers)


def json_response(value: object, status: int = 200) -> Response:
    """A value as JSON."""
    return Response(status=status, body=json.dumps(value).encode(), content_type=JSON)


def error_response(status: int, code: ErrorCode, text: str, *headers: tuple[str, str]) -> Response:
    """An error as programs read it."""
    body = json.dumps({"error": {"code": code.value, "message": text}}).encode()
    return Response(status=status, body=body, content_type=JSON, headers=headers)
