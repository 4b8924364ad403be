"""A whole cluster for a benchmark: `turboserve up` as a user starts it, in a directory of its own."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_TIMEOUT_S = 150.0
PER_ENGINE_S = 15.0
STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchCluster:
    url: str
    folder: Path
    started_s: float
    """Seconds from the command to the first moment at which every engine was ready."""


@contextmanager
def running_cluster(
    *arguments: str, engines: int, capacity: int, threads: int = 1, device: str = "cpu"
) -> Iterator[BenchCluster]:
    """A ready cluster on a free port, stopped at the end. arguments: more of `turboserve up`.

    Raises:
        RuntimeError: it was not ready within START_TIMEOUT_S, and PER_ENGINE_S for each engine; the text
            holds what it printed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="ts-bench-") as folder:
        began = time.monotonic()
        command = [sys.executable, "-m", "launch", "up", "--engines", str(engines), "--device", device]
        command += ["--port", str(port), "--dir", folder, "--capacity", str(capacity)]
        command += ["--threads", str(threads), *arguments]
        log_path = Path(folder) / "bench-up.log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_ready(process, url, engines, began, log_path)
            yield BenchCluster(url=url, folder=Path(folder), started_s=time.monotonic() - began)
        finally:
            process.terminate()  # SIGINT is ignored by what a shell script starts in the background
            process.wait(timeout=STOP_TIMEOUT_S)


def _wait_ready(
    process: subprocess.Popen[bytes], url: str, engines: int, began: float, log_path: Path
) -> None:
    while time.monotonic() - began < START_TIMEOUT_S + PER_ENGINE_S * engines:
        if process.poll() is not None:
            break
        if _num_ready(url) >= engines:
            return
        time.sleep(0.05)
    raise RuntimeError(f"the cluster did not get ready:\n{log_path.read_text()}")


def _num_ready(url: str) -> int:
    try:
        with urllib.request.urlopen(f"{url}/v1/cluster", timeout=1) as answer:
            cluster = json.load(answer)
    except OSError:
        return 0
    return sum(engine["state"] == "ready" for engine in cluster["engines"])
