"""The mistakes that asyncio's debug mode finds are found in these tests, see conftest.py."""

from __future__ import annotations

import asyncio

import pytest


async def test_a_call_from_another_thread_is_found() -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(RuntimeError, match="Non-thread-safe"):
        await asyncio.to_thread(loop.call_soon, print)


async def test_a_coroutine_that_nobody_awaits_is_found() -> None:
    with pytest.warns(RuntimeWarning, match="was never awaited"):
        asyncio.sleep(0)  # type: ignore[unused-coroutine]
