"""What every policy shares: lost engines, swept sessions, the desired set, pacing of restarts. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import itemgetter
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.config import SchedulerConfig
from scheduler.keys import GATEWAY_TTL_S
from scheduler.messages import DesiredEngine, EngineId, EngineState, GatewayId, Phase
from scheduler.policy.base import (
    Action,
    Changes,
    DrainEngine,
    LoseEngine,
    Memory,
    Requeue,
    SetDesired,
    StopDrained,
    Suspend,
    Sweep,
)
from scheduler.policy.fleet import fleet
from scheduler.view import NO_ENGINE, View

RELOAD_GRACE_MS = 3_000
"""A connection that is gone for less may be a page being loaded again."""
PATIENCE_MS = 3_000
"""Who is active again waits for a slot that is there within this time with its state in host memory, as for a
migration's end; for a later one it waits in the queue, where it is told so, and is rebuilt."""
MAX_WAIT_MS = 3 * PATIENCE_MS
"""But never for longer than this, whatever is expected: slots may be foreseen again and again and go to
others, or not come. Where they come at random, one wait in twenty (e^−3) is three times the expected one. The
queue goes before all who wait at their engines."""
YOUNG_MS = 30_000
"""An engine that is gone before this age died at its start, more or less."""
START_GRACE_MS = 30_000
"""One that starts has at least as long after a break in the reach of Redis, as far as its limit allows: a new
leader does not know how much of its time the break took."""
MAX_PAUSE_MS = 30_000
FORGIVE_MS = 60_000
"""Without another early death for this time after the last pause, the count starts anew."""


def settling_ms(config: SchedulerConfig) -> int:
    """How long engines have to be heard after Redis lost its data: three heartbeats, and the time after which
    one of them gives up a command that hangs."""
    return 3 * config.heartbeat_ms + config.heartbeat_timeout_ms


def find_lost(view: View, changes: Changes, config: SchedulerConfig) -> dict[EngineId, LoseEngine]:
    """Engines to declare gone.

    Silence only counts while Redis was reachable and its clock not set: after that every engine gets three
    heartbeats, and at least the timeout, to be heard again, and one that starts all of the time that it lost.
    Nothing else limits a start: what an engine says of its phase counts from its registration on. One hangs
    that is heard after its phase should have ended; of one that is not heard, only its silence tells.
    """
    engines, read_ms, known = view.engines, view.read_ms, view.keep(fleet)
    grace_ms = max(3 * config.heartbeat_ms, config.heartbeat_timeout_ms)
    if read_ms - changes.reachable_ms < grace_ms:
        return {}
    if view.heard_ms >= read_ms - config.heartbeat_timeout_ms and known.deadline_ms >= read_ms:
        if known.asked_ms >= read_ms - config.start_timeout_ms:
            return {}
    starting, heartbeat_ms = view.is_state(EngineState.STARTING), engines["heartbeat_ms"]
    is_silent = ~starting & (heartbeat_ms < read_ms - config.heartbeat_timeout_ms)
    start_ms = read_ms - engines["started_ms"] - _lost_ms(engines["started_ms"], changes.breaks)
    is_judged = read_ms - changes.reachable_ms > min(START_GRACE_MS, config.start_timeout_ms)
    is_unready = starting & (start_ms > config.start_timeout_ms) & is_judged
    over_ms = heartbeat_ms - engines["deadline_ms"]  # NEVER_MS is after any time
    hangs = ~starting & (over_ms >= 0) & ~is_silent
    lost: dict[EngineId, LoseEngine] = {}
    for row in (is_silent | is_unready | hangs).nonzero()[0].tolist():
        if is_silent[row]:
            why = f"silent for {read_ms - heartbeat_ms[row]} ms, limit {config.heartbeat_timeout_ms} ms"
        elif is_unready[row]:
            why = f"not ready for {start_ms[row]} ms, limit {config.start_timeout_ms} ms"
        else:
            why = f"its phase was {over_ms[row]} ms over its limit when it was heard last"
        lost[engines.ids[row]] = LoseEngine(engine=engines.ids[row], why=why, hangs=bool(hangs[row]))
    return lost


