"""What every policy shares: lost engines, swept sessions, the desired set, pacing of restarts. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from scheduler.config import SchedulerConfig
from scheduler.messages import DesiredEngine, EngineId, EngineState, Phase
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
    heartbeats, and at least the timeout, to be heard again, and one that starts its whole time limit.
    """
    engines, read_ms, known = view.engines, view.read_ms, view.keep(fleet)
    grace_ms = max(3 * config.heartbeat_ms, config.heartbeat_timeout_ms)
    if read_ms - changes.reachable_ms < grace_ms:
        return {}
    first_ms = max(known.asked_ms, changes.reachable_ms)
    if known.heard_ms >= read_ms - config.heartbeat_timeout_ms and known.deadline_ms >= read_ms:
        if first_ms >= read_ms - config.start_timeout_ms:
            return {}
    starting, deadline_ms = view.is_state(EngineState.STARTING), engines["deadline_ms"]
    is_silent = ~starting & (engines["heartbeat_ms"] < read_ms - config.heartbeat_timeout_ms)
    started_ms = np.maximum(engines["started_ms"], changes.reachable_ms)
    is_unready = starting & (started_ms < read_ms - config.start_timeout_ms)
    is_late = is_silent | is_unready | (deadline_ms < read_ms)  # NEVER_MS is after any time
    lost: dict[EngineId, LoseEngine] = {}
    for row in is_late.nonzero()[0].tolist():
        hangs = False
        if is_silent[row]:
            age_ms = read_ms - engines["heartbeat_ms"][row]
            why = f"silent for {age_ms} ms, limit {config.heartbeat_timeout_ms} ms"
        elif is_unready[row]:
            age_ms = read_ms - started_ms[row]
            why = f"not ready for {age_ms} ms, limit {config.start_timeout_ms} ms"
        else:
            why = f"its phase is {read_ms - deadline_ms[row]} ms over its limit"
            # A stopped process is overdue as well, but does not beat.
            age_ms = read_ms - engines["heartbeat_ms"][row]
            hangs = bool(not starting[row] and age_ms <= 2 * config.heartbeat_ms)
        lost[engines.ids[row]] = LoseEngine(engine=engines.ids[row], why=why, hangs=hangs)
    return lost


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
    busy: AbstractSet[int] = frozenset(),
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
    if not short and not (soon and view.idlers):
        return []
    sessions, models = view.sessions, view.sessions["model"]
    active_ms, left_ms = sessions["active_ms"], sessions["left_ms"]
    overdue = {row for row in short if row in view.wanting and active_ms[row] < now_ms - MAX_WAIT_MS}
    actions: list[Action] = []
    for name in sorted({view.models[models[row]] for row in short} | soon & {*view.models}):
        model = view.models.index(name)
        rows = [row for row in short if models[row] == model]
        coming = len(_on_ready_engines(view, view.leavers, model))
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


def _idlest(view: View, model: int, now_ms: int, number: int, busy: AbstractSet[int]) -> list[int]:
    """Rows of so many sessions of a model that can leave their slot."""
    if number <= 0 or not view.idlers:
        return []
    rows = _on_ready_engines(view, view.idlers - busy, model)
    gone = view.sessions["left_ms"][rows] <= now_ms - RELOAD_GRACE_MS
    could = gone | ~view.sessions["active"][rows]
    return _first(view, rows[could], gone[could], number)


def _on_ready_engines(view: View, rows: AbstractSet[int], model: int) -> NDArray[np.intp]:
    """Those of these session rows, of a model, whose engine is ready."""
    found: NDArray[np.intp] = np.fromiter(rows, np.intp, len(rows))
    if not len(found):
        return found
    engines = view.sessions["engine"][found]
    there = (engines != NO_ENGINE) & (view.sessions["model"][found] == model)
    there[there] = view.is_state(EngineState.READY)[engines[there]]
    found = found[there]
    return found


def _first(view: View, rows: NDArray[np.intp], gone: NDArray[np.bool_], number: int) -> list[int]:
    """The first `number` rows: who is gone before who is idle, the longest before others, then by id."""
    if number <= 0 or not len(rows):
        return []
    since_ms = np.where(gone, view.sessions["left_ms"][rows], view.sessions["active_ms"][rows])
    order = np.lexsort((since_ms, ~gone))
    last = order[min(number, len(order)) - 1]
    tied = (gone[order] == gone[last]) & (since_ms[order] == since_ms[last])
    end = int(tied.nonzero()[0][-1]) + 1
    ids, row = view.sessions.ids, rows.tolist()
    found = sorted(order[:end].tolist(), key=lambda at: (not gone[at], since_ms[at], ids[row[at]]))
    return [row[at] for at in found[:number]]


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
            memory = replace(memory, release_interval_ms=mean)
        memory = replace(memory, released_ms=now_ms)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """Actions that bring the engines to a wanted number."""

    actions: tuple[Action, ...]
    draining: frozenset[EngineId]
    """Engines that may not get sessions from this plan on."""


AS_IT_IS = Sizing(actions=(), draining=frozenset())


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
        return AS_IT_IS
    engines, known = view.engines, view.keep(fleet)
    is_draining, is_desired, going = view.is_state(EngineState.DRAINING), engines["desired"], known.going
    number = len(engines) - known.num_going
    if release:
        going = going.copy()
        going[list(release)] = True
        number = len(engines) - int(np.count_nonzero(going))
    missing = max(0, num_engines - number) if now_ms >= memory.retry_ms else 0
    if not missing and number <= num_engines and number == len(engines) and known.is_as_desired:
        return AS_IT_IS
    keep = set(np.flatnonzero(~going).tolist())
    keep -= _surplus(view, sorted(keep), len(keep) - num_engines)
    drains = [r for r in np.flatnonzero(view.is_state(EngineState.READY)).tolist() if r not in keep]
    draining = np.flatnonzero(is_draining & is_desired).tolist()
    empty = [r for r in draining if engines["sessions"][r] == 0 and engines["incoming"][r] == 0]
    stay = sorted({*keep, *drains, *draining} - set(empty))
    wanted = [DesiredEngine(id=engines.ids[r], model=view.models[engines["model"][r]]) for r in stay]
    wanted += [DesiredEngine(id=id, model=model) for id in changes.fresh_ids[:missing]]
    actions: list[Action] = [
        DrainEngine(engine=engines.ids[r], why=_why_drain(view, r, r in release, num_engines)) for r in drains
    ]
    actions += [StopDrained(engine=engines.ids[r], why="drained and empty") for r in empty]
    if set(wanted) != set(view.desired):
        why = f"budget {num_engines}, kept {len(keep)}, draining {len(stay) - len(keep)}, new {missing}"
        actions.append(SetDesired(engines=tuple(wanted), why=why))
    return Sizing(actions=tuple(actions), draining=frozenset(engines.ids[r] for r in drains))


def _why_drain(view: View, row: int, is_released: bool, num_engines: int) -> str:
    if view.engines["drain_ordered"][row]:
        return "drain ordered"
    return (
        "emptied, and fewer engines do" if is_released else f"more engines than the budget of {num_engines}"
    )


def _surplus(view: View, rows: list[int], number: int) -> set[int]:
    """The rows to give up: those that still start first, newest first; then the emptiest."""
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
    return set(order[: max(0, number)])
