"""The paper's baselines as tables: where the next session goes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.messages import EngineCosts, EngineRecord, SessionRecord
from scheduler.policy.base import Memory
from scheduler.policy.registry import ALL
from tests.scheduler.policy.worlds import CHANGES, CONFIG, NOW_MS, decide, engine, session, short, world

SLOW = EngineCosts(buckets=(1,), pass_ms=((40.0, 80.0),), decode_ms=0.0, chunk_passes=5, first_chunk_passes=5)
FAST = replace(SLOW, pass_ms=((10.0, 20.0),))
IDLE = {"active": False}
A, B, C = (session(f"s_{name}", "e_1") for name in "abc")


@pytest.mark.parametrize(
    ("name", "records", "target"),
    [
        pytest.param(
            "fixed",
            [engine("e_1", costs=SLOW), engine("e_2", capacity=4, costs=FAST), session("s_a", "e_2")],
            "e_2",
            id="fixed: two on a fast engine are sooner done than one on a slow one",
        ),
        pytest.param(
            "fixed",
            [engine("e_1"), engine("e_2"), session("s_a", "e_1")],
            "e_2",
            id="fixed: the lighter of equals",
        ),
        pytest.param(
            "greedy_load",
            [engine("e_1", capacity=9), engine("e_2", capacity=4), A, B, session("s_c", "e_2")],
            "e_2",
            id="greedy_load: fewest active, whatever the room",
        ),
        pytest.param(
            "greedy_load",
            [replace(engine("e_1"), load=0.9), replace(engine("e_2"), load=0.1)],
            "e_2",
            id="greedy_load: among equals the less busy",
        ),
        pytest.param(
            "greedy_memory",
            [engine("e_1", capacity=9), engine("e_2", capacity=4), A, B, session("s_c", "e_2")],
            "e_1",
            id="greedy_memory: most room, whatever the load",
        ),
        pytest.param(
            "greedy_memory",
            [engine("e_1"), engine("e_2"), session("s_a", "e_1", **IDLE)],
            "e_2",
            id="greedy_memory: an idle session in its slot counts",
        ),
        pytest.param(
            "greedy_load",
            [engine("e_1"), engine("e_2"), session("s_a", "e_1", **IDLE)],
            "e_1",
            id="greedy_load: it does not",
        ),
    ],
)
def test_where_the_next_session_goes(
    name: str, records: list[EngineRecord | SessionRecord], target: str
) -> None:
    """One waits."""
    assert decide(ALL[name], world(*records, session("s_w"))) == [("place", "s_w", target)]


@pytest.mark.parametrize(
    ("last", "waiting", "targets"),
    [
        ("", 3, ["e_1", "e_2", "e_3"]),
        ("e_1", 3, ["e_2", "e_3", "e_1"]),
        ("e_2", 5, ["e_3", "e_1", "e_2", "e_3", "e_1"]),
        ("e_25", 1, ["e_3"]),  # it is gone
        ("e_3", 1, ["e_1"]),
        ("", 7, ["e_1", "e_2", "e_3", "e_1", "e_2", "e_3"]),  # the last one found no room
    ],
)
def test_round_robin_goes_on_after_the_last_engine(last: str, waiting: int, targets: list[str]) -> None:
    """Also across plans and leaders: the memory says where it was."""
    view = world(
        *(engine(f"e_{n}") for n in (1, 2, 3)), *(session(f"s_{n}", order=n) for n in range(waiting))
    )
    config = replace(CONFIG, engines=3)
    actions, memory = ALL["round_robin"].plan(view, CHANGES, Memory(last_engine=last), NOW_MS, config)
    assert [short(action)[2] for action in actions if short(action)[0] == "place"] == targets
    assert memory.last_engine == targets[-1]


def test_round_robin_passes_full_engines_over() -> None:
    """And takes its turn from there."""
    view = world(engine("e_1", capacity=3), engine("e_2", capacity=0), session("s_a"), session("s_b"))
    assert decide(ALL["round_robin"], view) == [("place", "s_a", "e_1"), ("place", "s_b", "e_1")]
