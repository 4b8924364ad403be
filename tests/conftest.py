"""Fixtures for all tests: a real Redis and real clusters."""

from __future__ import annotations

import asyncio
import asyncio.constants
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from launch import redis_server
from tests.cluster import FOREIGN_ORIGIN, Cluster, is_running, running_cluster, wait_for
from tests.patience import PATIENT
from tests.redis_process import RedisProcess

os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:2")  # see launch.roles.engine_environment

# asyncio's debug mode finds mistakes, and notes the stacks at which all futures, callbacks and coroutines are
# made, which takes two thirds of the time of a test. What does so asks `get_debug`; the checks do not.
asyncio.BaseEventLoop.get_debug = lambda self: False  # type: ignore[method-assign]
asyncio.constants.DEBUG_STACK_DEPTH = 0  # type: ignore[misc]

hypothesis.settings.register_profile("untimed", deadline=None)  # how long an example takes is the machine's
hypothesis.settings.load_profile("untimed")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object | None:
    """For `--dist loadfile`."""
    if config.getoption("dist") != "loadfile":
        return None
    from tests.spread import ByFile

    return ByFile(config, log)


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
    """A running cluster with two engines, shared: who kills processes of it asks for `restored_cluster`."""
    with running_cluster(*PATIENT, "--allowed-origins", FOREIGN_ORIGIN) as running:
        yield running


@pytest.fixture
def restored_cluster(cluster: Cluster) -> Iterator[Cluster]:
    """The same, for tests that kill some of its processes: it is whole again when the next test begins."""
    num_processes = len(cluster.pids(""))
    yield cluster

    def is_whole() -> bool:
        """Not if `up` has yet to notice that one is gone."""
        pids = cluster.pids("").values()
        return len(pids) == num_processes and all(map(is_running, pids))

    wait_for("all processes", is_whole)
    cluster.wait_ready(2)
