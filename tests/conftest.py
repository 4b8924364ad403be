"""Fixtures for all tests: a real Redis and real clusters."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch import redis_server
from tests.cluster import Cluster, running_cluster
from tests.redis_process import RedisProcess


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """URL of one real Redis for all tests: each must use a cluster name of its own, none may stop it."""
    with tempfile.TemporaryDirectory(prefix="ts-redis-") as folder:
        files = redis_server.prepare(Path(folder))
        process = RedisProcess(redis_server.find_server(), files)
        process.start()
        yield files.url
        process.kill()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster with two engines, shared: leave its processes alone."""
    with running_cluster() as running:
        yield running


@pytest.fixture
def fresh_cluster() -> Iterator[Cluster]:
    """A running cluster with two engines of this test alone."""
    with running_cluster() as running:
        yield running
