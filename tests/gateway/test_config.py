"""Settings that can't work are refused with a sentence that names them."""

from __future__ import annotations

import logging

import pytest

from gateway.config import GatewayConfig
from tests.gateway.gateway_fixtures import World

SECRET, SHA256 = "0" * 32, "0" * 64


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"host": "0.0.0.0"}, "insecure"),
        ({"host": "192.168.0.7"}, "host"),
        (
            {"allowed_hosts": ("localhost", "video.example")},
            "allowed_hosts localhost, video.example are",
        ),
        ({"port": 70_000}, "port"),
        ({"link_secret": ""}, "link_secret"),
        ({"queue_limit": 0}, "queue_limit"),
        ({"address_connections": 0}, "address_connections"),
        ({"start_timeout_s": 0.0}, "start_timeout_s"),
        ({"codecs": ("h264", "theora")}, "codecs"),
        ({"codecs": ()}, "codecs"),
        ({"recording_mib": 10, "recordings_mib": 5}, "recording_mib"),
        ({"auth": "tokens"}, "^auth must be none or token, got 'tokens'$"),
        ({"auth": "token"}, "^auth is token, but token_secrets is not set: openssl rand -hex 32 makes"),
        ({"token_secrets": (SECRET, SECRET[1:])}, "^each of token_secrets must have at least 32 bytes$"),
        ({"auth": "token", "token_secrets": ("",)}, "^each of token_secrets must have at least 32 bytes$"),
        ({"api_keys": ("shop",)}, "^each of api_keys must be NAME:SCOPES:SHA256, e.g. shop:control"),
        ({"api_keys": (f"shop:all:{SHA256}",)}, "^each of api_keys must be NAME:SCOPES:SHA256"),
        ({"api_keys": (f"a:view:{SHA256}", f"b:view:{SHA256[1:]}")}, "^each of api_keys must be NAME:"),
        ({"tls_cert": "cert.pem"}, "^tls_cert and tls_key must be set together$"),
        ({"tls_key": "key.pem"}, "^tls_cert and tls_key must be set together$"),
    ],
)
def test_refused_settings(settings: dict[str, object], name: str) -> None:
    """Binding beyond loopback needs an explicit word, since there is no authentication."""
    values: dict[str, object] = {"redis": "unix:///x", "link_secret": "s"} | settings
    with pytest.raises(ValueError, match=name):
        GatewayConfig(**values)  # type: ignore[arg-type]


def test_an_open_gateway_is_possible_on_request() -> None:
    """With insecure, any address."""
    assert GatewayConfig(redis="unix:///x", link_secret="s", host="0.0.0.0", insecure=True)


@pytest.mark.parametrize(
    ("settings", "is_warned"),
    [
        ({"host": "0.0.0.0", "insecure": True}, True),
        ({"insecure": True}, False),
        ({"host": "0.0.0.0", "insecure": True, "auth": "token", "token_secrets": (SECRET,)}, False),
    ],
)
async def test_an_open_gateway_says_so_as_it_starts(
    world: World, caplog: pytest.LogCaptureFixture, settings: dict[str, object], is_warned: bool
) -> None:
    """One line, and none where insecure changes nothing."""
    async with world.gateway(**settings) as gateway:
        warned = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    sentence = f"insecure: whoever reaches {gateway.url} may use it, there is no authentication"
    assert warned == [sentence] * is_warned
