"""Asks somebody else whether a prompt may be shown, before it reaches a session's log.

`prompt_hook` names an async callable (`package.module:name`), called with a `Question`, or an http(s) URL,
which gets the same as a JSON object by POST. The answer is true (or nothing) to let it pass, false to refuse,
or a sentence that the client is told; over HTTP `{"allowed": bool, "message": str}` with status 200.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import logging
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

import h11

from gateway.steps import AppendInput, Call, CreateSession, Failure, FailureKind
from scheduler.messages import PromptInput

logger = logging.getLogger("gateway.prompt_hook")

REFUSED = "this prompt is not allowed here"
AWAY = "prompts can't be checked right now; try again"
RETRY_AFTER_MS = 2_000
MAX_ANSWER_BYTES = 64 * 1024
MAX_SENTENCE_CHARS = 500
UNJUDGED = Failure(kind=FailureKind.UNAVAILABLE, message=AWAY, retry_after_ms=RETRY_AFTER_MS)
"""For a prompt on which nobody has said anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One prompt."""

    session: str
    subject: str
    """Of the token, for the first prompt of a session; "" for later ones and without authentication."""
    text: str


Answer = bool | str | None
Hook = Callable[[Question], Awaitable[Answer]]


class PromptHook:
    """A hook with its deadline and what counts when it does not answer."""

    def __init__(self, hook: Hook, *, timeout_s: float, fail_open: bool) -> None:
        self._hook = hook
        self._timeout_s = timeout_s
        self._fail_open = fail_open

    async def judge(self, call: Call) -> Failure | None:
        """Why a call's prompt must not reach the log; None: it may, or has none."""
        question = _question(call)
        if question is None:
            return None
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._hook(question)
        except (Exception, asyncio.CancelledError) as exc:  # whatever somebody else's code raises
            task = asyncio.current_task()
            if isinstance(exc, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # it is this task that is cancelled, not something that the hook waited for
            logger.warning("%s: the prompt hook failed: %s", question.session, type(exc).__name__)
            if self._fail_open:
                return None
            return UNJUDGED
        if answer is None or answer is True:
            return None
        sentence = answer[:MAX_SENTENCE_CHARS] if isinstance(answer, str) and answer else REFUSED
        return Failure(kind=FailureKind.NOT_ALLOWED, message=sentence)


def load_hook(name: str) -> Hook:
    """The hook that a setting names. Raises ValueError."""
    if name.startswith(("http://", "https://")):
        tls = ssl.create_default_context() if name.startswith("https:") else None  # it takes tens of ms
        return lambda question: _post(name, tls, question)
    module, _, attribute = name.partition(":")
    try:
        found: Hook = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as exc:
        raise ValueError(f"prompt_hook {name!r} can't be loaded: {exc}") from exc
    if not callable(found):
        raise ValueError(f"prompt_hook {name!r} is not callable")
    calls = (inspect.unwrap(found), type(found).__call__)
    if not any(inspect.iscoroutinefunction(call) for call in calls):
        raise ValueError(f"prompt_hook {name!r} is not async: it would hold up all sessions of the gateway")
    return found


def has_prompt(call: Call) -> bool:
    """Does the call bring a prompt, which the hook is asked about?"""
    return _question(call) is not None


def _question(call: Call) -> Question | None:
    match call:
        case CreateSession():
            return Question(session=call.session, subject=call.subject, text=call.prompt.text)
        case AppendInput(message=PromptInput(text=text)):
            return Question(session=call.session, subject="", text=text)
        case _:
            return None


async def _post(url: str, tls: ssl.SSLContext | None, question: Question) -> Answer:
    """Raises OSError, ValueError, h11.RemoteProtocolError: no answer, or not one that is understood."""
    parts = urlsplit(url)
    port = parts.port or (443 if tls is not None else 80)
    reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=tls)
    try:
        body = json.dumps(asdict(question)).encode()
        http = h11.Connection(h11.CLIENT)
        head = h11.Request(
            method="POST",
            target=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
            headers=[
                ("Host", parts.netloc.rpartition("@")[2]),
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
            ],
        )
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            writer.write(http.send(event) or b"")
        return _read_answer(*await _receive(http, reader))
    finally:
        writer.close()


async def _receive(http: h11.Connection, reader: asyncio.StreamReader) -> tuple[int, bytes]:
    status, body = 0, b""
    while True:
        match http.next_event():
            case h11.NEED_DATA:
                http.receive_data(await reader.read(MAX_ANSWER_BYTES))
            case h11.Response(status_code=status):
                pass
            case h11.Data(data=data):
                body += data
                if len(body) > MAX_ANSWER_BYTES:
                    raise ValueError("the answer is too large")
            case h11.EndOfMessage() | h11.ConnectionClosed():
                return status, body


def _read_answer(status: int, body: bytes) -> Answer:
    found = json.loads(body) if status == 200 else None
    if not isinstance(found, dict) or not isinstance(found.get("allowed"), bool):
        raise ValueError(f"status {status}, and not {{'allowed': bool}}")
    message = found.get("message")
    return True if found["allowed"] else (message if isinstance(message, str) and message else False)
