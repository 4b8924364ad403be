"""Fixtures of the launcher's tests."""

from __future__ import annotations

import pytest

from tests.cluster import free_port


@pytest.fixture
def unused_port() -> int:
    """A TCP port on which nothing listens."""
    return free_port()
