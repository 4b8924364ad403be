"""`turboserve loadtest`: workers with clients, the cluster watched meanwhile, results judged and written."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import random
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from launch.config import http_address
from launch.http_get import get, read_cluster
from launch.loadtest.config import DEFAULT_SECONDS, LoadtestConfig
from launch.loadtest.live import LiveTable, summary
from launch.loadtest.load import Script, clip, invent, make_scripts, share_out
from launch.loadtest.objectives import Objective, fair_wait_ms, judge
from launch.loadtest.phases import Phase, invent_step, phase_figures, step_phases
from launch.loadtest.report import report
from launch.loadtest.samples import Assignment, Begin, Ready, from_worker, line
from launch.loadtest.tally import ClientLog, ClusterSample, Tally
from launch.outputs import check_writable
from launch.settings import SettingsError
from launch.supervisor import StartError
from launch.trace_file import load_trace
from scheduler.trace import Trace

__all__ = ["run"]

START_DELAY_S: Final = 0.2
"""From the word that all workers are ready to the load's start."""
POLL_S: Final = 0.5
POLL_TIMEOUT_S: Final = 5.0
SHOW_SHARE: Final = 9.0
"""Between two looks at how it stands, in times of what the first of them took."""
MAX_LINE_BYTES: Final = 1024 * 1024
NUM_WORST: Final = 10
MAX_POINTS: Final = 2_000
"""Of one cloud in the report."""
LATE_MS: Final = 50.0
"""A client process that is later than this, more often than one time in a hundred, is too busy."""
_ASKED: Final = frozenset({"engines", "sessions", "queue", "policy"})
"""Of the cluster."""


async def run(config: LoadtestConfig) -> int:
    """Play the load, show it, write the files. Returns 0 when every objective held, else 1.

    Raises:
        SettingsError: the trace can't be used, or has nobody in it.
        StartError: no cluster answers, a client process died, or a file can't be written.
    """
    trace = _trace(config)
    chance = random.Random(config.seed)
    scripts = make_scripts(
        trace,
        slow_share=config.slow_share,
        reconnect_every_s=config.reconnect_every_s,
        draw=chance.random,
    )
    if not scripts:
        raise SettingsError("the load has no sessions: give it more viewers, a longer time or another trace")
    cluster = _ClusterWatch(http_address(config.url) + "/v1/cluster", config.token or None)
    await cluster.check()
    for path in filter(None, (config.json, config.html)):
        check_writable(path)
    tally = Tally()
    with LiveTable(f"load on {config.url}", trace.duration_s) as table:
        await _play(config, scripts, cluster, tally, table)
    result = _result(config, trace, len(scripts), tally)
    _write(config, result)
    _conclude(config, result, tally, trace.duration_s * 1000.0)
    return 0 if result["held"] else 1


def _trace(config: LoadtestConfig) -> Trace:
    chance = random.Random(config.seed)
    if config.trace is None:
        make = invent_step if _is_step(config) else invent
        return make(
            viewers=config.viewers,
            seconds=config.seconds or DEFAULT_SECONDS,
            life_s=config.life_s,
            idle_share=config.idle_share,
            edit_every_s=config.edit_every_s,
            draw=chance.random,
        )
    trace = load_trace(config.trace).scaled(config.time_scale)
    return trace if config.seconds is None else clip(trace, config.seconds)


def _is_step(config: LoadtestConfig) -> bool:
    return config.trace is None and config.shape == "step"


async def _play(
    config: LoadtestConfig,
    scripts: Sequence[Script],
    cluster: _ClusterWatch,
    tally: Tally,
    table: LiveTable,
) -> None:
    async with _workers(config, share_out(scripts, config.processes)) as workers:
        begin_s = time.monotonic() + START_DELAY_S
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write(line(Begin(at_s=begin_s)))
        watching = asyncio.create_task(_watch(cluster, begin_s, tally, table))
        try:
            async with asyncio.TaskGroup() as group:
                for worker in workers:
                    group.create_task(_hear(worker, tally))
        except* StartError as group_error:
            raise group_error.exceptions[0] from None
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


