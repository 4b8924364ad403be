"""May a server listen there?"""

from __future__ import annotations

import socket

__all__ = ["try_port"]


def try_port(host: str, port: int) -> None:
    """Listen for a moment, as the gateway will for long. Raises OSError: it can't."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        probe.listen(1)
