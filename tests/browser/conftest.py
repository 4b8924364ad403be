"""Fixtures of the browser tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser

from tests.browser.driver import chromium
from tests.browser.stream_server import StreamServer, stream_server


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as instance:
        yield instance


@pytest.fixture
async def server() -> AsyncIterator[StreamServer]:
    async with stream_server() as instance:
        yield instance
