"""May a server listen there?"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import ExitStack
from typing import Final

__all__ = ["PortRefused", "try_port"]

_OTHER_HOST: Final = "give an address of this machine with --host"


class PortRefused(Exception):
    """Nobody can listen there. `str()` says why, and what to do."""


def try_port(host: str, port: int) -> None:
    """Listen for a moment at every address of the host, as the gateway will for long. Raises PortRefused."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        with ExitStack() as listening:
            for family, *_, address in found:
                listening.enter_context(socket.create_server(address, family=family))
    except (OSError, UnicodeError) as exc:  # UnicodeError: no host can have such a name
        raise PortRefused(f"port {port} on {host} can't be used ({_why(exc)}): {_advice(exc)}") from exc


def _why(exc: OSError | UnicodeError) -> str:
    if isinstance(exc, socket.gaierror):
        return str(exc.strerror)
    # Without the address, which `create_server` repeats.
    return os.strerror(exc.errno) if isinstance(exc, OSError) and exc.errno else str(exc)


def _advice(exc: OSError | UnicodeError) -> str:
    if isinstance(exc, PermissionError):
        return "choose another with --port, those below 1024 are for root"
    if isinstance(exc, OSError) and exc.errno == errno.EADDRINUSE:
        return "stop what listens there, or choose another with --port"
    return _OTHER_HOST
