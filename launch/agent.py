"""torchrun, with an exit status that says how the first rank that failed ended: its own, or 128 + the signal
that killed it, or that ended this agent. torchrun alone exits with 1 whatever it was.

    python -m launch.agent ARGUMENTS_OF_TORCHRUN
"""

from __future__ import annotations

import signal
import sys
from typing import Final

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

from launch.engine_job import SIGNALLED

_TOGETHER_S: Final = 5
"""Ranks that fail within so long may have failed of one cause. torchrun itself kills a rank that does not end
after 30 s, no sooner."""


def run() -> int:
    """Until every rank has ended."""
    try:
        main()
    except SignalException as exc:
        return SIGNALLED + exc.sigval
    except ChildFailedError as exc:
        sys.stderr.write(f"{exc}\n")
        status = _first_status(exc)
        return SIGNALLED - status if status < 0 else status
    return 0


def _first_status(error: ChildFailedError) -> int:
    """How the rank ended whose end was the cause of the others', negative: by that signal.

    torchrun looks ten times a second and notes whole seconds: of ranks that failed in one of them it can't
    tell which was first. None is killed because another failed; that one fails because another was killed is
    usual.
    """
    _, first = error.get_first_failure()
    together = (f for f in error.failures.values() if f.timestamp <= first.timestamp + _TOGETHER_S)
    is_killed = any(failure.exitcode == -signal.SIGKILL for failure in together)
    return -signal.SIGKILL if is_killed else first.exitcode


if __name__ == "__main__":
    sys.exit(run())
