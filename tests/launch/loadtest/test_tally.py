"""Samples to figures, and figures to a verdict."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launch.loadtest.config import LoadtestConfig
from launch.loadtest.load import Do, Script, Step
from launch.loadtest.objectives import Objective, fair_wait_ms, judge
from launch.loadtest.samples import (
    Assignment,
    Begin,
    ChunkSeen,
    Edited,
    Ended,
    Fault,
    FirstPart,
    GapSaid,
    Lag,
    Latency,
    Outcome,
    Ready,
    Refused,
    Started,
    from_worker,
    line,
    to_worker,
)
from launch.loadtest.tally import FAIR_WAIT_MS, ClusterSample, Tally, bin_ms, engine_seconds


def chunk(
    client: int, seq: int, *, at_ms: float = 0.0, engine: str = "e1", stalled_ms: float = 0.0
) -> ChunkSeen:
    return ChunkSeen(client=client, at_ms=at_ms, seq=seq, engine=engine, stalled_ms=stalled_ms)


def ended(client: int, *, played_ms: float = 0.0, stalled_ms: float = 0.0, **more: object) -> Ended:
    fields: dict[str, object] = {"at_ms": 9_000.0, "outcome": Outcome.DONE, "chunks": 1} | more
    return Ended(client=client, played_ms=played_ms, stalled_ms=stalled_ms, **fields)  # type: ignore[arg-type]


def cluster(at_ms: float, **engines: int) -> ClusterSample:
    return ClusterSample(at_ms=at_ms, engines=engines, active=0, queue=0, policy="p", cpu_share=0.5)


def latency(at_ms: float, latency_ms: float) -> Latency:
    return Latency(client=0, at_ms=at_ms, seq=0, latency_ms=latency_ms, gen_ms=1.0, batch=1.0)


def tally(*samples: object) -> Tally:
    made = Tally()
    for sample in samples:
        made.add(sample)  # type: ignore[arg-type]
    return made


def broken(figures: dict[str, object], **limits: object) -> set[str]:
    """Names of stated objectives that don't hold."""
    config = LoadtestConfig(json="x", **limits)  # type: ignore[arg-type]
    always = {item.name for item in judge(figures, LoadtestConfig(json="x"))}
    return {item.name for item in judge(figures, config) if not item.held} - always


STARTED = Started(client=0, at_ms=0.0, session="s", model="m", chunk_ms=750.0)


def test_figures_of_an_empty_load() -> None:
    """Nothing was measured, so nothing holds."""
    figures = Tally().figures(end_ms=1_000.0)
    assert figures["chunks"] == 0 and figures["cost_engine_s"] is None
    objectives = judge(figures, LoadtestConfig(json="x", min_cpr=0.5, max_p99_ms=1e6))
    assert {item.name for item in objectives if not item.held} == {
        "chunks",
        "mean CPR",
        "chunk latency p99, ms",
    }


def test_continuity_counts_fast_clients_that_played() -> None:
    """Slow ones are told apart; who never played has no ratio; refused ones neither."""
    made = tally(
        ended(0, played_ms=9_000.0, stalled_ms=1_000.0),
        ended(1, played_ms=5_000.0),
        replace(STARTED, client=2, is_slow=True),
        chunk(2, 1, stalled_ms=5.0),
        ended(2, played_ms=1.0, stalled_ms=9.0),
        ended(3, chunks=0),
        ended(4, chunks=0, outcome=Outcome.REFUSED),
    )
    assert [stall.client for stall in made.stalls()] == [0]
    assert made.cprs() == [0.9, 1.0] and made.cprs(slow=True) == [0.1]
    figures = made.figures(end_ms=9_000.0)
    assert figures["cpr"] == {"mean": 0.95, "p5": 0.9, "min": 0.9}
    assert figures["unserved"] == 1 and figures["slow_clients"] == {"count": 1, "cpr": 0.1}


def test_a_stall_is_what_a_player_stood_still_between_two_chunks() -> None:
    """The one that its end cuts off too."""
    made = tally(
        chunk(0, 0, at_ms=100.0),
        chunk(0, 1, at_ms=900.0, stalled_ms=50.0),
        chunk(0, 2, at_ms=1_700.0, stalled_ms=50.0),
        ended(0, played_ms=1.0, stalled_ms=250.0),
    )
    assert [(stall.at_ms, stall.length_ms) for stall in made.stalls()] == [(900.0, 50.0), (9_000.0, 200.0)]
    assert made.figures(end_ms=9_000.0)["stalls"] == {"count": 2, "sum_s": 0.25, "longest_ms": 200.0}


def test_moves_are_changes_of_engine_within_a_session() -> None:
    """The first engine is none, and sessions don't mix."""
    made = tally(
        chunk(0, 0), chunk(1, 0, engine="e2"), chunk(0, 1), chunk(0, 2, engine="e2"), chunk(1, 1, engine="e2")
    )
    assert made.figures(end_ms=1.0)["migrations"] == 1


