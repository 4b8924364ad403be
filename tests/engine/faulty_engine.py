"""An engine to which something happens at one step of a migration; otherwise it is `engine`.

The step is in FAULT_STEP: `send:<kind of note>`, `commit` or `committed`, the latter two just before and just
after Redis has heard of it. What happens is in FAULT: `kill`, `cut` (the link to the other engine) or
`stop-redis` (SIGSTOP, to the pid in REDIS_PID). It happens once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping

from torch import Tensor

import engine.incoming
import engine.outgoing
from engine.__main__ import main
from engine.control import Control
from engine.handover import Note, send_note
from engine.hosted import Hosted
from engine.pairs import Pair
from scheduler.messages import Residence

_waiting = [os.environ["FAULT_STEP"]]


def strike(step: str, pair: Pair | None = None) -> None:
    """The fault, if this is its step."""
    if step not in _waiting:
        return
    _waiting.clear()
    match os.environ["FAULT"]:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop-redis":
            os.kill(int(os.environ["REDIS_PID"]), signal.SIGSTOP)
        case "cut":
            assert pair is not None
            pair.close()


def send(pair: Pair, note: Note, buffers: Mapping[str, Tensor] | None = None, *, limit_s: float) -> None:
    strike(f"send:{note.kind}", pair)
    send_note(pair, note, buffers, limit_s=limit_s)


class FaultyControl(Control):
    async def commit_migration(self, hosted: Hosted, migration_id: str, residence: Residence) -> int:
        strike("commit")
        epoch = await super().commit_migration(hosted, migration_id, residence)
        strike("committed")
        return epoch


engine.incoming.send_note = send  # type: ignore[attr-defined]
engine.outgoing.send_note = send  # type: ignore[attr-defined]
engine.engine.Control = FaultyControl  # type: ignore[attr-defined,misc]

if __name__ == "__main__":
    sys.exit(main())
