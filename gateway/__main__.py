"""`python -m gateway`: one gateway, configured by the JSON object in TURBOSERVE_GATEWAY_CONFIG."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
from dataclasses import replace

from gateway.config import GatewayConfig
from gateway.server import run
from scheduler.logs import configure_logging
from scheduler.messages import decode_fields
from scheduler.store import ServerTooOld, draw_id

VARIABLE = "TURBOSERVE_GATEWAY_CONFIG"
FULL_COLLECTION_EVERY = 100
"""Collections of the middle generation between two full ones, Python's 10 otherwise: one over 3,000 sessions
stops all streams for 130 ms."""


def main() -> int:
    """Exit status: 0 after an orderly stop, 1 when the port is taken, 2 for a bad configuration."""
    try:
        values = json.loads(os.environ.get(VARIABLE, "{}"))
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        unknown = set(values) - set(GatewayConfig.__dataclass_fields__)
        if unknown:
            raise ValueError(f"unknown settings: {', '.join(sorted(unknown))}")
        config = decode_fields(GatewayConfig, values)
        config = replace(config, gateway_id=config.gateway_id or draw_id("g", 4))
    except ValueError as exc:
        sys.stderr.write(f"{VARIABLE}: {exc}\n")
        return 2
    configure_logging(config.log_format, gateway=str(config.gateway_id))
    logging.getLogger("websockets").setLevel(logging.WARNING)  # it reports every connection
    gc.freeze()  # modules stay: a full collection would stop all streams for 17 ms over them
    gc.set_threshold(*gc.get_threshold()[:2], FULL_COLLECTION_EVERY)
    try:
        run(config)
    except (OSError, ServerTooOld, ValueError) as exc:
        sys.stderr.write(f"gateway: {exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