def test_engine_seconds_add_up_what_was_provisioned() -> None:
    """Starting and draining engines cost like ready ones; only the load's own time counts."""
    samples = [
        cluster(-200.0, ready=2),
        cluster(4_000.0, ready=2, starting=1),
        cluster(8_000.0, ready=2, draining=1),
    ]
    assert engine_seconds(samples, end_ms=10_000.0) == 2 * 4 + 3 * 4 + 3 * 2
    assert engine_seconds([*samples, cluster(12_000.0, ready=9)], end_ms=10_000.0) == 26
    assert engine_seconds([], end_ms=10_000.0) is None
    made = Tally()
    made.cluster += samples
    assert made.cluster_series(end_ms=9_000.0)["engine_s"] == [0.0, 8.0, 20.0]
    assert made.cluster_series(end_ms=5_000.0)["ready"] == [2.0, 2.0]


def test_curves_have_a_value_per_bin() -> None:
    """None where nothing was; a long test has wider bins, not more."""
    made = tally(latency(100.0, 5.0), latency(900.0, 7.0), latency(2_500.0, 9.0), latency(3_100.0, 1.0))
    series = made.series(end_ms=3_000.0)
    assert series["t"] == [0.0, 1.0, 2.0]
    assert series["latency_max_ms"] == [7.0, None, 9.0]  # what comes after the end is in the last bin
    assert series["chunks"] == [2.0, 0.0, 2.0]
    assert bin_ms(60_000.0) == 1_000.0 and bin_ms(3_600_000.0) == 30_000.0


def test_all_that_went_wrong_is_listed() -> None:
    """Faults and lost sessions, with who and when."""
    made = tally(
        Fault(client=3, at_ms=1_500.0, what="chunk 2 came again"),
        ended(4, outcome=Outcome.LOST, reason="no connection"),
    )
    assert made.problems() == [
        "client 3 at 1.5 s: chunk 2 came again",
        "client 4 at 9.0 s: its session was lost: no connection",
    ]
    held = {item.name: item.held for item in judge(made.figures(end_ms=1.0), LoadtestConfig(json="x"))}
    assert held == {"chunks": False, "faults of streams": False, "lost sessions": False}


@pytest.mark.parametrize(
    ("field", "limit", "name"),
    [
        ("max_p99_ms", 99.0, "chunk latency p99, ms"),
        ("max_worst_ms", 99.0, "worst chunk latency, ms"),
        ("max_ttfc_ms", 199.0, "time to first chunk p99, ms"),
        ("min_cpr", 0.91, "mean CPR"),
        ("min_worst_cpr", 0.91, "worst CPR"),
        ("gaps", False, "chunks missing in gaps"),
        ("max_refused", 0, "refused sessions"),
        ("max_unserved", 0, "sessions that left unserved"),
    ],
)
def test_each_objective_can_fail_and_hold(field: str, limit: float, name: str) -> None:
    """Only stated ones are judged; the limit itself holds."""
    bad = tally(
        STARTED,
        chunk(0, 0),
        latency(1.0, 100.0),
        FirstPart(client=0, at_ms=1.0, ttfc_ms=200.0),
        ended(0, played_ms=90.0, stalled_ms=10.0, gaps=1),
        Refused(client=1, at_ms=1.0, what="start", code="capacity"),
        ended(2, chunks=0, waited_ms=FAIR_WAIT_MS),
    )
    figures = bad.figures(end_ms=1.0)
    assert name not in {item.name for item in judge(figures, LoadtestConfig(json="x"))}
    config = LoadtestConfig(json="x", **{field: limit})  # type: ignore[arg-type]
    (failed,) = (item for item in judge(figures, config) if item.name == name)
    assert not failed.held and failed.value is not None
    at_limit = Objective(name=name, limit=failed.value, value=failed.value, at_least=failed.at_least)
    assert at_limit.held


def test_who_never_got_a_chunk_waited_for_it() -> None:
    """One is served at once, nine leave after a minute without anything: nobody may call that fast."""
    unserved = [
        sample
        for client in range(1, 10)
        for sample in (
            replace(STARTED, client=client, at_ms=500.0),
            ended(client, chunks=0, at_ms=60_900.0, waited_ms=60_000.0),
        )
    ]
    made = tally(STARTED, FirstPart(client=0, at_ms=50.0, ttfc_ms=50.0), ended(0), *unserved)
    figures = made.figures(end_ms=60_500.0)
    assert figures["unserved"] == figures["left_waiting"] == 9
    assert figures["waited_ms"] == dict.fromkeys(("p50", "p95", "p99", "max"), 60_000.0)
    assert figures["ttfc_ms"] == dict.fromkeys(("p50", "p95", "p99", "max"), 50.0)
    assert figures["cost_engine_s"] is None  # the cluster said nothing of itself
    assert broken(figures, max_ttfc_ms=100.0) == {
        "time to first chunk p99, ms",
        "sessions that left unserved",
    }
    assert broken(figures, max_ttfc_ms=100.0, max_unserved=9) == {"time to first chunk p99, ms"}


