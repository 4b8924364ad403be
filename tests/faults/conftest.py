"""Fixtures of the tests that have two engines of their own, `engines`, and one session on its way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator

import pytest
import pytest_asyncio

from tests.engine.conftest import random_weights  # noqa: F401 - a fixture
from tests.faults.stage import FaultyEngines, Script
from tests.patience import patient_redis  # noqa: F401 - a fixture
from tests.scheduler.conftest import RedisServer, start_redis

LAST_LINES = 15
"""Of each log."""


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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure is shown with what the engines have said last: only there the cause may stand."""
    report = yield
    engines = getattr(item, "funcargs", {}).get("engines")
    if report.failed and isinstance(engines, FaultyEngines):
        for log in sorted(engines.logs.glob("*.log")):
            last = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
            report.sections.append((log.name, "\n".join(last)))
    return report
