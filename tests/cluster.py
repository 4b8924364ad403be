"""A real cluster for tests: `turboserve up` as a user starts it, watched through `run.json` and HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

SCALE = float(os.environ.get("TURBOSERVE_TEST_TIME_SCALE", "1"))
POLL_S = 0.03
READY_TIMEOUT_S = 60.0 * SCALE

T = TypeVar("T")


def free_port() -> int:
    """A TCP port that was free a moment ago. None that the system gives to whoever asks for any: others may
    ask before it is used."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            port = random.randrange(11_000, 32_000)
            probe.bind(("127.0.0.1", port))
            return port


def wait_for(what: str, condition: Callable[[], T | None], timeout_s: float = 30.0 * SCALE) -> T:
    """The first true value of `condition`. Fails, naming `what`, when there is none in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout_s:g} s still not: {what}")
        time.sleep(POLL_S)


async def until(condition: Callable[[], bool], timeout_s: float = 30.0 * SCALE) -> None:
    """Return when `condition` holds, for what other processes do and no event tells."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(POLL_S)


def command_of(pid: int) -> str:
    """What `ps` shows."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode()


def killed_parent(program: str) -> list[int]:
    """Run a Python program that prints pids on one line and goes on, and kill it; returns the pids, of
    processes that ran then."""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    started = [int(pid) for pid in parent.stdout.readline().split()]
    assert started and all(map(is_running, started))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    return started


def is_running(pid: int) -> bool:
    """Is there such a process, and not only its remains?"""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def parent_of(pid: int) -> int:
    """The parent process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def descendants(pid: int) -> list[int]:
    """All processes below one, zombies left out."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and is_running(int(entry.name)):
            try:
                parent = parent_of(int(entry.name))
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


class Cluster:
    """A cluster that runs in a folder of its own."""

    def __init__(self, directory: Path, port: int, *arguments: str) -> None:
        self.dir = directory
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.output = directory.with_suffix(".out")
        command = [sys.executable, "-m", "launch", "up", "--port", str(port), "--dir", str(directory)]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, "--device", "cpu", *arguments], stdout=output, stderr=subprocess.STDOUT
            )

    def run_json(self) -> dict[str, Any]:
        """The file as it is now."""
        content: dict[str, Any] = json.loads((self.dir / "run.json").read_text())
        return content

    def pids(self, prefix: str) -> dict[str, int]:
        """Name → pid of the processes whose name starts with `prefix`."""
        try:
            processes = self.run_json()["processes"]
        except FileNotFoundError:
            return {}
        return {p["name"]: p["pid"] for p in processes if p["name"].startswith(prefix)}

    def get(self, path: str) -> Any:
        """The JSON answer of the gateway, None while it does not answer."""
        token = os.environ.get("TURBOSERVE_TOKEN")
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        try:
            request = urllib.request.Request(f"{self.url}{path}", headers=headers)
            with urllib.request.urlopen(request, timeout=5 * SCALE) as answer:
                return json.load(answer)
        except (urllib.error.URLError, OSError, ValueError):
            return None

    def order(self, what: str, **fields: object) -> int:
        """See `order`."""
        return order(self.url, what, **fields)

    def post(self, path: str, body: dict[str, object]) -> int:
        """See `post`."""
        return post(self.url, path, body)

    def listed(self, what: str) -> list[dict[str, Any]]:
        """The `sessions` or `engines` of /v1/cluster, as soon as the gateway answers."""
        answer = wait_for("an answer of the gateway", lambda: self.get("/v1/cluster"))
        found: list[dict[str, Any]] = answer[what]
        return found

    def engines(self, state: str = "ready") -> list[str]:
        """Ids of the engines in a state, as the gateway knows them."""
        cluster = self.get("/v1/cluster") or {"engines": []}
        return [engine["id"] for engine in cluster["engines"] if engine["state"] == state]

    def other_engine(self, engine: str) -> str:
        """Of two that are ready, the one beside `engine`."""
        (other,) = {e["id"] for e in self.listed("engines") if e["state"] == "ready"} - {engine}
        return str(other)

    def wait_ready(self, num_engines: int) -> None:
        """Return when so many engines take sessions, and the gateway lets clients start."""

        def ready() -> bool:
            if self.process.poll() is not None:
                return True
            return len(self.engines()) >= num_engines and is_ready(self.port)

        try:
            wait_for(f"{num_engines} engines ready", ready, READY_TIMEOUT_S)
            assert self.process.poll() is None, "the cluster ended while it started"
        except AssertionError as exc:
            exc.add_note(f"it printed:\n{self.printed()}\nits logs:\n{self.logs()}")
            raise

    def logs(self) -> str:
        """The end of every process's log."""
        files = sorted((self.dir / "logs").glob("*.log"))
        return "\n".join(f"{file.name}\n{file.read_text(errors='replace')[-2_000:]}" for file in files)

    def printed(self) -> str:
        """Everything that it has printed so far."""
        return self.output.read_text(errors="replace")

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Ask it to end; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout=30 * SCALE)


FOREIGN_PORT = free_port()
FOREIGN_ORIGIN = f"http://localhost:{FOREIGN_PORT}"
"""Of pages that the shared cluster takes; a test may serve them there."""


@contextmanager
def running_cluster(*arguments: str, engines: int = 2) -> Iterator[Cluster]:
    """A ready cluster with so many engines; stopped at the end, and nothing of it left.

    Clients get the full bitrate however late they are on this machine: pictures are compared exactly. On a
    machine that is known as slow, an engine may be silent for longer before it counts as lost.
    """
    # Not pytest's own folders: their names are too long for sockets, which the fallback has tests for.
    folder = Path(tempfile.mkdtemp(prefix="ts-"))
    settings = ("--no-low-rung", "--heartbeat-timeout-ms", f"{max(2_000, 2_000 * SCALE):.0f}")
    cluster = Cluster(folder / "run", free_port(), "--engines", str(engines), *settings, *arguments)
    try:
        cluster.wait_ready(engines)
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)


def post(url: str, path: str, body: dict[str, object]) -> int:
    """The status of the answer of the gateway there."""
    request = urllib.request.Request(
        f"{url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5 * SCALE) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as exc:
        exc.close()
        return exc.code


def order(url: str, what: str, **fields: object) -> int:
    """Have the gateway there do `/v1/admin/<what>`; returns the status. Who is told that Redis is out of
    reach, as it is when it stands still for 2 s, asks again."""

    def status() -> int | None:
        answered = post(url, f"/v1/admin/{what}", fields)
        return None if answered == 503 else answered

    return wait_for(f"an answer to {what}", status)


def is_ready(port: int) -> bool:
    """Does the gateway there let clients start?"""
    url = f"http://127.0.0.1:{port}/readyz"
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5 * SCALE) as answer:
        return bool(answer.status == 200)
    return False