def _lost_ms(started_ms: NDArray[np.int64], breaks: Iterable[tuple[int, int]]) -> NDArray[np.int64]:
    """Time of breaks since then."""
    lost_ms = np.zeros_like(started_ms)
    for until_ms, took_ms in breaks:
        lost_ms += np.clip(until_ms - started_ms, 0, took_ms)
    return lost_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class LoseGateway:
    """Have the sessions left that wait through this gateway: it can't say any more that their clients are
    gone. No action of a policy."""

    gateway: GatewayId
    why: str


def find_lost_gateways(
    waiting: Iterable[GatewayId], heard: Collection[str], read_ms: int, reachable_ms: int
) -> list[LoseGateway]:
    """Gateways through which somebody waits, and that were not `heard` in the last GATEWAY_TTL_S at read_ms.

    As with engines, silence only counts while Redis was reachable: after that each has the same time to be
    heard again.
    """
    limit_ms = GATEWAY_TTL_S * 1_000
    if read_ms - reachable_ms < limit_ms:
        return []
    why = f"silent for more than {limit_ms} ms"
    return [LoseGateway(gateway=gateway, why=why) for gateway in sorted({*waiting} - {*heard})]


def sweep(view: View, now_ms: int, config: SchedulerConfig) -> list[Action]:
    """Close queued sessions whose connection left retain_s ago."""
    if not view.deserted:
        return []
    sessions = view.sessions
    left_ms = sessions["left_ms"]
    limit_ms = config.retain_s * 1_000
    return [
        Sweep(
            session=sessions.ids[row],
            left_ms=int(left_ms[row]),
            why=f"its connection left {now_ms - left_ms[row]} ms ago, limit {limit_ms} ms",
        )
        for row in view.by_id(row for row in view.deserted if left_ms[row] <= now_ms - limit_ms)
    ]


def make_room(
    view: View,
    short: Sequence[int],
    now_ms: int,
    *,
    busy: Collection[int] = (),
    ahead: Mapping[str, int] = MappingProxyType({}),
    is_patient: bool = False,
) -> list[Action]:
    """Take the slots of sessions that nobody watches, or that are idle, while others wait: the longest gone
    first, then the longest idle. Who is placed without a slot, is short and can't be helped so waits in the
    queue; so does who has waited for MAX_WAIT_MS at its engine. Who has a slot, of an engine that drains,
    streams on there until there is room elsewhere.

    short: rows of sessions that found no slot, who comes first first. busy: rows of sessions that the
    plan does something else with. ahead: slots that others will need soon, by model. is_patient: who is short
    keeps its place, and so its state, because slots are about to come.
    """
    soon = {model for model, number in ahead.items() if number}
    if not short and not (soon and (view.idle_line or view.left_line)):
        return []
    sessions, models = view.sessions, view.sessions["model"]
    active_ms, left_ms = sessions["active_ms"], sessions["left_ms"]
    overdue = {row for row in short if row in view.wanting and active_ms[row] < now_ms - MAX_WAIT_MS}
    actions: list[Action] = []
    for name in sorted({view.models[models[row]] for row in short} | soon & {*view.models}):
        model = view.models.index(name)
        rows = [row for row in short if models[row] == model]
        coming = sum(_is_on_ready_engine(view, row, model) for row in view.leavers)
        leaving = _idlest(view, model, now_ms, len(rows) + ahead.get(name, 0) - coming, busy)
        actions += [
            Suspend(
                session=sessions.ids[row],
                expect_epoch=int(sessions["epoch"][row]),
                why=("others wait for a slot, and " if rows else "others will soon need a slot, and ")
                + ("nobody watches it" if left_ms[row] <= now_ms - RELOAD_GRACE_MS else "it is idle"),
            )
            for row in leaving
        ]
        actions += [
            Requeue(session=sessions.ids[row], expect_epoch=int(sessions["epoch"][row]), why="no_room")
            for at, row in enumerate(rows)
            if row in overdue or (row in view.wanting and at >= coming + len(leaving) and not is_patient)
        ]
    return actions


