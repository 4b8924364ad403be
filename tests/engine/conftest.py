"""Fixtures of the engine's tests: the real Redis of the store's tests, and random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.models.shapes.model import SHAPES, ShapesNet
from tests.patience import patient_redis  # noqa: F401 - fixture
from tests.scheduler.conftest import (  # noqa: F401 - fixtures
    cluster,
    own_redis,
    redis_server,
    redis_url,
    store,
)

torch.set_num_threads(1)  # passes of the tiny model are too small to share, and cores are few


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A weights file of the full `shapes` structure with random numbers."""
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in ShapesNet(SHAPES).state_dict().items()}, path)
    yield path
