"""Who may talk to this gateway from a browser: Host and Origin rules. Pure.

Host: a page of another site can make its own name resolve to this machine (DNS rebinding), but it can't
change the Host header, which still carries that name. Origin: browsers name the page that a request
comes from.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from gateway.config import LOOPBACK, GatewayConfig


def is_host_allowed(host: str | None, config: GatewayConfig) -> bool:
    """Is this Host header one of ours?"""
    name = _host_name(host)
    if name is None:
        return False
    if name in LOOPBACK or name == config.host or name in config.allowed_hosts:
        return True
    # Bound beyond loopback: an address can't be rebound, only names can.
    return config.host not in LOOPBACK and _is_address(name)


def is_origin_allowed(origin: str | None, host: str | None, config: GatewayConfig) -> bool:
    """May a page of this origin use us? Without the header it is no page. Same origin, or configured."""
    if origin is None or origin in config.allowed_origins:
        return True
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == (host or "").lower()


def sharing_headers(origin: str | None, config: GatewayConfig) -> tuple[tuple[str, str], ...]:
    """What lets a page of another origin read an answer, if it is a configured one (Fetch standard, 3.3)."""
    if not config.allowed_origins:
        return ()
    vary = ("Vary", "Origin")
    if origin is None or origin not in config.allowed_origins:
        return (vary,)
    return vary, ("Access-Control-Allow-Origin", origin)


def preflight_headers(methods: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """What such a page may send; browsers ask before they do, and remember it for ten minutes."""
    return (
        ("Access-Control-Allow-Methods", ", ".join(methods)),
        ("Access-Control-Allow-Headers", "Authorization, Content-Type"),
        ("Access-Control-Max-Age", "600"),
    )


def _host_name(host: str | None) -> str | None:
    """The name in a Host header, in lower case, without port and brackets; None when it is malformed."""
    try:
        parts = urlsplit(f"//{host}" if host else "")
        _port = parts.port
        return parts.hostname if parts.hostname and parts.username is None and not parts.path else None
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
