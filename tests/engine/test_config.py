"""Settings of an engine."""

from __future__ import annotations

import pytest

from engine.config import EngineConfig, visible_gpu
from engine.lifecycle import LifeLimits
from scheduler.messages import DecodeError, decode_fields

GOOD = {"engine_id": "e_00000001", "redis": "redis://localhost", "link_secret": "x"}


def test_defaults() -> None:
    """What must be given, and what need not."""
    config = decode_fields(EngineConfig, GOOD)
    assert (config.model, config.device, config.capacity, config.linger_s) == ("shapes", "cpu", 4, 30.0)


def test_the_limits_of_a_session_are_those_that_were_set() -> None:
    """In milliseconds."""
    seconds = {"linger_s": 1.0, "retain_s": 2.0, "idle_close_s": 3.0, "full_s": 4.0, "offload_after_s": 5.0}
    limits = decode_fields(EngineConfig, {**GOOD, **seconds}).life_limits
    assert limits == LifeLimits(
        linger_ms=1_000, retain_ms=2_000, idle_close_ms=3_000, full_ms=4_000, offload_ms=5_000
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("capacity", 0), ("threads", 0), ("crf", 52), ("link_port", 70_000), ("device", "tpu"),
        ("device", "cuda:x"), ("device", "cuda:"),
        ("engine_id", "zz"), ("engine_id", "e_0000000G"), ("link_host", "0.0.0.0"), ("link_host", "::"),
        ("linger_s", -1.0), ("link_secret", ""), ("collective_timeout_s", 0.0),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_named(name: str, value: object) -> None:
    """The sentence says which setting it is."""
    with pytest.raises(ValueError, match=name):
        decode_fields(EngineConfig, {**GOOD, name: value})


def test_a_missing_or_mistyped_setting_is_named() -> None:
    """So says the decoder."""
    with pytest.raises(DecodeError, match="redis"):
        decode_fields(EngineConfig, {"engine_id": "e_00000001", "link_secret": "x"})
    with pytest.raises(DecodeError, match="capacity"):
        decode_fields(EngineConfig, {**GOOD, "capacity": "many"})


def test_ranks_take_a_gpu_each() -> None:
    """One that is named is not enough for them."""
    with pytest.raises(ValueError, match="device must be cuda for 2 ranks"):
        decode_fields(EngineConfig, {**GOOD, "ranks": 2, "device": "cuda:1"})


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("cpu", None, None), ("cuda", None, None), ("cuda", "2,3", None), ("cuda:1", None, "1"),
        ("cuda:0", "2,3", "2"), ("cuda:1", "2, 3", "3"), ("cuda:1", "GPU-8f,MIG-5a", "MIG-5a"),
    ],
)  # fmt: skip
def test_a_named_gpu_becomes_the_only_one(device: str, visible: str | None, expected: str | None) -> None:
    """Counted among those that the process may see."""
    assert visible_gpu(device, visible) == expected


@pytest.mark.parametrize("visible", ["", "4", "-1"])
def test_a_gpu_that_is_not_there_is_refused(visible: str) -> None:
    """Before torch says something that nobody understands."""
    with pytest.raises(ValueError, match="cuda:1, but CUDA_VISIBLE_DEVICES"):
        visible_gpu("cuda:1", visible)
