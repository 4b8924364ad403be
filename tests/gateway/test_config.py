"""Settings that can't work are refused with a sentence that names them."""

from __future__ import annotations

import pytest

from gateway.config import GatewayConfig


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"host": "0.0.0.0"}, "insecure"),
        ({"host": "192.168.0.7"}, "host"),
        ({"port": 70_000}, "port"),
        ({"link_secret": ""}, "link_secret"),
        ({"queue_limit": 0}, "queue_limit"),
        ({"address_connections": 0}, "address_connections"),
        ({"start_timeout_s": 0.0}, "start_timeout_s"),
        ({"codecs": ("h264", "theora")}, "codecs"),
        ({"codecs": ()}, "codecs"),
        ({"recording_mib": 10, "recordings_mib": 5}, "recording_mib"),
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
