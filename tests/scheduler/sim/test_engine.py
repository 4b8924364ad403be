"""An engine's chunk loop against times computed by hand."""

from __future__ import annotations

from dataclasses import replace
from heapq import heappop

import pytest

from scheduler.sim.engine import BOUNDARY, CHUNK_DUE, Agenda, Figures, SimEngine, SimSession
from scheduler.sim.profile import PROFILES, by_chunk

PROFILE = replace(
    PROFILES["paper"],
    model=replace(PROFILES["paper"].model, fps=10, chunk_frames=10),
    costs=replace(PROFILES["paper"].costs, pass_ms=((100.0, 120.0),), chunk_passes=5),
    lead_ms=1_000.0,
)
"""Chunks of a second; five passes of 100 ms alone, of 120 ms for two."""
ONE_BY_ONE = replace(PROFILE, costs=replace(PROFILE.costs, pass_ms=((71.6, 143.2),), decode_ms=4.0))


class Bench:
    """One engine and what it does until a time."""

    def __init__(self, profile: object = PROFILE) -> None:
        self.agenda, self.figures = Agenda(), Figures()
        self.engine = SimEngine("e", profile, self.agenda, self.figures, 0.0)  # type: ignore[arg-type]
        self.now_ms = 0.0
        self.sessions: list[SimSession] = []

    def start(self, at_ms: float) -> SimSession:
        self.run(at_ms)
        session = SimSession(len(self.sessions), None, at_ms, self.engine.profile)
        self.sessions.append(session)
        session.engine = self.engine
        self.figures.due += 1
        self.engine.submit(session, at_ms)
        return session

    def run(self, until_ms: float) -> None:
        heap = self.agenda.heap
        while heap and heap[0][0] <= until_ms:
            at_ms, _, kind, subject, token = heappop(heap)
            if kind == BOUNDARY and subject.next_ms == at_ms:
                subject.boundary(at_ms)
            elif kind == CHUNK_DUE and subject.token == token:
                subject.due_ms = at_ms
                self.figures.due += 1
                subject.engine.submit(subject, at_ms)

    @property
    def latency_ms(self) -> list[float]:
        return list(self.figures.latency_ms)


def test_one_session_alone() -> None:
    """Five passes a chunk; the next chunk is due when less than the lead is unplayed."""
    bench = Bench()
    session = bench.start(0.0)
    bench.run(2_400)
    assert bench.latency_ms == [500.0, 500.0, 500.0]
    assert list(bench.figures.ttfc_ms) == [500.0]
    # Due at 0, 500 (the first is shown, dry at 1500) and 1500 (the second was there at 1000, dry at 2500).
    assert session.dry_ms == 3_500.0
    assert session.stalled_ms == 0.0


def test_a_second_joins_at_the_next_pass() -> None:
    """It waits for the end of a pass, and both are slower from then on."""
    bench = Bench()
    bench.start(0.0)
    bench.start(150.0)  # joins at 200, when the first has three passes to go
    bench.run(560.0)
    assert bench.latency_ms == [560.0]  # 200 + 3 * 120
    bench.run(800.0)
    assert bench.latency_ms == [560.0, 650.0]  # of five passes two are left at 560, where the first goes on


def test_a_young_session_is_not_slowed_by_an_old_one() -> None:
    """Its passes are cheap beside nobody whose window is full: it overtakes, then both share their passes."""
    pass_ms = ((50.0, 95.0), (100.0, 190.0))
    bench = Bench(replace(PROFILE, costs=replace(PROFILE.costs, buckets=(1, 2), pass_ms=pass_ms)))
    bench.start(0.0)
    bench.start(300.0)  # amid the other's first pass with a full window, which ends at 350
    bench.run(1_400.0)
    assert list(bench.figures.ttfc_ms) == [250.0, 300.0]
    assert bench.latency_ms == [250.0, 300.0, 1_110.0]  # 250 + 100 + 5 * 50 + 4 * 190


def test_a_session_that_leaves_while_it_is_overtaken_is_forgotten() -> None:
    """The passes that it had left are not run."""
    pass_ms = ((50.0, 95.0), (100.0, 190.0))
    bench = Bench(replace(PROFILE, costs=replace(PROFILE.costs, buckets=(1, 2), pass_ms=pass_ms)))
    old = bench.start(0.0)
    bench.start(300.0)
    bench.run(400.0)
    old.drop_chunk(400.0, bench.figures, also_running=True)
    bench.run(1_150.0)
    assert bench.latency_ms == [250.0, 300.0, 500.0]
    assert bench.figures.abandoned == 1


def test_encoding_adds_to_latency_but_holds_nobody_up() -> None:
    """The engine begins the next chunk meanwhile."""
    bench = Bench(replace(PROFILE, encode_ms=30.0))
    bench.start(0.0)
    bench.start(0.0)
    bench.run(700.0)
    assert bench.latency_ms == [630.0, 630.0]
    assert bench.engine.anchor_ms == 600.0


def test_a_clean_pass_runs_when_the_frames_have_left() -> None:
    """At once, and whoever joins shares it; a chunk that is due already waits for it."""
    profile = replace(PROFILE, clean_passes=1)
    bench = Bench(profile)
    bench.start(0.0)
    bench.run(1_900.0)
    assert bench.latency_ms == [400.0, 500.0, 400.0]  # due at 0, 400 and 1,400
    bench = Bench(profile)
    bench.start(0.0)
    bench.start(850.0)  # joins at 900: a pass for both, then three alone
    bench.run(1_320.0)
    assert bench.latency_ms == [400.0, 500.0, 470.0]


