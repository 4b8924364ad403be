"""`python -m scheduler`: one scheduler, configured by a JSON object in TURBOSERVE_SCHEDULER_CONFIG.

Exit status 0 after SIGTERM or SIGINT, 2 when the configuration or the Redis server can't be used.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys

from scheduler.config import SchedulerConfig
from scheduler.logs import configure_logging
from scheduler.loop import run
from scheduler.messages import decode_fields
from scheduler.policy.registry import find_policy
from scheduler.store import ServerTooOld

VARIABLE = "TURBOSERVE_SCHEDULER_CONFIG"
FULL_COLLECTION_EVERY = 100
"""Collections of the middle generation between two full ones, Python's 10 otherwise: one over the records of
40,000 sessions takes 0.3 to 0.5 s, in which nobody is placed."""


def read_config(text: str | None) -> SchedulerConfig:
    """Raises ValueError with a sentence."""
    try:
        values = json.loads(text or "")
    except ValueError:
        raise ValueError("it must be a JSON object") from None
    if not isinstance(values, dict):
        raise ValueError("it must be a JSON object")
    unknown = values.keys() - SchedulerConfig.__dataclass_fields__.keys()
    if unknown:
        raise ValueError(f"unknown settings: {', '.join(sorted(unknown))}")
    config = decode_fields(SchedulerConfig, values)
    find_policy(config.policy)
    return config


def collect_rarely() -> None:
    """Make full collections rare, and leave modules out of them."""
    gc.freeze()
    gc.set_threshold(*gc.get_threshold()[:2], FULL_COLLECTION_EVERY)


def main() -> int:
    """Returns the exit status."""
    configure_logging()
    try:
        config = read_config(os.environ.get(VARIABLE))
        configure_logging(config.log_format)
        collect_rarely()
        run(config)
    except (ValueError, ServerTooOld) as exc:
        logging.getLogger("scheduler").critical("%s: %s", VARIABLE, exc)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