@contextlib.asynccontextmanager
async def _workers(
    config: LoadtestConfig, shares: Sequence[Sequence[Script]]
) -> AsyncIterator[list[Process]]:
    """Processes that are ready to begin; none is left at the end."""
    workers: list[Process] = []
    try:
        for share in shares:
            worker = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "launch.loadtest.worker"),
                stdin=PIPE,
                stdout=PIPE,
                limit=MAX_LINE_BYTES,
                env=os.environ | {"PYTHONSAFEPATH": "1"},
                start_new_session=True,  # a terminal's Ctrl-C reaches only us
            )
            workers.append(worker)
            assert worker.stdin is not None
            assignment = Assignment(
                url=config.url, token=config.token or None, decode=config.decode, scripts=tuple(share)
            )
            worker.stdin.write(line(assignment))
        for worker in workers:
            assert worker.stdout is not None
            if not isinstance(_message(await worker.stdout.readline()), Ready):
                raise StartError("a client process did not get ready")
        yield workers
    finally:
        for worker in workers:
            if worker.returncode is None:
                worker.kill()
            await worker.wait()


def _message(data: bytes) -> object:
    return from_worker(data) if data else None


async def _hear(worker: Process, tally: Tally) -> None:
    """Everything that a worker says, until it has ended."""
    assert worker.stdout is not None
    async for data in worker.stdout:
        if not data.endswith(b"\n"):
            break  # it was killed amid a line
        message = from_worker(data)
        assert not isinstance(message, Ready)
        tally.add(message)
    if await worker.wait() != 0:
        raise StartError(f"a client process ended with status {worker.returncode}")


async def _watch(cluster: _ClusterWatch, begin_s: float, tally: Tally, table: LiveTable) -> None:
    show_s = 0.0
    while True:
        at_ms = (time.monotonic() - begin_s) * 1000.0
        sample = await cluster.sample(at_ms)
        if sample is not None:
            tally.cluster.append(sample)
        began_s = time.monotonic()
        if began_s >= show_s:
            with contextlib.suppress(BrokenPipeError):  # nobody reads that; the load goes on
                table.update(tally, at_ms)
            # After hours there is much to sort, while the clients' samples wait: a tenth of the time at most.
            show_s = time.monotonic() + SHOW_SHARE * (time.monotonic() - began_s)
        await asyncio.sleep(POLL_S)


class _ClusterWatch:
    """Asks the gateway how the cluster is, and this machine how busy its cores are."""

    def __init__(self, url: str, token: str | None) -> None:
        self._url = url
        self._token = token
        self._cpu = _cpu_times()

    async def check(self) -> None:
        """Raises StartError: no cluster answers, or it wants another token."""
        try:
            await self._ask()
        except PermissionError as exc:
            raise StartError(
                f"{self._url} answers with {exc}: "
                "TURBOSERVE_TOKEN must be a token with the scopes control and admin"
            ) from exc
        except (OSError, ValueError) as exc:
            raise StartError(f"no cluster answers at {self._url}: {str(exc) or 'timeout'}") from exc

    async def sample(self, at_ms: float) -> ClusterSample | None:
        """None while the gateway doesn't answer."""
        before, self._cpu = self._cpu, _cpu_times()
        busy, total = (now - then for now, then in zip(self._cpu, before, strict=True))
        try:
            answer = await self._ask()
        except (OSError, ValueError):
            return None
        return ClusterSample(
            at_ms=at_ms,
            engines=Counter(engine["state"] for engine in answer["engines"]),
            active=sum(s["state"] == "active" and s["engine"] is not None for s in answer["sessions"]),
            queue=answer["queue"],
            policy=answer["policy"],
            cpu_share=busy / total if total else 0.0,
        )

    async def _ask(self) -> dict[str, Any]:
        status, body = await get(self._url, timeout_s=POLL_TIMEOUT_S, token=self._token)
        if status in (401, 403):
            raise PermissionError(f"HTTP status {status}")
        if status != 200:
            raise ConnectionError(f"HTTP status {status}")
        return read_cluster(body, _ASKED)


def _cpu_times() -> tuple[int, int]:
    """(busy, all) ticks of all cores since the machine started."""
    first = Path("/proc/stat").read_text(encoding="utf-8").partition("\n")[0]
    user, nice, system, idle, iowait, *others = map(int, first.split()[1:9])
    busy = user + nice + system + sum(others)
    return busy, busy + idle + iowait


# --- results ------------------------------------------------------------------------------------------------


