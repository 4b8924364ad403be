"""What the gateway answers over HTTP, and who may open a WebSocket."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST

import web_demo
from gateway.access import Visitor
from gateway.admission import (
    RECORDING_PATH,
    UNAUTHORISED,
    WATCH_PATH,
    let_watch,
    mint_for,
    parse_object,
)
from gateway.auth import Scope, TokenRefused
from gateway.connection import ClientConnection
from gateway.downloads import send_recording
from gateway.guard import is_host_allowed, is_origin_allowed, preflight_headers, sharing_headers
from gateway.http import JSON, Request, Response, error_response, json_response, text_response
from gateway.hub import Hub
from gateway.pages import Pages
from gateway.protocol import CODECS, JSON_SUBPROTOCOL, TOKEN_SUBPROTOCOL_PREFIX, CloseCode, Error
from gateway.usage import list_usage
from gateway.websocket import Receiver, WebSocket
from scheduler.messages import EngineId, EngineState, ErrorCode, Rung, SessionId
from scheduler.store import (
    NoSuchEngine,
    NoSuchSession,
    PlacementRefused,
    SessionIsClosed,
    StoreError,
    StoreUnavailable,
)

API = "/v1/"
STREAM_PATH = API + "stream"
TOKENS_PATH = API + "tokens"
WATCH_TEMPLATE = API + "sessions/{id}/watch"
RECORDING_TEMPLATE = API + "sessions/{id}/recording.mp4"
CLUSTER_PATH = API + "cluster"
WATCH_CLUSTER_PATH = CLUSTER_PATH + "/stream"
DRAIN_PATH = API + "admin/drain"
MIGRATE_PATH = API + "admin/migrate"
USAGE_PATH = API + "usage"
RETRY_AFTER_S = "2"
ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
JSON_TYPE = "application/json"
CODES = {403: ErrorCode.NOT_ALLOWED, 429: ErrorCode.RATE, 500: ErrorCode.INTERNAL}
"""By status."""
NO_SUCH_ENGINE = "there is no such engine; /v1/cluster lists them"

READY_FOR_S = 1.0
"""So long it is believed that an engine is ready."""

Handler = Callable[[Request], Awaitable[Response]]


class Routes:
    """The gateway's `Application`."""

    ADMIN_PATHS = frozenset(
        {"/metrics", CLUSTER_PATH, WATCH_CLUSTER_PATH, DRAIN_PATH, MIGRATE_PATH, USAGE_PATH}
    )
    """With authentication they need the scope admin."""
    PATHS = ADMIN_PATHS | {
        "/healthz",
        "/readyz",
        STREAM_PATH,
        TOKENS_PATH,
        WATCH_TEMPLATE,
        RECORDING_TEMPLATE,
    }
    """Everything but the page's files."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        root = hub.config.web_root
        self._pages = Pages(Path(root) if root is not None else Path(web_demo.__path__[0]))
        self._readiness: asyncio.Task[Response] | None = None
        """The newest look at the engines: under way, or done."""
        self._ready_until_s = 0.0
        self._handlers: dict[str, dict[str, Handler]] = {
            "/healthz": {"GET": self._health},
            "/readyz": {"GET": self._ready},
            "/metrics": {"GET": self._metrics},
            CLUSTER_PATH: {"GET": self._cluster},
            WATCH_CLUSTER_PATH: {"GET": self._watch_cluster},
            DRAIN_PATH: {"POST": self._drain},
            MIGRATE_PATH: {"POST": self._migrate},
            USAGE_PATH: {"GET": self._usage},
            STREAM_PATH: {"GET": self._stream},
            TOKENS_PATH: {"POST": self._tokens},
            WATCH_TEMPLATE: {"POST": self._watch},
            RECORDING_TEMPLATE: {"GET": self._recording},
        }
        assert set(self._handlers) == self.PATHS

    # --- Application ----------------------------------------------------------------------------------------

    def check(self, request: Request) -> Response | None:
        refusal = self._check(request)
        return None if refusal is None else self._shared(request, refusal)

    def _check(self, request: Request) -> Response | None:
        config, host = self._hub.config, request.header("host")
        if not is_host_allowed(host, config):
            return _refusal(request, 403, "this Host name is not served; configure allowed_hosts")
        retry_after_ms = self._hub.access.count_request(self._hub.access.address_of(request))
        if retry_after_ms is not None:
            headers = ("Retry-After", str(-(-retry_after_ms // 1000)))
            return _refusal(request, 429, "too many requests from this address", headers)
        is_stream = request.path == STREAM_PATH  # closes 4403, which a page can read
        if not is_stream and not is_origin_allowed(request.header("origin"), host, config):
            return _refusal(request, 403, "pages of this Origin may not use this gateway")
        if request.path.startswith(API) and _route(request.path) not in self._handlers:
            return _refusal(request, 404, "there is nothing here")  # whatever the method
        methods = self._methods(request.path)
        if request.method == "OPTIONS" and request.header("access-control-request-method") is not None:
            return Response(headers=preflight_headers(methods))
        if request.method not in methods:
            allow = ", ".join(methods)
            return _refusal(request, 405, f"use {allow}", ("Allow", allow))
        if request.method == "POST" and not _is_json(request):
            return _refusal(request, 415, f"a POST needs Content-Type: {JSON}")
        return self._check_admin(request)

    def _check_admin(self, request: Request) -> Response | None:
        if request.path not in self.ADMIN_PATHS:
            return None
        try:
            identity = self._hub.access.identify_request(request)
        except TokenRefused as exc:
            return error_response(401, ErrorCode.UNAUTHORISED, str(exc), UNAUTHORISED)
        if not identity.has(Scope.ADMIN) or identity.session is not None:
            return error_response(403, ErrorCode.NOT_ALLOWED, "this needs a token with the scope admin")
        return None

    async def respond(self, request: Request) -> Response:
        return self._shared(request, await self._respond(request))

    def _shared(self, request: Request, response: Response) -> Response:
        """With what a page of a configured origin needs to read it."""
        headers = sharing_headers(request.header("origin"), self._hub.config)
        return replace(response, headers=(*response.headers, *headers)) if headers else response

    async def _respond(self, request: Request) -> Response:
        handlers = self._handlers.get(_route(request.path))
        if handlers is None:
            return self._pages.respond(request)
        handler = handlers["GET" if request.method == "HEAD" else request.method]
        try:
            return await handler(request)
        except StoreUnavailable:
            headers = (("Retry-After", RETRY_AFTER_S),)
            return error_response(503, ErrorCode.UNAVAILABLE, "Redis can't be reached right now", *headers)

    def fail(self, request: Request, exc: Exception) -> Response:
        self._hub.faults.note("request", f"not answered: {request.method} {request.path[:200]!r}", exc)
        return self._shared(request, _refusal(request, 500, "internal error"))

    def accept(self, request: Request) -> Receiver | Response:
        if request.path != STREAM_PATH:
            return _refusal(request, 404, f"WebSockets are served at {STREAM_PATH}")
        if not is_origin_allowed(request.header("origin"), request.header("host"), self._hub.config):
            return _Refused(CloseCode.ORIGIN, "pages of this origin may not use this gateway")
        access = self._hub.access
        visitor, token = Visitor(access, access.address_of(request)), _offered_token(request)
        if token is None and not access.is_open:
            return ClientConnection(self._hub, visitor, None)
        try:
            return ClientConnection(self._hub, visitor, visitor.identify(token or ""))
        except TokenRefused as exc:
            return _Refused(CloseCode.NOT_AUTHORISED, str(exc), ErrorCode.UNAUTHORISED)

    def _methods(self, path: str) -> tuple[str, ...]:
        handlers = self._handlers.get(_route(path), {"GET": None})
        return tuple(m for method in handlers for m in (("GET", "HEAD") if method == "GET" else (method,)))

    # --- handlers ------------------------------------------------------------------------------------------

    async def _health(self, _request: Request) -> Response:
        return text_response(200, "ok")

    async def _ready(self, _request: Request) -> Response:
        """Nobody needs a token for it, so however many ask, the engines are read for all of them together."""
        loop = asyncio.get_running_loop()
        if self._readiness is None or (self._readiness.done() and loop.time() >= self._ready_until_s):
            self._readiness = loop.create_task(self._look_for_ready())
        return await asyncio.shield(self._readiness)  # who leaves does not take it from the others

    async def _look_for_ready(self) -> Response:
        try:
            engines = await self._hub.store.list_engines()
        except StoreUnavailable:
            return text_response(503, "Redis can't be reached")
        is_known = self._hub.catalog.models  # else a start would be refused as yet
        if not is_known or not any(engine.state is EngineState.READY for engine in engines):
            return text_response(503, "no engine is ready")
        self._ready_until_s = asyncio.get_running_loop().time() + READY_FOR_S
        return text_response(200, "ok")

    async def _metrics(self, _request: Request) -> Response:
        hub = self._hub
        clients, machines = hub.metrics.clients, [connection.machine for connection in hub.connections]
        clients.connections.set(len(machines))
        clients.viewers.set(sum(machine.is_watching() for machine in machines))
        clients.low_rung.set(sum(connection.rung is Rung.LOW for connection in hub.connections))
        clients.set_sessions(state for m in machines if (state := m.told_state()) is not None)
        hub.metrics.tasks.set(len(asyncio.all_tasks()))
        hub.metrics.set_link_latencies(hub.relay.latencies_s())
        hub.metrics.cluster.age.set(hub.cluster_feed.sample_age_s())
        body = await asyncio.to_thread(hub.metrics.page)  # of hundreds of engines it takes tens of ms
        return Response(body=body, content_type=CONTENT_TYPE_LATEST)

    async def _cluster(self, _request: Request) -> Response:
        return await self._hub.cluster_feed.answer()

    async def _watch_cluster(self, _request: Request) -> Response:
        return self._hub.cluster_feed.respond()

    async def _drain(self, request: Request) -> Response:
        engine = _string_field(request.body, "engine")
        if engine is None:
            return error_response(400, ErrorCode.BAD_MESSAGE, 'the body must be {"engine": "<id>"}')
        try:
            await self._hub.store.order_drain(EngineId(engine))
        except NoSuchEngine:
            return error_response(404, ErrorCode.BAD_MESSAGE, NO_SUCH_ENGINE)
        except StoreUnavailable:
            raise
        except StoreError as exc:
            return error_response(409, ErrorCode.BAD_STATE, str(exc))
        return json_response({"engine": engine, "ordered": "drain"}, status=202)

    async def _migrate(self, request: Request) -> Response:
        session, engine = _string_field(request.body, "session"), _string_field(request.body, "engine")
        if session is None or engine is None:
            text = 'the body must be {"session": "<id>", "engine": "<id>"}'
            return error_response(400, ErrorCode.BAD_MESSAGE, text)
        try:
            await self._hub.store.order_migration(SessionId(session), EngineId(engine))
        except (NoSuchSession, SessionIsClosed) as exc:
            return error_response(404, ErrorCode.NO_SUCH_SESSION, str(exc))
        except NoSuchEngine:
            return error_response(404, ErrorCode.BAD_MESSAGE, NO_SUCH_ENGINE)
        except PlacementRefused as exc:
            return error_response(409, ErrorCode.BAD_STATE, str(exc))
        return json_response({"session": session, "engine": engine, "ordered": "migrate"}, status=202)

    async def _usage(self, request: Request) -> Response:
        return await list_usage(request, self._hub.store)

    async def _tokens(self, request: Request) -> Response:
        return mint_for(request, self._hub.access)

    async def _watch(self, request: Request) -> Response:
        return await let_watch(request, self._hub.store, self._hub.access)

    async def _recording(self, request: Request) -> Response:
        hub = self._hub
        return await send_recording(request, hub.store, hub.access, hub.recorder)

    async def _stream(self, request: Request) -> Response:
        return _refusal(request, 426, f"{STREAM_PATH} is a WebSocket", ("Upgrade", "websocket"))


class _Refused:
    """Stands behind a WebSocket that may not be used: says so and closes, which a page can read."""

    def __init__(self, code: CloseCode, reason: str, error: ErrorCode | None = None) -> None:
        self._code = code
        self._reason = reason
        self._error = error

    def receive_open(self, socket: WebSocket) -> None:
        if self._error is not None:
            codec = CODECS[socket.subprotocol or JSON_SUBPROTOCOL]
            socket.send(codec.encode_control(Error(code=self._error, message=self._reason)))
        socket.close(self._code, self._reason)

    def receive_frame(self, data: str | bytes) -> None:
        pass

    def receive_lost(self) -> None:
        pass


def _is_json(request: Request) -> bool:
    return (request.header("content-type") or "").split(";")[0].strip().lower() == JSON


def _string_field(body: bytes, name: str) -> str | None:
    """An id: it will be part of a key, of which colons separate the parts."""
    value = (parse_object(body) or {}).get(name)
    return value if isinstance(value, str) and ID.fullmatch(value) else None


def _route(path: str) -> str:
    """The key of a path in the table of handlers."""
    for template, pattern in ((WATCH_TEMPLATE, WATCH_PATH), (RECORDING_TEMPLATE, RECORDING_PATH)):
        if pattern.fullmatch(path):
            return template
    return path


def _offered_token(request: Request) -> str | None:
    """The token among the subprotocols that a handshake offers."""
    for item in (request.header("sec-websocket-protocol") or "").split(","):
        if item.strip().startswith(TOKEN_SUBPROTOCOL_PREFIX):
            return item.strip().removeprefix(TOKEN_SUBPROTOCOL_PREFIX)
    return None


def _refusal(request: Request, status: int, text: str, *headers: tuple[str, str]) -> Response:
    """In the form of the path: programs get JSON, people a sentence."""
    if not request.path.startswith(API):
        return text_response(status, text, *headers)
    return error_response(status, CODES.get(status, ErrorCode.UNSUPPORTED), text, *headers)
