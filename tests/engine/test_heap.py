"""Free memory goes back to the system."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from engine.heap import release_free

BLOCK, BLOCKS = 100_000, 600
"""Below the size from which on each block is a mapping of its own."""


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not the GNU C library")
def test_memory_between_blocks_in_use_is_given_back() -> None:
    """Of many blocks every tenth stays in use, and the process shrinks by what the others held."""
    blocks = [bytearray(os.urandom(BLOCK)) for _ in range(BLOCKS)]
    kept = blocks[::10]
    del blocks
    before = resident_bytes()
    release_free()
    assert before - resident_bytes() > BLOCK * BLOCKS // 2
    assert all(any(block) for block in kept)