def _idlest(view: View, model: int, now_ms: int, number: int, busy: Collection[int]) -> list[int]:
    """Rows of the first `number` sessions of a model that can leave their slot, on ready engines: who is gone
    before who is idle, the longest before others, then by id."""
    found: list[int] = []
    if number <= 0:
        return found
    find, left_line, limit_ms = view.sessions.rows, view.left_line, now_ms - RELOAD_GRACE_MS
    gone = {find[id]: None for _, id in left_line[: bisect_right(left_line, limit_ms, key=itemgetter(0))]}
    idle = (row for _, id in view.idle_line if (row := find[id]) not in gone)
    for row in chain(gone, idle):
        if row not in busy and _is_on_ready_engine(view, row, model):
            found.append(row)
            if len(found) == number:
                break
    return found


def _is_on_ready_engine(view: View, row: int, model: int) -> bool:
    engine = view.sessions["engine"].item(row)
    is_there = engine != NO_ENGINE and view.is_state(EngineState.READY).item(engine)
    return bool(is_there and view.sessions["model"].item(row) == model)


def requeue_orphans(view: View) -> list[Action]:
    """Take back sessions whose engine has no record any more."""
    if not view.orphans:
        return []
    sessions = view.sessions
    return [
        Requeue(session=sessions.ids[row], expect_epoch=int(sessions["epoch"][row]), why="engine_lost")
        for row in view.by_id(view.orphans)
    ]


def note_changes(view: View, changes: Changes, memory: Memory, now_ms: int) -> Memory:
    """Memory after the changes: pacing of restarts, interval between releases."""
    desired = {engine.id for engine in view.desired} if changes.gone else set()
    if memory.retry_ms > now_ms + MAX_PAUSE_MS:  # Redis time was set back
        memory = replace(memory, retry_ms=now_ms + pause_ms(memory.failures))
    if memory.failures and now_ms > memory.retry_ms + FORGIVE_MS:
        memory = replace(memory, failures=0)
    for gone in changes.gone:
        if gone.id in desired and gone.state is not EngineState.DRAINING:
            young = gone.state is EngineState.STARTING or now_ms - gone.started_ms < YOUNG_MS
            failures = memory.failures + 1 if young else 0
            memory = replace(memory, failures=failures, retry_ms=now_ms + pause_ms(failures))
    if changes.released:
        if memory.released_ms:
            sample = min(120_000, max(100, (now_ms - memory.released_ms) / changes.released))
            mean = 0.8 * memory.release_interval_ms + 0.2 * sample
            return replace(memory, release_interval_ms=mean, released_ms=now_ms)
        return replace(memory, released_ms=now_ms)
    return memory


