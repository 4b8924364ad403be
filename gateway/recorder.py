"""Recordings of this gateway's sessions: what their clients are sent goes to disk as well.

Chunks are written by one thread. What waits for it is bounded; beyond that chunks are left out of the
recording, not of the stream. `Recorder.run` keeps the folder within its limit and removes recordings whose
sessions are forgotten; several gateways may share a folder, and then each serves the recordings of all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
import weakref
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO

from gateway.metrics import Metrics
from gateway.protocol import ChunkHeader
from gateway.segments import FAILED, MADE, NOTHING, SegmentWriter, download_path, remove, take_stock
from scheduler.messages import SessionId
from scheduler.store import Store, StoreError

logger = logging.getLogger("gateway.recorder")

MIB = 1024 * 1024
MAX_WAITING_BYTES = 64 * MIB
"""For the writing thread, all sessions together; beyond it chunks are left out."""
MAX_WRITERS = 10_000
"""Sessions of which is remembered what lies on disk, those that were written last."""
MAX_DOWNLOADS = 8
"""At once; each holds a file as large as its recording."""
MAX_DOWNLOADS_EACH = 2
"""Of them for the recordings of one subject, or of one session that has none."""
MAX_MAKING = 2
"""Of them are made at once, each by a process."""
PIECE_BYTES = 256 * 1024
SWEEP_EVERY_S = 10.0
REST_S = 60.0
"""Recordings that were written since are of sessions that are open, or known for at least so long."""


class Recorder:
    """One per gateway that has a folder for recordings. All calls come from the event loop."""

    def __init__(
        self, root: Path, store: Store, metrics: Metrics, *, session_bytes: int, total_bytes: int
    ) -> None:
        self._root = root
        self._store = store
        self._metrics = metrics
        self._session_bytes = session_bytes
        self._total_bytes = total_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="recorder")
        self._waiting_bytes = 0
        self._is_failing = False
        self._writers: dict[SessionId, SegmentWriter] = {}
        """Least lately written first. They outlive connections: who attaches again and again adds nothing."""
        self._downloads: weakref.WeakSet[Download] = weakref.WeakSet()
        self._making = asyncio.Semaphore(MAX_MAKING)

    def begin(self, session: SessionId) -> Take:
        """For one connection that controls the session, or is about to."""
        return Take(self, session)

    def write(self, session: SessionId, parts: list[tuple[ChunkHeader, bytes]]) -> None:
        """Add a whole chunk in the background."""
        num_bytes = sum(len(payload) for _, payload in parts)
        if self._waiting_bytes + num_bytes > MAX_WAITING_BYTES:
            self._metrics.recording_drops.inc()
            return
        self._waiting_bytes += num_bytes
        writer = self._writers.pop(session, None) or SegmentWriter(self._root / session, self._session_bytes)
        self._writers[session] = writer
        if len(self._writers) > MAX_WRITERS:
            del self._writers[next(iter(self._writers))]
        job = asyncio.get_running_loop().run_in_executor(self._thread, writer.append, parts)
        job.add_done_callback(partial(self._written, num_bytes))

    def _written(self, num_bytes: int, job: asyncio.Future[int]) -> None:
        self._waiting_bytes -= num_bytes
        error = None if job.cancelled() else job.exception()
        if error is not None:
            self._metrics.recording_drops.inc()
        elif not job.cancelled():
            self._metrics.recording_bytes.inc(job.result())
        if (error is not None) != self._is_failing:  # once, not once per chunk
            self._is_failing = error is not None
            logger.warning("recordings %s", f"can't be written: {error}" if error else "are written again")

    async def written(self) -> None:
        """Wait until what was handed over up to now lies on disk."""
        await asyncio.get_running_loop().run_in_executor(self._thread, _nothing)

    # --- reading ---------------------------------------------------------------------------------------

    def is_busy(self, owner: str) -> bool:
        """Are as many downloads under way as may be, of all or of what `owner` has?"""
        owners = [download.owner for download in self._downloads]
        return len(owners) >= MAX_DOWNLOADS or owners.count(owner) >= MAX_DOWNLOADS_EACH

    async def open(self, session: SessionId, owner: str) -> Download | None:
        """What is recorded of the session up to now, as an MP4 file; None: nothing. Raises OSError."""
        download = Download(self._root / session, owner)
        self._downloads.add(download)
        async with self._making:
            await self.written()
            await download.make()
        return download if download.length else None

    # --- limits ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            try:
                await self.sweep(time.time())
            except OSError as exc:
                logger.warning("recordings can't be swept: %s", exc)
            except StoreError as exc:
                logger.debug("recordings are swept later: %s", exc)
            await asyncio.sleep(SWEEP_EVERY_S)

    async def sweep(self, now_s: float) -> None:
        """Bring the folder within its limit and drop recordings whose sessions nobody knows any more.

        A closed session is known for `retain_s`. Raises OSError, StoreUnavailable.
        """
        stock = await asyncio.to_thread(
            take_stock, self._root, limit_bytes=self._total_bytes, now_s=now_s, rest_s=REST_S
        )
        self._metrics.recordings.set(stock.num_bytes)
        records = await self._store.get_sessions(SessionId(name) for name in stock.rested)
        forgotten = [session for session, record in records.items() if record is None]
        if forgotten and await self._store.is_settled():
            for session in forgotten:
                self._writers.pop(session, None)
                await asyncio.to_thread(remove, self._root / session)

    async def close(self) -> None:
        """Finish what was handed over."""
        await asyncio.to_thread(self._thread.shutdown)


class Take:
    """What one connection adds to its session's recording: nothing is known of it before the first chunk."""

    def __init__(self, recorder: Recorder, session: SessionId) -> None:
        self._recorder = recorder
        self._session = session
        self._parts: list[tuple[ChunkHeader, bytes]] = []

    def add(self, header: ChunkHeader, payload: bytes | memoryview) -> None:
        """A part as it was relayed; a repeated part 0 begins its chunk anew."""
        if header.part == 0:
            self._parts = []
        self._parts.append((header, bytes(payload)))
        if len(self._parts) == header.parts:
            self._recorder.write(self._session, self._parts)
            self._parts = []


