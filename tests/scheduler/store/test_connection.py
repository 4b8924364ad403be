"""What becomes of redis-py's errors."""

from __future__ import annotations

import asyncio

import pytest

from scheduler.store import StoreUnavailable
from scheduler.store.connection import mapped_errors


async def test_a_redis_that_does_not_answer_is_named_so() -> None:
    """The builtin TimeoutError has no text of its own, and a person reads this sentence."""
    with pytest.raises(StoreUnavailable, match="can't be reached: no answer in time"):
        async with mapped_errors(0.01):
            await asyncio.Event().wait()
