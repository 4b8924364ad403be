"""`python -m gateway`: one gateway, configured by the JSON object in TURBOSERVE_GATEWAY_CONFIG."""

from __future__ import annotations

import gc
import json
import logging
import os
import resource
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

FILES_BESIDES = 256
"""Open files besides clients' connections: links to engines, Redis, recordings and their downloads, pages."""


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
        run(replace(config, max_connections=_fit(config.max_connections)))
    except (OSError, ServerTooOld, ValueError) as exc:
        sys.stderr.write(f"gateway: {exc}\n")
        return 1
    return 0


def _fit(max_connections: int) -> int:
    """So many connections, or as many as there may be open files for: at the end of these not only further
    clients would be refused, but Redis, engines and recordings lost to those who are here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_connections + FILES_BESIDES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return max_connections
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    fitting = max(1, limit - FILES_BESIDES)
    if fitting < max_connections:
        text = "of max_connections %d only %d fit in the %d files that this process may open (ulimit -Hn)"
        logging.getLogger("gateway").warning(text, max_connections, fitting, limit)
    return fitting


if __name__ == "__main__":
    sys.exit(main())
