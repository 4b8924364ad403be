"""What one core's gateway relays, and what a viewer and a connection cost it.

The gateway has one core to itself, as a process of its own with its own Redis. On the other core a source
speaks the engines' side of the link, and a sink is all the clients (`bench/gateway_ends.py`): 60 KB per
0.75 s for each stream, from `--links` links, in `--parts` parts; `stats` after each chunk; clients that
acknowledge each chunk at once and 500 ms later.

    latency     from before the source writes a message to when the sink has its last byte: all that the relay
                adds, and what source and sink need besides
    streams     the most of the ladder with p99 <= 20 ms and everything delivered
    bare        the same bytes over a relay that is nothing but `websockets` (`bench/gateway_bare.py`),
                without `stats` and acknowledgements; right after ours at each number of streams
    send-only   a `websockets` server that makes 1,000 such streams itself: for scale
    viewers     CPU of the gateway per part and viewer: one session, many who watch it
    memory      resident bytes of the gateway per connection with a session, before and after streaming

A run is not valid where source and sink need more than 80 % of their core, or others more than 5 % of the
gateway's. Others' load on both cores is printed. CPU is that of the scheduler's own counters (ns), not ticks.

Run: .venv/bin/python -m bench.gateway [--streams 500,1000,1500,2000,2500,3000,3500] [--parts 1]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gateway_ends import CHUNK_S, pin
from bench.stats import machine, print_json, print_table
from launch.redis_server import command as redis_command
from launch.redis_server import find_server, prepare
from scheduler.messages import EngineId, ModelInfo, SessionId
from scheduler.store import Store

SECRET = "bench-link-secret"
MODEL = ModelInfo(
    name="bench",
    weights_hash="00",
    state_version=1,
    width=832,
    height=480,
    fps=16,
    chunk_frames=12,
    controls=False,
)
BATCH = 32
"""Sessions that are started together."""
P99_LIMIT_MS = 20.0
MAX_ENDS_SHARE = 0.8
MAX_OTHERS_SHARE = 0.05
QUIET_SHARE = 0.15
GRACE_S = 0.5
SENDER_STREAMS = 1000
NAMES = ("gateway", "bare")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One run at one number of streams."""

    relay: str
    streams: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    sent: int
    received: int
    us_per_message: float
    """CPU of the relay."""
    relay_share: float
    """CPU of the relay / time."""
    source_share: float
    sink_share: float
    others_share: tuple[float, float]
    """CPU of everybody else on the relay's core and on the other."""
    late_ms: float
    """The source's worst delay."""

    def is_valid(self) -> bool:
        ends = self.source_share + self.sink_share
        return ends <= MAX_ENDS_SHARE and self.others_share[0] <= MAX_OTHERS_SHARE

    def holds(self) -> bool:
        return self.p99_ms <= P99_LIMIT_MS and self.received == self.sent


