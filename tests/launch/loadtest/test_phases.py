"""A step of load, and what each of its phases was like."""

from __future__ import annotations

import random

import pytest

from bench.step import are_whole
from launch.loadtest.phases import FEW_SHARE, Phase, invent_step, phase_figures, step_phases
from launch.loadtest.samples import ChunkSeen, Fault, GapSaid, Latency, Sample
from launch.loadtest.tally import ClusterSample, Tally
from scheduler.trace import Trace

PHASES = (Phase(name="a", begin_s=0.0, end_s=10.0), Phase(name="b", begin_s=10.0, end_s=20.0))


def step(viewers: float = 40.0) -> Trace:
    return invent_step(
        viewers=viewers,
        seconds=900.0,
        life_s=30.0,
        idle_share=0.2,
        edit_every_s=10.0,
        draw=random.Random(1).random,
    )


def tally(*samples: Sample, engines: tuple[tuple[float, int], ...] = ()) -> Tally:
    made = Tally()
    for sample in samples:
        made.add(sample)
    made.cluster += [
        ClusterSample(at_ms=at_ms, engines={"ready": count}, active=count, queue=1, policy="p", cpu_share=0.5)
        for at_ms, count in engines
    ]
    return made


def latency(at_ms: float, latency_ms: float) -> Latency:
    return Latency(client=0, at_ms=at_ms, seq=0, latency_ms=latency_ms, gen_ms=1.0, batch=1.0)


def test_a_step_is_few_then_many_then_few() -> None:
    """Sessions at once in each phase, on average, up to chance; the same for the same seed."""
    trace, phases = step(), step_phases(900.0)
    assert [(phase.begin_s, phase.end_s) for phase in phases] == [(0, 300), (300, 600), (600, 900)]
    assert trace == step()
    lives = trace.lives()
    for phase, viewers in zip(phases, (40 * FEW_SHARE, 40, 40 * FEW_SHARE), strict=True):
        present_s = sum(
            max(0.0, min(life.depart_s, phase.end_s) - max(life.arrive_s, phase.begin_s)) for life in lives
        )
        assert present_s / 300.0 == pytest.approx(viewers, rel=0.25)


def test_a_step_of_one_viewer_has_sessions() -> None:
    """Fewer than one at a time before and after."""
    assert step(1.0).lives()


def test_what_happens_belongs_to_its_phase() -> None:
    """What comes after the end to the last one, a chunk on the border to the later one."""
    check_again = Fault(client=0, at_ms=25_000.0, what="chunk 3 came again after it was complete")
    figures = phase_figures(
        tally(
            *(latency(0.0, 100.0), latency(9_999.0, 300.0), latency(10_000.0, 500.0), latency(21_000.0, 7.0)),
            ChunkSeen(client=0, at_ms=5_000.0, seq=0, engine="e", stalled_ms=250.0),
            *(GapSaid(client=0, at_ms=9_000.0, chunks=2), check_again),
            Fault(client=0, at_ms=1.0, what="chunk 4 does not begin with a key frame"),
        ),
        PHASES,
    )
    assert [phase["chunk_latency_ms"]["max"] for phase in figures] == [300.0, 500.0]
    assert [phase["chunk_latency_ms"]["p50"] for phase in figures] == [100.0, 7.0]
    assert [(phase["stalls"], phase["stalled_s"]) for phase in figures] == [(1, 0.25), (0, 0.0)]
    assert [(phase["gaps"], phase["repeats"]) for phase in figures] == [(2, 0), (0, 1)]


def test_engines_of_a_phase() -> None:
    """Those that there were at most, what they cost, those that went."""
    engines = ((-200.0, 1), (4_000.0, 3), (12_000.0, 2), (14_000.0, 4), (16_000.0, 1), (21_000.0, 0))
    figures = phase_figures(tally(engines=engines), PHASES)
    assert [phase["engines"] for phase in figures] == [3, 4]
    assert [phase["sessions"] for phase in figures] == [4, 5]
    assert [phase["cost_engine_s"] for phase in figures] == [1 * 4 + 3 * 6, 3 * 2 + 2 * 2 + 4 * 2 + 1 * 4]
    assert [phase["engines_gone"] for phase in figures] == [0, 1 + 3]


@pytest.mark.parametrize("broken", ["gaps", "faults", "lost"])
def test_the_benchmark_fails_by_what_clients_saw(broken: str) -> None:
    """A repeated chunk is a fault; what the server refuses is none."""
    figures = {"gaps": 0, "faults": 0, "lost": 0, "refused": 1}
    assert are_whole(figures) and not are_whole(figures | {broken: 1})


def test_a_cluster_that_never_answered_has_no_figures() -> None:
    """None, not 0."""
    (first, _) = phase_figures(tally(), PHASES)
    assert {first[key] for key in ("sessions", "engines", "engines_gone", "cost_engine_s")} == {None}
    assert phase_figures(tally(), ()) == []
