"""One process of a load test's clients: `python -m launch.loadtest.worker`, told what to do on its input."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO

from launch.loadtest.player import Player
from launch.loadtest.samples import Assignment, Begin, FromWorker, Lag, Ready, Sample, line, to_worker

FLUSH_S = 0.1
LAG_EVERY_S = 0.1


def main() -> int:
    """Read the assignment, say ready, wait for the begin, play. Ends at once when the parent is gone."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    _allow_sockets()
    assignment = to_worker(source.readline())
    assert isinstance(assignment, Assignment)
    _write(sink, Ready())
    begin = to_worker(source.readline())
    assert isinstance(begin, Begin)
    threading.Thread(target=_end_with_parent, args=(source.fileno(),), daemon=True).start()
    with suppress(BrokenPipeError):
        asyncio.run(_play(assignment, begin.at_s, sink))
    return 0


async def _play(assignment: Assignment, begin_s: float, sink: BinaryIO) -> None:
    samples: list[Sample] = []
    players = [
        Player(
            script,
            assignment.url,
            assignment.token,
            begin_s=begin_s,
            decode=assignment.decode,
            put=samples.append,
        )
        for script in assignment.scripts
    ]
    playing = asyncio.ensure_future(asyncio.gather(*(player.run() for player in players)))
    measuring = asyncio.create_task(_measure_lag(begin_s, samples))
    while not playing.done():
        await asyncio.wait((playing,), timeout=FLUSH_S)
        # On a thread: a parent that is slow to read must not keep the clients waiting.
        await asyncio.to_thread(_write, sink, *_drain(samples))
    measuring.cancel()
    _write(sink, *_drain(samples))
    await playing


async def _measure_lag(begin_s: float, samples: list[Sample]) -> None:
    """How late this process is by itself."""
    while True:
        due_s = time.monotonic() + LAG_EVERY_S
        await asyncio.sleep(LAG_EVERY_S)
        lag_ms = (time.monotonic() - due_s) * 1000.0
        samples.append(Lag(at_ms=(due_s - begin_s) * 1000.0, lag_ms=lag_ms))


def _allow_sockets() -> None:
    """One for each client: as many as may be."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _drain(samples: list[Sample]) -> Iterator[Sample]:
    taken, samples[:] = samples[:], []
    return iter(taken)


def _write(sink: BinaryIO, *messages: FromWorker) -> None:
    sink.write(b"".join(map(line, messages)))
    sink.flush()


def _end_with_parent(descriptor: int) -> None:
    os.read(descriptor, 1)  # not by the buffered reader: its lock, held for ever, would spoil our own end
    os._exit(1)


if __name__ == "__main__":
    raise SystemExit(main())
