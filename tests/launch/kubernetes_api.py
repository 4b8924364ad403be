"""A stand-in for the Kubernetes API: pods only, over HTTP, with the API's documents, versions and errors.

Documents that are posted are checked against the published schemas. A test plays kubelet and node with
`set_status` and `remove`, and breaks things with `fail` and `compact`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate

from tests.cluster import SCALE

NAMESPACE = "video"
Document = dict[str, Any]


class Api:
    """Started by `running_api`."""

    def __init__(self) -> None:
        self.url = ""
        self.pods: dict[str, Document] = {}
        self.requests: list[tuple[str, str]] = []
        """(method, path) of every request; a watch counts as WATCH."""
        self.changed = asyncio.Condition()
        self.ends_at_once = True
        """Does a deleted pod vanish at once? Else it stays until `remove`."""
        self._version = 100
        self._oldest = 0
        """Changes up to here are forgotten."""
        self._events: list[tuple[int, str, Document]] = []
        self._failures: list[tuple[str, int]] = []
        self._drops = 0

    # --- what a test does

    def fail(self, method: str, status: int, times: int = 1) -> None:
        """Answer the next requests of this method with an error; 0 cuts the connection after acting."""
        self._failures += [(method, status)] * times

    async def compact(self) -> None:
        """Forget the history and end all watches, as after a long outage of the network."""
        self._version += 1
        self._oldest = self._version
        self._events.clear()
        self._drops += 1
        await self._notify()

    async def set_status(self, name: str, **status: Any) -> None:
        """What a kubelet writes."""
        self.pods[name]["status"] = status
        await self._record("MODIFIED", self.pods[name])

    async def bind(self, name: str, node: str) -> None:
        """What the Kubernetes scheduler does."""
        self.pods[name]["spec"]["nodeName"] = node
        await self._record("MODIFIED", self.pods[name])

    async def remove(self, name: str, *, silently: bool = False) -> None:
        """The pod is gone; silently: no watch will ever tell."""
        pod = self.pods.pop(name)
        if silently:
            self._version += 1
        else:
            await self._record("DELETED", pod)

    async def until(self, condition: Any) -> None:
        """Return when `condition()` holds after a request or a change."""
        async with asyncio.timeout(30 * SCALE), self.changed:
            await self.changed.wait_for(condition)

    def count(self, method: str) -> int:
        """Requests of this method."""
        return [made for made, _ in self.requests].count(method)

    # --- HTTP

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while line := await reader.readline():
                method, target, _ = line.decode().split()
                headers = {}
                while (header := await reader.readline()).strip():
                    name, _, value = header.decode().partition(":")
                    headers[name.lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if not await self._answer(writer, method, target, json.loads(body) if body else {}):
                    break
        writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, method: str, target: str, body: Document) -> bool:
        """False: the connection ends."""
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        kind = "WATCH" if query.get("watch", "").lower() == "true" else method
        self.requests.append((kind, parts.path))
        failure = next((entry for entry in self._failures if entry[0] == kind), None)
        if failure is not None:
            self._failures.remove(failure)
        if failure is not None and failure[1]:
            status, document = failure[1], _status(failure[1], "InternalError", "as the test says")
        elif kind == "WATCH":
            await self._watch(writer, query)
            return False
        else:
            status, document = await self._act(method, parts.path, query, body)
        await self._notify()
        if failure is not None and not failure[1]:
            return False
        payload = json.dumps(document).encode()
        writer.write(
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(payload)}\r\n\r\n".encode()
            + payload
        )
        await writer.drain()
        return True

    async def _act(self, method: str, path: str, query: Document, body: Document) -> tuple[int, Document]:
        base, _, name = path.partition(f"/api/v1/namespaces/{NAMESPACE}/pods")
        assert not base, f"unknown path {path}"
        match method, name.strip("/"):
            case "GET", "":
                items = [pod for pod in self.pods.values() if _matches(pod, query.get("labelSelector", ""))]
                metadata = {"resourceVersion": str(self._version)}
                return 200, {"apiVersion": "v1", "kind": "PodList", "metadata": metadata, "items": items}
            case "POST", "":
                return await self._create(body)
            case "DELETE", name if name in self.pods:
                pod = self.pods[name]
                pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
                await self._record("MODIFIED", pod)
                if self.ends_at_once:
                    await self.remove(name)
                return 200, pod
            case "DELETE", name:
                return 404, _status(404, "NotFound", f'pods "{name}" not found')
        raise AssertionError(f"unknown request {method} {path}")

    async def _create(self, pod: Document) -> tuple[int, Document]:
        try:
            kubernetes_validate.validate(pod, "1.37", strict=True)
        except kubernetes_validate.ValidationError as exc:
            return 422, _status(422, "Invalid", exc.message)
        name = pod["metadata"]["name"]
        if name in self.pods:
            return 409, _status(409, "AlreadyExists", f'pods "{name}" already exists')
        pod["metadata"] |= {"namespace": NAMESPACE, "uid": secrets.token_hex(8)}
        pod["status"] = {"phase": "Pending"}
        self.pods[name] = pod
        await self._record("ADDED", pod)
        return 201, pod

    async def _watch(self, writer: asyncio.StreamWriter, query: Document) -> None:
        version, drops = int(query["resourceVersion"]), self._drops
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        await self._notify()
        if version < self._oldest:
            _write_event(writer, "ERROR", _status(410, "Expired", f"too old resource version: {version}"))
        while version >= self._oldest and drops == self._drops:
            for number, kind, pod in self._events:
                if number > version and _matches(pod, query.get("labelSelector", "")):
                    _write_event(writer, kind, pod)
            version = self._version
            await writer.drain()
            async with self.changed:
                while self._version == version and drops == self._drops:
                    await self.changed.wait()
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def _record(self, kind: str, pod: Document) -> None:
        self._version += 1
        pod["metadata"]["resourceVersion"] = str(self._version)
        self._events.append((self._version, kind, json.loads(json.dumps(pod))))
        await self._notify()

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()


def _write_event(writer: asyncio.StreamWriter, kind: str, document: Document) -> None:
    line = json.dumps({"type": kind, "object": document}).encode() + b"\n"
    writer.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")


def _status(code: int, reason: str, message: str) -> Document:
    return {
        "apiVersion": "v1",
        "kind": "Status",
        "status": "Failure",
        "metadata": {},
        "code": code,
        "reason": reason,
        "message": message,
    }


def _matches(pod: Document, selector: str) -> bool:
    labels = pod["metadata"].get("labels", {})
    pairs = (term.split("=") for term in selector.split(",") if term)
    return all(labels.get(key) == value for key, value in pairs)


@contextlib.asynccontextmanager
async def running_api() -> AsyncIterator[Api]:
    """An API on a port of its own."""
    api, connections = Api(), set[asyncio.Task[None]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            await api.serve(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    api.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield api
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