def release_wait_ms(view: View, memory: Memory, now_ms: int) -> int:
    """Expected time until one more place is free, ms: the mean between two. While somebody waits and all are
    taken, no less than the time since the last one, or since the newest session that has a place came.

    Places of all models are counted together. The latter is in whole seconds.
    """
    engines, sessions = view.engines, view.sessions
    mean_ms = int(round(memory.release_interval_ms, -2))
    placed = view.is_phase(Phase.PLACED)
    if not view.queued or not placed.any():
        return mean_ms
    usable = view.is_state(EngineState.READY) & ~engines["drain_ordered"]
    usable &= np.isin(engines["model"], sessions["model"][list(view.queued)])
    if (engines["capacity"] > engines["residents"] + engines["incoming"])[usable].any():
        return mean_ms
    since_ms = max(memory.released_ms, int(sessions["created_ms"][placed].max()))
    return max(mean_ms, (now_ms - since_ms) // 1_000 * 1_000)


def pause_ms(failures: int) -> int:
    """Wait before the next replacement: 0 after the first early death, then 1 s, 2 s … MAX_PAUSE_MS."""
    return 0 if failures < 2 else min(MAX_PAUSE_MS, 1_000 << min(failures - 2, 10))


class Sizing(NamedTuple):
    """Actions that bring the engines to a wanted number."""

    actions: tuple[Action, ...] = ()
    draining: frozenset[EngineId] = frozenset()
    """Engines that may not get sessions from this plan on."""


def size_cluster(
    view: View,
    changes: Changes,
    memory: Memory,
    now_ms: int,
    *,
    lost: Sequence[EngineId],
    model: str,
    num_engines: int,
    release: Collection[int] = (),
) -> Sizing:
    """Keep num_engines engines starting or ready, not counting those that go: drain what is ordered, in
    `release` (engine rows) or too many, stop what is empty.

    A draining engine stays in the desired set until it is empty, and its replacement comes at once. A lost
    one is replaced by the plan after the one that loses it, which knows how it died.
    """
    if lost:
        return Sizing()
    engines, known = view.engines, view.keep(fleet)
    going, number = known.going, len(engines) - known.num_going
    if release:
        going = going.copy()
        going[list(release)] = True
        number = len(engines) - int(np.count_nonzero(going))
    missing = max(0, num_engines - number) if now_ms >= memory.retry_ms else 0
    if not missing and number <= num_engines and number == len(engines) and known.is_as_desired:
        return Sizing()
    keep = set(np.flatnonzero(~going).tolist())
    keep -= _surplus(view, sorted(keep), len(keep) - num_engines)
    drains = [r for r in np.flatnonzero(view.is_state(EngineState.READY)).tolist() if r not in keep]
    draining = [row for row in known.draining if engines["desired"][row]]
    empty = [r for r in draining if engines["sessions"][r] == 0 and engines["incoming"][r] == 0]
    stay = sorted({*keep, *drains, *draining} - set(empty))
    desired = view.keep(_desired)
    wanted = [
        desired.get((id, name)) or DesiredEngine(id=id, model=name)
        for id, name in ((engines.ids[r], view.models[engines["model"].item(r)]) for r in stay)
    ]
    wanted += [DesiredEngine(id=id, model=model) for id in changes.fresh_ids[:missing]]
    actions: list[Action] = [
        DrainEngine(engine=engines.ids[r], why=_why_drain(view, r, r in release, num_engines)) for r in drains
    ]
    actions += [StopDrained(engine=engines.ids[r], why="drained and empty") for r in empty]
    if len(wanted) != len(desired) or any((e.id, e.model) not in desired for e in wanted):
        why = f"budget {num_engines}, kept {len(keep)}, draining {len(stay) - len(keep)}, new {missing}"
        actions.append(SetDesired(engines=tuple(wanted), why=why))
    return Sizing(actions=tuple(actions), draining=frozenset(engines.ids[r] for r in drains))


def _desired(view: View) -> dict[tuple[EngineId, str], DesiredEngine]:
    """To be kept: with thousands of engines it takes longer than all else of a plan."""
    return {(engine.id, engine.model): engine for engine in view.desired}


def _why_drain(view: View, row: int, is_released: bool, num_engines: int) -> str:
    if view.engines["drain_ordered"][row]:
        return "drain ordered"
    return (
        "emptied, and fewer engines do" if is_released else f"more engines than the budget of {num_engines}"
    )


def _surplus(view: View, rows: list[int], number: int) -> set[int]:
    """The rows to give up: those that still start first, newest first; then the emptiest."""
    if number <= 0:
        return set()
    engines = view.engines
    is_starting = view.is_state(EngineState.STARTING)
    order = sorted(
        rows,
        key=lambda r: (
            not is_starting[r],
            int(engines["sessions"][r]),
            -int(engines["started_ms"][r]),
            engines.ids[r],
        ),
    )
    return set(order[:number])
