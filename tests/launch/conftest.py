"""Fixtures of the launcher's tests."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from bench.plugin import PACED, install, python_path
from tests.cluster import Cluster, free_port, running_cluster
from tests.patience import PATIENT, patient_redis  # noqa: F401 - one is a fixture


@pytest.fixture
def unused_port() -> int:
    """A TCP port on which nothing listens."""
    return free_port()


@pytest.fixture
def small_cluster() -> Iterator[Cluster]:
    """A running cluster with one engine of this test alone."""
    with running_cluster(*PATIENT, "--capacity", "1", engines=1) as running:
        yield running


@pytest.fixture(scope="module")
def paced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ...]]:
    """Arguments of `up` for a model that makes a chunk in a small share of its play time, whatever else the
    machine does, with up to eight sessions."""
    folder = tmp_path_factory.mktemp("paced")
    install(PACED, folder / "site")
    costs = folder / "costs.json"
    costs.write_text(json.dumps({"buckets": [12], "pass_ms": [list(range(4, 12))], "decode_ms": 1}))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in python_path(folder / "site").items():
            patch.setenv(name, value)
        yield ("--model", "paced", "--weights", str(costs))
