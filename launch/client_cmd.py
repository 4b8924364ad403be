"""`turboserve client`: one session from the terminal into a video file."""

from __future__ import annotations

import asyncio
import signal
import sys
import time

from gateway.client import ClientError, record
from launch.config import ClientConfig

__all__ = ["run"]

_TICK_S = 0.25
EXIT_INTERRUPTED = 130


async def run(config: ClientConfig) -> int:
    """Record the session, showing progress on a terminal.

    Returns 0, 1 when it failed, 130 when it was interrupted: what was recorded until then is kept.
    """
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    work = record(
        config.url,
        config.prompt,
        config.seconds,
        config.seed,
        config.output,
        token=config.token,
        stop=stop,
    )
    ticker = asyncio.create_task(_show_progress(config)) if sys.stderr.isatty() else None
    start_s = time.monotonic()
    try:
        recording = await work
    except (ClientError, OSError, ValueError) as exc:
        failure: Exception | None = exc
    else:
        failure = None
    if ticker is not None:
        ticker.cancel()
        sys.stderr.write("\r\x1b[K")
    if failure is not None:
        print(f"turboserve client: {str(failure) or type(failure).__name__} ({config.url})", file=sys.stderr)
        return 1
    if not recording.num_chunks:
        print("turboserve client: interrupted before the first chunk", file=sys.stderr)
        return EXIT_INTERRUPTED
    print(
        f"{recording.path}: {recording.num_frames} frames, {recording.num_chunks} chunks, "
        f"{recording.duration_s:.2f} s of video in {time.monotonic() - start_s:.1f} s"
    )
    return EXIT_INTERRUPTED if stop.is_set() else 0


async def _show_progress(config: ClientConfig) -> None:
    start_s = time.monotonic()
    while True:
        elapsed_s = time.monotonic() - start_s
        sys.stderr.write(f"\r\x1b[Krecording {config.seconds:g} s from {config.url} … {elapsed_s:.1f} s")
        sys.stderr.flush()
        await asyncio.sleep(_TICK_S)
