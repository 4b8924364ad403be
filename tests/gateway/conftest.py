"""Fixtures of the gateway's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.browser.stream_server import StreamServer, stream_server
from tests.gateway.gateway_fixtures import World, make_world
from tests.patience import patient_redis  # noqa: F401 - fixture


@pytest.fixture
async def world(redis_url: str) -> AsyncIterator[World]:
    """A cluster of this test alone on a real Redis."""
    async with make_world(redis_url) as world:
        yield world


@pytest.fixture
async def server() -> AsyncIterator[StreamServer]:
    """A scripted gateway for the Python client, whose chunks take no time to make."""
    async with stream_server() as instance:
        instance.faults.gen_s = 0
        yield instance
