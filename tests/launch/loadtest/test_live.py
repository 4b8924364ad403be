"""What is shown while a load test runs."""

from __future__ import annotations

import io

from rich.console import Console

from launch.loadtest.live import summary, table
from launch.loadtest.samples import Ended, FirstPart, Latency, Outcome, Refused, Started
from launch.loadtest.tally import ClusterSample, Tally


def shown(tally: Tally, at_ms: float) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(table("load", tally, at_ms, 60.0))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(text: str, name: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if name in line)
    return [cell.strip() for cell in line.strip("│┃ ").split("│")]


def test_the_table_tells_now_from_all() -> None:
    """The last ten seconds, and everything since the start."""
    tally = Tally()
    tally.add(Started(client=0, at_ms=0.0, session="s", model="m", chunk_ms=750.0))
    tally.add(FirstPart(client=0, at_ms=100.0, ttfc_ms=80.0))
    for at_ms, latency_ms in ((1_000.0, 900.0), (29_000.0, 100.0)):
        tally.add(Latency(client=0, at_ms=at_ms, seq=0, latency_ms=latency_ms, gen_ms=1.0, batch=1.0))
    tally.cluster.append(
        ClusterSample(at_ms=0.0, engines={"ready": 2}, active=1, queue=3, policy="p", cpu_share=0.5)
    )
    text = shown(tally, 30_000.0)
    assert "30 of 60 s" in text
    assert row(text, "chunk latency max") == ["chunk latency max, ms", "100", "900"]
    assert row(text, "first chunk") == ["first chunk p50, ms", "–", "80"]
    assert row(text, "engines")[1] == "2 ready" and row(text, "sessions waiting")[1] == "3"
    assert row(text, "left unserved") == ["left unserved", "", "0"]
    assert "1 sessions" in summary(tally, 30_000.0) and "p99 900" in summary(tally, 30_000.0)


def test_nothing_yet_is_shown_as_nothing() -> None:
    """Before the first sample."""
    assert row(shown(Tally(), -200.0), "chunk latency p50") == ["chunk latency p50, ms", "–", "–"]
    assert "0 chunks" in summary(Tally(), 0.0)


def test_one_line_tells_of_those_who_saw_nothing() -> None:
    """Latency and stalls don't; where there is nobody it is not said."""
    tally = Tally()
    assert summary(tally, 0.0).endswith("0 stalls, 0 faults")
    for client in range(3):
        tally.add(Refused(client=client, at_ms=1.0, what="start", code="capacity"))
        tally.add(Ended(client=client, at_ms=1.0, outcome=Outcome.REFUSED))
    tally.add(Refused(client=3, at_ms=1.0, what="prompt", code="rate"))
    tally.add(Ended(client=3, at_ms=1.0, outcome=Outcome.DONE))
    tally.add(Ended(client=4, at_ms=1.0, outcome=Outcome.LOST))
    assert summary(tally, 0.0).endswith("0 faults, 3 refused, 1 lost, 1 left unserved")
