"""Fixtures of the tests that have two engines of their own, `engines`, and one session on its way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.engine.conftest import random_weights  # noqa: F401 - a fixture
from tests.faults.stage import FaultyEngines, Script
from tests.scheduler.conftest import RedisServer, start_redis


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """A server that the tests of a module may stop."""
    yield from start_redis()


@pytest_asyncio.fixture(loop_scope="module")
async def script(engines: FaultyEngines) -> AsyncIterator[Script]:
    """Of a new session, on the engines of the module."""
    script = Script(engines)
    yield script
    await script.end()
