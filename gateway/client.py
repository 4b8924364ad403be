"""The Python client: live generated video as RGB arrays, steered while it runs.

    async with connect("http://localhost:8080") as client:
        session = await client.start("a red ball bouncing on a blue background", seed=1)
        async for chunk in session:
            for frame in chunk.frames():      # RGB uint8 [height, width, 3]
                ...
            if chunk.seq == 4:
                applied = await session.prompt("a green star spinning on a black background")
            if chunk.seq == 20:
                await session.stop()

Lost connections are survived: the session is attached to again, without a gap and without a repeated chunk.
`client.watch` shows somebody else's session.
Errors: `gateway/client_errors.py`.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, SupportsIndex, TypeAlias, TypeVar
from urllib.parse import urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_websocket
from websockets.exceptions import InvalidHandshake
from websockets.typing import Subprotocol

from gateway.client_chunks import Chunk
from gateway.client_errors import (
    BadServer,
    ClientError,
    ConnectionLost,
    ServerError,
    SessionEnded,
    TakenOver,
)
from gateway.client_session import Mode, Session, check_prompt, whole
from gateway.client_stream import OnPart, check_sendable
from gateway.client_viewer import Viewer
from gateway.protocol import (
    DEFAULT_LEAD_MS,
    JSON_SUBPROTOCOL,
    MAX_SERVER_MESSAGE_BYTES,
    MSGPACK_SUBPROTOCOL,
    TOKEN_SUBPROTOCOL_PREFIX,
    Attach,
    Start,
    Watch,
)
from gateway.recording import Mp4Writer

__all__ = [
    "BadServer",
    "Chunk",
    "Client",
    "ClientError",
    "ConnectionLost",
    "Recording",
    "ServerError",
    "Session",
    "SessionEnded",
    "TakenOver",
    "Viewer",
    "connect",
    "record",
]

STREAM_PATH = "/v1/stream"
_TOKEN = re.compile(r"[A-Za-z0-9_.-]+")
Token: TypeAlias = "str | Callable[[], str | Awaitable[str]] | None"
"""Of the server; a function, async or not, is asked before each connection: tokens are short-lived."""


def connect(
    url: str,
    token: Token = None,
    *,
    flavour: str = MSGPACK_SUBPROTOCOL,
    open_timeout_s: float = 10.0,
    give_up_s: float = 60.0,
) -> Client:
    """A client of the server at `url` (http, https, ws or wss; the path may be left out), for `async with`.

    `token`: a function is asked before each connection, also when a lost one is made again; an OSError of it
    counts as a connection that failed, anything else ends the session.
    `give_up_s`: for how long a lost connection is tried to be made again.
    Raises ValueError for an address or flavour that cannot be.
    """
    if flavour not in (JSON_SUBPROTOCOL, MSGPACK_SUBPROTOCOL):
        raise ValueError(f"flavour must be {JSON_SUBPROTOCOL!r} or {MSGPACK_SUBPROTOCOL!r}, not {flavour!r}")
    return Client(stream_url(url), token, flavour=flavour, open_timeout_s=open_timeout_s, give_up_s=give_up_s)


def stream_url(url: str) -> str:
    """The WebSocket address for a server's address. Raises ValueError."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    scheme = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}.get(parts.scheme)
    if scheme is None or not parts.hostname:
        raise ValueError(f"not the address of a server: {url!r} (expected for example http://localhost:8080)")
    path = parts.path if parts.path.endswith(STREAM_PATH) else parts.path.rstrip("/") + STREAM_PATH
    return urlunsplit((scheme, parts.netloc, path, "", ""))


