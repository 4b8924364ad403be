"""Policies by name."""

from __future__ import annotations

import pytest

from scheduler.messages import EngineId
from scheduler.policy.base import Drain, Memory, Sample, decode_memory, encode_memory
from scheduler.policy.registry import find_policy

NAMES = "fixed, greedy_load, greedy_memory, least_loaded, round_robin, slack, turboserve"


@pytest.mark.parametrize("name", NAMES.split(", "))
def test_policies_have_names(name: str) -> None:
    assert find_policy(name).name == name


def test_another_name_says_what_there_is() -> None:
    with pytest.raises(ValueError) as error:
        find_policy("nonsense")
    assert str(error.value) == f"policy 'nonsense' does not exist; available: {NAMES}"


def test_memory_survives_its_encoding() -> None:
    """What one leader saves the next one reads."""
    memory = Memory(
        failures=2,
        retry_ms=5,
        release_interval_ms=1.5,
        released_ms=7,
        last_engine="e_1",
        window=(Sample(at_s=1, demand=2, arrivals=3),),
        closing=(EngineId("e_2"),),
        drains=(Drain(engine=EngineId("e_3"), ordered_ms=3, since_ms=4),),
        surplus_ms=9,
        start_ms=2.5,
        exits=(1.0, 0.5),
        exposure_s=(0.25,),
    )
    assert decode_memory(encode_memory(memory)) == memory


@pytest.mark.parametrize("data", [None, b"", b"[]", b"nonsense", b'{"failures": "x"}'])
def test_unreadable_memory_is_fresh(data: bytes | None) -> None:
    """A leader starts with what it can't read as with nothing."""
    assert decode_memory(data) == Memory()
