"""torchrun, with an exit status that says how the first rank that failed ended: its own, or 128 + the signal
that killed it, or that ended this agent. torchrun alone exits with 1 whatever it was.

    python -m launch.agent ARGUMENTS_OF_TORCHRUN
"""

from __future__ import annotations

import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

from launch.engine_job import SIGNALLED


def run() -> int:
    """Until every rank has ended."""
    try:
        main()
    except SignalException as exc:
        return SIGNALLED + exc.sigval
    except ChildFailedError as exc:
        sys.stderr.write(f"{exc}\n")
        _, failure = exc.get_first_failure()
        return SIGNALLED - failure.exitcode if failure.exitcode < 0 else failure.exitcode
    return 0


if __name__ == "__main__":
    sys.exit(run())