def _result(config: LoadtestConfig, trace: Trace, clients: int, tally: Tally) -> dict[str, Any]:
    end_ms = trace.duration_s * 1000.0
    fair_ms = fair_wait_ms(config)
    figures = tally.figures(end_ms=end_ms, fair_wait_ms=fair_ms)
    objectives = judge(figures, config)
    started = [log.started for log in tally.clients.values() if log.started is not None]
    return {
        "kind": "loadtest",
        "held": all(objective.held for objective in objectives),
        "models": sorted({start.model for start in started}),
        "policy": tally.cluster[-1].policy if tally.cluster else "",
        "url": config.url,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.node()}, {os.cpu_count()} cores",
        "load": {
            "source": f"trace {Path(config.trace).name}" if config.trace else f"made-up {config.shape} load",
            "seconds": round(trace.duration_s, 3),
            "time_scale": config.time_scale if config.trace else 1.0,
            "clients": clients,
            "processes": config.processes,
            "seed": config.seed,
        },
        **figures,
        "fair_wait_ms": fair_ms,
        "objectives": [_objective(objective) for objective in objectives],
        "problems": tally.problems(),
        "worst_sessions": _worst(tally),
        "phases": phase_figures(tally, _phases(config)),
        "series": tally.series(end_ms=end_ms),
        "cluster_series": tally.cluster_series(end_ms=end_ms),
        "points": {
            "chunk_ms": max((start.chunk_ms for start in started), default=0.0),
            "ttfc": _cloud((s.at_ms, s.ttfc_ms) for s in tally.first_parts),
            "prompt": _cloud((s.at_ms, s.picture_ms) for s in tally.fast_edits()),
            "unserved": _cloud(
                (end.at_ms, end.waited_ms) for end in tally.unserved() if end.waited_ms is not None
            ),
            "cpr": [round(value, 4) for value in sorted(tally.cprs())],
        },
    }


def _cloud(points: Iterable[tuple[float, float]]) -> list[list[float]]:
    """[s, ms] of each, in order of time; of so many neighbours that MAX_POINTS are left the longest one."""
    ordered = sorted(points)
    size = max(1, -(-len(ordered) // MAX_POINTS))
    groups = (ordered[at : at + size] for at in range(0, len(ordered), size))
    longest = (max(group, key=lambda point: point[1]) for group in groups)
    return [[round(at_ms / 1000, 2), round(ms)] for at_ms, ms in longest]


def _phases(config: LoadtestConfig) -> tuple[Phase, ...]:
    return step_phases(config.seconds or DEFAULT_SECONDS) if _is_step(config) else ()


def _objective(objective: Objective) -> dict[str, Any]:
    return asdict(objective) | {"held": objective.held}


def _worst(tally: Tally) -> list[dict[str, Any]]:
    """Those who stood still though they read as fast as they can, the least continuous first."""

    def cpr(log: ClientLog) -> float:
        return 1.0 if log.cpr is None else log.cpr

    stalled = [log for log in tally.clients.values() if log.stalls and not log.is_slow]
    return [
        {
            "client": log.client,
            "session": log.started.session if log.started is not None else "",
            "cpr": round(cpr(log), 4),
            "stalls": len(log.stalls),
            "longest_stall_ms": round(max(stall.length_ms for stall in log.stalls), 1),
            "moves": log.moves,
            "chunks": log.chunks,
        }
        for log in sorted(stalled, key=cpr)[:NUM_WORST]
    ]


def _write(config: LoadtestConfig, result: dict[str, Any]) -> None:
    try:
        Path(config.json).write_text(json.dumps(result) + "\n", encoding="utf-8")
        if config.html is not None:
            Path(config.html).write_text(report(result), encoding="utf-8")
    except OSError as exc:
        raise StartError(f"the results can't be written: {exc}") from exc


def _conclude(config: LoadtestConfig, result: dict[str, Any], tally: Tally, end_ms: float) -> None:
    print(summary(tally, end_ms))
    for item in result["objectives"]:
        sign, mark = ("≥" if item["at_least"] else "≤"), ("held" if item["held"] else "NOT HELD")
        print(f"  {mark:8}  {item['name']}: {item['value']} (must be {sign} {item['limit']:g})")
    for problem in result["problems"][:NUM_WORST]:
        print(f"  {problem}")
    late = result["client_lag_ms"]
    if (late["p99"] or 0.0) > LATE_MS:
        print(
            f"  the clients themselves were late, by {late['p99']:g} ms at p99: what they measured is too "
            "long by as much; --processes spreads them over more cores"
        )
    print("written to " + " and ".join(filter(None, [config.json, config.html])))
