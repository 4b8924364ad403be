"""The table that a load test shows while it runs; where there is no terminal, a line now and then."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from launch.loadtest.samples import Outcome
from launch.loadtest.tally import Tally
from scheduler.results import percentile, spread

__all__ = ["LiveTable", "summary", "table"]

LINE_EVERY_S: Final = 10.0
RECENT_MS: Final = 10_000.0


class LiveTable:
    """For `with`; `update` it some times a second."""

    def __init__(self, title: str, seconds: float) -> None:
        self._title, self._seconds = title, seconds
        self._live = Live(console=Console(), auto_refresh=False) if sys.stdout.isatty() else None
        self._next_line_s = LINE_EVERY_S

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, tally: Tally, at_ms: float) -> None:
        """Show how it stands."""
        if self._live is not None:
            self._live.update(table(self._title, tally, at_ms, self._seconds), refresh=True)
        elif at_ms >= self._next_line_s * 1000.0:
            self._next_line_s += LINE_EVERY_S
            print(summary(tally, at_ms), flush=True)


def table(title: str, tally: Tally, at_ms: float, seconds: float) -> Table:
    """Everything, for the last ten seconds and for all of it."""
    names = ("p50", "p95", "p99", "max")
    recent = spread([s.latency_ms for s in tally.latencies if s.at_ms >= at_ms - RECENT_MS], *names)
    every = spread([s.latency_ms for s in tally.latencies], *names)
    stalls = tally.stalls()
    view = Table(title=f"{title}, {max(0.0, at_ms) / 1000:.0f} of {seconds:.0f} s", title_justify="left")
    view.add_column()
    view.add_column("last 10 s", justify="right")
    view.add_column("all", justify="right")
    for name in names:
        view.add_row(f"chunk latency {name}, ms", _show(recent[name]), _show(every[name]))
    first = [(s.at_ms, s.ttfc_ms) for s in tally.first_parts]
    edits = [(s.at_ms, s.picture_ms) for s in tally.fast_edits()]
    for name, pairs in (("first chunk p50, ms", first), ("prompt to picture p50, ms", edits)):
        late = [value for when, value in pairs if when >= at_ms - RECENT_MS]
        view.add_row(name, _at(late, 0.5), _at([value for _, value in pairs], 0.5))
    late_stalls = [stall.length_ms for stall in stalls if stall.at_ms >= at_ms - RECENT_MS]
    view.add_row("stalls", str(len(late_stalls)), str(len(stalls)))
    view.add_row("longest stall, ms", _at(late_stalls, 1.0), _at([s.length_ms for s in stalls], 1.0))
    view.add_row("chunks", "", str(tally.num_chunks))
    view.add_section()
    for name, now, total in _counts(tally):
        view.add_row(name, now, total)
    return view


def _counts(tally: Tally) -> list[tuple[str, str, str]]:
    counts = [
        ("sessions running", str(tally.running), str(len(tally.clients))),
        ("refused", "", str(sum(sample.what == "start" for sample in tally.refused))),
        ("left unserved", "", str(len(tally.unserved()))),
        ("faults of streams", "", str(len(tally.faults))),
    ]
    if tally.cluster:
        newest = tally.cluster[-1]
        engines = ", ".join(f"{count} {state}" for state, count in sorted(newest.engines.items())) or "none"
        counts += [
            ("engines", engines, ""),
            ("sessions waiting", str(newest.queue), ""),
            ("cores in use", f"{newest.cpu_share:.0%}", ""),
        ]
    return counts


def summary(tally: Tally, at_ms: float) -> str:
    """The same in one line."""
    latency = [sample.latency_ms for sample in tally.latencies]
    stalls = tally.stalls()
    return (
        f"{at_ms / 1000:5.0f} s  {tally.running} sessions, {tally.num_chunks} chunks, latency "
        f"p50 {_at(latency, 0.5)} p99 {_at(latency, 0.99)} worst {_at(latency, 1.0)} ms, "
        f"{len(stalls)} stalls, {len(tally.faults)} faults" + "".join(_left_out(tally))
    )


def _left_out(tally: Tally) -> Iterator[str]:
    """Those of whom latency and continuity say nothing, if there are any."""
    outcomes = Counter(log.ended.outcome for log in tally.clients.values() if log.ended is not None)
    counts = {
        "refused": sum(sample.what == "start" for sample in tally.refused),
        "lost": outcomes[Outcome.LOST],
        "left unserved": len(tally.unserved()),
    }
    yield from (f", {count} {name}" for name, count in counts.items() if count)


def _at(values: Sequence[float], share: float) -> str:
    return _show(percentile(values, share) if values else None)


def _show(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"
