"""Carrying actions out, on a real Redis."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from scheduler.apply import apply
from scheduler.messages import DesiredEngine, EngineId, EngineState
from scheduler.policy.base import (
    Action,
    Activate,
    DrainEngine,
    LoseEngine,
    Migrate,
    Place,
    SetDesired,
    Suspend,
)
from scheduler.store import StaleTerm, Store
from tests.scheduler.conftest import E1, E2, E3, S1, S2, create, lead, placed, ready

WANTED = tuple(DesiredEngine(id=engine, model="shapes") for engine in (E1, E3))


def answering(*answers: bool) -> Callable[[], Awaitable[bool]]:
    """A lease that is held, or not, each time that somebody asks."""
    left = iter(answers)

    async def may_act() -> bool:
        return next(left)

    return may_act


async def yes() -> bool:
    """It is held."""
    return True


@pytest.mark.parametrize(
    "actions",
    [
        pytest.param([SetDesired(engines=WANTED, why="x")], id="desired"),
        pytest.param([DrainEngine(engine=E1, why="x")], id="drain"),
        pytest.param([LoseEngine(engine=E1, why="x")], id="lose"),
        pytest.param([Place(session=S2, engine=E2, expect_epoch=0, why="x")], id="place"),
        pytest.param([Suspend(session=S1, expect_epoch=1, why="x")], id="suspend"),
    ],
)
async def test_twice_is_as_good_as_once(store: Store, actions: list[Action]) -> None:
    """A leader that does not know whether its last action arrived may repeat it."""
    term, _ = await placed(store)
    await ready(store, E2)
    await create(store, S2)
    assert await apply(store, actions, term=term, may_act=yes)
    once = await everything(store)
    assert await apply(store, actions, term=term, may_act=yes)
    assert await everything(store) == once


async def everything(store: Store) -> object:
    """All records, and how many commands the engines got."""
    commands = [await store.read_commands(engine, "0-0") for engine in (E1, E2)]
    return await store.list_engines(), await store.list_sessions(), await store.read_desired(), commands


async def test_a_refused_action_does_not_stop_the_others(store: Store) -> None:
    """The world moved on for one of them."""
    term, _ = await placed(store)
    stale = Activate(session=S1, expect_epoch=7, why="x")
    drain = DrainEngine(engine=E1, why="x")
    assert await apply(store, [stale, drain], term=term, may_act=yes)
    engine = await store.get_engine(E1)
    assert engine is not None and engine.state is EngineState.DRAINING


async def test_nothing_is_done_once_the_lease_ended(store: Store) -> None:
    """Checked before each action."""
    await ready(store)
    once = answering(True, False)
    actions = [DrainEngine(engine=E1, why="x"), LoseEngine(engine=E1, why="x")]
    assert not await apply(store, actions, term=await lead(store), may_act=once)
    engine = await store.get_engine(E1)
    assert engine is not None and engine.state is EngineState.DRAINING


async def test_what_was_done_is_kept_with_its_reason(store: Store) -> None:
    """Newest first; what was refused was not done."""
    await ready(store)
    await ready(store, E2)
    term = await lead(store)
    stale = Activate(session=S1, expect_epoch=7, why="x")
    actions = [DrainEngine(engine=E1, why="it is the emptier"), stale, LoseEngine(engine=E2, why="silent")]
    await apply(store, actions, term=term, may_act=yes)
    newest, older = await store.decisions(10)
    assert newest.text == f"lost engine {E2}, 0 sessions wait: silent"
    assert older.text == f"draining engine {E1}: it is the emptier"
    assert 0 < older.at_ms <= newest.at_ms
    assert await store.decisions(1) == [newest]


async def test_a_session_that_nobody_had_is_placed_without_a_try_to_move_it(store: Store) -> None:
    """The decision says why it is there, and nothing of a migration."""
    term = await lead(store)
    await ready(store, E1)
    await create(store, S1)
    place = Place(session=S1, engine=E1, expect_epoch=0, why="it is free")
    assert await apply(store, [place], term=term, may_act=yes)
    (decision,) = await store.decisions(1)
    assert decision.text == f"placed {S1} on {E1} at epoch 1: it is free"


async def test_a_move_for_balance_is_no_rebuild(store: Store) -> None:
    """What streams stays where its state can't go with it, until its engine goes, or somebody orders it."""
    term, epoch = await placed(store)
    await ready(store, E2)  # neither has an address for migrations
    move = Migrate(session=S1, source=E1, target=E2, expect_epoch=epoch, why="it is slower there")
    assert await apply(store, [move], term=term, may_act=yes)
    assert await owner(store) == (E1, epoch)
    await store.order_migration(S1, E2)
    assert await apply(store, [move], term=term, may_act=yes)
    assert await owner(store) == (E2, epoch + 1)
    back = Migrate(session=S1, source=E2, target=E1, expect_epoch=epoch + 1, why="it goes")
    assert await apply(store, [back], term=term, may_act=yes)
    assert await owner(store) == (E2, epoch + 1)
    await store.drain_engine(E2, term=term, reason="x")
    assert await apply(store, [back], term=term, may_act=yes)
    assert await owner(store) == (E1, epoch + 2)


async def owner(store: Store) -> tuple[EngineId | None, int]:
    """Of S1, and its epoch."""
    record = await store.get_session(S1)
    assert record is not None
    return record.engine, record.epoch


async def test_what_could_not_be_kept_is_kept_later(store: Store) -> None:
    """The lease ended after the first action: who leads next says what was done."""
    await ready(store)
    term, once = await lead(store), answering(True, False)
    untold: list[str] = []
    actions = [DrainEngine(engine=E1, why="first"), LoseEngine(engine=E1, why="second")]
    assert not await apply(store, actions, term=term, may_act=once, untold=untold)
    assert await store.decisions(10) == [] and untold == [f"draining engine {E1}: first"]
    assert await apply(store, [], term=term, may_act=yes, untold=untold)
    (decision,) = await store.decisions(10)
    assert decision.text == f"draining engine {E1}: first" and untold == []


async def test_a_former_leader_records_nothing(store: Store) -> None:
    """Its term is not in force."""
    term = await lead(store)
    with pytest.raises(StaleTerm):
        await store.record_decisions(term - 1, ["x"])
    assert await store.decisions(1) == []


async def test_a_long_decision_is_cut(store: Store) -> None:
    """A thousand of them must not fill Redis, whatever the size of the cluster."""
    await store.record_decisions(await lead(store), ["e_00000001, " * 4_096])
    assert len((await store.decisions(1))[0].text) == 1_000
