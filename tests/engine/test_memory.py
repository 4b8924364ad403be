"""How many sessions fit into memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.kv_pool import SlabPool
from engine.memory import CPU_MARGIN, Room, _CpuMeter, make_meter, slot_bytes
from engine.models.shapes.model import TINY, ShapesModel

MODEL = ShapesModel.random(0, config=TINY)


def test_slots_fit_beside_workspace_and_margin() -> None:
    """Not one more; none where these alone take everything."""
    room = Room(free_bytes=1000, workspace_bytes=150, margin_bytes=100)
    assert room.num_slots(250) == 3 and room.num_slots(251) == 2
    assert Room(free_bytes=100, workspace_bytes=150, margin_bytes=100).num_slots(1) == 0


def test_slot_bytes_are_what_a_pool_holds_per_slot() -> None:
    """KV, prompt and decoder state."""
    pool = SlabPool(MODEL, slots=3)
    held = sum(t.numel() * t.element_size() for t in (pool.kv, pool.prompt_kv, pool.decoder))
    assert held == 3 * slot_bytes(MODEL)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A root folder with 8 GiB available, a peak of 300 MiB over 100 resident, no limit."""
    for path, text in {
        "proc/self/clear_refs": "",
        "proc/self/status": "Name:\tx\nVmHWM:\t 409600 kB\nVmRSS:\t 102400 kB\nThreads:\t1\n",
        "proc/meminfo": "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\nHugePages_Total: 0\n",
        "sys/fs/cgroup/memory.max": "max\n",
        "sys/fs/cgroup/memory.current": "0\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


def test_host_memory_is_what_is_available_half_of_it_left_to_others(machine: Path) -> None:
    """Workspace is the peak above what is resident at rest."""
    meter = _CpuMeter(machine)
    meter.begin()
    room = meter.room(0)
    assert (machine / "proc/self/clear_refs").read_text() == "5"
    assert (room.free_bytes, room.workspace_bytes) == (8 << 30, 300 << 20)
    assert room.margin_bytes == CPU_MARGIN * (8 << 30)


def test_a_container_has_what_its_limit_leaves(machine: Path) -> None:
    """Where that is less than the machine has."""
    (machine / "sys/fs/cgroup/memory.max").write_text(str(3 << 30))
    (machine / "sys/fs/cgroup/memory.current").write_text(str(1 << 30))
    assert _CpuMeter(machine).room(0).free_bytes == 2 << 30
    (machine / "sys/fs/cgroup/memory.max").unlink()
    assert _CpuMeter(machine).room(0).free_bytes == 8 << 30


def test_this_machine_can_be_measured() -> None:
    """A peak that was freed again counts as workspace."""
    meter = make_meter(torch.device("cpu"))
    meter.begin()
    block = torch.ones(256 << 20, dtype=torch.uint8)
    del block
    room = meter.room(0)
    assert room.workspace_bytes > 64 << 20, room
    assert room.num_slots(1 << 20) > 0, room
