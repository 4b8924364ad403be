"""An engine to which something happens at one step of a migration; otherwise it is `engine`.

What happens is in the file that FAULT_FILE names, as JSON, and happens once: then the file is gone. `step` is
`send:<kind of note>`, `commit` or `committed`, the latter two just before and just after Redis has heard of
it. `fault` is `kill`, `cut` (the link to the other engine) or `stop-redis` (SIGSTOP, to the pid `redis_pid`).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

import engine.incoming
import engine.outgoing
from engine.__main__ import main
from engine.control import Control
from engine.handover import Note, send_note
from engine.hosted import Hosted
from engine.pairs import Pair
from scheduler.messages import Residence

_FILE = Path(os.environ["FAULT_FILE"])


def strike(step: str, pair: Pair | None = None) -> None:
    """The fault, if there is one and this is its step."""
    if not _FILE.exists():
        return
    order = json.loads(_FILE.read_text())
    if order["step"] != step:
        return
    _FILE.unlink()
    match order["fault"]:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop-redis":
            os.kill(order["redis_pid"], signal.SIGSTOP)
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