def test_whoever_states_an_objective_wants_everybody_served() -> None:
    """Latency and continuity know nothing of those who got nothing, by waiting or by a refusal."""
    made = tally(
        STARTED,
        chunk(0, 0),
        latency(1.0, 50.0),
        ended(0, played_ms=100.0),
        ended(1, chunks=0, waited_ms=60_000.0),
        Refused(client=2, at_ms=1.0, what="start", code="capacity"),
        ended(2, chunks=0, outcome=Outcome.REFUSED),
    )
    figures = made.figures(end_ms=60_000.0)
    without = {"sessions that left unserved", "refused sessions"}
    for limits in ({"min_cpr": 1.0}, {"max_worst_ms": 100.0}, {"gaps": False}):
        assert broken(figures, **limits) == without
    assert broken(figures, min_cpr=1.0, max_unserved=1) == {"refused sessions"}
    assert broken(figures, min_cpr=1.0, max_unserved=1, max_refused=1) == set()
    assert broken(figures) == set()  # nothing is asked


def test_who_left_at_once_was_not_kept_waiting() -> None:
    """Nor who was paused all the time, or got a part of a chunk: it has a time to the first one. A lost
    session waited like others."""
    made = tally(
        ended(0, chunks=0, waited_ms=200.0),
        ended(1, chunks=0, waited_ms=0.0),
        FirstPart(client=2, at_ms=9_000.0, ttfc_ms=500.0),
        ended(2, chunks=0),
        ended(3, chunks=0, waited_ms=5_000.0, outcome=Outcome.LOST),
    )
    figures = made.figures(end_ms=9_000.0)
    assert (figures["unserved"], figures["left_waiting"], figures["lost"]) == (3, 0, 1)
    assert figures["waited_ms"] == {"p50": 500.0, "p95": 5_000.0, "p99": 5_000.0, "max": 5_000.0}
    asked = made.figures(end_ms=9_000.0, fair_wait_ms=150.0)
    assert asked["left_waiting"] == 1 and asked["waited_ms"]["p50"] == 500.0  # type: ignore[index]


@pytest.mark.parametrize(("limit", "waits"), [(None, FAIR_WAIT_MS), (100.0, 100.0), (30_000.0, 30_000.0)])
def test_a_fair_wait_is_what_the_objective_allows(limit: float | None, waits: float) -> None:
    """Longer than a stated limit is too long; sooner nobody was owed anything."""
    assert fair_wait_ms(LoadtestConfig(json="x", max_ttfc_ms=limit)) == waits


@pytest.mark.parametrize(
    "message",
    [
        Ready(),
        STARTED,
        Refused(client=0, at_ms=1.5, what="prompt", code="rate"),
        FirstPart(client=0, at_ms=1.5, ttfc_ms=2.5),
        chunk(0, 1),
        latency(1.0, 2.0),
        Edited(client=0, at_ms=1.0, chunk_ms=2.0, picture_ms=3.0),
        Fault(client=0, at_ms=1.0, what="ü"),
        GapSaid(client=0, at_ms=1.0, chunks=2),
        ended(0, outcome=Outcome.LOST, reason="r", prompts_ms=(1.5, 2.5)),
        Lag(at_ms=1.0, lag_ms=2.0),
    ],
)
def test_samples_travel(message: object) -> None:
    """One line each."""
    data = line(message)  # type: ignore[arg-type]
    assert from_worker(data) == message and data.count(b"\n") == 1


def test_assignments_travel() -> None:
    """With whole scripts."""
    script = Script(
        client=1, steps=(Step(at_s=0.5, do=Do.START, prompt="p"), Step(at_s=1.0, do=Do.STOP)), seed=7
    )
    for message in (
        Assignment(url="http://h", token="a.b.c", decode=True, scripts=(script,)),
        Begin(at_s=1.5),
    ):
        assert to_worker(line(message)) == message


def test_prompts_that_never_reached_the_picture_are_counted() -> None:
    """The percentiles know nothing of them. Those that were sent just before the end, and slow clients', are
    left out."""
    slow = replace(STARTED, client=1, is_slow=True)
    made = tally(ended(0, prompts_ms=(9_000.0, 1_999.0, 2_000.0)), slow, ended(1, prompts_ms=(9_000.0,)))
    assert made.figures(end_ms=9_000.0)["prompts_in_vain"] == 2
    assert made.figures(end_ms=9_000.0, fair_wait_ms=1.0)["prompts_in_vain"] == 2  # that is of first chunks
