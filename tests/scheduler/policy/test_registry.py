"""Policies by name."""

from __future__ import annotations

import pytest

from scheduler.policy.base import Memory, decode_memory, encode_memory
from scheduler.policy.registry import find_policy


def test_least_loaded_exists() -> None:
    """The default is there."""
    assert find_policy("least_loaded").name == "least_loaded"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("slack", "policy 'slack' is not available yet; available: least_loaded"),
        ("nonsense", "policy 'nonsense' does not exist; available: least_loaded"),
    ],
)
def test_other_names_say_what_there_is(name: str, sentence: str) -> None:
    """A policy that comes later is told apart from a misspelt one."""
    with pytest.raises(ValueError) as error:
        find_policy(name)
    assert str(error.value) == sentence


def test_memory_survives_its_encoding() -> None:
    """What one leader saves the next one reads."""
    memory = Memory(failures=2, retry_ms=5, release_interval_ms=1.5, released_ms=7)
    assert decode_memory(encode_memory(memory)) == memory


@pytest.mark.parametrize("data", [None, b"", b"[]", b"nonsense", b'{"failures": "x"}'])
def test_unreadable_memory_is_fresh(data: bytes | None) -> None:
    """A leader starts with what it can't read as with nothing."""
    assert decode_memory(data) == Memory()
