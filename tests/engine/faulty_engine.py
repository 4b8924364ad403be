"""An engine to which something happens at one step of a migration; otherwise it is `engine`.

What happens is in the file that FAULT_FILE names, as JSON, and happens once: then the file is gone. `step` is
`send:<kind of note>`, on the rank `rank` (0 unless said), `commit` or `committed`, the latter two just before
and just after Redis has heard of it; `sent-ahead` for the fault `rebuild` (the link is taken for a slow one).
The step at which the prompt's K/V goes ahead is `send:prompt`.
Other faults are `kill`, `cut` (the link to the other engine), `hang` (for longer than a step may take) and
`stop-redis` (SIGSTOP, to the pid `redis_pid`). With `fed` or `applied` the step waits for an input, until the
rank has it or a chunk is begun with it.

An input whose id is `at-<seq>` applies at that chunk, wherever it stands in the log.

With LATENTS_FOLDER in the environment, each rank writes the clean latents of every chunk to
<session>/<engine>-<rank>-<seq>.pt there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

import engine.incoming
import engine.outgoing
import engine.shares
from engine.__main__ import main, read_config
from engine.control import Control
from engine.handover import Note, send_note
from engine.hosted import Hosted
from engine.incoming import STEP_LIMIT_S
from engine.migration_cost import LinkCost, Sizes, is_rebuild_cheaper
from engine.pairs import Pair
from engine.residents import Residents
from engine.session_state import SessionState
from engine.steering import LogEntry
from engine.stepper import Stepper
from scheduler.messages import Residence, SessionId

_FILE = Path(os.environ["FAULT_FILE"])
_happened = {"fed": threading.Event(), "applied": threading.Event()}
"""To an input."""


def strike(step: str, pair: Pair | None = None) -> bool:
    """The fault, if there is one and this is its step: then true."""
    try:
        order = json.loads(_FILE.read_text())
    except FileNotFoundError:  # also when another rank took it just now
        return False
    if order["step"] != step or order["rank"] != int(os.environ["RANK"]):
        return False
    for event in _happened.values():
        event.clear()
    _FILE.unlink()  # now the test knows
    match order["fault"]:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop-redis":
            os.kill(order["redis_pid"], signal.SIGSTOP)
        case "hang":
            time.sleep(STEP_LIMIT_S + 2)
        case "cut":
            assert pair is not None
            pair.close()
        case "fed" | "applied" as what:
            _happened[what].wait()
    return True


def send(pair: Pair, note: Note, buffers: Mapping[str, Tensor] | None = None, *, limit_s: float) -> None:
    is_prompt = note.kind == "frames" and "prompt_kv" in (buffers or {})
    strike("send:prompt" if is_prompt else f"send:{note.kind}", pair)
    send_note(pair, note, buffers, limit_s=limit_s)


def is_cheaper(sizes: Sizes, link: LinkCost, *, rebuild_ms: float, limit_ms: float) -> bool:
    really = is_rebuild_cheaper(sizes, link, rebuild_ms=rebuild_ms, limit_ms=limit_ms)
    return strike("sent-ahead") or really


class FaultyControl(Control):
    async def commit_migration(self, hosted: Hosted, migration_id: str, residence: Residence) -> int:
        strike("commit")
        epoch = await super().commit_migration(hosted, migration_id, residence)
        strike("committed")
        return epoch


def note_latents(folder: Path) -> None:
    """See the module."""
    advance = Stepper.advance
    name = f"{read_config().engine_id}-{os.environ['RANK']}"

    def noting(stepper: Stepper, state: SessionState, velocity: Tensor) -> bool:
        ready = advance(stepper, state, velocity)
        if ready:
            (folder / state.session).mkdir(parents=True, exist_ok=True)
            path = folder / state.session / f"{name}-{state.seq}.pt"
            torch.save(state.x, path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)  # it is whole when a test sees it
        return ready

    Stepper.advance = noting  # type: ignore[method-assign]


def watch_inputs() -> None:
    """See the module."""
    feed, take = Residents.feed, Stepper._take_inputs

    def feeding(residents: Residents, session: SessionId, epoch: int, entries: tuple[LogEntry, ...]) -> None:
        feed(residents, session, epoch, entries)
        _happened["fed"].set()

    def taking(stepper: Stepper, state: SessionState) -> list[LogEntry]:
        early = [item for item in state.pending if _first_seq(item) > state.seq]
        for item in early:
            state.pending.remove(item)
        taken = take(stepper, state)
        state.pending.extend(early)
        if taken:
            _happened["applied"].set()
        return taken

    Residents.feed = feeding  # type: ignore[method-assign]
    Stepper._take_inputs = taking  # type: ignore[method-assign]


def _first_seq(item: LogEntry) -> int:
    kind, _, seq = (item.message.id or "").partition("-")
    return int(seq) if kind == "at" else 0


engine.incoming.send_note = send  # type: ignore[attr-defined]
engine.outgoing.send_note = send  # type: ignore[attr-defined]
engine.outgoing.is_rebuild_cheaper = is_cheaper  # type: ignore[attr-defined]
engine.shares.send_note = send  # type: ignore[attr-defined]
engine.engine.Control = FaultyControl  # type: ignore[attr-defined,misc]

watch_inputs()
if "LATENTS_FOLDER" in os.environ:
    note_latents(Path(os.environ["LATENTS_FOLDER"]))

if __name__ == "__main__":
    sys.exit(main())
