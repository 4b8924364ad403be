"""Fixtures of the browser tests. One Chromium serves a whole file; every test has a profile of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from playwright.async_api import Browser

from tests.browser.driver import chromium
from tests.browser.stream_server import StreamServer, stream_server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as instance:
        yield instance


@pytest_asyncio.fixture(loop_scope="module")
async def server() -> AsyncIterator[StreamServer]:
    async with stream_server() as instance:
        yield instance
