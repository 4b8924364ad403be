"""Fixtures of the launcher's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster import Cluster, free_port, running_cluster


@pytest.fixture
def unused_port() -> int:
    """A TCP port on which nothing listens."""
    return free_port()


@pytest.fixture
def small_cluster() -> Iterator[Cluster]:
    """A running cluster with one engine of this test alone."""
    with running_cluster(engines=1) as running:
        yield running
