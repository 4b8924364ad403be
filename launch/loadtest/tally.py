"""Samples of a load test, gathered and turned into figures. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import assert_never

from launch.loadtest.samples import (
    ChunkSeen,
    Edited,
    Ended,
    Fault,
    FirstPart,
    GapSaid,
    Lag,
    Latency,
    Outcome,
    Refused,
    Sample,
    Started,
)
from scheduler.results import FAIR_WAIT_MS, common_results, percentile, play_ratio, spread, waits_ms

__all__ = ["BINS", "FAIR_WAIT_MS", "ClientLog", "ClusterSample", "Stall", "Tally", "engine_seconds"]

BINS = 120
"""Points of a curve over time, at most: one a second in short tests."""
MAX_LISTED = 100
"""Faults that a result lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSample:
    """What the cluster said of itself at a moment."""

    at_ms: float
    engines: Mapping[str, int]
    """Those that are not gone, by state."""
    active: int
    """Sessions that want chunks and have an engine."""
    queue: int
    """Sessions that wait for a place."""
    policy: str
    cpu_share: float
    """Of this machine's cores, busy since the sample before."""

    @property
    def provisioned(self) -> int:
        return sum(self.engines.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """A player stood still."""

    client: int
    at_ms: float
    """Its end."""
    length_ms: float


@dataclass(slots=True)
class ClientLog:
    """What is known of one client."""

    client: int
    started: Started | None = None
    ttfc_ms: float | None = None
    engine: str = ""
    moves: int = 0
    """How often its chunks came from another engine than the one before."""
    stalled_ms: float = 0.0
    chunks: int = 0
    ended: Ended | None = None
    stalls: list[Stall] = field(default_factory=list)

    @property
    def is_slow(self) -> bool:
        return self.started is not None and self.started.is_slow

    @property
    def cpr(self) -> float | None:
        """None before its end, and of one that never played."""
        if self.ended is None or not self.ended.chunks:
            return None
        return play_ratio(self.ended.played_ms, self.ended.stalled_ms)


class Tally:
    """`add` every sample; ask for figures at any time."""

    def __init__(self) -> None:
        self.clients: dict[int, ClientLog] = {}
        self.latencies: list[Latency] = []
        self.first_parts: list[FirstPart] = []
        self.edits: list[Edited] = []
        self.faults: list[Fault] = []
        self.gaps: list[GapSaid] = []
        self.refused: list[Refused] = []
        self.lags: list[Lag] = []
        self.cluster: list[ClusterSample] = []
        self.num_chunks = 0

    def add(self, sample: Sample) -> None:
        match sample:
            case Started(client=client):
                self._log(client).started = sample
            case FirstPart(client=client):
                self._log(client).ttfc_ms = sample.ttfc_ms
                self.first_parts.append(sample)
            case ChunkSeen():
                self._add_chunk(sample)
            case Ended():
                self._add_end(sample)
            case _:
                self._keep(sample)

    def _keep(self, sample: Refused | Latency | Edited | Fault | GapSaid | Lag) -> None:
        match sample:
            case Latency():
                self.latencies.append(sample)
            case Edited():
                self.edits.append(sample)
            case Fault():
                self.faults.append(sample)
            case GapSaid():
                self.gaps.append(sample)
            case Refused():
                self.refused.append(sample)
            case Lag():
                self.lags.append(sample)
            case _:
                assert_never(sample)

    def _log(self, client: int) -> ClientLog:
        return self.clients.setdefault(client, ClientLog(client))

    def _add_chunk(self, chunk: ChunkSeen) -> None:
        log = self._log(chunk.client)
        self.num_chunks += 1
        log.chunks += 1
        log.moves += log.engine not in ("", chunk.engine)
        log.engine = chunk.engine
        self._add_stall(log, chunk.at_ms, chunk.stalled_ms)

    def _add_end(self, ended: Ended) -> None:
        log = self._log(ended.client)
        log.ended = ended
        self._add_stall(log, ended.at_ms, ended.stalled_ms)

    def _add_stall(self, log: ClientLog, at_ms: float, stalled_ms: float) -> None:
        """Between two looks at a player, what it stood still is one stall."""
        if stalled_ms > log.stalled_ms:
            stall = Stall(client=log.client, at_ms=at_ms, length_ms=stalled_ms - log.stalled_ms)
            log.stalls.append(stall)
            log.stalled_ms = stalled_ms

    # --- figures --------------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        """Clients whose session was accepted and goes on."""
        return sum(log.started is not None and log.ended is None for log in self.clients.values())

    def cprs(self, *, slow: bool = False) -> list[float]:
        """Of all clients that have ended and played, fast or slow ones."""
        logs = (log for log in self.clients.values() if log.is_slow is slow)
        return [cpr for log in logs if (cpr := log.cpr) is not None]

    def stalls(self) -> list[Stall]:
        """Of the clients that read as fast as they can, in order of time."""
        logs = (log for log in self.clients.values() if not log.is_slow)
        return sorted((stall for log in logs for stall in log.stalls), key=lambda stall: stall.at_ms)

    def unserved(self) -> list[Ended]:
        """Ends of clients that left before their first chunk."""
        return [end for end in self._ends() if end.outcome is Outcome.DONE and end.chunks == 0]

    def left_waiting(self, fair_wait_ms: float) -> list[Ended]:
        """Those of them that had waited for it for so long."""
        unserved = ((end, end.waited_ms) for end in self.unserved())
        return [end for end, waited_ms in unserved if waited_ms is not None and waited_ms >= fair_wait_ms]

    def waits_ms(self, fair_wait_ms: float) -> list[float]:
        """For the first chunk, as in scheduler/results.py."""
        vain_ms = (end.waited_ms for end in self._ends() if end.waited_ms is not None)
        return waits_ms([sample.ttfc_ms for sample in self.first_parts], vain_ms, fair_wait_ms)

    def _ends(self) -> list[Ended]:
        return [log.ended for log in self.clients.values() if log.ended is not None]

    def fast_edits(self) -> list[Edited]:
        """Prompt changes of the clients that read as fast as they can."""
        return [edit for edit in self.edits if not self._log(edit.client).is_slow]

    def _prompts_in_vain(self) -> int:
        """Prompts that had not reached the picture after a fair wait, when their client left."""
        logs = (log for log in self.clients.values() if log.ended is not None and not log.is_slow)
        return sum(ms >= FAIR_WAIT_MS for log in logs if log.ended is not None for ms in log.ended.prompts_ms)

    def figures(self, *, end_ms: float, fair_wait_ms: float = FAIR_WAIT_MS) -> dict[str, object]:
        """The results up to a moment; names shared with the simulator as in scheduler/results.py."""
        ended = self._ends()
        outcomes = Counter(end.outcome for end in ended)
        stalls = [stall.length_ms for stall in self.stalls()]
        starts = [sample for sample in self.refused if sample.what == "start"]
        common = common_results(
            sessions=sum(log.started is not None for log in self.clients.values()),
            chunk_latency_ms=[sample.latency_ms for sample in self.latencies],
            chunks=self.num_chunks,
            ttfc_ms=[sample.ttfc_ms for sample in self.first_parts],
            waited_ms=self.waits_ms(fair_wait_ms),
            unserved=len(self.unserved()),
            left_waiting=len(self.left_waiting(fair_wait_ms)),
            cpr=self.cprs(),
            cost_engine_s=engine_seconds(self.cluster, end_ms=end_ms),
            migrations=sum(log.moves for log in self.clients.values()),
            gaps=sum(end.gaps for end in ended),
        )
        slow, edits = self.cprs(slow=True), self.fast_edits()
        return common | {
            "ttfc_ms": spread([sample.ttfc_ms for sample in self.first_parts], "p50", "p95", "p99", "max"),
            "prompt_to_chunk_ms": spread([edit.chunk_ms for edit in edits], "p50", "p95", "p99", "max"),
            "prompts_in_vain": self._prompts_in_vain(),
            "prompt_to_picture_ms": spread([edit.picture_ms for edit in edits], "p50", "p95", "p99", "max"),
            "stalls": {
                "count": len(stalls),
                "sum_s": round(sum(stalls) / 1000.0, 3),
                "longest_ms": round(max(stalls, default=0.0), 1),
            },
            "lost": outcomes[Outcome.LOST],
            "refused": len(starts),
            "refused_inputs": len(self.refused) - len(starts),
            "reconnects": sum(end.cuts for end in ended),
            "faults": len(self.faults),
            "slow_clients": {"count": sum(log.is_slow for log in self.clients.values()), "cpr": _mean(slow)},
            "client_lag_ms": spread([lag.lag_ms for lag in self.lags], "p99", "max"),
            "machine_busy": _mean([sample.cpu_share for sample in self.cluster]),
        }

    def problems(self) -> list[str]:
        """What no load test may show, in words: faults of streams and lost sessions."""
        faults = [f"client {f.client} at {f.at_ms / 1000:.1f} s: {f.what}" for f in self.faults]
        lost = [
            f"client {log.client} at {log.ended.at_ms / 1000:.1f} s: its session was lost: {log.ended.reason}"
            for log in self.clients.values()
            if log.ended is not None and log.ended.outcome is Outcome.LOST
        ]
        return (faults + lost)[:MAX_LISTED]

    def series(self, *, end_ms: float) -> dict[str, list[float | None]]:
        """Curves over time: one value per bin of `t`, in seconds, None where there was nothing."""
        width_ms = bin_ms(end_ms)
        count = max(1, -(-int(end_ms) // int(width_ms)))
        latencies = _binned(((s.at_ms, s.latency_ms) for s in self.latencies), width_ms, count)
        stalls = _binned(((s.at_ms, s.length_ms) for s in self.stalls()), width_ms, count)
        return {
            "t": [round(number * width_ms / 1000.0, 3) for number in range(count)],
            "latency_p50_ms": [_at(values, 0.5) for values in latencies],
            "latency_p99_ms": [_at(values, 0.99) for values in latencies],
            "latency_max_ms": [_at(values, 1.0) for values in latencies],
            "chunks": [float(len(values)) for values in latencies],
            "stalled_s": [round(sum(values) / 1000.0, 3) for values in stalls],
        }

    def cluster_series(self, *, end_ms: float) -> dict[str, list[float]]:
        """Curves of the cluster's own figures, one value per sample up to the load's end."""
        samples = [sample for sample in self.cluster if sample.at_ms <= end_ms]
        states = ("ready", "starting", "draining")
        return {
            "t": [round(max(0.0, sample.at_ms) / 1000.0, 3) for sample in samples],
            **{state: [float(sample.engines.get(state, 0)) for sample in samples] for state in states},
            "active": [float(sample.active) for sample in samples],
            "queue": [float(sample.queue) for sample in samples],
            "engine_s": _running_cost(samples),
        }


def bin_ms(end_ms: float) -> float:
    """Width of the bins of curves over so long."""
    return max(1000.0, 1000.0 * -(-int(end_ms) // (1000 * BINS)))


def engine_seconds(samples: Sequence[ClusterSample], *, end_ms: float, begin_ms: float = 0.0) -> float | None:
    """Time that engines were provisioned, added up from the load's start, or another moment, to its end:
    what they cost.

    A sample counts until the next one; the first also for the time before it. None: the cluster never said.
    """
    if not samples:
        return None
    edges = [begin_ms, *(max(begin_ms, min(sample.at_ms, end_ms)) for sample in samples[1:]), end_ms]
    spans = (max(0.0, after - before) for before, after in pairwise(edges))
    return sum(sample.provisioned * span / 1000.0 for sample, span in zip(samples, spans, strict=True))


def _running_cost(samples: Sequence[ClusterSample]) -> list[float]:
    """Engine-seconds up to each sample."""
    cost_s, costs = 0.0, [0.0] if samples else []
    for before, after in pairwise(samples):
        cost_s += before.provisioned * (after.at_ms - max(0.0, before.at_ms)) / 1000.0
        costs.append(round(max(0.0, cost_s), 2))
    return costs


def _binned(pairs: Iterable[tuple[float, float]], width_ms: float, count: int) -> list[list[float]]:
    bins: list[list[float]] = [[] for _ in range(count)]
    for at_ms, value in pairs:
        bins[min(max(0, int(at_ms // width_ms)), count - 1)].append(value)
    return bins


def _at(values: Sequence[float], share: float) -> float | None:
    return round(percentile(values, share), 1) if values else None


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None