class Download:
    """An MP4 file that has no name any more: it is gone with whoever reads it."""

    def __init__(self, folder: Path, owner: str) -> None:
        self.length = 0
        self.owner = owner
        self._folder = folder
        self._file: BinaryIO | None = None

    async def make(self) -> None:
        """In a process of its own: seconds of work would hold up the streams of this one.

        Raises OSError.
        """
        path = download_path(self._folder)
        if not await asyncio.to_thread(self._folder.is_dir):
            return
        try:
            status = await _run("-m", "gateway.segments", str(self._folder), str(path))
            if status == FAILED:
                raise OSError(f"{path} can't be made; why was told above")
            if status not in (MADE, NOTHING):
                raise RuntimeError(f"making {path} ended with status {status}")
            if status == MADE:
                await asyncio.to_thread(self._open, path)
        finally:
            await asyncio.to_thread(path.unlink, missing_ok=True)

    def _open(self, path: Path) -> None:
        self._file = path.open("rb")
        self.length = path.stat().st_size

    async def read(self) -> AsyncGenerator[bytes, None]:
        """The file, once."""
        assert self._file is not None, "only for a file that was made"
        with contextlib.closing(self._file) as file:
            while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
                yield piece

    def __del__(self) -> None:
        if self._file is not None:  # nobody read it: the client was gone
            self._file.close()


async def _run(*arguments: str) -> int:
    """The exit status of a Python of ours, which does not outlive a cancelled wait."""
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdin=DEVNULL, stdout=DEVNULL)
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _nothing() -> None:
    pass
