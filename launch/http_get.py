"""The one HTTP request that the launcher makes, GET from a gateway, and what it reads most."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Set
from typing import Any, Final
from urllib.parse import urlsplit

import h11

__all__ = ["get", "read_cluster"]

_READ_BYTES: Final = 64 * 1024
_MAX_BODY_BYTES: Final = 16 * 1024 * 1024


def read_cluster(body: bytes, wanted: Set[str]) -> dict[str, Any]:
    """The answer of `/v1/cluster`, in which these must be. Raises ValueError: it is none."""
    cluster = json.loads(body)
    if not isinstance(cluster, dict) or not cluster.keys() >= wanted:
        raise ValueError("what answers there is no gateway of TurboServe")
    return cluster


async def get(
    url: str, *, timeout_s: float, token: str | None = None, check_certificate: bool = True
) -> tuple[int, bytes]:
    """Status and body of a GET, with a bearer token if there is one.

    `check_certificate` False is for an address that can only be this machine's own.

    Raises:
        OSError: no connection, no answer in time, or what answers doesn't speak HTTP.
    """
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    headers = [("Host", parts.netloc.rpartition("@")[2]), ("Connection", "close")]
    if token is not None:
        headers.append(("Authorization", f"Bearer {token}"))
    try:
        request = h11.Request(method="GET", target=parts.path or "/", headers=headers)
    except h11.LocalProtocolError:  # it would repeat the token
        raise ConnectionError("the address, or the token, has characters that HTTP can't carry") from None
    tls = ssl.create_default_context() if secure else None
    if tls is not None and not check_certificate:
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(
            parts.hostname, parts.port or (443 if secure else 80), ssl=tls
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