class Client:
    """A connection to a server; carries one session at a time. Made by `connect`."""

    def __init__(
        self, url: str, token: Token, *, flavour: str, open_timeout_s: float, give_up_s: float
    ) -> None:
        self._url = url
        self._token = token
        self._flavour = flavour
        self._open_timeout_s = open_timeout_s
        self._give_up_s = give_up_s
        self._session: Session | Viewer | None = None
        self._first: ClientConnection | None = None

    async def __aenter__(self) -> Self:
        """Connect. Raises ConnectionLost when the server cannot be reached."""
        self._first = await self._dial_first()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the session and disconnect. An error that ends the block comes out of it, stop or not."""
        try:
            if self._session is not None:
                await self._session.stop()
        except ClientError:
            if error is None:
                raise
        finally:
            if self._first is not None:
                await self._first.close()

    def __aiter__(self) -> AsyncIterator[Chunk]:
        """The chunks of its newest session. Raises ClientError before there is one."""
        if self._session is None:
            raise ClientError("there is no session yet: start or attach one first")
        return aiter(self._session)

    async def start(
        self,
        prompt: str,
        *,
        seed: SupportsIndex | None = None,
        model: str | None = None,
        lead_ms: int = DEFAULT_LEAD_MS,
        accept: Sequence[str] = ("h264",),
        mode: Mode = "viewer",
        on_part: OnPart | None = None,
    ) -> Session:
        """Begin a session.

        `seed` None: random. `lead_ms`: how far the server generates ahead of the playhead. `accept`: codecs,
        the one liked best first (h264, vp9, av1, mjpeg). `mode`: a "viewer"
        is served in real time, a "recorder" as fast as its chunks are taken. `on_part` is given the header of
        each part as it arrives, before anything is done with it; while it waits, nothing more is read.
        Raises ServerError when refused, ConnectionLost, SessionEnded, ValueError for what cannot be sent.
        """
        check_prompt(prompt)
        opening = Start(prompt=prompt, seed=whole(seed), model=model, lead_ms=lead_ms, accept=tuple(accept))
        return await self._open(opening, mode, on_part)

    async def attach(self, session: str, resume: str, next_seq: int = 0, *, mode: Mode = "viewer") -> Session:
        """Go on with a session begun elsewhere, from chunk `next_seq`. The connection it had is closed."""
        return await self._open(Attach(session=session, resume=resume, next_seq=next_seq), mode)

    async def watch(self, session: str, token: str | None = None) -> Viewer:
        """Look at somebody else's session. `token`: one that may, in place of the client's own.

        Raises ServerError when refused, ConnectionLost, SessionEnded.
        """
        opening = Watch(session=session, token=token)
        check_sendable(opening)
        socket = await self._take_socket()
        viewer = Viewer(self._dial, opening, give_up_s=self._give_up_s)
        await viewer.open(socket)
        self._session = viewer
        return viewer

    async def _open(self, opening: Start | Attach, mode: Mode, on_part: OnPart | None = None) -> Session:
        check_sendable(opening)
        socket = await self._take_socket()
        session = Session(self._dial, opening, mode=mode, give_up_s=self._give_up_s, on_part=on_part)
        await session.open(socket)
        self._session = session
        return session

    async def _take_socket(self) -> ClientConnection:
        if self._session is not None and not self._session.is_over:
            raise ClientError("this client has a session already; stop it first, or connect once more")
        socket, self._first = self._first, None
        if socket is None or socket.close_code is not None:
            socket = await self._dial_first()
        return socket

    async def _dial_first(self) -> ClientConnection:
        try:
            return await self._dial()
        except (OSError, TimeoutError, InvalidHandshake) as exc:
            raise ConnectionLost(f"no connection to {self._url}: {exc}") from exc

    async def _dial(self) -> ClientConnection:
        subprotocols = [Subprotocol(self._flavour)]
        token = self._token() if callable(self._token) else self._token
        if inspect.isawaitable(token):
            token = await token
        if token is not None:
            if not _TOKEN.fullmatch(token):  # the library would say so too, and show it
                raise ValueError("the token has characters that no token has, a space or line break perhaps")
            subprotocols.append(Subprotocol(TOKEN_SUBPROTOCOL_PREFIX + token))
        return await connect_websocket(
            self._url,
            subprotocols=subprotocols,
            compression=None,
            max_size=MAX_SERVER_MESSAGE_BYTES,
            open_timeout=self._open_timeout_s,
            close_timeout=1.0,
            ping_interval=10.0,
            ping_timeout=10.0,
        )


_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What `record` has written."""

    path: Path
    num_frames: int
    num_chunks: int
    duration_s: float
    session: str


async def record(
    url: str,
    prompt: str,
    seconds: float,
    seed: int | None,
    path: str | Path,
    *,
    token: Token = None,
    stop: asyncio.Event | None = None,
) -> Recording:
    """Generate at least `seconds` of video from one prompt into an MP4 file at `path`.

    Takes the fewest chunks whose durations reach `seconds`, or those that are there when `stop` is set; keeps
    all their frames, encodes nothing again. The file appears when it is complete, unless it has no chunk.
    Raises ValueError, OSError, ClientError.
    """
    if not 0 < seconds < float("inf"):
        raise ValueError(f"seconds must be above 0, not {seconds}")
    target = Path(path)
    partial = _partial(target)
    try:
        async with AsyncExitStack() as stack:
            stop = stop or asyncio.Event()
            client = await _unless(stop, stack.enter_async_context(connect(url, token)))
            session = None
            if client is not None:
                session = await _unless(stop, client.start(prompt, seed=seed, mode="recorder"))
            if session is None:
                return Recording(path=target, num_frames=0, num_chunks=0, duration_s=0.0, session="")
            recording = await _record(session, seconds, partial, target, stop)
        if recording.num_chunks:
            _move(partial, target)
    finally:
        _remove(partial)
    return recording


def _partial(target: Path) -> Path:
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent} to write {target.name} to")
    if target.is_dir():  # else all would be recorded, and then lost
        raise IsADirectoryError(f"{target} is a folder, not a file to write to")
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}")


def _move(partial: Path, target: Path) -> None:
    partial.replace(target)


def _remove(partial: Path) -> None:
    partial.unlink(missing_ok=True)


async def _unless(stop: asyncio.Event, work: Awaitable[_T]) -> _T | None:
    """The result of `work`, or None once `stop` is set: then it is cancelled, and has ended."""
    doing, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((doing, stopped), return_when=asyncio.FIRST_COMPLETED)
        return doing.result() if doing.done() else None
    finally:
        doing.cancel()
        stopped.cancel()
        await asyncio.gather(doing, stopped, return_exceptions=True)


async def _record(
    session: Session, seconds: float, partial: Path, target: Path, stop: asyncio.Event
) -> Recording:
    duration_ms, num_chunks = 0.0, 0
    with Mp4Writer(partial, session.info.fps) as writer:
        while not stop.is_set() and (chunk := await _unless(stop, anext(session, None))) is not None:
            writer.add(chunk)
            duration_ms += chunk.duration_ms
            num_chunks += 1
            if duration_ms >= seconds * 1000 - 1e-6:
                break
    return Recording(
        path=target,
        num_frames=writer.num_frames,
        num_chunks=num_chunks,
        duration_s=duration_ms / 1000,
        session=session.id,
    )