def test_passes_over_a_window_that_fills() -> None:
    """The first chunks are cheaper; in a batch the longest window counts."""
    costs = replace(PROFILE.costs, buckets=(3, 6), pass_ms=((60.0, 80.0), (100.0, 120.0)))
    bench = Bench(replace(PROFILE, costs=costs))
    bench.start(0.0)
    bench.run(2_300.0)
    assert bench.latency_ms == [300.0, 500.0, 500.0]  # due at 0, 300 and 1,300
    bench.start(2_350.0)  # joins at 2,400 the first's fourth chunk, which has four passes to go
    bench.run(3_000.0)
    assert bench.latency_ms[3:] == [580.0, 590.0]  # 100 + 4 * 120; the fifth pass of the other is alone: 60


@pytest.mark.parametrize(
    ("buckets", "pass_ms", "windows_ms"),
    [
        pytest.param((12,), ((9.0, 12.0),), ((0.0, 9.0, 12.0),), id="one bucket"),
        pytest.param(
            (3, 12), ((5.0,), (9.0, 12.0)), ((0.0, 5.0, 12.0), *(3 * [(0.0, 9.0, 12.0)])), id="a cell missing"
        ),
        pytest.param((5, 12), ((5.0,), (9.0,)), ((0.0, 5.0), (0.0, 9.0), (0.0, 9.0)), id="not whole chunks"),
        pytest.param(
            (3, 6),
            ((5.0, 6.0, 7.0), (9.0, 0.0, 12.0)),
            ((0.0, 5.0, 7.0), (0.0, 9.0, 12.0)),
            id="a row missing",
        ),
    ],
)
def test_costs_while_a_window_fills(
    buckets: tuple[int, ...],
    pass_ms: tuple[tuple[float, ...], ...],
    windows_ms: tuple[tuple[float, ...], ...],
) -> None:
    """For each chunk until it is full. What is missing costs what it costs then."""
    profile = replace(PROFILE, costs=replace(PROFILE.costs, buckets=buckets, pass_ms=pass_ms))
    assert profile.windows_ms == windows_ms
    assert profile.pass_ms == windows_ms[-1]


def test_chunks_as_the_unit() -> None:
    """By chunk, the second waits for the end of the first's."""
    bench = Bench(by_chunk(PROFILE))
    bench.start(0.0)
    bench.start(150.0)
    bench.run(1_100.0)
    # 0..500 alone; then both, the first's second chunk with the second's first: 600 ms.
    assert bench.latency_ms == [500.0, 950.0, 600.0]


def test_where_coalescing_does_not_pay_one_runs_at_a_time() -> None:
    """Two of 358 ms: the second waits for the first, and decodes take their time."""
    bench = Bench(ONE_BY_ONE)
    assert bench.engine.batch == 1
    bench.start(0.0)
    bench.start(0.0)
    bench.run(724.0)
    assert bench.latency_ms == pytest.approx([362.0, 724.0])


@pytest.mark.parametrize(("sessions", "frames_ms", "whole_ms"), [(1, 235.3, 291.8), (2, 448.1, 552.9)])
def test_wan_is_as_it_was_measured(sessions: int, frames_ms: float, whole_ms: float) -> None:
    """On an H200, within a hundredth: the first chunk to the last frames, and each whole one after it."""
    bench = Bench(PROFILES["wan-h200"])
    for _ in range(sessions):
        bench.start(0.0)
    bench.run(frames_ms + whole_ms)
    assert max(bench.latency_ms[:sessions]) == pytest.approx(frames_ms, rel=0.01)
    assert bench.latency_ms[sessions:] == pytest.approx([whole_ms] * sessions, rel=0.01)


def test_a_stall_is_what_passes_from_dry_to_the_next_chunk() -> None:
    """A player that holds a second stalls when the next chunk takes longer."""
    slow = replace(PROFILE, costs=replace(PROFILE.costs, pass_ms=((300.0,),)))
    bench = Bench(slow)
    session = bench.start(0.0)
    bench.run(3_000.0)
    assert bench.latency_ms == [1_500.0, 1_500.0]
    assert session.stalled_ms == 500.0


def test_a_pause_keeps_what_the_player_holds() -> None:
    """A chunk that runs is finished into the paused player."""
    bench = Bench()
    session = bench.start(0.0)
    bench.run(700.0)
    session.pause(700.0, bench.figures)  # 800 ms are held, and a chunk runs until 1000
    bench.run(5_000.0)
    assert session.slack_ms(5_000.0) == 1_800.0
    assert session.resume(5_000.0) == 5_800.0
    assert bench.figures.abandoned == 0


def test_a_first_chunk_that_comes_while_nobody_watches_was_waited_for_until_the_pause() -> None:
    """As a load test counts it."""
    bench = Bench()
    session = bench.start(50.0)
    bench.run(300.0)
    session.pause(300.0, bench.figures)
    bench.run(5_000.0)
    assert bench.latency_ms == [500.0] and list(bench.figures.ttfc_ms) == [250.0]


def test_who_leaves_mid_chunk_makes_the_others_faster_from_the_next_pass_on() -> None:
    """The pass that runs goes on as it is."""
    bench = Bench()
    first, second = bench.start(0.0), bench.start(0.0)
    bench.run(60.0)
    second.drop_chunk(60.0, bench.figures, also_running=True)
    bench.run(520.0)
    assert bench.latency_ms == [520.0]  # 120 + 4 * 100
    assert first.dry_ms == 1_520.0
    assert bench.figures.abandoned == 1 and bench.figures.worst_abandoned_ms == 60.0