class End:
    """A process of `bench.gateway_ends`."""

    def __init__(self, role: str, core: int, *arguments: str) -> None:
        command = [sys.executable, "-m", "bench.gateway_ends", role, "--core", str(core), *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.hello = self.answer()

    def tell(self, **command: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Raises RuntimeError: it died."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("an end of the benchmark died")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, **command: object) -> dict[str, Any]:
        self.tell(**command)
        return self.answer()


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayPath:
    """Source, relay and sink of one kind of relay."""

    name: str
    pid: int
    source: End
    sink: End


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cpu_s(pid: int) -> float:
    """CPU seconds of a process, all threads."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def busy_s(core: int) -> float:
    """Seconds that a core was not idle since boot."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(int, ticks)
            return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    raise ValueError(f"there is no core {core}")


@contextlib.contextmanager
def process(
    core: int, command: list[str], env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs on one core until the block ends."""
    child = subprocess.Popen(command, env={**os.environ, **(env or {})}, stdout=subprocess.DEVNULL)
    os.sched_setaffinity(child.pid, {core})
    try:
        yield child
    finally:
        child.terminate()
        child.wait(timeout=30)


def await_socket(path: Path) -> None:
    while not path.exists():
        time.sleep(0.05)


def await_port(port: int) -> None:
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"nothing listens on port {port}")


class Bench:
    """Everything that runs; made once."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._ends: list[End] = []
        self._engines: list[EngineId] = []
        self._port = 0
        self.gateway_pid = 0

    def close(self) -> None:
        for end in self._ends:  # before the relays: they would complain of being hung up
            end.process.kill()
            end.process.wait()
        self._stack.close()

    def end(self, role: str, name: str, streams: int, *arguments: str) -> End:
        stamps = str(self._folder / f"stamps-{name}")
        values = ["--stamps", stamps, "--streams", str(streams), *arguments]
        if "--parts" not in arguments:
            values += ["--parts", str(self._options.parts)]
        end = End(role, self._options.ends_core, *values)
        self._ends.append(end)
        return end

    # --- ours ---

    async def gateway(self, links: int, streams: int, viewers: int = 0) -> RelayPath:
        """A gateway, its engines and its clients, all sessions active."""
        name = f"ours-{streams}-{viewers}"
        files = prepare(self._folder / name)
        ends_core = self._options.ends_core
        self._stack.enter_context(process(ends_core, redis_command(find_server(), files)))
        await_socket(files.socket)
        store = await Store.connect(files.url)
        await store.mark_new()
        term = await store.acquire_lease("bench", 3_600_000)
        assert term is not None
        talk = [] if self._options.media_only else ["--stats", "--acks"]
        source = self.end("source", name, streams, "--links", str(links), *talk)
        self._engines = [EngineId(f"e_{i:08x}") for i in range(links)]
        for engine, url in zip(self._engines, source.hello["urls"], strict=True):
            await store.register_engine(engine, url=url, model=MODEL, capacity=100_000)
        self._port = free_port()
        config = {
            "redis": files.url,
            "link_secret": SECRET,
            "port": self._port,
            "queue_limit": 10_000,
            "max_connections": 20_000,
        }
        if self._options.record:
            config["recordings"] = str(self._folder / f"recordings-{name}")
        command = [sys.executable, "-m", "gateway"]
        env = {"TURBOSERVE_GATEWAY_CONFIG": json.dumps(config)}
        child = self._stack.enter_context(process(self._options.relay_core, command, env))
        await asyncio.to_thread(await_port, self._port)
        sink = self.end("sink", name, streams, *talk)
        self.gateway_pid = child.pid
        path = RelayPath(name="gateway", pid=child.pid, source=source, sink=sink)
        await self._fill(path, store, term, streams, viewers)
        await store.close()
        return path

    async def _fill(self, path: RelayPath, store: Store, term: int, streams: int, viewers: int) -> None:
        sessions: list[str] = []
        path.source.tell(do="accept")
        while len(sessions) < streams:
            count = min(BATCH, streams - len(sessions))
            new = (await asyncio.to_thread(path.sink.ask, do="start", port=self._port, count=count))[
                "sessions"
            ]
            for session in new:
                engine = self._engines[len(sessions) % len(self._engines)]
                sessions.append(session)
                epoch = await store.place_session(SessionId(session), engine, expect_epoch=0, term=term)
                await store.announce_session(engine, SessionId(session), epoch)
            if len(sessions) == count:
                await asyncio.to_thread(path.source.answer)  # all links are up
            await asyncio.to_thread(path.source.ask, do="subscribe", sessions=sessions)
            await asyncio.to_thread(path.sink.ask, do="active")
        if viewers:
            arguments = {"port": self._port, "session": sessions[0], "count": viewers}
            await asyncio.to_thread(path.sink.ask, do="watch", **arguments)
            await asyncio.to_thread(path.sink.ask, do="active")

    # --- theirs ---

    def bare(self, links: int, streams: int) -> RelayPath:
        source = self.end("source", "bare", streams, "--links", str(links))
        port = free_port()
        command = [
            sys.executable,
            "-m",
            "bench.gateway_bare",
            "relay",
            "--core",
            str(self._options.relay_core),
        ]
        command += ["--port", str(port), "--links", ",".join(source.hello["urls"])]
        child = self._stack.enter_context(process(self._options.relay_core, command))
        source.ask(do="accept")
        sink = self.end("sink", "bare", streams)
        source.ask(do="bare", streams=streams)
        await_port(port)
        sink.ask(do="bare", port=port, count=streams)
        return RelayPath(name="bare", pid=child.pid, source=source, sink=sink)

    def sender(self, seconds: float) -> dict[str, float]:
        """The send-only server: its share of the core, and the latency at the sink."""
        port = free_port()
        stamps = str(self._folder / "stamps-sender")
        command = [
            sys.executable,
            "-m",
            "bench.gateway_bare",
            "sender",
            "--core",
            str(self._options.relay_core),
        ]
        command += ["--port", str(port), "--streams", str(SENDER_STREAMS), "--stamps", stamps]
        with process(self._options.relay_core, command) as child:
            await_port(port)
            sink = self.end("sink", "sender", SENDER_STREAMS, "--parts", "1")
            sink.ask(do="bare", port=port, count=SENDER_STREAMS)
            time.sleep(2)
            before_s, began_s = cpu_s(child.pid), time.perf_counter()
            sink.ask(do="run", first=0, until=began_s + seconds)
            got = sink.answer()
            share = (cpu_s(child.pid) - before_s) / (time.perf_counter() - began_s)
            return {"share": share, "p99_ms": got["p99_ms"], "messages": got["media"]}

    # --- runs ---

    def run(self, path: RelayPath, streams: int, first: int, seconds: float) -> Rung:
        """`first`: messages that each stream has sent so far."""
        cores = (self._options.relay_core, self._options.ends_core)
        busy = [busy_s(core) for core in cores]
        relay_s, began_s = cpu_s(path.pid), time.perf_counter()
        path.sink.ask(do="run", first=first, until=began_s + seconds + GRACE_S)
        sent = path.source.ask(do="run", streams=streams, rounds=round(seconds / CHUNK_S))
        got = path.sink.answer()
        wall_s = time.perf_counter() - began_s
        relay_s = cpu_s(path.pid) - relay_s
        busy = [busy_s(core) - before for core, before in zip(cores, busy, strict=True)]
        ours = (relay_s, sent["cpu_s"] + got["cpu_s"])
        others = [max(0.0, (total - own) / wall_s) for total, own in zip(busy, ours, strict=True)]
        messages = sent["chunks"] * self._options.parts
        return Rung(
            relay=path.name,
            streams=streams,
            p50_ms=got["p50_ms"] or float("inf"),
            p99_ms=got["p99_ms"] or float("inf"),
            max_ms=got["max_ms"] or float("inf"),
            sent=messages,
            received=got["media"],
            us_per_message=1e6 * relay_s / max(1, got["media"]),
            relay_share=relay_s / seconds,
            source_share=sent["cpu_s"] / seconds,
            sink_share=got["cpu_s"] / seconds,
            others_share=(others[0], others[1]),
            late_ms=sent["worst_late_ms"],
        )


def ladder(bench: Bench, paths: list[RelayPath], options: argparse.Namespace) -> list[Rung]:
    """Each number of streams at each relay, until a relay fails a valid run of one."""
    rungs: list[Rung] = []
    first = {path.name: 0 for path in paths}
    failed: set[str] = set()
    rounds = max(4, round(options.seconds / CHUNK_S))  # of chunks, whole
    for count in (int(count) for count in options.streams.split(",")):
        for path in paths:
            for _ in range(0 if path.name in failed else options.tries):
                await_quiet((options.relay_core, options.ends_core), options.patience)
                rung = bench.run(path, count, first[path.name], rounds * CHUNK_S)
                show(rung)
                rungs.append(rung)
                first[path.name] += rounds * options.parts
                if rung.is_valid():
                    break
            if rungs[-1].is_valid() and not rungs[-1].holds():
                failed.add(path.name)
    return rungs


def await_quiet(cores: tuple[int, ...], patience_s: float) -> None:
    """Until these cores were idle for a second, but no longer than this."""
    give_up_s = time.monotonic() + patience_s
    while time.monotonic() < give_up_s:
        before = [busy_s(core) for core in cores]
        time.sleep(1)
        if all(busy_s(core) - then < QUIET_SHARE for core, then in zip(cores, before, strict=True)):
            return


def show(rung: Rung) -> None:
    print(
        f"  {rung.relay} {rung.streams}: p99 {rung.p99_ms:.1f} ms, {rung.relay_share:.0%} of the core",
        flush=True,
    )


def has_limit(rungs: list[Rung], relay: str) -> bool:
    """Was there a number of streams that this relay did not hold?"""
    return any(rung.relay == relay and rung.is_valid() and not rung.holds() for rung in rungs)


def best(rungs: list[Rung], relay: str) -> int:
    held = [rung.streams for rung in rungs if rung.relay == relay and rung.holds() and rung.is_valid()]
    return max(held, default=0)


def row(rung: Rung) -> list[object]:
    verdict = "holds" if rung.holds() else "fails"
    return [
        rung.relay,
        rung.streams,
        f"{rung.p50_ms:.1f}",
        f"{rung.p99_ms:.1f}",
        f"{rung.max_ms:.1f}",
        f"{rung.received}/{rung.sent}",
        f"{rung.us_per_message:.0f}",
        f"{rung.relay_share:.0%}",
        f"{rung.source_share:.0%} + {rung.sink_share:.0%}",
        f"{rung.others_share[0]:.0%}, {rung.others_share[1]:.0%}",
        f"{rung.late_ms:.0f}",
        verdict if rung.is_valid() else f"{verdict}, NOT VALID",
    ]


COLUMNS = (
    "relay",
    "streams",
    "p50 ms",
    "p99 ms",
    "max ms",
    "received",
    "µs CPU per message",
    "relay's core",
    "source + sink",
    "others (relay's core, ends' core)",
    "source late ms",
    "",
)


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    bench = Bench(options, folder)
    counts = [int(count) for count in options.streams.split(",")]
    try:
        empty = await bench.gateway(1, 1)
        empty_bytes = resident_bytes(empty.pid)
        ours = await bench.gateway(options.links, max(counts))
        full_bytes = resident_bytes(ours.pid)
        paths = [ours, bench.bare(options.links, max(counts))] if options.bare else [ours]
        rungs = ladder(bench, paths, options)
        after_bytes = resident_bytes(ours.pid)
        sender = bench.sender(options.seconds) if options.bare else None
        fanout = None
        if options.viewers:
            watched = await bench.gateway(1, 1, options.viewers)
            fanout = fan_out(bench, watched, options.viewers, options.seconds)
        await asyncio.sleep(0)
    finally:
        bench.close()
    print_table(COLUMNS, [row(rung) for rung in rungs])
    held, bare = best(rungs, "gateway"), best(rungs, "bare")
    return {
        "bench": "gateway",
        "parts": options.parts,
        "links": options.links,
        "media_only": options.media_only,
        "record": options.record,
        "streams": held,
        "bare_streams": bare,
        "ratio": round(held / bare, 2) if bare and has_limit(rungs, "bare") else None,
        "cpu_ratio": cpu_ratio(rungs),
        "send_only": sender,
        "viewer_us": fanout,
        "memory_per_connection": round((full_bytes - empty_bytes) / max(counts)),
        "memory_per_connection_after": round((after_bytes - empty_bytes) / max(counts)),
    }


def cpu_ratio(rungs: list[Rung]) -> float | None:
    """CPU per message, bare / ours, the best at the largest number of streams that both delivered."""
    by_relay = {name: [r for r in rungs if r.relay == name and r.received >= r.sent] for name in NAMES}
    both = set.intersection(*({rung.streams for rung in runs} for runs in by_relay.values()))
    if not both:
        return None
    us = {
        name: [rung.us_per_message for rung in runs if rung.streams == max(both)]
        for name, runs in by_relay.items()
    }
    return round(min(us["bare"]) / min(us["gateway"]), 2)


def fan_out(bench: Bench, path: RelayPath, viewers: int, seconds: float) -> float:
    """CPU microseconds of the gateway per part and viewer."""
    rounds = max(4, round(seconds / CHUNK_S))
    rung = bench.run(path, 1, 0, rounds * CHUNK_S)
    show(rung)
    if rung.received != rung.sent * (viewers + 1):
        print(f"  viewers got {rung.received} of {rung.sent * (viewers + 1)} parts")
    return round(rung.us_per_message, 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", default="500,1000,1500,2000,2500,3000,3500")
    parser.add_argument("--seconds", type=float, default=9.0, help="of each run")
    parser.add_argument("--parts", type=int, default=1, help="of a chunk; engines make 3 at 480p")
    parser.add_argument("--links", type=int, default=8)
    parser.add_argument("--viewers", type=int, default=500)
    parser.add_argument("--relay-core", type=int, default=0)
    parser.add_argument("--ends-core", type=int, default=1)
    parser.add_argument("--no-bare", dest="bare", action="store_false", help="only ours")
    parser.add_argument("--media-only", action="store_true", help="no stats and acks: the bare relay's work")
    parser.add_argument("--record", action="store_true", help="every session, to a temporary folder")
    parser.add_argument("--tries", type=int, default=1, help="of a run that others disturbed")
    parser.add_argument(
        "--patience", type=float, default=0.0, help="seconds to wait for idle cores, each run"
    )
    options = parser.parse_args()
    pin(options.ends_core)
    print(f"machine: {machine()}, load {os.getloadavg()[0]:.2f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="ts-gateway-") as folder:
        result = asyncio.run(measure(options, Path(folder)))
    print_json(result)


if __name__ == "__main__":
    main()
