"""`slack` moves nobody where there is nothing to gain: balanced clusters whose measured costs waver."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.messages import EngineCosts, EngineRecord, SessionRecord
from scheduler.policy.base import Action, Migrate, Sample
from scheduler.policy.relief import MoveRules
from scheduler.policy.slack import Slack
from tests.scheduler.policy.worlds import CONFIG, MEMORY, NOW_MS, Cluster, engine, session

SPREAD = 0.06
"""Share by which costs of equal engines waver: nine in ten measurements (bench/results/moves_*.md)."""
STEADY = replace(MEMORY, window=tuple(Sample(at_s=NOW_MS // 1000 - n, demand=9, arrivals=0) for n in (59, 1)))
"""After a minute in which nobody came or stopped."""


def wavering(draw: random.Random, chunk_ms: float, most: int = 4) -> EngineCosts:
    """Costs with which a chunk takes chunk_ms for each of one to `most` sessions, as measured."""
    pass_ms = tuple(
        rows * chunk_ms / 5 * (1.0 + draw.uniform(-SPREAD, SPREAD)) for rows in range(1, most + 1)
    )
    return EngineCosts(buckets=(1,), pass_ms=(pass_ms,), decode_ms=0.0, chunk_passes=5, first_chunk_passes=5)


def balanced(draw: random.Random, sessions: int, engines: int) -> Cluster:
    """Sessions dealt out in turn; they hold video, or little."""
    records: list[EngineRecord | SessionRecord] = [engine(f"e_{n}", capacity=4) for n in range(engines)]
    records += [
        session(f"s_{n}", f"e_{n % engines}", slack_ms=draw.randrange(2_000)) for n in range(sessions)
    ]
    cluster = Cluster(*records)
    cluster.memory = STEADY
    return cluster


def migrations(policy: Slack, draw: random.Random, cluster: Cluster, chunk_ms: float) -> list[Action]:
    """Of two minutes, a plan each ten seconds, each after all costs were measured again."""
    config = replace(CONFIG, engines=len(cluster.engines))
    found: list[Action] = []
    for _ in range(12):
        cluster.now_ms += 10_000
        for id, record in cluster.engines.items():
            heard = replace(record, costs=wavering(draw, chunk_ms), heartbeat_ms=cluster.now_ms)
            cluster.engines[id] = heard
        found += [a for a in cluster.step(policy, config) if isinstance(a, Migrate)]
    return found


@settings(deadline=None, max_examples=10)
@given(
    seed=st.integers(0, 2**32 - 1),
    engines=st.integers(2, 6),
    load=st.floats(0.0, 1.0),
    chunk_ms=st.sampled_from((50.0, 150.0, 240.0)),
)
def test_nobody_moves_in_a_steady_balanced_cluster_though_costs_waver(
    seed: int, engines: int, load: float, chunk_ms: float
) -> None:
    """Wherever players are far from running dry, and where they are not."""
    draw = random.Random(seed)
    cluster = balanced(draw, round(4 * engines * load), engines)
    assert migrations(Slack(), draw, cluster, chunk_ms) == []


def test_the_noise_that_is_allowed_for_is_needed() -> None:
    """The cluster of the test above makes a policy that believes each measurement move people about."""
    draw = random.Random(1)
    trusting = Slack(moves=MoveRules(noise=0.0, faster=0.0))
    assert len(migrations(trusting, draw, balanced(draw, 11, 4), 150.0)) > 3


@pytest.mark.parametrize("sessions", [3, 9, 16])
def test_a_crowd_is_relieved_though_one_less_is_little_of_its_latency(sessions: int) -> None:
    """Players run dry beside an empty engine: what tells is how much faster the target is."""
    costs = wavering(random.Random(0), 800.0 / sessions, most=16)
    records: list[EngineRecord | SessionRecord] = [
        engine(f"e_{n}", capacity=16, costs=costs) for n in range(2)
    ]
    cluster = Cluster(*records, *(session(f"s_{n}", "e_0") for n in range(sessions)))
    cluster.memory = STEADY
    actions = cluster.step(Slack(), replace(CONFIG, engines=2))
    assert any(isinstance(a, Migrate) for a in actions)


@pytest.mark.parametrize(("every_s", "number"), [(2, 0), (60, 1)])
def test_an_uneven_load_that_evens_out_by_itself_is_left_alone(every_s: int, number: int) -> None:
    """Nobody runs dry with three sessions: one moves only where hardly anybody comes and goes."""
    costs = wavering(random.Random(0), 150.0)
    records: list[EngineRecord | SessionRecord] = [
        engine(f"e_{n}", capacity=4, costs=costs) for n in range(2)
    ]
    cluster = Cluster(*records, *(session(f"s_{n}", "e_0") for n in range(3)))
    window = range(NOW_MS // 1000 - 59, NOW_MS // 1000)
    cluster.memory = replace(
        MEMORY,
        window=tuple(Sample(at_s=at_s, demand=3, arrivals=int(at_s % every_s == 0)) for at_s in window),
    )
    actions = cluster.step(Slack(), replace(CONFIG, engines=2))
    assert len([a for a in actions if isinstance(a, Migrate)]) == number
