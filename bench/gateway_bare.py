"""What `bench.gateway` compares with, both on `websockets` and uvloop as they come.

relay    connects to the links, forwards each message as it is to the client that its last four bytes name
sender   no link: sends to each client a message of the same size at the same pace
"""

from __future__ import annotations

import argparse
import asyncio
import os
import struct
import time

import uvloop
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from bench.gateway_ends import CHUNK_BYTES, CHUNK_S, Stamps, pin

MAX_MESSAGE_BYTES = 16 * 1024 * 1024


async def relay(port: int, links: list[str]) -> None:
    """Until cancelled."""
    clients: dict[int, ServerConnection] = {}

    async def accept(client: ServerConnection) -> None:
        assert client.request is not None
        clients[int(client.request.path[1:])] = client
        await client.wait_closed()

    async def forward(link: str) -> None:
        async with connect(link, compression=None, max_size=MAX_MESSAGE_BYTES, proxy=None) as connection:
            async for data in connection:
                assert isinstance(data, bytes)
                (stream,) = struct.unpack_from(">I", data, len(data) - 4)
                await clients[stream].send(data)

    async with serve(accept, "127.0.0.1", port, compression=None):
        await asyncio.gather(*(forward(link) for link in links))


async def sender(port: int, streams: int, stamps: Stamps) -> None:
    """Begins when `streams` clients are there; until cancelled."""
    clients: dict[int, ServerConnection] = {}
    complete = asyncio.Event()

    async def accept(client: ServerConnection) -> None:
        assert client.request is not None
        clients[int(client.request.path[1:])] = client
        if len(clients) == streams:
            complete.set()
        await client.wait_closed()

    data = os.urandom(CHUNK_BYTES)
    async with serve(accept, "127.0.0.1", port, compression=None):
        await complete.wait()
        await asyncio.sleep(1)
        due_s, index = time.perf_counter(), 0
        while True:
            while due_s <= time.perf_counter():
                stream, message = index % streams, index // streams
                stamps.note(stream, message, time.perf_counter())
                await clients[stream].send(data)
                index, due_s = index + 1, due_s + CHUNK_S / streams
            await asyncio.sleep(max(0.001, due_s - time.perf_counter()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=("relay", "sender"))
    parser.add_argument("--core", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--links", default="")
    parser.add_argument("--streams", type=int, default=0)
    parser.add_argument("--stamps", default="")
    options = parser.parse_args()
    pin(options.core)
    if options.role == "relay":
        uvloop.run(relay(options.port, options.links.split(",")))
    else:
        uvloop.run(sender(options.port, options.streams, Stamps(options.stamps, options.streams)))


if __name__ == "__main__":
    main()
