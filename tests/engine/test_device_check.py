"""A GPU that has had a fault: the engine ends, and its sessions go on elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from engine.device_check import DeviceLost, check_device
from engine.encoder import SessionEncoder
from tests.engine.harness import Bench

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
ERROR = RuntimeError("the first that was noticed")


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU on which nothing works."""

    def fail(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", fail)


@pytest.mark.usefixtures("faulty")
def test_a_device_that_does_nothing_any_more_is_lost() -> None:
    """Its error says why, and what was noticed first."""
    with pytest.raises(DeviceLost, match="cuda:0 .*illegal memory access") as raised:
        check_device(CUDA, ERROR)
    assert raised.value.__cause__ is ERROR
    check_device(CPU, ERROR)


def test_a_device_that_works_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has been waited for: an error may show late."""
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    check_device(CUDA, ERROR)
    assert waited == [CUDA]


def in_a_pass(bench: Bench) -> None:
    bench.model.errors.append(ERROR)


def in_a_decode(bench: Bench) -> None:
    bench.model.decode_errors.append(ERROR)


def at_a_boundary(bench: Bench) -> None:
    bench.loop._stepper.begin = fail  # type: ignore[method-assign, assignment]


def fail(*args: object, **kwargs: object) -> None:
    raise ERROR


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device of any model."""

    def check(device: torch.device, error: BaseException) -> None:
        raise DeviceLost("nothing works") from error

    for module in ("compute", "passes", "residents"):
        monkeypatch.setattr(f"engine.{module}.check_device", check)


@pytest.mark.usefixtures("lost")
@pytest.mark.parametrize("damage", [in_a_pass, in_a_decode, at_a_boundary])
def test_a_lost_device_ends_the_loop_and_closes_no_session(damage: Callable[[Bench], None]) -> None:
    """Wherever it shows."""
    bench = Bench()
    session = bench.open("s_a")
    damage(bench)
    with pytest.raises(DeviceLost):
        bench.chunks(session, 1)
    bench.encoders.close()
    assert bench.failed() == []


@pytest.mark.usefixtures("lost")
def test_a_session_that_a_lost_device_cannot_open_is_not_closed() -> None:
    """It goes elsewhere."""
    bench = Bench()
    bench.loop._stepper.open = fail  # type: ignore[method-assign, assignment]
    with pytest.raises(DeviceLost):
        bench.chunks(bench.open("s_a"), 1)
    bench.encoders.close()
    assert bench.failed() == []


@pytest.mark.usefixtures("lost")
def test_a_device_that_is_lost_to_its_encoder_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames are encoded on it, too, on another thread."""
    monkeypatch.setattr(SessionEncoder, "encode", fail)
    bench = Bench()
    bench.open("s_a")
    with pytest.raises(DeviceLost):
        bench.step(1 + len(bench.model.spec.first_sigmas))
        bench.encoders.close()
        bench.step(1)
    assert bench.failed() == []
