"""The one HTTP request that the launcher makes: GET from a gateway."""

from __future__ import annotations

import asyncio
from typing import Final
from urllib.parse import urlsplit

import h11

__all__ = ["get"]

_READ_BYTES: Final = 64 * 1024
_MAX_BODY_BYTES: Final = 16 * 1024 * 1024


async def get(url: str, *, timeout_s: float) -> tuple[int, bytes]:
    """Status and body of a GET.

    Raises:
        OSError: no connection, no answer in time, or what answers doesn't speak HTTP.
    """
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    request = h11.Request(
        method="GET",
        target=parts.path or "/",
        headers=[("Host", parts.netloc.rpartition("@")[2]), ("Connection", "close")],
    )
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(
            parts.hostname, parts.port or (443 if secure else 80), ssl=secure or None
        )
        try:
            return await _exchange(reader, writer, request)
        except h11.RemoteProtocolError as exc:
            raise ConnectionError(f"what answers at {url} doesn't speak HTTP: {exc}") from exc
        finally:
            writer.close()


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: h11.Request
) -> tuple[int, bytes]:
    http = h11.Connection(h11.CLIENT)
    writer.write(http.send(request) or b"")
    writer.write(http.send(h11.EndOfMessage()) or b"")
    status, body = 0, bytearray()
    while True:
        match http.next_event():
            case h11.NEED_DATA:
                http.receive_data(await reader.read(_READ_BYTES))
            case h11.Response(status_code=status):
                pass
            case h11.Data(data=data):
                body += data
                if len(body) > _MAX_BODY_BYTES:
                    raise ConnectionError("the answer is too large")
            case h11.EndOfMessage() | h11.ConnectionClosed():
                return status, bytes(body)
