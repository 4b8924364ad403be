"""What plans keep of the engines from one to the next."""

from __future__ import annotations

import random
from dataclasses import fields

import numpy as np
import pytest

from scheduler.messages import DesiredEngine, EngineId, EngineState
from scheduler.policy.fleet import Fleet, fitting, fleet, usable
from scheduler.table import ClusterTable
from scheduler.view import NEVER_MS
from tests.scheduler.policy.worlds import NOW_MS, engine, session, world

IDS = [EngineId(f"e_{n}") for n in range(5)]


def change(draw: random.Random, table: ClusterTable) -> None:
    """Anything that an engine may say, or that is wanted of them; or a session, which changes none of it."""
    known = [id for id in IDS if table.view().engines.find(id) is not None]
    match draw.choice(("put", "put", "drop", "hear", "desired", "session")):
        case "put":
            state, deadline_ms = draw.choice(tuple(EngineState)), draw.choice((None, draw.getrandbits(20)))
            table.put_engine(
                engine(
                    draw.choice(IDS),
                    state,
                    model=draw.choice("ab"),
                    started_ms=draw.getrandbits(20),
                    heartbeat_ms=draw.getrandbits(20),
                    deadline_ms=deadline_ms,
                    drain_ordered=draw.random() < 0.3,
                )
            )
        case "drop":
            table.drop_engine(draw.choice(IDS))
        case "hear":
            table.hear(draw.sample(known, draw.randint(0, len(known))), draw.getrandbits(20))
        case "desired":
            table.desired = tuple(DesiredEngine(id=id, model="a") for id in draw.sample(IDS, 3))
        case _:
            table.put_session(session(f"s_{draw.randrange(9)}", draw.choice(IDS), active=draw.random() < 0.5))


@pytest.mark.parametrize("seed", range(8))
def test_what_is_kept_is_what_would_be_found_now(seed: int) -> None:
    """After any change, of engines or not."""
    draw = random.Random(seed)
    table = ClusterTable()
    for _ in range(300):
        change(draw, table)
        view = table.view()
        kept, found = view.keep(fleet), fleet(view)
        for each in fields(Fleet):
            assert np.array_equal(getattr(kept, each.name), getattr(found, each.name)), each.name
        speaking = view.engines["heartbeat_ms"][~view.is_state(EngineState.STARTING)]
        assert view.heard_ms == min(speaking, default=NEVER_MS)
        closed = draw.sample(IDS, draw.randint(0, 2))
        assert np.array_equal(view.keep(usable, *closed), usable(view, *closed))
        model = draw.randrange(2)
        assert np.array_equal(view.keep(fitting, model, *closed), fitting(view, model, *closed))


def test_what_it_says() -> None:
    """One engine of each kind."""
    view = world(
        engine("e_0", heartbeat_ms=NOW_MS - 7),
        engine("e_1", drain_ordered=True, deadline_ms=NOW_MS + 9),
        engine("e_2", EngineState.DRAINING),
        engine("e_3", EngineState.STARTING, started_ms=NOW_MS - 5, heartbeat_ms=0),
        engine("e_4", EngineState.STARTING, drain_ordered=True, started_ms=NOW_MS),
        desired=tuple(IDS),
    )
    found = view.keep(fleet)
    assert (found.staying.tolist(), found.draining, found.ordered) == ([0], (2,), (1, 4))
    assert (found.num_starting, found.num_going, found.is_as_desired) == (1, 3, True)
    assert found.going.tolist() == [False, True, True, False, True]
    assert (view.heard_ms, found.asked_ms, found.deadline_ms) == (NOW_MS - 7, NOW_MS - 5, NOW_MS + 9)
    assert view.keep(usable).tolist() == [True, False, False, False, False]
    assert not view.keep(usable, EngineId("e_0"), EngineId("e_unknown")).any()
    empty = world(desired=())
    nobody = empty.keep(fleet)
    assert empty.heard_ms == nobody.asked_ms == nobody.deadline_ms == NEVER_MS and nobody.is_as_desired
