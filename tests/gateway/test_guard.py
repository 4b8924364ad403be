"""Host and Origin rules as a table."""

from __future__ import annotations

import pytest

from gateway.config import GatewayConfig
from gateway.guard import is_host_allowed, is_origin_allowed

LOCAL = GatewayConfig(redis="unix:///x", link_secret="s", allowed_hosts=("video.example",), insecure=True)
OPEN = GatewayConfig(redis="unix:///x", link_secret="s", host="0.0.0.0", insecure=True)


@pytest.mark.parametrize(
    ("host", "local", "open"),
    [
        ("localhost", True, True),
        ("LocalHost:8080", True, True),
        ("127.0.0.1:1", True, True),
        ("[::1]:8080", True, True),
        ("video.example", True, False),
        ("192.168.0.7:8080", False, True),
        ("[fe80::1]", False, True),
        ("evil.example", False, False),
        ("localhost.evil.example", False, False),
        ("localhost@evil.example", False, False),
        ("localhost/x", False, False),
        ("localhost:notaport", False, False),
        ("", False, False),
        (None, False, False),
    ],
)
def test_hosts(host: str | None, local: bool, open: bool) -> None:
    """Loopback names and configured ones; plain addresses only when bound beyond loopback."""
    assert is_host_allowed(host, LOCAL) is local
    assert is_host_allowed(host, OPEN) is open


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("http://localhost:8080", True),
        ("https://LOCALHOST:8080", True),
        ("http://localhost:9090", False),
        ("http://127.0.0.1:8080", False),
        ("file://localhost:8080", False),
        ("null", False),
        ("", False),
        ("http://[", False),
        ("http://[::1", False),
    ],
)
def test_origins(origin: str | None, allowed: bool) -> None:
    """Same origin as the Host header, or no page at all."""
    assert is_origin_allowed(origin, "localhost:8080", LOCAL) is allowed
