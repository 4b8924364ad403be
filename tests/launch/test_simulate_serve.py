"""A simulation as the source of the cluster page's feed."""

from __future__ import annotations

import pytest

from launch import simulate_cmd
from launch.settings import SettingsError
from launch.simulate_serve import SimulatedCluster
from scheduler.messages import EngineState, SessionId
from scheduler.policy.registry import find_policy
from scheduler.sim.profile import find_profile
from scheduler.sim.simulate import Scenario
from scheduler.trace import EventKind, Trace, TraceEvent

BEGAN_MS = 1_000_000


def cluster() -> SimulatedCluster:
    """Two engines; one session that stays, one that is idle from 10 s on, until the trace ends at 30 s."""
    events = [(0, "a", "arrive"), (1, "b", "arrive"), (10, "b", "idle"), (30, "a", "depart")]
    trace = Trace(tuple(TraceEvent(t=t, session=s, event=EventKind(e)) for t, s, e in events))
    scenario = Scenario(
        policy=find_policy("slack"), profile=find_profile("paper"), min_engines=2, max_engines=2
    )
    return SimulatedCluster(trace, scenario, began_ms=BEGAN_MS)


async def test_it_shows_the_moment() -> None:
    """Engines with load, sessions with chunks, and why each was placed."""
    simulated = cluster()
    simulated.advance(20.0)
    assert await simulated.now_ms() == BEGAN_MS + 20_000
    engines = await simulated.list_engines()
    assert [engine.state for engine in engines] == [EngineState.READY] * 2
    assert sum(engine.sessions for engine in engines) == 2
    assert max(engine.load for engine in engines) > 0
    sessions = {session.id: session async for part in simulated.read_outlines() for session in part}
    assert [sessions[SessionId(id)].active for id in "ab"] == [True, False]
    assert sessions[SessionId("a")].next_seq > sessions[SessionId("b")].next_seq > 0
    newest = await simulated.decisions(50)
    assert [d.at_ms for d in newest] == sorted((d.at_ms for d in newest), reverse=True)
    assert newest[-1].text.startswith("placing a on e_0000000")
    info = await simulated.cluster_info()
    assert (info.policy, info.budget, info.queue) == ("slack", 2, 0)


async def test_it_begins_anew_and_its_clock_goes_on() -> None:
    """After the trace's end it is played again."""
    simulated = cluster()
    simulated.advance(29.0)
    simulated.advance(3.0)
    assert await simulated.now_ms() == BEGAN_MS + 32_000
    assert await simulated.count_sessions() == 2
    assert all(decision.at_ms >= BEGAN_MS + 30_000 for decision in await simulated.decisions(50))


@pytest.mark.parametrize("flags", ["--serve 99999", "--serve 0 --speed 0"])
def test_values_that_cannot_be_used(flags: str) -> None:
    """Said before anything is read."""
    with pytest.raises(SettingsError, match=flags.split()[-2]):
        simulate_cmd.main(["--trace", "none", *flags.split()])
